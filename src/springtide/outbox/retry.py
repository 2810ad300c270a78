"""When work that failed is tried again, and what is kept of the failure; pure.

Pause before run n + 1: min(backoff * 2**(n - 1), max_backoff) seconds, multiplied by `spread` in [0.5, 1.5),
so that what failed together does not come back together; never less than what the failure asked for
(`Unavailable.retry_after`).
"""

from __future__ import annotations

from springtide.errors import Unavailable

__all__ = ["describe", "pause"]

MAX_ERROR_CHARS = 2000


def pause(attempt: int, error: BaseException, *, backoff: float, max_backoff: float, spread: float) -> float:
    """Seconds until the next run, after run `attempt` (from 1) ended with `error`."""
    seconds = min(backoff * 2.0 ** min(attempt - 1, 60), max_backoff) * spread
    if isinstance(error, Unavailable) and error.retry_after is not None:
        return max(seconds, min(error.retry_after, max_backoff))
    return seconds


def describe(error: BaseException) -> str:
    """One line for people; NUL, which PostgreSQL's text cannot hold, is replaced."""
    text = f"{type(error).__name__}: {error}".replace("\0", "\N{REPLACEMENT CHARACTER}")
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_ERROR_CHARS else text[: MAX_ERROR_CHARS - 1] + "…"
