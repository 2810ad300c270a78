"""Where numbering begins to look for appended events, so that it does not pass what was numbered long ago.

While any transaction of the server is open, PostgreSQL keeps the index entries of what was deleted since it
began. Events leave `_event_new` when they are numbered, and a look that began at the lowest `seq` would pass
all of those again, each time. So a worker remembers a *floor*: below it, nothing is left to be numbered but
what transactions still running appended.

The proof needs an order: whoever appends takes a transaction number first and draws `seq` after that. Look k
is one call: it reads h_k, the last `seq` that was drawn; then takes a transaction number n_k of its own
(where h_k is news); then takes a snapshot S_k, and numbers all that S_k shows from the floor on.

By S_k, n_(k-1) has ended, so S_k lists every running transaction below it. Whoever drew a `seq` up to
h_(k-1) has a number below n_(k-1): it is listed as running, or it has ended and look k numbered what it left.
So the floor rises to h_(k-1) + 1, and

    pending_k = {x in running(S_k): x < n_(k-1)}

may have events below it. A transaction that was not pending one look earlier has a number of at least
n_(k-2), so its events are above h_(k-2): when it has ended, a look goes back to there. While it runs it costs
nothing. Any number of workers may look, each with a floor of its own: what a look proves does not depend on
who numbered what before.

The floor is forgotten when more than MAX_PENDING are running, or when the sequence went back (another
server). Pure: nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MAX_PENDING", "Floor", "Look"]

MAX_PENDING = 200
"""Running transactions that a floor remembers; with more there is none."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look saw and did. `running` is None where it looked for nothing, because there was no news.

    moved: events that it numbered; `last` is the highest `seq` of them; `full` when it was as many as asked.
    """

    drawn: int
    number: int | None
    running: Sequence[int] | None
    moved: int = 0
    last: int | None = None
    full: bool = False


class Floor:
    """`value`, `pending` and `before` are given to the next look."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Look from the beginning."""
        self.value = 0
        self.pending: dict[int, int] = {}
        """Running transactions that may have events below the floor, and where those can begin."""
        self.before = -1
        """The last `seq` drawn, as of the last look that took a number."""
        self._last: tuple[int, int] | None = None
        self._earlier: tuple[int, int] | None = None

    def advance(self, look: Look) -> bool:
        """Take in a look that was made with the present floor; whether the next one should come at once."""
        if look.drawn + 1 < self.value:
            self.forget()
            return True
        if look.running is None:
            return False
        last = self._last
        if last is not None:
            drawn, number = last
            start = 0 if self._earlier is None else self._earlier[0] + 1
            running = [x for x in look.running if x < number]
            self.pending = {x: self.pending.get(x, start) for x in running}
            self.value = max(self.value, drawn + 1)
            if len(running) > MAX_PENDING:
                self.forget()
                return look.full
        if look.full and look.last is not None:
            self.value = min(self.value, look.last + 1)
        if look.number is not None:
            self._earlier, self._last = last, (look.drawn, look.number)
            self.before = look.drawn
        return look.full
