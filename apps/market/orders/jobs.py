"""The module's one job beside the steps of its workflow: everybody hears what became of an order."""

from __future__ import annotations

import msgspec

from springtide.context import Priority
from springtide.jobs import job

__all__ = ["Tell"]


@job(kind="orders.tell", priority=Priority.CRITICAL, max_run=30.0, max_attempts=100, max_backoff=300.0)
class Tell(msgspec.Struct, frozen=True):
    order_id: int
