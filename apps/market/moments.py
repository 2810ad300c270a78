"""Points in time as market keeps and shows them: UTC, to the millisecond."""

from __future__ import annotations

from datetime import UTC, datetime

from springtide.clock import Clock

__all__ = ["iso", "moment"]


def moment(clock: Clock) -> datetime:
    """Now, without the microseconds that no client would see: what is stored is what is shown."""
    return datetime.fromtimestamp(int(clock.now() * 1000) / 1000, UTC)


def iso(at: datetime) -> str:
    """`2026-11-20T22:21:12.345Z`."""
    if at.tzinfo is not UTC:  # what the database answers is UTC already
        at = at.astimezone(UTC)
    return f"{at.isoformat(timespec='milliseconds')[:-6]}Z"
