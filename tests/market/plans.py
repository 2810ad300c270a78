"""How PostgreSQL runs a statement: its plan over many rows, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from springtide.db import Keyset

Hot = Mapping[str, tuple[str, tuple[Any, ...]]]
"""A name for people -> a statement and its arguments."""


@asynccontextmanager
async def scaled(url: str, fill: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database that `fill` has made large, as the planner sees it after its ANALYZE."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(fill)
        yield connection
    finally:
        await connection.close()


async def plan_faults(connection: asyncpg.Connection, hot: Hot, *, rows: int) -> str:
    """What hot statements must not do: scan a table, or look at more than `rows` rows in one step."""
    faults = []
    for name, (sql, args) in hot.items():
        steps = list(nodes(await explain(connection, sql, args)))
        kinds = {step["Node Type"] for step in steps}
        if "Seq Scan" in kinds:
            faults.append(f"{name}: scans a table: {sorted(kinds)}")
        looked = max(
            (step["Actual Rows"] + step.get("Rows Removed by Filter", 0)) * step["Actual Loops"]
            for step in steps
            if step["Node Type"] != "Bitmap Index Scan"  # entries of the index; the rows are the heap scan's
        )
        if looked > rows:
            faults.append(f"{name}: looked at {looked} rows")
    return "\n".join(faults)


async def explain(connection: asyncpg.Connection, sql: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """The plan that really ran, undone afterwards; without parallel workers, which tests do not need."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("set local max_parallel_workers_per_gather = 0")
        text = await connection.fetchval(f"explain (analyze, format json) {sql}", *args)
    finally:
        await transaction.rollback()
    plan: dict[str, Any] = json.loads(text)[0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def paged(sql: str, keyset: Keyset, *args: object, after: tuple[object, ...] = (), **filters: str) -> Any:
    """The statement of one page, as the store makes it: the first page, or one behind `after`."""
    condition = " and ".join(filters.values())
    if after:
        marks = ", ".join(f"${len(args) + 1 + index}" for index in range(len(after)))
        columns = ", ".join(column.expression for column in keyset.columns)
        condition = " and ".join([*filters.values(), f"({columns}) < ({marks})"])
    text = sql.format(condition=condition or "true") + f" order by {keyset.order_by} limit 21"
    return text, (*args, *after)
