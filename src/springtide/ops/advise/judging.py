"""What the planner would do if an index existed, without making it where anybody works.

`HypoPG`   indexes that only the planner of this session believes in, on the real tables with their statistics
`Scratch`  temporary copies of the tables, of at most `SAMPLE` rows, with their real indexes and the new ones

Everything happens in one transaction that is rolled back (also the extension, when it had to be created),
with a time limit for each statement, and nothing is run: EXPLAIN without ANALYZE. The copy reads from the
real tables and locks no reader or writer out; who changes a table's definition waits, and that ends the
looking. What a copy says is a ratio of costs for fewer rows; the finding tells so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import asyncpg

from springtide.db._explaining import render
from springtide.ops.advise.candidates import Candidate
from springtide.ops.advise.catalog import Table, quoted
from springtide.ops.advise.probing import Probe

__all__ = ["HypoPG", "Judge", "Judgement", "Scratch", "open_judge"]

SAMPLE = 30_000
STATEMENT_TIMEOUT_MS = 20_000


@dataclass(frozen=True, slots=True)
class Judgement:
    """`cost` in planner units, `used` are the candidates in the plan, by place."""

    cost: float
    used: frozenset[int]
    plan: str


class Judge(Protocol):
    def checked(self, candidates: Sequence[Candidate]) -> str:
        """How the judgement about these was made, for the finding."""

    async def judge(
        self, probe: Probe, tables: Sequence[Table], candidates: Sequence[Candidate]
    ) -> Judgement | None:
        """The plan with `candidates` there; None when the statement cannot be planned.

        `tables` are all that candidates are tried on, so that a plan without any can be compared.
        """

    async def in_the_way(self) -> bool:
        """Whether somebody waits for a lock that looking holds, or for the transaction that it is."""


async def open_judge(connection: asyncpg.Connection[Any]) -> Judge:
    """Within the transaction of `connection`, which its caller rolls back."""
    await connection.execute(
        f"set local statement_timeout = {STATEMENT_TIMEOUT_MS}; set local lock_timeout = 2000;"
        " set local max_parallel_workers_per_gather = 0; set local jit = off"
    )
    if await connection.fetchval("select 1 from pg_available_extensions where name = 'hypopg'"):
        try:
            async with connection.transaction():
                await connection.execute("create extension if not exists hypopg")
            schema = await connection.fetchval(
                "select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace"
                " where e.extname = 'hypopg'"
            )
            return HypoPG(connection, quoted(schema))
        except asyncpg.PostgresError:  # not permitted here
            pass
    return Scratch(connection)


async def _in_the_way(connection: asyncpg.Connection[Any]) -> bool:
    return bool(
        await connection.fetchval(
            "select exists (select from pg_locks"
            " where not granted and pg_backend_pid() = any(pg_blocking_pids(pid)))"
        )
    )


async def _explain(connection: asyncpg.Connection[Any], probe: Probe) -> dict[str, Any]:
    mode = "force_generic_plan" if probe.values is None else "force_custom_plan"
    given = ["null"] * probe.parameters if probe.values is None else probe.values
    arguments = f"({', '.join(given)})" if given else ""
    await connection.execute(f"set local plan_cache_mode = {mode}")
    # fetch, not execute: its protocol takes one statement, whatever the text has behind a semicolon
    await connection.fetch(f"prepare springtide_probe as {probe.text}")
    try:
        async with connection.transaction():  # what is prepared outlives a transaction that failed
            found = await connection.fetchval(f"explain (format json) execute springtide_probe{arguments}")
    finally:
        if not connection.is_closed():
            await connection.execute("deallocate springtide_probe")
    explained: dict[str, Any] = (json.loads(found) if isinstance(found, str) else found)[0]
    return explained


def _index_names(plan: dict[str, Any]) -> set[str]:
    names = {plan["Index Name"]} if "Index Name" in plan else set()
    for child in plan.get("Plans", ()):
        names |= _index_names(child)
    return names


def _judgement(explained: dict[str, Any], names: Sequence[set[str]]) -> Judgement:
    used = _index_names(explained["Plan"])
    return Judgement(
        float(explained["Plan"]["Total Cost"]),
        frozenset(place for place, name in enumerate(names) if name & used),
        render(explained),
    )


class HypoPG:
    def __init__(self, connection: asyncpg.Connection[Any], schema: str) -> None:
        self._connection = connection
        self._schema = schema

    def checked(self, candidates: Sequence[Candidate]) -> str:
        return "hypopg"

    async def in_the_way(self) -> bool:
        return await _in_the_way(self._connection)

    async def judge(
        self, probe: Probe, tables: Sequence[Table], candidates: Sequence[Candidate]
    ) -> Judgement | None:
        names: list[set[str]] = []
        try:
            async with self._connection.transaction():
                await self._connection.execute(f"select {self._schema}.hypopg_reset()")
                for candidate in candidates:
                    parts = [part for _, part in candidate.table.parts] or [candidate.table.sql]
                    names.append({await self._believe(candidate.definition(part)) for part in parts})
                return _judgement(await _explain(self._connection, probe), names)
        except asyncpg.PostgresError:
            return None

    async def _believe(self, definition: str) -> str:
        """The name of an index that is not there."""
        name: str = await self._connection.fetchval(
            f"select indexname from {self._schema}.hypopg_create_index($1)",  # noqa: S608
            f"CREATE INDEX {definition}",
        )
        return name


class Scratch:
    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection
        self._copied: dict[str, int] = {}
        self._named: dict[str, str] = {}

    def checked(self, candidates: Sequence[Candidate]) -> str:
        rows = min((self._copied.get(one.table.key, 0) for one in candidates), default=0)
        return f"scratch copy of {rows} rows"

    async def in_the_way(self) -> bool:
        return await _in_the_way(self._connection)

    async def judge(
        self, probe: Probe, tables: Sequence[Table], candidates: Sequence[Candidate]
    ) -> Judgement | None:
        if len({table.name for table in tables}) < len(tables):
            return None  # two schemas have a table of this name, and a copy has no schema
        try:
            async with self._connection.transaction():
                for table in tables:
                    await self._copy(table)
        except asyncpg.PostgresError:
            return None
        text = probe.text
        for table in tables:
            schema, name = (
                rf'(?:{re.escape(part)}|"{re.escape(part)}")' for part in (table.schema, table.name)
            )
            text = re.sub(rf"(?<![\w.\"]){schema}\s*\.\s*({name})(?!\w)", r"pg_temp.\1", text)
        here = Probe(text=text, values=probe.values, parameters=probe.parameters)
        names = [f"springtide_candidate_{place}" for place in range(len(candidates))]
        inner = self._connection.transaction()
        await inner.start()
        try:
            for name, candidate in zip(names, candidates, strict=True):
                relation = f"pg_temp.{quoted(candidate.table.name)}"
                await self._connection.execute(f"create index {name} {candidate.definition(relation)}")
            return _judgement(await _explain(self._connection, here), [{name} for name in names])
        except asyncpg.PostgresError:
            return None
        finally:
            await inner.rollback()

    async def _copy(self, table: Table) -> None:
        """A temporary table of the same name: unqualified, a statement means it first."""
        if table.key in self._copied:
            return
        name = f"pg_temp.{quoted(table.name)}"
        if (other := self._named.get(table.name)) is not None:
            await self._connection.execute(f"drop table {name}")
            del self._copied[other]
        await self._connection.execute(
            f"create temporary table {quoted(table.name)}"
            f" (like {table.sql} including indexes including statistics) on commit drop"
        )
        share = 100.0 if table.rows <= SAMPLE else max(110.0 * SAMPLE / table.rows, 0.0001)
        how = "bernoulli" if table.rows <= 1_000_000 else "system"
        columns = ", ".join(quoted(column) for column in table.columns)
        # a policy may run anything, and leave a part of the rows: where one applies to us, there is no copy
        await self._connection.execute("set local row_security = off")
        await self._connection.execute(
            f"insert into {name} ({columns}) select {columns} from {table.sql}"  # noqa: S608 - names
            f" tablesample {how} ({share:.6f}) repeatable (1) limit {SAMPLE}"
        )
        await self._connection.execute(f"set local row_security = on; analyze {name}")
        self._copied[table.key] = await self._connection.fetchval(f"select count(*) from {name}")  # noqa: S608
        self._named[table.name] = table.key
