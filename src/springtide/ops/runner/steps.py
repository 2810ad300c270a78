"""What is being done about the primary of a cluster, step by step.

A step ends, fails, or is cut off at its bound. Each is in the log when it begins, and one that lasts longer
than `LATE` is told in the status. A step that waits for the disk is cut off when the disk answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from springtide.errors import RunnerError

__all__ = ["LATE", "Steps"]

_log = logging.getLogger(__name__)

LATE = 3.0


class Steps:
    """async with steps("promote r1", 70.0): ...

    `say` is told which step is late; who goes on after the last one takes that back.
    """

    def __init__(self, cluster: str, *, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._say = say

    @asynccontextmanager
    async def __call__(self, what: str, seconds: float) -> AsyncIterator[None]:
        """Raises RunnerError, which names the step, when it lasts longer than `seconds`."""
        _log.info("cluster %s: %s", self._cluster, what)
        late = f"cluster {self._cluster} is to {what}, at most {seconds:g} s: that takes longer than usual"
        timer = asyncio.get_running_loop().call_later(LATE, self._say, late)
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise RunnerError(f"cluster {self._cluster} could not {what} within {seconds:g} s") from None
        finally:
            timer.cancel()
