"""How a module keeps the search index up to date with its things: the sweep behind its jobs.

A job after each change tells the index at once. The sweep finds what jobs could not: things that were there
before the index was, that were loaded past the service, that a newer form of index wants, or whose job
ended as a dead letter. It walks all things by their ids, asks of which versions the index has none, and
puts those; it begins again at the end. A round that finds nothing to do ends after one batch, so it costs
next to nothing; one that does goes on at once, for at most MAX_BATCHES. Nothing has to be started or
stopped for it, several workers may sweep at once, and one that is killed has lost its place and nothing
else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from market.search.api import Document, Kind, Search, Versioned

__all__ = ["SWEEP_EVERY", "Sweep"]

SWEEP_EVERY = 5.0
"""Seconds between two rounds."""

BATCH = 500
PUT = 25
MAX_BATCHES = 20
"""Things that are compared at once, and put at once (an article may be long); comparisons of one round."""


class Sweep:
    """`page(after, limit)` answers the things behind the id `after` (None: the first) in one fixed order;
    `documents(ids)` what is to be found of them, leaving out those that are gone or hidden by now.
    """

    def __init__(
        self,
        search: Search,
        kind: Kind,
        *,
        page: Callable[[int | None, int], Awaitable[Sequence[Versioned]]],
        documents: Callable[[list[int]], Awaitable[list[Document]]],
    ) -> None:
        self._search = search
        self._kind = kind
        self._page = page
        self._documents = documents
        self._after: int | None = None

    async def round(self) -> int:
        """Go on from where the last round ended; how many documents were put."""
        put = 0
        for _ in range(MAX_BATCHES):
            things = list(await self._page(self._after, BATCH))
            lacking = await self._search.lacking(self._kind, things) if things else []
            for first in range(0, len(lacking), PUT):
                if documents := await self._documents(lacking[first : first + PUT]):
                    await self._search.put(documents)
                    put += len(documents)
            self._after = things[-1].id if len(things) == BATCH else None
            if not lacking or self._after is None:
                break
        return put
