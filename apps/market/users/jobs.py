"""What the users module has to tell others, as jobs in the transaction of the change."""

from __future__ import annotations

import msgspec

from springtide.jobs import job

__all__ = ["PersonChanged", "PersonJoined", "PersonRenamed"]


@job(kind="users.changed")
class PersonChanged(msgspec.Struct, frozen=True):
    """Somebody registered or changed their account; the handler reads what is there now."""

    person_id: int


@job(kind="users.joined")
class PersonJoined(msgspec.Struct, frozen=True):
    """Somebody registered: they can be told things, and are welcome."""

    person_id: int


@job(kind="users.renamed")
class PersonRenamed(msgspec.Struct, frozen=True):
    """Somebody has another username or address; the handler reads what is there now."""

    person_id: int
