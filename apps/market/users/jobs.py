"""What the users module has to tell others, as jobs in the transaction of the change."""

from __future__ import annotations

import msgspec

from springtide.jobs import job

__all__ = ["PersonChanged", "PersonJoined", "PersonPictured", "PersonRenamed"]


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


@job(kind="users.pictured", max_attempts=40)
class PersonPictured(msgspec.Struct, frozen=True):
    """Somebody has another picture, or none; the handler reads what is there now.

    Tried for more than a day: a medium that it has not told of is deleted after one.
    """

    person_id: int
