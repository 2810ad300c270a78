"""Decide what happens to a cluster whose primary has ended: start it again, wait, or promote a replica.

    async     a primary that ended is started again where it is, which loses nothing; only when it has not
              come back within `failover_after` is the most advanced replica promoted: what it lacks is lost
    quorum    the most advanced replica is promoted at once, if it can be proven to hold every commit that was
              acknowledged; otherwise the primary is started again, for it holds them all

The proof: each acknowledged commit was on the disk of one *voter* at least, a replica that may confirm. Which
one is not known. So when the position of every voter is known, the most advanced of all replicas holds every
acknowledged commit; with one voter missing, that one may hold a commit that no other has.

Pure. Positions must be read after the primary has ended: until then they may still grow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

__all__ = ["Case", "Decision", "Position", "Promote", "Restart", "Wait", "decide"]


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """How far a server's log goes; the later timeline wins, whatever the number of bytes."""

    timeline: int
    lsn: int

    def __str__(self) -> str:
        return f"{self.lsn >> 32:X}/{self.lsn & 0xFFFFFFFF:X} on timeline {self.timeline}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is known when the primary has ended.

    held:       replica -> how far its log goes; None: it does not answer, or cannot tell yet.
    voters:     those of which one had to confirm each acknowledged commit; more than the present ones when
                one was taken away lately.
    down_for:   seconds since the primary ended.
    waited_for: seconds since the replicas were asked first, `patience` how many of them are enough.
    wanted:     the replica that somebody asked to promote; `forced`: although commits may be lost.
    """

    held: Mapping[str, Position | None]
    quorum: bool = False
    voters: Collection[str] = field(default=())
    auto: bool = True
    failover_after: float = 5.0
    down_for: float = 0.0
    waited_for: float = 0.0
    patience: float = 10.0
    wanted: str | None = None
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the old primary again where it is."""

    why: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask the replicas again."""

    why: str


@dataclass(frozen=True, slots=True)
class Promote:
    """Make `node` the primary; `at` is where its log ends. `behind` names those whose log may go elsewhere:
    they are not known, or have more than the chosen one."""

    node: str
    at: Position
    behind: tuple[str, ...]
    why: str


Decision = Restart | Wait | Promote


def decide(case: Case) -> Decision:
    """What to do now."""
    known = {node: at for node, at in case.held.items() if at is not None}
    silent = sorted(set(case.held) - set(known))
    if case.wanted is None:
        if not case.held:
            return Restart("there is no replica")
        if not case.auto:
            return Restart("failover is manual")
        if not case.quorum and case.down_for < case.failover_after:
            return Restart(f"it may come back within {case.failover_after:g} s")
    if silent and case.waited_for < case.patience:
        return Wait(f"{' and '.join(silent)} did not say yet how far its log goes")
    unproven = _unproven(case, known)
    if unproven and not (case.forced and case.wanted):
        return Restart(unproven)
    if case.wanted is not None:
        return _wanted(case, case.wanted, known)
    if not known:
        return Restart("no replica answers")
    best = max(sorted(known), key=lambda node: known[node])
    return _promote(case, best, known, "it holds every acknowledged commit" if case.quorum else "it has most")


def _unproven(case: Case, known: Mapping[str, Position]) -> str:
    """Why no replica can be proven to hold every acknowledged commit; empty when one can, or need not."""
    if not case.quorum:
        return ""
    if not case.voters:
        return "no replica has confirmed commits yet"
    missing = sorted(set(case.voters) - set(known))
    if missing:
        return f"{' and '.join(missing)} may hold an acknowledged commit and does not answer"
    return ""


def _wanted(case: Case, wanted: str, known: Mapping[str, Position]) -> Decision:
    if wanted not in known:
        return Restart(f"{wanted} does not answer")
    ahead = sorted(node for node, at in known.items() if at > known[wanted])
    if ahead and not case.forced:
        return Restart(f"{ahead[0]} has more of the log than {wanted}")
    return _promote(case, wanted, known, "it was asked for")


def _promote(case: Case, node: str, known: Mapping[str, Position], why: str) -> Promote:
    apart = (n for n in case.held if n != node and (n not in known or known[n] > known[node]))
    return Promote(node, known[node], tuple(sorted(apart)), why)
