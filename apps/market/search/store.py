"""The table of the index: with `bulk.py`, the only place with the search module's SQL.

A search looks at a bounded number of rows however common its words are. The index gives at most CANDIDATES
documents that have the words in their title and as many that have them anywhere, in the order in which they
lie; only those are held against the whole question, ranked and sorted. So the best of a very common word
are the best of those, and the pages of a search end with them. People under a misspelt name come last, NEAR
at most.

What is asked for reaches the planner through a subquery: it cannot guess then that a word is common, and
keeps to the index instead of scanning the table. Ranks are whole millionths, so that all shards and pages
agree on their order; equal ones are ordered by id, the youngest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from market.search.api import Fragment, Kind, SearchQuery
from market.search.questions import Question
from market.search.snippets import snippet
from market.search.vectors import FORM
from springtide.db import Database, Keyset, Page, WriteTransaction, bucket_of, desc
from springtide.db.expiry import delete_in_batches

__all__ = ["BEST", "CANDIDATES", "FIND", "SUGGEST", "Found", "Known", "Row", "SearchStore", "found_of"]

CANDIDATES = 1_000
NEAR = 100
SUGGESTED = 100
"""Rows that are looked at per shard: by title, and by any word; under a misspelt name; for suggestions."""

BEST = Keyset(desc("rank"), desc("id"), desc("kind", str))

PUT = """
insert into search.document (bucket, kind, id, version, form, title, body, names, words)
select bucket, kind, id, version, $9, title, body, names::tsvector, words::tsvector
from unnest(
    $1::smallint[], $2::text[], $3::bigint[], $4::integer[], $5::text[], $6::text[], $7::text[], $8::text[]
) as given (bucket, kind, id, version, title, body, names, words)
order by bucket, kind, id
on conflict (bucket, kind, id) do update
set version = excluded.version, form = excluded.form, title = excluded.title, body = excluded.body,
    names = excluded.names, words = excluded.words, removed_at = null
where document.version < excluded.version
    or (document.version = excluded.version and document.form < excluded.form
        and document.removed_at is null)
"""

REMOVE = """
insert into search.document (bucket, kind, id, version, form, title, body, names, words, removed_at)
values ($1, $2, $3, $4, $5, '', '', '', '', $6)
on conflict (bucket, kind, id) do update
set version = excluded.version, form = excluded.form, title = '', body = '', names = '', words = '',
    removed_at = excluded.removed_at
where document.version <= excluded.version and document.removed_at is null
    or document.version < excluded.version
"""

KNOWN = """
select document.id, document.version, document.form, document.removed_at is not null as removed
from unnest($1::bigint[]) as wanted (id)
cross join lateral (
    select id, version, form, removed_at from search.document
    where bucket = (wanted.id & 1023)::smallint and kind = $2 and id = wanted.id
    limit 1
) as document
"""

FIND = f"""
with asked as materialized (
    select $1::text::tsquery as by_index, $2::text::tsquery as whole, $3::text::tsquery as near
)
select kind, id, version, title, body, rank from (
    select kind, id, version, title, body,
        floor(1000000 * ts_rank(words, (select whole from asked), 1))::integer as rank
    from (
        select kind, id, version, title, body, words from search.document
        where names @@ (select by_index from asked)
        limit {CANDIDATES}
    ) as by_title
    where words @@ (select whole from asked)
    union all
    select kind, id, version, title, body,
        floor(1000000 * ts_rank(words, (select whole from asked), 1))::integer as rank
    from (
        select kind, id, version, title, body, names, words from search.document
        where words @@ (select by_index from asked)
        limit {CANDIDATES}
    ) as by_word
    where words @@ (select whole from asked) and not names @@ (select by_index from asked)
    union all
    select kind, id, version, title, body, 0 as rank
    from (
        select kind, id, version, title, body, words from search.document
        where names @@ (select near from asked)
        limit {NEAR}
    ) as by_slip
    where not words @@ (select whole from asked)
) as found
where {{condition}}
"""  # noqa: S608 - constants only

SUGGEST = f"""
with asked as materialized (select $1::text::tsquery as beginning)
select title from (
    select title from search.document where names @@ (select beginning from asked) limit {SUGGESTED}
) as found
"""  # noqa: S608 - constants only

PRUNE = """
delete from search.document
where ctid = any(array(
    select ctid from search.document
    where removed_at < $2
    order by removed_at
    limit $1
    for update skip locked
))
"""


class Row(NamedTuple):
    """A document as it is stored; `names` and `words` are the texts of vectors."""

    kind: Kind
    id: int
    version: int
    title: str
    body: str
    names: str
    words: str


class Known(NamedTuple):
    """What the index has of a thing; `removed` when that is a tombstone."""

    id: int
    version: int
    form: int
    removed: bool


class Found(msgspec.Struct, frozen=True):
    """A document as an answer has it; `rank` in whole millionths."""

    kind: Kind
    id: int
    version: int
    title: str
    snippet: tuple[Fragment, ...]
    rank: int


class SearchStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def put(self, rows: Sequence[Row]) -> None:
        """One transaction per shard; a row that is not newer than what is there changes nothing."""
        by_id: dict[int, list[Row]] = {}
        for row in rows:
            by_id.setdefault(row.id, []).append(row)
        for ids in self._db.group(by_id).values():
            part = [row for id in ids for row in by_id[id]]
            async with self._db.write(ids[0]) as tx:
                await tx.execute(PUT, *_columns(part), FORM)
                self._stale_kinds(tx, (row.kind for row in part))

    async def remove(self, kind: Kind, id: int, version: int, at: datetime) -> None:
        async with self._db.write(id) as tx:
            await tx.execute(REMOVE, bucket_of(id), kind, id, version, FORM, at)
            self._stale_kinds(tx, (kind,))

    async def known(self, kind: Kind, ids: Iterable[int]) -> list[Known]:
        """In no order."""
        return [Known(*row) for row in await self._db.fetch_many(KNOWN, ids, kind)]

    async def hits(self, asked: Question, query: SearchQuery) -> Page[Found]:
        """The page that `query` wants of what `asked` is for. Raises InvalidCursor."""
        page = await self.find(asked, query.limit, query.after)
        return page.map(lambda row: found_of(row, asked))

    async def find(self, question: Question, limit: int, after: str | None) -> Page[Any]:
        """Rows of kind, id, version, title, body and rank. Raises InvalidCursor."""
        step = BEST.step(after, limit=limit, first=4)
        rows = await self._db.scatter(
            FIND.format(condition=step.where),
            question.by_index,
            question.exact,
            question.near,
            *step.args,
            order=BEST.order,
            limit=step.fetch,
        )
        return step.page(rows)

    async def titles(self, beginning: str) -> list[str]:
        return [row[0] for row in await self._db.scatter(SUGGEST, beginning)]

    async def prune(self, before: datetime) -> int:
        """Forget tombstones that are older than `before`; how many there were."""
        return await delete_in_batches(self._db, PRUNE, before)

    # What a write makes stale; here nothing is kept, so there is nothing to tell (`cached.py`).

    def _stale_kinds(self, tx: WriteTransaction, kinds: Iterable[Kind]) -> None:
        """All answers in which documents of these kinds may be."""


def found_of(row: Any, asked: Question) -> Found:
    """A row of `find`."""
    text = tuple(snippet(row["body"], asked.terms))
    return Found(row["kind"], row["id"], row["version"], row["title"], text, row["rank"])


def _columns(rows: Sequence[Row]) -> list[list[Any]]:
    return [[bucket_of(row.id) for row in rows], *map(list, zip(*rows, strict=True))]
