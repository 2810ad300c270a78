"""The module's jobs: one message each, what a deletion leaves, and who hears of a disabled endpoint."""

from __future__ import annotations

import msgspec

from springtide.jobs import job

__all__ = ["MAX_PAUSE", "Deliver", "Erase", "TellDisabled"]

MAX_PAUSE = 14_400.0
"""Seconds: the longest pause between two tries, whatever an endpoint asks for."""


@job(
    kind="webhooks.deliver", max_attempts=30, backoff=5.0, max_backoff=MAX_PAUSE, max_run=30.0, concurrency=1
)
class Deliver(msgspec.Struct, frozen=True):
    """Tried for about three days, later each time. One at a time per endpoint (the limit key); those of one
    subject in their order (the ordering key)."""

    seller: int
    message: int


@job(kind="webhooks.erase")
class Erase(msgspec.Struct, frozen=True):
    """The messages of an endpoint that is gone."""

    seller: int
    endpoint: int


@job(kind="webhooks.disabled", max_attempts=30)
class TellDisabled(msgspec.Struct, frozen=True):
    """`version` is the one that the endpoint got by it."""

    seller: int
    endpoint: int
    version: int
