"""What may answer one caller: which levels, and which of the loads under way. Pure.

Both levels answer only while the slot is proven (`_slot`) and the session asks for no more (`_session`). A
read that asks for more than the budget gives (`strong`, `bounded` by less) is loaded.

A load under way is joined by those who may have what it reads: it must have begun after whatever the caller
may have seen or written. Who cannot tell begins a load of his own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from springtide._marks import Mark
from springtide.context import Consistency, RequestContext

if TYPE_CHECKING:
    from springtide.cache._flight import Flight
    from springtide.cache._slot import Slot
    from springtide.cache.classes import Budget

__all__ = ["Terms", "may_join", "of_refresh", "terms_of"]


class Terms(NamedTuple):
    """What may answer one caller, and how fresh a load of his has to be.

    why: the reason that neither level may. mark: what his session asks of the slot after a write of its own.
    consistency, within: of his loads, as `Database.seeing` has them.
    """

    first: bool
    second: bool
    why: str
    mark: Mark | None
    consistency: Consistency
    within: float | None


def terms_of(
    parts: Budget,
    slot: Slot,
    *,
    context: RequestContext | None,
    mark: Mark | None,
    wanted: Consistency | None,
    kept: bool,
    now: float,
) -> Terms:
    """For a caller in `context`. mark: what his session asks of the slot. wanted: the consistency that he
    asked for. kept: there is a second level."""
    consistency, within = _of_load(parts)
    if wanted is not None and (
        wanted.level == "strong" or (wanted.staleness is not None and wanted.staleness < parts.inside)
    ):
        return Terms(False, False, wanted.level, mark, wanted, None)
    if not kept:
        why = "off"
    elif not now < slot.good_until:
        why = "unproven"
    elif mark is not None and not mark.allows(slot.scope):
        why = "mark"
    else:
        first = mark is None or mark.is_met(slot.scope, slot.position)
        return Terms(first, True, "", mark, consistency, within)
    return Terms(False, False, why, mark, consistency, within)


def of_refresh(parts: Budget) -> Terms:
    """For a load that nobody waits for: as fresh as the budget asks, and by one process."""
    return Terms(False, True, "", None, *_of_load(parts))


def _of_load(parts: Budget) -> tuple[Consistency, float | None]:
    """As a session reads that nobody asked to be fresher, of a replica that is proven to be near enough. Not
    `bounded`, which fails at once while the primary does not answer: without a cache one would wait for it.
    """
    within = parts.replica or None
    return Consistency.STRONG if within is None else Consistency.SESSION, within


def may_join(
    flight: Flight, parts: Budget, slot: Slot, terms: Terms, context: RequestContext | None, now: float
) -> bool:
    """Whether what the flight reads is new enough for this caller."""
    if terms.why in ("strong", "bounded"):
        return False
    if now - flight.began > parts.trusted and (slot.relayed or now >= slot.good_until):
        return False  # it may read a replica, and whether that was behind is seldom known before it ends
    session = context is not None and (context.causality or context.known is not None)
    if terms.why == "off" and flight.started and session:
        return False  # without Redis nobody hears what it wrote elsewhere: it is read after it has asked
    if terms.mark is not None and not terms.mark.is_met(flight.scope, flight.position):
        return False
    if (terms.mark is not None or terms.why == "off") and context is not None:
        if context.recall is not None:
            return False  # what this session has seen is not known here yet: its own load asks for it
        seen = flight.token
        for cluster, position in context.causality.positions.items():
            if seen is None or (known := seen.position(cluster)) is None or known < position:
                return False
    return True
