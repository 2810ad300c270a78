"""Decide which server of a cluster is its primary, from what its servers say of themselves.

    candidate    not in recovery, of our system, on no older timeline than any that was ever seen
    superseded   not in recovery on an older timeline: an old primary that came back, to be used for nothing
    rival        not in recovery on the timeline of the primary that is in use: promoted twice
    stranger     a server of another system at an address of ours

A promotion begins a new timeline, and so does nothing else that happens to a running cluster; so of two
servers that both call themselves primary the one on the higher timeline is it. A standby on a timeline
proves that it was begun, also while its primary cannot be reached: from then on older ones count nothing.

Of several candidates on one timeline none can be told to be right: the one in use stays in use, and without
one nobody is chosen, because writes that wait are better than writes that must be thrown away.
The primary in use is kept while it merely does not answer, for as long as nothing better does.

Invariants: the timeline of `Standing` never shrinks, nor does that of the primary that is chosen.
Pure: nothing here does I/O, and the same answers give the same verdict in every process.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

__all__ = ["Seen", "Standing", "Verdict", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one server said. `system` and `started` (its postmaster's start) name a server beyond addresses.

    `timeline`: of a primary the one it writes, of a standby the highest it has received.
    """

    node: str
    system: int
    started: object
    recovering: bool
    timeline: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is kept between two looks. `timeline` is the highest ever seen, `epoch` that of the primary."""

    system: int | None = None
    timeline: int = 0
    primary: str | None = None
    epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`primary`: the node to use; None: there is none to be used now. The rest must be used for nothing,
    reads included.

    While there are `rivals` a position on their timeline may be one of two histories, and proves nothing.
    """

    standing: Standing
    primary: str | None
    superseded: frozenset[str] = frozenset()
    rivals: frozenset[str] = frozenset()
    strangers: frozenset[str] = frozenset()

    @property
    def barred(self) -> dict[str, str]:
        """node -> why it is used for nothing."""
        kinds = (("rival", self.rivals), ("superseded", self.superseded), ("stranger", self.strangers))
        return {node: why for why, nodes in kinds for node in sorted(nodes)}


def judge(standing: Standing, seen: Sequence[Seen], *, members: Collection[str]) -> Verdict:
    """The verdict over one look at all `members`; those that did not answer are not in `seen`.

    When it is not known yet which system is ours, it is that of most; of as many, that of the first.
    """
    if standing.system is None and seen:
        systems = [server.system for server in seen]
        standing = replace(standing, system=max(systems, key=systems.count))
    ours = [server for server in seen if server.system == standing.system]
    strangers = frozenset(server.node for server in seen if server.system != standing.system)
    standing = replace(standing, timeline=max([standing.timeline, *(server.timeline for server in ours)]))
    primaries = [server for server in ours if not server.recovering]
    superseded = frozenset(server.node for server in primaries if server.timeline < standing.timeline)
    candidates = _distinct([server for server in primaries if server.timeline == standing.timeline], standing)

    chosen = _choose(standing, candidates, {server.node for server in seen}, members)
    if chosen is not None:
        standing = replace(standing, primary=chosen, epoch=standing.timeline)
        rivals = frozenset(server.node for server in candidates if server.node != chosen)
        return Verdict(
            standing=standing, primary=chosen, superseded=superseded, rivals=rivals, strangers=strangers
        )
    silent = standing.primary is not None and all(server.node != standing.primary for server in seen)
    waiting = silent and standing.epoch == standing.timeline and standing.primary in members
    return Verdict(
        standing=standing,
        primary=standing.primary if waiting else None,
        superseded=superseded,
        rivals=frozenset(server.node for server in candidates),
        strangers=strangers,
    )


def _choose(
    standing: Standing, candidates: Sequence[Seen], answering: Collection[str], members: Collection[str]
) -> str | None:
    names = [server.node for server in candidates]
    if standing.primary in names:
        return standing.primary
    if len(names) != 1:
        return None
    known = standing.epoch == standing.timeline and standing.primary in members
    if known and standing.primary not in answering:
        return None  # it writes the same timeline for all we know: one of the two was promoted wrongly
    return names[0]


def _distinct(candidates: Sequence[Seen], standing: Standing) -> list[Seen]:
    """One server may answer at two addresses: it counts once, under the name in use if it is one of them."""
    found: dict[object, Seen] = {}
    for server in candidates:
        if server.started not in found or server.node == standing.primary:
            found[server.started] = server
    return list(found.values())
