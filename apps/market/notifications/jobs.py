"""The module's jobs: one mail each, and one push to one browser each, so that none repeats another.

`waits` counts how often it stepped aside because too many were on their way at once.
"""

from __future__ import annotations

import msgspec

from springtide.jobs import job

__all__ = ["SendMail", "SendPush"]


@job(kind="notifications.mail", max_attempts=60, backoff=5.0, max_backoff=1_800.0, max_run=60.0)
class SendMail(msgspec.Struct, frozen=True):
    """Tried for about a day."""

    recipient: int
    number: int
    waits: int = 0


@job(kind="notifications.push", max_attempts=20, backoff=5.0, max_backoff=1_800.0, max_run=30.0)
class SendPush(msgspec.Struct, frozen=True):
    """Tried for some hours; what is older than a day is not pushed any more."""

    recipient: int
    number: int
    subscription: int
    waits: int = 0
