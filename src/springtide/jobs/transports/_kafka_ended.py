"""Which offset of one partition may be committed: the first that has not ended.

    received -> in hand -> with a worker -> ended -> committed, once every one before it has ended too

So whoever gets the partition next, after a crash or a move, begins at or before the first message that has
not ended: some come twice, none is passed over.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Ended"]


class Ended:
    """One time that this process has the partition. Offsets are received in ascending order."""

    def __init__(self) -> None:
        self.gone = False
        """Others have it: nothing that is known here counts any more."""
        self.at_end = False
        """Nothing is known to be there that was not received."""
        self.position = 0
        """What may be committed: everything before it has ended. Nothing is while it is 0."""
        self._open: OrderedDict[int, bool] = OrderedDict()  # whose first is found at once

    def __len__(self) -> int:
        """How many cannot be committed yet."""
        return len(self._open)

    def received(self, offset: int) -> None:
        self.at_end = False
        self._open[offset] = False

    def ended(self, offset: int) -> bool:
        """True when `position` has changed. An offset that was never received changes nothing."""
        if offset not in self._open:
            return False
        self._open[offset] = True
        before = self.position
        while self._open and self._open[first := next(iter(self._open))]:
            del self._open[first]
            self.position = first + 1
        return self.position != before
