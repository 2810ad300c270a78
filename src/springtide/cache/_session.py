"""What a request asks of a cache, so that a session always reads its own writes.

A write is heard of by other processes a little later, within the class's budget. Who wrote must not wait
for that, and may be served by any process next. So its causality token takes a mark (`_marks.py`): the
sequence of its invalidation, which a process must have heard before its first level may answer; or, when the
second level could not be told, that neither may.

A client that brings its token (cookie, header, job, call) brings its marks. One that has an identity and
brings none (a bearer client without cookies) may have written anywhere: it is *unproven*, and the sequence
that the slot has now is taken for its mark, asked for once per request and slot: one GET, sent together with
everything else that this process sends to Redis in that moment. Its write was invalidated before it was
answered, so that sequence covers it. Where an invalidation failed, there is no sequence: then the answer to
such a client waits until every process has heard of the write or answers from nothing that is kept
(`settled`), which takes no longer than the class's share. So nothing is kept anywhere for such clients.
Where Redis has Sentinels, they are asked as well, by the write after its invalidation and by the read with
its question: for a moment there can be two primaries, and of a write that told one the other knows nothing.
A server that they do not name has told nobody, and its word is none: the read has nothing that is kept.

Who has neither a token nor an identity is promised nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from springtide._marks import NEITHER, SECOND, Mark, mark_until
from springtide.cache._slot import Slot
from springtide.context import RequestContext

__all__ = ["brings_nothing", "missed", "prove", "voided"]


def brings_nothing(context: RequestContext) -> bool:
    """Whether the client is known and brought no token of what it has written."""
    return context.unproven is not None and context.known is not None


async def prove(
    context: RequestContext,
    slot: Slot,
    sequence: Callable[[Slot], Awaitable[int | None]],
    *,
    now: float,
    budget: float,
) -> None:
    """Give an unproven request the mark of what the slot has now; `sequence` asks (`Bus.sequence`)."""
    proven = context.unproven
    if proven is None or slot.name in proven or not brings_nothing(context):
        return
    scope, heard = slot.scope, slot.position
    asked, until = await sequence(slot), mark_until(now, budget)
    if asked is None:
        mark = Mark(NEITHER, 0, until)
    elif scope == slot.scope and asked >= heard:
        mark = Mark(scope, asked, until)
    else:  # it was lost, and begun anew
        mark = Mark(SECOND, 0, until)
    token = context.causality
    grown = token.grown
    token.mark(slot.name, mark)
    token.grown = grown  # it is no news to the client
    proven.add(slot.name)


def voided(
    context: RequestContext, slot: str, scope: str, sequence: int, *, heard: int, now: float, budget: float
) -> None:
    """The request has written, and its invalidation had this sequence in this scope. heard: what had been
    heard there before; a sequence that is not above it was lost and begun anew below, so it says nothing."""
    mark = Mark(scope, sequence, mark_until(now, budget))
    context.causality.invalidated(slot, mark if sequence > heard else Mark(SECOND, 0, mark.until))


def missed(
    context: RequestContext, slot: str, *, now: float, budget: float, committed: float, share: float
) -> None:
    """The request has written, and the slot could not be told. `committed` is a monotonic moment after
    COMMIT; `share` later the relay has told it, or nobody answers from what is kept."""
    context.causality.invalidated(slot, Mark(NEITHER, 0, mark_until(now, budget)))
    context.settled = max(context.settled, committed + share)
