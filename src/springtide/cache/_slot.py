"""What one process has heard of one slot, and until when that proves its values fresh.

A slot is one class on one database cluster; `{name}` is the hash tag of all its keys. Its stream has two
kinds of entries, each with the slot's sequence:

    void   fields were invalidated; the sequence is one more than before
    beat   a relay's round: whatever was committed before the round began has been voided before this entry.
           Relay and number name the round; the sequence is that of the last void

What the process has heard is whole up to `position`: an entry that does not continue it shows a *gap* (the
stream was trimmed, or it or the sequence was lost), and what the process holds may lack an invalidation.

    new -> following  `begin`: another server process, another epoch of the database and a gap begin anew,
                      with the next `generation` and nothing held
        -> proven     `good_until` > now; time alone ends that, and the next proof begins it again

The proof is a moment of this process's monotonic clock: everything committed before it has been heard.
Whoever holds values may give them out while now < proof + share, which is `good_until`. Nobody has to
notice that a reader is late, cut off or frozen: the moment passes by itself.

    without a relay  a read of the stream was sent at t, and the sequence was asked for with it, after it.
                     When all up to that sequence has been heard, everything voided before t has
    with a relay     a read sent at t came back complete without round N; so N ended after t. A later round
                     of the same relay began after N ended; so, once that is heard, everything committed
                     before t has been voided, in entries that came before it. Rounds of two relays say
                     nothing about each other, so another relay proves nothing before its second round

That needs no clock of another machine. CLOCK_MONOTONIC stands still while a machine is suspended (not while a
process is stopped): for at most `share` after it wakes, values may be older than the share by that pause.

Pure: entries and times are handed in; `_bus.py` reads.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["EVERYTHING", "Slot", "round_text"]

EVERYTHING = "*"
"""The field of a void that means the whole slot."""

MAX_RECENT = 4096
"""Fields whose last void is remembered, for values that are on their way while it is heard."""

NEVER = float("-inf")

_NAME = re.compile(r"[A-Za-z0-9_.@#/-]{1,128}")


def round_text(relay: str, number: int) -> str:
    """What the beat of a relay's round says. `relay` names one run of one relay."""
    return f"{relay} {number}"


class Slot:
    """One slot as this process knows it.

    share:   seconds that an invalidation may take until it is heard here; then nothing is given out.
    relayed: its database has a relay, whose rounds prove what was committed; else only voids count.
    heard:   called with the fields of each void and its sequence, in order; with `EVERYTHING` when all that
             is held has to go.
    """

    __slots__ = (
        "_beat", "_complete", "_floor", "_heard", "_recent", "_target", "gaps", "generation", "good_until",
        "last_id", "name", "position", "proof", "relayed", "scope", "share",
    )  # fmt: skip

    def __init__(
        self, name: str, *, share: float, relayed: bool, heard: Callable[[Sequence[str], int], Any]
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"a slot's name is 1 to 128 letters, digits and _.@#/-, got {name!r}")
        if not share > 0:
            raise ValueError(f"share must be > 0 seconds, got {share}")
        self.name = name
        self.share = share
        self.relayed = relayed
        self._heard = heard
        self.scope = ""
        """Of the keys it follows: empty while it follows none."""
        self.position = 0
        """All voids up to this sequence have been heard."""
        self.last_id = "0-0"
        """Of the stream: what has been read."""
        self.generation = 0
        """How often everything had to go."""
        self.gaps = 0
        self.proof = NEVER
        self.good_until = NEVER
        """While the monotonic clock is below it, values may be given out."""
        self._complete = NEVER
        """Everything that was in the stream at this moment has been heard."""
        self._beat: tuple[str, int, float] | None = None
        """The last relay's round, and a moment before it ended."""
        self._target: tuple[int, float] | None = None
        """The sequence as it was asked for at a moment, which has not all been heard yet."""
        self._recent: OrderedDict[str, int] = OrderedDict()
        self._floor = 0

    @property
    def prefix(self) -> str:
        """What its keys begin with."""
        return f"{{{self.name}}}:{self.scope}:"

    def begin(self, scope: str, position: int, last_id: str, sent: float) -> None:
        """Follow the stream of `scope` from here on: `position` and `last_id` were read together, by a call
        that was sent at `sent`."""
        self.end()
        self.scope, self.position, self.last_id = scope, position, last_id
        self._floor = position
        self._complete = sent
        if not self.relayed:
            self._prove(sent)

    def end(self) -> None:
        """Follow nothing, hold nothing."""
        self.scope, self.position, self.last_id = "", 0, "0-0"
        self.generation += 1
        self.proof = self.good_until = self._complete = NEVER
        self._beat = self._target = None
        self._recent.clear()
        self._heard((EVERYTHING,), 0)

    def void(self, entry_id: str, sequence: int, fields: Sequence[str]) -> bool:
        """Hear that fields were invalidated; False for a gap: the caller must `begin` anew."""
        self.last_id = entry_id
        if sequence != self.position + 1:
            return self.gap()
        self.position = sequence
        self._remember(fields)
        self._heard(fields, sequence)
        return True

    def beat(self, entry_id: str, sequence: int, said: str) -> bool:
        """Hear of a relay's round (`round_text`); False for a gap."""
        self.last_id = entry_id
        if sequence != self.position:
            return self.gap()
        relay, _, number = said.rpartition(" ")
        if not number.isdecimal():
            return True  # of a version that says something else, which proves nothing to this one
        before, self._beat = self._beat, (relay, int(number), self._complete)
        if before is not None and before[0] == relay and before[1] < int(number):
            self._prove(before[2])
        return True

    def complete(self, sent: float) -> None:
        """A read that was sent at `sent` brought all there was; its entries have been heard."""
        self._complete = max(self._complete, sent)

    def asked(self, sequence: int | None, sent: float) -> bool:
        """The sequence, asked for at `sent` after a read; None: it is not there. False for a gap."""
        if sequence is None or sequence < self.position:
            return self.gap()
        if self._target is not None:
            wanted, since = self._target
            if self.position < wanted:
                if self._complete > since:
                    return self.gap()  # a later read was complete, and did not bring it
                return True
            self._target = None
            self._prove(since)
        if self.position >= sequence:
            self._prove(sent)
        else:
            self._target = (sequence, sent)
        return True

    def admits(self, fields: Sequence[str], sequence: int, generation: int) -> bool:
        """Whether a value that was valid at `sequence` has not been voided since, as far as has been heard;
        what is heard later is `heard`'s matter. `generation` is that of before the value was asked for."""
        if generation != self.generation or not self.scope or sequence < self._floor:
            return False
        return sequence >= self.position or all(self._recent.get(field, 0) <= sequence for field in fields)

    def _prove(self, moment: float) -> None:
        if moment > self.proof:
            self.proof = moment
            self.good_until = moment + self.share

    def _remember(self, fields: Sequence[str]) -> None:
        for field in fields:
            if field == EVERYTHING:
                self._floor = self.position
                self._recent.clear()
                return
            self._recent[field] = self.position
            self._recent.move_to_end(field)
        while len(self._recent) > MAX_RECENT:
            _, sequence = self._recent.popitem(last=False)
            self._floor = max(self._floor, sequence)

    def gap(self) -> bool:
        """Something is missing, so nothing can be held; False."""
        self.gaps += 1
        self.end()
        return False
