"""The queue for connections: priority class first, then first come first served.

Pure bookkeeping around futures: who is next, who has left. A waiter is in the line until it is popped,
removed or its future is done; popping never returns one that has already left.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from springtide.context import Priority

if TYPE_CHECKING:
    from springtide.db._link import Link

__all__ = ["Line", "Waiter"]


class Waiter:
    """One caller that waits, until `timer`; whoever resolves `future` has handed a connection over."""

    __slots__ = ("future", "priority", "timer")

    timer: asyncio.TimerHandle

    def __init__(self, future: asyncio.Future[Link], priority: Priority) -> None:
        self.future = future
        self.priority = priority


class Line:
    __slots__ = ("_classes", "_length")

    def __init__(self) -> None:
        self._classes: tuple[OrderedDict[Waiter, None], ...] = tuple(OrderedDict() for _ in Priority)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def critical(self) -> int:
        return len(self._classes[Priority.CRITICAL])

    def add(self, waiter: Waiter) -> None:
        self._classes[waiter.priority][waiter] = None
        self._length += 1

    def remove(self, waiter: Waiter) -> None:
        """Take `waiter` out; nothing happens when it is not in the line."""
        line = self._classes[waiter.priority]
        if waiter in line:
            del line[waiter]
            self._length -= 1

    def pop(self, *, critical_only: bool = False) -> Waiter | None:
        """The next waiter who still waits, taken out of the line; None when there is none."""
        for line in self._classes[:1] if critical_only else self._classes:
            while line:
                waiter, _ = line.popitem(last=False)
                self._length -= 1
                if not waiter.future.done():
                    return waiter
        return None
