"""The rows that writes leave for the relay (`_invalidation` of each schema): what is new, what was applied.

Rows become visible in the order of commits, their numbers are in the order of beginnings, so no cursor tells
what is new. But a snapshot does: when everything that was visible in it has been read, what comes next are
rows of transactions that it lists as running, and of those from its xmax on. So a reading touches what is
new, and nothing of what vacuum may not remove yet because somebody holds an old snapshot.

A reading goes over all classes that are `ready`, in batches. The rows of others stay, and are read once those
are ready: then the reading begins at the first row again. Those of classes that nobody here knows
(`strangers`) are asked for apart, now and then. Rows of one transaction and class are deleted together, so a
batch never ends within a transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

__all__ = ["BATCH", "Batch", "Row", "Rows"]

BATCH = 500
"""Rows of a schema that are read at once."""


class Statements(Protocol):
    async def fetch(self, sql: str, *args: Any) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """What one transaction has made stale of one class, or a part of it; `age` in seconds."""

    schema: str
    xid: int
    cls: str
    fields: list[str]
    age: float


@dataclass(frozen=True, slots=True)
class Batch:
    """`xmax` and `running` are those of the snapshot in which it was read."""

    rows: list[Row]
    xmax: int
    running: tuple[int, ...]


class Rows:
    """Of `schemas` on one server; belongs to one connection to it."""

    def __init__(self, schemas: Sequence[str]) -> None:
        self._schemas = tuple(schemas)
        self._read = _read(self._schemas)
        self._oldest = _oldest(self._schemas)
        self._strange = _strange(self._schemas)
        self._ready: frozenset[str] = frozenset()
        self._left: set[str] = set()
        self._low = 0
        self._running: tuple[int, ...] = ()

    async def new(self, queries: Statements, ready: Collection[str]) -> AsyncGenerator[Batch, None]:
        """All rows of the classes `ready` that were not read yet, in batches; one of them at least, maybe
        empty. A reading that is not gone through to its end, or that raises, counts as none."""
        wanted = frozenset(ready)
        low, running = (self._low, self._running) if wanted <= self._ready else (0, ())
        first: Batch | None = None
        limit = BATCH
        while True:
            found = await queries.fetch(self._read, list(map(str, running)), str(low), limit, sorted(wanted))
            batch, following = _batch(found, limit)
            if following is not None and not batch.rows:
                limit *= 2  # one transaction has more
                continue
            first = first or batch
            yield batch
            if following is None:
                break
            low, running, limit = following, (), BATCH
        self._low, self._running, self._ready = first.xmax, first.running, wanted - self._left
        self._left.clear()

    def left(self, cls: str) -> None:
        """Rows of this class were read and not applied: it is read from the first row on again."""
        self._left.add(cls)

    async def applied(self, queries: Statements, rows: Sequence[Row]) -> None:
        """Delete rows; with one of them, all of its transaction and class have been applied."""
        by_class: dict[tuple[str, str], set[int]] = defaultdict(set)
        for row in rows:
            by_class[row.schema, row.cls].add(row.xid)
        for (schema, cls), xids in by_class.items():
            await queries.fetch(_delete(schema), cls, list(map(str, xids)))

    async def strangers(self, queries: Statements, known: Collection[str], age: float) -> list[Row]:
        """Rows of classes that are not `known`, written `age` seconds ago or earlier: all of a transaction's,
        of the oldest ones."""
        found = await queries.fetch(self._strange, sorted(known), age, BATCH)
        return list(map(_row, found))

    async def oldest(self, queries: Statements) -> float:
        """How many seconds ago the oldest row was written, 0 without any."""
        return max((row["age"] for row in await queries.fetch(self._oldest)), default=0.0)


def _row(one: Any) -> Row:
    fields = msgspec.json.decode(one["fields"], type=list[str])
    return Row(one["schema"], int(one["xid"]), one["class"], fields, one["age"])


def _batch(found: Sequence[Any], limit: int) -> tuple[Batch, int | None]:
    """The whole transactions in an answer, and the number from which to read on; None: there is no more."""
    _, xmax, running = found[0]["snapshot"].split(":")
    rows: list[tuple[bool, Row]] = []
    lasts: dict[str, list[int]] = defaultdict(list)
    for one in found:
        if one["xid"] is not None:
            rows.append((one["onward"], _row(one)))
            if one["onward"]:
                lasts[one["schema"]].append(int(one["xid"]))
    following = min((max(xids) for xids in lasts.values() if len(xids) >= limit), default=None)
    whole = [row for onward, row in rows if following is None or not onward or row.xid < following]
    return Batch(whole, int(xmax), tuple(map(int, running.split(","))) if running else ()), following


def _read(schemas: Sequence[str]) -> str:
    columns = """xid, class, fields,
        extract(epoch FROM clock_timestamp() - written_at)::float8 AS age"""
    parts = []
    for schema in schemas:
        table = f"{schema}._invalidation"
        parts += [
            f"SELECT '{schema}' AS schema, false AS onward, {columns} FROM {table}"  # noqa: S608
            " WHERE xid = ANY($1::text[]::xid8[]) AND class = ANY($4::text[])",
            f"(SELECT '{schema}' AS schema, true AS onward, {columns} FROM {table}"  # noqa: S608
            " WHERE xid >= $2::text::xid8 AND class = ANY($4::text[]) ORDER BY xid LIMIT $3)",
        ]
    return f"""
        SELECT now.snapshot, new.schema, new.onward, new.xid::text, new.class, new.fields, new.age
        FROM (SELECT pg_current_snapshot()::text AS snapshot) AS now
        LEFT JOIN ({" UNION ALL ".join(parts)}) AS new ON true
    """  # noqa: S608 - schemas are identifiers


def _delete(schema: str) -> str:
    return f"""
        DELETE FROM {schema}._invalidation WHERE class = $1 AND xid = ANY($2::text[]::xid8[])
    """  # noqa: S608 - the schema is an identifier


def _strange(schemas: Sequence[str]) -> str:
    parts = []
    for schema in schemas:
        table = f"{schema}._invalidation"
        parts.append(f"""
            SELECT '{schema}' AS schema, r.xid::text AS xid, r.class, r.fields,
                extract(epoch FROM clock_timestamp() - r.written_at)::float8 AS age
            FROM {table} AS r JOIN (
                SELECT s.xid, s.class FROM {table} AS s WHERE s.class <> ALL ($1::text[])
                GROUP BY s.xid, s.class
                HAVING max(s.written_at) <= clock_timestamp() - make_interval(secs => $2)
                ORDER BY s.xid LIMIT $3
            ) AS old USING (xid, class)
        """)  # noqa: S608
    return " UNION ALL ".join(parts)


def _oldest(schemas: Sequence[str]) -> str:
    age = "extract(epoch FROM clock_timestamp() - written_at)::float8 AS age"
    parts = [f"(SELECT {age} FROM {one}._invalidation ORDER BY xid LIMIT 1)" for one in schemas]  # noqa: S608
    return " UNION ALL ".join(parts)
