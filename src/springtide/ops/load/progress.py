"""How far a long work has come: one line kept up to date on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TextIO

__all__ = ["LiveLine", "Progress", "ProgressBar", "Silent"]

BAR = 24


class Progress(Protocol):
    def advance(self, what: str, count: int) -> None:
        """`count` more are done; `what` is what is being made now."""


class Silent:
    """Shows nothing; for programs and tests."""

    def advance(self, what: str, count: int) -> None:
        return None


class LiveLine:
    """Shows a line in place of the one before on a terminal; elsewhere one line after the other."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.terminal = stream.isatty()
        self._width = 0

    def show(self, line: str) -> None:
        if self.terminal:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the last line on the screen and go on below it."""
        if self.terminal and self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0


class ProgressBar:
    """Counts towards `total`, which may be an estimate; shows rate and time left, from the first rows on.

    At most one line in `interval` seconds; None means 0.1 on a terminal and 5 elsewhere.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        total: int = 0,
        interval: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.done = 0
        self._line = LiveLine(stream)
        self._interval = interval if interval is not None else (0.1 if self._line.terminal else 5.0)
        self._now = now
        self._shown = now()
        self._first: tuple[float, int] | None = None
        """When the first rows were done, and how many: the time until then says nothing about the rate."""

    def expect(self, total: int) -> None:
        self.total = total

    def advance(self, what: str, count: int) -> None:
        self.done += count
        now = self._now()
        if self._first is None and count:
            self._first = (now, self.done)
        if now - self._shown >= self._interval:
            self._shown = now
            self._line.show(self.text(what, now))

    def end(self) -> None:
        self._line.end()

    def text(self, what: str, now: float) -> str:
        begun, before = self._first or (now, 0)
        rate = (self.done - before) / (now - begun) if now > begun else 0.0
        pace = f"  {rate:,.0f}/s" if rate else ""
        if not self.total:
            return f"{what}: {self.done:,} rows{pace}"
        share = min(self.done / self.total, 0.999)
        bar = "#" * int(share * BAR)
        left = f"  {_span(max(self.total - self.done, 0) / rate)} left" if rate else ""
        return (
            f"[{bar:<{BAR}}] {share:5.1%}  {what:<12} {self.done:,} of about {self.total:,} rows{pace}{left}"
        )


def _span(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d} min" if whole >= 60 else f"{whole} s"
