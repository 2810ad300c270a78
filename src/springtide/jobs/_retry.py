"""When a job that failed is tried again; pure. See `springtide.outbox.retry`."""

from __future__ import annotations

from springtide.jobs.job import JobKind
from springtide.outbox.retry import describe, pause

__all__ = ["delay", "describe"]


def delay(spec: JobKind, attempt: int, error: BaseException, spread: float) -> float:
    """Seconds until the next run, after run `attempt` (from 1) ended with `error`."""
    return pause(attempt, error, backoff=spec.backoff, max_backoff=spec.max_backoff, spread=spread)
