"""The search module's reads over the cache: the first page of hits, and titles for suggestions.

    found:{text}:{kind}:{limit}    the best hits of each shard, with their snippets; kind "" is all of them
    titles:{beginning}             what suggestions are chosen from, on every shard

Whatever is put into the index or taken out of it may belong into any answer of its kind, so it makes all of
those stale. Further pages are the database's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from market.search.api import Kind, SearchQuery
from market.search.questions import Question, question
from market.search.store import BEST, FIND, SUGGEST, Found, SearchStore, found_of
from springtide.cache import EACH, Cache
from springtide.db import Database, Page, Queries, WriteTransaction

__all__ = ["CachedSearch"]

ANY = ""
"""Stands for all kinds in a key."""


class _Best(msgspec.Struct, frozen=True):
    hits: tuple[Found, ...]


class CachedSearch(SearchStore):
    """`SearchStore` with a cache before its answers; writes say what they make stale."""

    def __init__(self, db: Database, cache: Cache) -> None:
        super().__init__(db)
        self._found = cache.define(
            "found:{text:str}:{kind:str}:{limit:int}",
            _Best, database=db, load=_load_found, key=EACH, tags=("kind:{kind}",),
        )  # fmt: skip
        self._titles = cache.define(
            "titles:{beginning:str}",
            tuple[str, ...], database=db, load=_load_titles, key=EACH, tags=("titles",),
        )  # fmt: skip

    async def hits(self, asked: Question, query: SearchQuery) -> Page[Found]:
        if query.after is not None:
            return await super().hits(asked, query)
        parts = await self._found.get_each(query.text, query.kind or ANY, query.limit)
        hits = [hit for part in parts if part is not None for hit in part.hits]
        rows: list[dict[str, Any]] = [
            {"rank": hit.rank, "id": hit.id, "kind": hit.kind, "hit": hit} for hit in hits
        ]
        rows.sort(key=lambda row: (row["rank"], row["id"], row["kind"]), reverse=True)
        page = BEST.step(None, limit=query.limit).page(rows)
        return Page([row["hit"] for row in page.items], page.next_cursor)

    async def titles(self, beginning: str) -> list[str]:
        return [title for part in await self._titles.get_each(beginning) for title in part or ()]

    def _stale_kinds(self, tx: WriteTransaction, kinds: Iterable[Kind]) -> None:
        tx.invalidate(self._found, tags=[f"kind:{kind}" for kind in (ANY, *sorted(set(kinds)))])
        tx.invalidate(self._titles, tags=["titles"])


async def _load_found(source: Queries, text: str, kind: Kind | str, limit: int) -> _Best:
    asked = question(text, kind or None)  # type: ignore[arg-type]  # a kind, or ANY
    assert asked is not None  # else nobody asks
    step = BEST.step(None, limit=limit, first=4)
    sql = f"{FIND.format(condition=step.where)} order by {step.order_by} limit {step.fetch}"
    rows = await source.fetch(sql, asked.by_index, asked.exact, asked.near, *step.args)
    return _Best(tuple(found_of(row, asked) for row in rows))


async def _load_titles(source: Queries, beginning: str) -> tuple[str, ...]:
    return tuple(row[0] for row in await source.fetch(SUGGEST, beginning))
