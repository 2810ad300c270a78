"""What a search asks of the database: by which plans, and how much of it, at 30,000 documents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from tests.market.plans import explain, nodes, plan_faults, scaled

from market.search import store
from market.search.api import Kind
from market.search.questions import beginning, question
from springtide.db.scatter import compose

SCALE = """
insert into search.document (bucket, kind, id, version, form, title, body, names, words)
    select n & 1023, kind, (n << 10) + (n & 1023), 1, 1, 'Common title ' || n, repeat('text ', 50),
        ('''/' || kind || ''' ''common'':1A ''title'':2A ''rare' || n % 3000 || ''':3A ''~slip' || n || '''')
            ::tsvector,
        ('''/' || kind || ''' ''common'':1A ''title'':2A ''rare' || n % 3000 || ''':3A ''text'':20 ''no'':30
        ' ||
            '''such'':50 ''some' || n % 300 || ''':60')::tsvector
    from generate_series(0, 29999) n, lateral (select (array['article', 'listing', 'person'])[1 + n % 3]) k
    (kind);
insert into search.document (bucket, kind, id, version, form, title, body, names, words, removed_at)
    select n & 1023, 'article', (n << 10) + (n & 1023), 1, 1, '', '', '', '',
        '2026-01-01'::timestamptz + n * interval '1 minute'
    from generate_series(40000, 49999) n;
analyze search.document;
"""


@pytest.fixture
def shards() -> int:
    return 1


@pytest.fixture
async def large(urls: list[str]) -> AsyncIterator[asyncpg.Connection]:
    """30,000 documents and 10,000 tombstones, as the planner sees them after ANALYZE."""
    async with scaled(urls[0], SCALE) as connection:
        yield connection


def find(text: str, kind: Kind | None = None, after: str | None = None) -> tuple[str, tuple[Any, ...]]:
    """The statement of one page as a shard is asked for it."""
    asked = question(text, kind)
    assert asked is not None
    step = store.BEST.step(after, limit=20, first=4)
    args = (asked.by_index, asked.exact, asked.near, *step.args)
    order = tuple(store.BEST.order)
    sql = compose(store.FIND.format(condition=step.where), order=order, arguments=len(args), limited=True)
    return sql, (*args, step.fetch)


def suggest(text: str) -> tuple[str, tuple[Any, ...]]:
    asked = beginning(text, ("person", "listing"))
    assert asked is not None
    return compose(store.SUGGEST, order=(), arguments=1), (asked,)


DEEP = store.BEST.encode({"rank": 60_000, "id": 20_000 << 10, "kind": "article"})
SOME = [(n << 10) + (n & 1023) for n in range(0, 1200, 3)]

HOT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "a rare word": find("rare77"),
    "a word of every title": find("common"),
    "a word of every text": find("text"),
    "common words": find("common title text"),
    "the next page": find("common", after=DEEP),
    "of a kind": find("common", "listing"),
    "a common phrase that is nowhere": find('"no such"'),
    "one or the other": find("common OR rare5"),
    "without": find("common -title"),
    "the beginning of many words": find("rar"),
    "a name with a slip": find("slipp77", "person"),
    "words that no document has": find("nowhere atall"),
    "suggestions": suggest("common ti"),
    "suggestions of a rare word": suggest("rare99"),
    "known": (store.KNOWN, (SOME, "article")),
    "prune": (store.PRUNE, (500, datetime(2026, 2, 1, tzinfo=UTC))),
}


async def test_hot_statements_walk_indexes(large: asyncpg.Connection) -> None:
    """None scans the table, and however common a word is, no more rows are looked at than there are
    candidates."""
    assert not await plan_faults(large, HOT, rows=2 * store.CANDIDATES)
    for name, (sql, args) in HOT.items():
        kinds = {node["Node Type"] for node in nodes(await explain(large, sql, args))}
        assert "asked" not in sql or "Bitmap Index Scan" in kinds, f"{name} does not ask the index of words"


async def test_one_search_is_one_statement_on_each_shard() -> None:
    """Whatever is asked for, the text is the same: it is prepared once."""
    texts = {find(text)[0] for text in ("a", '"b c" -d', "e OR f", "common title")}
    assert len(texts) == 1
