"""The module's one job: go on with an order until it is at its end and everybody knows."""

from __future__ import annotations

import msgspec

from springtide.context import Priority
from springtide.jobs import job

__all__ = ["Advance"]


@job(kind="orders.advance", priority=Priority.CRITICAL, max_run=30.0, max_backoff=300.0)
class Advance(msgspec.Struct, frozen=True):
    order_id: int
