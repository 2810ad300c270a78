"""One statement on every shard at the same time, and its rows merged into one list.

The statement becomes a subquery; ordering and limit are added around it, so that every shard sorts and cuts
in the way the merge expects: each sends at most limit + offset rows, each stream is sorted, a heap takes the
smallest head until the page is full (k-way merge: n rows of k shards cost n log k comparisons). Rows that
are equal in all columns of the order keep the order of the shards. Limit and offset are arguments: whichever
part is asked for, it is one text, prepared once and counted under one name.

The merge compares like PostgreSQL: NULL is larger than everything, NaN larger than every number, text is
compared by its UTF-8 bytes, which is what the databases' C.UTF-8 collation does. A shard that sorts a column
otherwise (another collation, an enum) is noticed, and the call raises instead of answering in a wrong order.

An aggregate over all rows is refused, because each shard would answer for itself: use `scatter_sum` for
counts and sums. GROUP BY is right only if no group has rows in two buckets; that is the caller's to know.
The first shard that fails ends the call and cancels the others.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import lru_cache
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import UUID

import asyncpg

from springtide.db import _sql
from springtide.db._names import identifier
from springtide.errors import NotScatterable

if TYPE_CHECKING:
    from springtide.db.router import Queries

__all__ = ["ASC", "DESC", "Direction", "each", "rows", "total"]

Direction = Literal["asc", "desc"]
ASC: Direction = "asc"
DESC: Direction = "desc"

Order = Sequence[tuple[str, Direction]]
T = TypeVar("T")

_PARAMETER = _sql.Kind.PARAMETER

_ORDERED = (int, float, Decimal, bytes, datetime, date, time, UUID)
"""Python compares these as PostgreSQL does; text is compared by its bytes. Not so lengths of time: '1 year'
is 360 days to PostgreSQL when it compares, and 365 when it has become a timedelta."""


async def rows(
    shards: Mapping[str, Queries],
    sql: str,
    args: Sequence[Any],
    *,
    order: Order,
    limit: int | None,
    offset: int,
) -> list[Any]:
    """The rows of `sql` from all `shards`, merged by `order`, from `offset` on, at most `limit`."""
    most, skipped = _window(limit, offset, alone=len(shards) == 1)
    statement = compose(
        sql,
        order=tuple(order),
        arguments=len(args),
        limited=most is not None,
        skipping=skipped is not None,
    )
    window = [number for number in (most, skipped) if number is not None]
    try:
        streams = await _together([queries.fetch(statement, *args, *window) for queries in shards.values()])
    except asyncpg.UndefinedColumnError as error:
        column = _missing_order_column(error, statement, order)
        if column is None:
            raise
        raise NotScatterable(
            f"rows are merged by column {column!r}, which the statement does not select"
        ) from error
    if len(streams) == 1:
        return streams[0]
    return merge(streams, order=order, limit=limit, offset=offset)


async def total(shards: Mapping[str, Queries], sql: str, args: Sequence[Any]) -> int:
    """The sum of what `sql` answers on each shard; NULL counts as 0."""
    values = await _together([queries.fetch_value(sql, *args) for queries in shards.values()])
    result = 0
    for value in values:
        if isinstance(value, Decimal) and value == value.to_integral_value():
            value = int(value)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise NotScatterable(f"only whole numbers are added up over shards, a shard answered {value!r}")
        result += value
    return result


async def each(
    shards: Mapping[str, Queries], sql: str, keys: Mapping[str, list[int]], args: Sequence[Any]
) -> list[Any]:
    """The rows of `sql` with $1 = the keys of each shard, concatenated."""
    streams = await _together([queries.fetch(sql, keys[shard], *args) for shard, queries in shards.items()])
    return [row for stream in streams for row in stream]


@lru_cache(maxsize=512)
def compose(
    sql: str,
    *,
    order: tuple[tuple[str, Direction], ...],
    arguments: int,
    limited: bool = False,
    skipping: bool = False,
) -> str:
    """The statement for one shard. `sql` takes `arguments` of its own; limit and offset follow them.

    Remembered, because reading the text takes longer than many a statement.
    """
    fault = _sql.unscatterable(sql)
    if fault is not None:
        raise NotScatterable(fault)
    highest = max((int(token.text[1:]) for token in _sql.tokens(sql) if token.kind is _PARAMETER), default=0)
    if highest > arguments:  # it would be taken for the limit
        raise ValueError(f"the statement has ${highest}, got {arguments} arguments")
    parts = [f"SELECT * FROM (\n{_sql.without_terminator(sql)}\n) AS scattered"]  # noqa: S608
    if order:
        parts.append("ORDER BY " + ", ".join(f"{identifier(name)} {_way(way)}" for name, way in order))
    if limited:
        arguments += 1
        parts.append(f"LIMIT ${arguments}::bigint")
    if skipping:
        parts.append(f"OFFSET ${arguments + 1}::bigint")
    return "\n".join(parts)


def _window(limit: int | None, offset: int, *, alone: bool) -> tuple[int | None, int | None]:
    """LIMIT and OFFSET for each shard; the only one does all of it, several send what the merge skips."""
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be >= 0, got {limit}")
    if offset < 0:
        raise ValueError(f"offset must be >= 0, got {offset}")
    if limit is None:
        return None, offset if alone and offset else None
    return (limit, offset) if alone else (limit + offset, None)


def merge(
    streams: Sequence[Sequence[Mapping[str, Any]]], *, order: Order, limit: int | None, offset: int
) -> list[Any]:
    """Merge streams that are sorted by `order`. Raises NotScatterable when one is not, as we compare."""
    stop = None if limit is None else offset + limit
    if not order:
        return list(islice((row for stream in streams for row in stream), offset, stop))
    key = _key(order)
    keyed: list[list[tuple[tuple[Any, ...], Any]]] = []
    for stream in streams:
        pairs = [(key(row), row) for row in stream]
        _check_sorted(pairs, order)
        keyed.append(pairs)
    merged = heapq.merge(*keyed, key=lambda pair: pair[0])
    return [row for _, row in islice(merged, offset, stop)]


def _key(order: Order) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    columns = [(name, _Descending if way == "desc" else None) for name, way in order]

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(
            _rank(name, row[name]) if turned is None else turned(_rank(name, row[name]))
            for name, turned in columns
        )

    return key


def _rank(name: str, value: Any) -> tuple[int, Any]:
    """(0, value), with what PostgreSQL puts behind every other value after it: NaN 1, NULL 2."""
    if value is None:
        return (2, 0)
    if isinstance(value, str):
        return (0, value.encode())
    if isinstance(value, float | Decimal) and value != value:
        return (1, 0)
    if isinstance(value, datetime) and value.tzinfo is None:  # infinity has no zone in any column
        return (0, value.replace(tzinfo=UTC))
    if not isinstance(value, _ORDERED):
        raise NotScatterable(f"rows cannot be merged by column {name!r}: {type(value).__name__} has no order")
    return (0, value)


class _Descending:
    """A value that sorts the other way round."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Descending) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and bool(other.value == self.value)

    __hash__ = None  # type: ignore[assignment]  # lives within one merge


def _check_sorted(pairs: Sequence[tuple[tuple[Any, ...], Any]], order: Order) -> None:
    for (before, _), (after, row) in pairwise(pairs):
        if after < before:
            at = next(i for i, (a, b) in enumerate(zip(after, before, strict=True)) if a != b)
            name = order[at][0]
            raise NotScatterable(
                f"a shard does not sort column {name!r} as the merge does (at {row[name]!r}):"
                " it must be a number, a time, a uuid, bytes, or text under the collation C.UTF-8"
            )


def _way(way: str) -> str:
    if way not in (ASC, DESC):
        raise ValueError(f"a direction is 'asc' or 'desc', got {way!r}")
    return way.upper()


def _missing_order_column(error: asyncpg.UndefinedColumnError, statement: str, order: Order) -> str | None:
    """The column of `order` that the server did not find in our ORDER BY, None for a fault in the SQL."""
    position = int(error.position) - 1 if error.position is not None else 0
    if position <= statement.rindex("\n) AS scattered"):
        return None
    found = next(_sql.tokens(statement[position:])).text
    return next((name for name, _ in order if name == found), None)


async def _together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all at once; the first failure cancels the rest and is raised itself, without a group around it."""
    if len(calls) == 1:
        return [await calls[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed.exceptions[0].__cause__
    return [task.result() for task in tasks]
