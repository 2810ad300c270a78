"""When a loaded value may be kept. The reference for lua/fill.lua; nothing here does I/O.

A value was read from a *snapshot* of one server (`Seen`). Every write that invalidates a field leaves the
xid of its transaction behind as the field's *tombstone*. A value may be kept only if nothing that
invalidated its key or one of its tags is missing from its snapshot:

    on the primary   every xid of the tombstones has finished in the snapshot
    on a standby     every xid is below the snapshot's xmin: it does not know what is in progress on its
                     primary, so "not listed as running" says nothing there

Tombstones cannot stay for ever. The relay beats; beat n answers round n, and *then* the relay asks the
primary for a snapshot (`Mark` n): what was voided before round n has finished in it. So once a mark of
round n stands as the *horizon*, tombstones of rounds before n may go, if from then on

    on the primary   the snapshot has to cover the horizon: what had finished there has finished here
    on a standby     its xmin has to have reached the horizon's xmax

Comparing xmax alone is not enough: a transaction that was open in the loader's snapshot may have committed,
been voided and forgotten, while no later one began. A transaction that is open in both is no obstacle, so a
write that is open for hours costs fills from standbys, never those from the primary.

A field that many transactions void keeps the greatest xid and the round in which the last one came instead
of a list ("collapsed"). Then every xid up to it counts: it has to be below xmin, or (on the primary) the
snapshot has to cover the newest mark, if that is of a later round. A transaction with a lesser xid that was
open all the while, also in that mark, comes last and makes the round anew.

Absence refuses: the horizon lies in the key that the younger tombstones lie in, and names the older
generation that belongs to it, so whatever is lost takes the horizon with it. The next beat begins another
life, and marks of before are void.

All of this judges what was voided *before* some moment, and that may be when the loader's lease was taken
(`Known`): the script that gives the lease tells horizon, marks and tombstones as they are then. A void that
changes the tombstone of a key deletes its lease in the same script, and one that changes nothing is of a
transaction that was in the tombstone when it was told. So while the lease is there, nothing was voided
since; what was admissible at the lease is admissible still, and it does not matter what has become of
horizon and tombstones. A lease that was lost with them, has ended or is another's refuses. (`clear`, the
only one to void "*", deletes all leases itself, and then all values.) Tags are voided without a look at who
depends on them, so values of classes with tags are judged by lua/fill.lua, as is a writer who puts without
a lease, and what is not admissible by what came with the lease.

Without a database there are no snapshots. Then the lease alone decides: it was taken before the load, an
invalidation deletes it, and a tag must not have been voided after the sequence that came with the lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from springtide.db.seeing import Seen

__all__ = ["MOST_XIDS", "Known", "Mark", "Refusal", "Rounds", "Tombstone", "admissible", "covers"]

MOST_XIDS = 8
"""What a tombstone lists; lua/void.lua has the same number."""


class Refusal(StrEnum):
    """Why a value was not kept. Its reader has it all the same."""

    LEASE = "lease"
    """The lease is not the one that was taken: invalidated, expired, lost, or another loader has it."""

    HORIZON = "horizon"
    """There is none: tombstones were lost, or the relay has not beaten yet."""

    EARLY = "early"
    """The snapshot is older than the horizon: a slow load, or a standby far behind."""

    UNSEEN = "unseen"
    """A transaction that invalidated the value is not in the snapshot."""

    SCOPE = "scope"
    """It was read from another cluster or timeline than the one whose values these are."""

    OVERSIZED = "oversized"
    """It is longer than its class keeps."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A snapshot of the primary, taken after round `round` of one life had been answered."""

    round: int
    xmax: int
    running: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Mark:
        round, xmax, running = text.split(";")
        return cls(int(round), int(xmax), _numbers(running))

    def __str__(self) -> str:
        return f"{self.round};{self.xmax};{','.join(map(str, self.running))}"


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Who voided a field: all of `xids`; or, collapsed, perhaps everybody up to `most`, last in `round`."""

    xids: tuple[int, ...] = ()
    most: int | None = None
    round: int = 0

    @classmethod
    def parse(cls, text: str) -> Tombstone:
        if text[0] != "<":
            return cls(_numbers(text))
        most, _, round = text[1:].partition("@")
        return cls(most=int(most), round=int(round))

    def merged(self, xid: int, round: int) -> Tombstone:
        """With one more. The same object when it changes nothing: whatever was kept since has seen `xid`.

        A collapsed one does not say who is in it. Round r + 2 tells the first mark that is newer than a
        tombstone of round r, so until then nothing was kept that lacks anybody up to `most`; from then on
        `xid` may be one that was open in the mark, and comes in this round.
        """
        if self.most is not None:
            if xid <= self.most and round <= self.round + 1:
                return self
            return Tombstone(most=max(xid, self.most), round=round)
        if xid in self.xids:
            return self
        if len(self.xids) >= MOST_XIDS:
            return Tombstone(most=max(*self.xids, xid), round=round)
        return Tombstone((*self.xids, xid))

    def __str__(self) -> str:
        return f"<{self.most}@{self.round}" if self.most is not None else ",".join(map(str, self.xids))


def finished(seen: Seen, xid: int) -> bool:
    """Is it certain that `xid` had ended in this snapshot?"""
    if xid < seen.xmin:
        return True
    return not seen.standby and xid < seen.xmax and xid not in seen.running


def covers(seen: Seen, mark: Mark) -> bool:
    """Is it certain that all that had ended in `mark` had ended in this snapshot?"""
    if seen.xmin >= mark.xmax:
        return True
    if seen.standby or seen.xmax < mark.xmax:
        return False
    return all(xid >= mark.xmax or xid in mark.running for xid in seen.running)


def admissible(
    seen: Seen,
    tombstones: Iterable[Tombstone],
    *,
    horizon: Mark | None,
    newest: Mark | None = None,
    own: int | None = None,
) -> Refusal | None:
    """None when a value that was read from `seen` may be kept, against the tombstones of its key and its
    tags.

    newest: the latest mark of the relay. own: the xid of the writer itself, who knows what it wrote.
    """
    if horizon is None:
        return Refusal.HORIZON
    if not covers(seen, horizon):
        return Refusal.EARLY
    for tombstone in tombstones:
        if tombstone.most is not None:
            if tombstone.most < seen.xmin:
                continue
            later = newest is not None and tombstone.round < newest.round
            if seen.standby or newest is None or not later or not covers(seen, newest):
                return Refusal.UNSEEN
        elif not all(xid == own or finished(seen, xid) for xid in tombstone.xids):
            return Refusal.UNSEEN
    return None


class Known:
    """What a slot knew of one name when its lease was taken; most have no tombstones, so it is read late.

    said: as lua/get.lua tells it, for all names of that call. at: where the tombstones of this one are.
    """

    __slots__ = ("_at", "_said")

    def __init__(self, said: Sequence[bytes | None], at: int) -> None:
        self._said = said
        self._at = at

    def admits(self, seen: Seen) -> bool:
        """Whether nothing that was voided before the lease is missing from this snapshot."""
        said, at = self._said, self._at
        high, open, now = said[:3]
        tombstones = [text for text in said[at : at + 2] if text is not None]
        if high is None:
            return False
        if not tombstones and seen.xmin >= int(high):
            return True
        horizon = Mark(0, int(high), _numbers((open or b"").decode()))
        newest = Mark.parse(now.decode()) if now else None
        found = [Tombstone.parse(text.decode()) for text in tombstones]
        return admissible(seen, found, horizon=horizon, newest=newest) is None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(","))) if text else ()


class Rounds:
    """What a relay knows of one slot: which mark is the newest, and which may be the next horizon.

    The caller beats (`Level2.beat`), then takes a snapshot of the primary and tells it (`marked`), then
    beats again. A mark becomes the horizon `delay` seconds after it was taken, so that standbys have caught
    up with it by then and no load is under way that is older; at once where there is no horizon.
    """

    __slots__ = ("_horizon", "_next", "_next_at", "delay", "life", "newest", "round")

    def __init__(self, delay: float) -> None:
        if delay < 0:
            raise ValueError(f"delay must be >= 0 seconds, got {delay}")
        self.delay = delay
        self.life = ""
        self.round = 0
        self.newest: Mark | None = None
        self._next: Mark | None = None
        self._next_at = 0.0
        self._horizon = False

    def due(self, now: float) -> Mark | None:
        """The mark that the next beat makes the horizon; None while it is too young."""
        if not self._horizon:
            return self.newest
        return self._next if now - self._next_at >= self.delay else None

    def answered(self, life: str, round: int, *, horizon: bool, sent: Mark | None) -> None:
        """What a beat answered, and the horizon that it was sent with. Of another life, no mark counts."""
        if life != self.life:
            self.newest = None
        if life != self.life or sent is not None:
            self._next = None  # the next horizon has to be of this round or later
        self.life, self.round, self._horizon = life, round, horizon

    def marked(self, xmax: int, running: Sequence[int], now: float) -> None:
        """A snapshot of the primary that was asked for after the last answer."""
        self.newest = Mark(self.round, xmax, tuple(running))
        if self._next is None:
            self._next, self._next_at = self.newest, now
