"""The module's job beside the steps of its workflow: everybody hears what became of an order. And that of the
release before, which went on with one."""

from __future__ import annotations

import msgspec

from springtide.context import Priority
from springtide.jobs import job

__all__ = ["Advance", "Tell"]


@job(kind="orders.tell", priority=Priority.CRITICAL, max_run=30.0, max_attempts=100, max_backoff=300.0)
class Tell(msgspec.Struct, frozen=True):
    order_id: int


@job(kind="orders.advance", priority=Priority.CRITICAL, max_run=30.0, max_backoff=300.0)
class Advance(msgspec.Struct, frozen=True):
    """Of the release before: see `adopting.py`."""

    order_id: int
