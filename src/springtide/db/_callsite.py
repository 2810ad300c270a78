"""Which lines of the application asked for a statement: `store.py:41 find < service.py:88 page`.

The frames of the running coroutines are walked outwards; those of this library, of Python and of installed
packages do not count. A statement that is a task of its own (`gather(pool.fetch_one(...), ...)`) has no
frame of the application above it: then the place where its coroutine was made is used, which Python notes
only while it is asked to (`Origins`). Under SQLAlchemy the statement runs in a greenlet, whose parents are
walked too. Costs a few microseconds, so it is asked for repeated statements alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import FrameType

__all__ = ["Origins", "call_site"]

MAX_FRAMES = 60
LINES = 3
"""How many of the application's frames one call site names: the innermost, and who called it."""

ORIGIN_DEPTH = 8

_OURS = str(Path(__file__).resolve().parents[1]) + os.sep
_PYTHON = tuple(str(Path(sysconfig.get_path(key)).resolve()) + os.sep for key in ("stdlib", "platstdlib"))
_LOOPS = ("/asyncio/events.py", "/asyncio/base_events.py", "/asyncio/runners.py", "/uvloop/__init__.py")
_INSTALLED = ("/site-packages/", "/dist-packages/")


@lru_cache(maxsize=4096)
def _shown(file: str) -> str | None:
    """The file as it is shown; None when it is not the application's."""
    if file.startswith(("<frozen", _OURS)) or any(part in file for part in _INSTALLED):
        return None
    if file.startswith(_PYTHON):
        return None
    return "/".join(Path(file).parts[-3:])


def call_site() -> str | None:
    """The innermost lines of the application, or None when no frame of it leads here."""
    found: list[str] = []
    for file, line, name in _frames():
        if (shown := _shown(file)) is not None:
            found.append(f"{shown}:{line} {name}")
            if len(found) == LINES:
                break
    if found:
        return " < ".join(found)
    return _origin()


def _frames() -> Iterator[tuple[str, int, str]]:
    yield from _walk(sys._getframe(2))
    if "greenlet" in sys.modules:
        greenlet = sys.modules["greenlet"].getcurrent().parent
        while greenlet is not None:
            if greenlet.gr_frame is not None:
                yield from _walk(greenlet.gr_frame)
            greenlet = greenlet.parent


def _walk(frame: FrameType | None) -> Iterator[tuple[str, int, str]]:
    for _ in range(MAX_FRAMES):
        if frame is None or frame.f_code.co_filename.endswith(_LOOPS):
            return  # whoever runs the event loop has not asked for this statement
        yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back


def _origin() -> str | None:
    """Where the running task's coroutine was made, if that was noted."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return None
    made: Iterable[tuple[str, int, str]] = getattr(task and task.get_coro(), "cr_origin", None) or ()
    found = [f"{shown}:{line} {name}" for file, line, name in made if (shown := _shown(file)) is not None]
    return " < ".join(found[:LINES]) or None


class Origins:
    """Asks Python to note where coroutines are made, for a moment and only a few times.

    Noting costs about a microsecond for every coroutine of the thread. Where somebody else asks for it
    already (asyncio's debug mode), nothing is changed.
    """

    MAX_TIMES = 16

    def __init__(self) -> None:
        self._times = 0
        self.on = False

    def want(self) -> None:
        if not self.on and self._times < self.MAX_TIMES and not sys.get_coroutine_origin_tracking_depth():
            self._times += 1
            self.on = True
            sys.set_coroutine_origin_tracking_depth(ORIGIN_DEPTH)

    def enough(self) -> None:
        if self.on:
            self.on = False
            sys.set_coroutine_origin_tracking_depth(0)
