"""The plan of one statement, asked for again on a connection of its own.

EXPLAIN alone never runs a statement. ANALYZE does, so it is asked for only when nothing can come of it: the
text is a plain read, its expanded plan locks no rows, changes none and asks no other server, no function
named in text or plan is volatile (views and inlined functions show there), nor one behind an operator, an
aggregate or a cast, and the plan expects less than `MAX_COST`. It runs in a READ ONLY transaction with
`statement_timeout` that is rolled back. Whatever fails, there is a plan less.
Literals in conditions are masked: the arguments are in them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import asyncpg

from springtide.db._fingerprint import mask
from springtide.db._link import ASYNCPG_ERRORS
from springtide.db._statements import TOKENS
from springtide.db._tls import tls

__all__ = ["MAX_COST", "explain", "functions_of", "render"]

_log = logging.getLogger(__name__)

MAX_COST = 500_000.0
"""Planner units above which a read is not run again only to be looked at."""

MAX_LINES = 60
MAX_LINE = 300

_LOCKS = re.compile(r"\bfor\s+(no\s+key\s+)?(update|share|key\s+share)\b", re.IGNORECASE)
_CALLED = re.compile(r'(?:"((?:[^"]|"")+)"|([^\W\d][\w$]*))\s*\(')
_SIGNS = re.compile(r"[-+*/<>=~!@#%^&|`?]+")
_EFFECTIVE = ("ModifyTable", "LockRows", "Foreign Scan", "Custom Scan")
MAX_SIGNS = 32
"""Signs in a row, more of which no operator has that anybody made."""

_VOLATILE = """
select count(*) from pg_catalog.pg_proc p where p.provolatile = 'v' and (
    p.proname = any($1::text[])
    or p.oid in (select oprcode from pg_catalog.pg_operator where oprname = any($2::text[]))
    or p.oid in (select castfunc from pg_catalog.pg_cast)
    or p.oid in (
        select unnest(array[aggtransfn, aggfinalfn, aggmtransfn, aggminvtransfn, aggmfinalfn])
        from pg_catalog.pg_aggregate where aggfnoid in (
            select oid from pg_catalog.pg_proc where proname = any($1::text[]))))
"""
_CONDITIONS = (
    "Index Cond", "Recheck Cond", "Filter", "Hash Cond", "Merge Cond", "Join Filter", "Sort Key",
    "One-Time Filter",
)  # fmt: skip


async def explain(dsn: str, sql: str, args: tuple[Any, ...], *, read: bool, timeout: float) -> str | None:
    """The plan as text, or None. Connects, and is done with everything within `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            connection = await asyncpg.connect(
                dsn,
                statement_cache_size=0,
                server_settings={"application_name": "springtide insight"},
                ssl=await tls(dsn),
            )
            try:
                return await _explain(connection, sql, args, read, timeout)
            finally:
                connection.terminate()
    except (TimeoutError, *ASYNCPG_ERRORS, OSError, ValueError) as error:
        _log.debug("no plan: %s", type(error).__name__)
        return None


async def _explain(
    connection: Any, sql: str, args: tuple[Any, ...], read: bool, timeout: float
) -> str | None:
    await connection.execute("BEGIN READ ONLY")  # only ever rolled back: the connection is hung up on
    await connection.execute(f"SET LOCAL statement_timeout = {max(int(timeout * 700), 1)}")
    found = await connection.fetchval(f"EXPLAIN (FORMAT JSON, VERBOSE) {sql}", *args)
    (plan,) = json.loads(found) if isinstance(found, str) else found
    if read and await _harmless(connection, sql, plan["Plan"]):
        try:
            found = await connection.fetchval(f"EXPLAIN (FORMAT JSON, ANALYZE, BUFFERS) {sql}", *args)
        except asyncpg.PostgresError:
            return render(plan)  # too slow to be run again, or refused: the plan without its figures
        (plan,) = json.loads(found) if isinstance(found, str) else found
    return render(plan)


async def _harmless(connection: Any, sql: str, plan: Mapping[str, Any]) -> bool:
    if plan.get("Total Cost", MAX_COST) >= MAX_COST or _LOCKS.search(mask(sql)):
        return False
    if any(node["Node Type"] in _EFFECTIVE for node in _nodes(plan)):
        return False
    planned = "\n".join(_strings(plan))
    signs = _SIGNS.findall(_bare(sql)) + _SIGNS.findall(planned)
    if max(map(len, signs), default=0) > MAX_SIGNS:
        return False
    volatile = await connection.fetchval(
        _VOLATILE,
        sorted(functions_of(sql) | functions_of(planned)),
        sorted({run[a:b] for run in set(signs) for a in range(len(run)) for b in range(a + 1, len(run) + 1)}),
    )
    return bool(volatile == 0)


def functions_of(text: str) -> set[str]:
    """Every name that is followed by a parenthesis, as it is written and in small letters."""
    found = _CALLED.finditer(_bare(text))
    names = {match[1].replace('""', '"') if match[1] else match[2] for match in found}
    return names | {name.lower() for name in names}


def _bare(text: str) -> str:
    """Without literals, and without comments: one may stand between a function and its parenthesis."""
    return TOKENS.sub(
        lambda match: " " if match["comment"] is not None or match["literal"] else match[0], text
    )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(one)


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def render(explained: Mapping[str, Any]) -> str:
    """A plan of EXPLAIN's JSON as a few lines, without a value of the statement's."""
    lines: list[str] = []
    _lines(explained["Plan"], 0, lines)
    if "Execution Time" in explained:
        lines.append(f"execution {explained['Execution Time']:.1f} ms")
    return "\n".join(line[:MAX_LINE] for line in lines[:MAX_LINES])


def _lines(node: Mapping[str, Any], depth: int, lines: list[str]) -> None:
    name = node["Node Type"]
    if "Index Name" in node:
        name += f" using {node['Index Name']}"
    if "Relation Name" in node:
        name += f" on {node['Relation Name']}"
    figures = f"cost={node['Total Cost']:.0f} rows={node['Plan Rows']}"
    if "Actual Total Time" in node:
        figures += f" actual={node['Actual Total Time']:.1f} ms"
        figures += f" rows={node['Actual Rows']:.0f} x{node['Actual Loops']}"
    if "Shared Hit Blocks" in node:
        figures += f" blocks={node['Shared Hit Blocks']}+{node['Shared Read Blocks']}"
    lines.append(f"{'  ' * depth}{name} ({figures})")
    for key in _CONDITIONS:
        if key in node:
            said = node[key] if isinstance(node[key], str) else ", ".join(node[key])
            lines.append(f"{'  ' * depth}  {key}: {mask(said)}")
    if node.get("Rows Removed by Filter"):
        lines.append(f"{'  ' * depth}  removed by filter: {node['Rows Removed by Filter']:.0f}")
    for child in node.get("Plans", ()):
        _lines(child, depth + 1, lines)
