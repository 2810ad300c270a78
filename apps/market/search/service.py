"""Putting, removing and finding, over the module's own table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from market.faults import Invalid
from market.moments import moment
from market.search import rules
from market.search.api import Document, Hit, HitPage, Kind, SearchQuery, Versioned
from market.search.questions import beginning, question
from market.search.snippets import SOURCE_LENGTH
from market.search.store import Row, SearchStore
from market.search.vectors import FORM, vectors
from market.search.words import words
from springtide.clock import Clock
from springtide.errors import InvalidCursor
from springtide.services import ModuleContext

__all__ = ["PRUNE_EVERY", "SearchService", "build", "row_of"]

PRUNE_EVERY = 3_600.0
REMEMBERED = timedelta(days=30)
"""Seconds between two prunings; how long a removal is remembered. A job gives up after some hours."""

SUGGESTED: tuple[Kind, ...] = ("person", "listing")


def build(context: ModuleContext) -> SearchService:
    return SearchService(_store(context), clock=context.clock)


def _store(context: ModuleContext) -> SearchStore:
    if not context.cached:
        return SearchStore(context.db)
    from market.search.cached import CachedSearch

    return CachedSearch(context.db, context.cache)


class SearchService:
    """Implements `market.search.api.Search`."""

    def __init__(self, store: SearchStore, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def put(self, documents: list[Document]) -> None:
        checked = rules.check_documents(documents)
        if checked:  # a long text takes its time, which is nobody else's
            await self._store.put(await asyncio.to_thread(_rows, checked))

    async def remove(self, kind: Kind, id: int, version: int) -> None:
        rules.check_removal(kind, id, version)
        await self._store.remove(kind, id, version, moment(self._clock))

    async def lacking(self, kind: Kind, things: list[Versioned]) -> list[int]:
        rules.check_things(kind, things)
        if not things:
            return []
        known = {known.id: known for known in await self._store.known(kind, [thing.id for thing in things])}

        def is_lacking(thing: Versioned) -> bool:
            found = known.get(thing.id)
            if found is None or found.version < thing.version:
                return True
            return found.version == thing.version and found.form < FORM and not found.removed

        return [thing.id for thing in things if is_lacking(thing)]

    async def find(self, query: SearchQuery) -> HitPage:
        rules.check_query(query)
        asked = question(query.text, query.kind)
        if asked is None:
            return HitPage(items=[], next=None)
        try:
            page = await self._store.hits(asked, query)
        except InvalidCursor as error:
            raise Invalid({"after": ["is no cursor of this list"]}) from error
        items = [
            Hit(
                kind=found.kind,
                id=found.id,
                version=found.version,
                title=found.title,
                snippet=list(found.snippet),
            )
            for found in page.items
        ]
        return HitPage(items=items, next=page.next_cursor)

    async def suggest(self, text: str, limit: int) -> list[str]:
        rules.check_suggestion(text, limit)
        asked = beginning(text, SUGGESTED)
        if asked is None:
            return []
        typed = _folded(text)
        found = set(await self._store.titles(asked))
        return sorted(found, key=lambda title: (not _folded(title).startswith(typed), len(title), title))[
            :limit
        ]

    async def prune(self) -> None:
        """For the workers, periodically."""
        await self._store.prune(moment(self._clock) - REMEMBERED)


def row_of(document: Document) -> Row:
    """The row of a document that keeps to the rules."""
    made = vectors(document)
    body = document.text[:SOURCE_LENGTH]
    return Row(document.kind, document.id, document.version, document.title, body, made.names, made.words)


def _rows(documents: Sequence[Document]) -> list[Row]:
    return [row_of(document) for document in documents]


def _folded(text: str) -> str:
    return " ".join(word.form for word in words(text))
