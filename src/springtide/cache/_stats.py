"""What happened in one class, counted. Plain numbers, so that a hit pays one addition."""

from __future__ import annotations

from collections import Counter

__all__ = ["Stats"]


class Stats:
    """Of one class in this process, since it was defined.

    l1_hits, l2_hits: values given out by each level. misses: values that neither had. joined: waited for a
    value that was on its way already. waited: looks at a lease that another process held.
    loads, load_seconds, failed: calls of the loader, their time together, and those that raised, by error.
    reloads: loads once more from the primary, because a replica had not seen an invalidation.
    fills, refused: values that the second level kept, and those that it did not, by why.
    stale_served: old values, by why: revalidate, soft (the load took long), error (it failed).
    bypassed: values read past both levels, by why: write (of the transaction), strong (asked for), mark (an
    invalidation of the session did not arrive), unproven (nobody can say that what is kept is fresh), away
    (Redis does not answer), lease (whoever loads does not end). away: operations that Redis did not do.
    overdue: values that arrived later than the budget after the load had begun: their loader is slower than
    what the class promises.
    voided, unvoided: invalidations that reached the second level, and those that the relay has to tell.
    """

    __slots__ = (
        "away", "bypassed", "failed", "fills", "joined", "l1_hits", "l2_hits", "load_seconds", "loads",
        "misses", "overdue", "refused", "reloads", "stale_served", "unvoided", "voided", "waited",
    )  # fmt: skip

    def __init__(self) -> None:
        self.l1_hits = 0
        self.l2_hits = 0
        self.misses = 0
        self.overdue = 0
        self.joined = 0
        self.waited = 0
        self.loads = 0
        self.load_seconds = 0.0
        self.failed: Counter[str] = Counter()
        self.reloads = 0
        self.fills = 0
        self.refused: Counter[str] = Counter()
        self.stale_served: Counter[str] = Counter()
        self.bypassed: Counter[str] = Counter()
        self.away = 0
        self.voided = 0
        self.unvoided = 0
