"""One database looked at: statements, catalog, planner; findings ranked by the time they explain.

Reads only. The planner's trials happen in one transaction that is rolled back; nothing is left, also when
the advisor is killed. `total` is the time of all observed statements, so shares of different findings of one
statement may add up to more than it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg

from springtide.db._tls import tls
from springtide.errors import ConfigurationError, DatabaseUnavailable
from springtide.ops.advise.findings import Advice, Finding

__all__ = ["Settings", "advise"]

CONNECT_TIMEOUT = 10.0
DAY = 86_400.0

_SCANS = "select schemaname || '.' || indexrelname as name, idx_scan as scans from pg_stat_user_indexes"

_STREAMING = """
select (select count(*) from pg_stat_replication r
        where coalesce(r.application_name, '') not in ('pg_basebackup', 'pg_receivewal')
        and not exists (select from pg_replication_slots s
                        where s.active_pid = r.pid and s.slot_type = 'logical'))::int as streaming,
       pg_is_in_recovery() as replica_itself
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """What replicas say of the use of indexes: `scans` by `schema.index`, `age` for how long all of them have
    counted. `silent` did not answer; `streaming` are replicas that the server sends its log to."""

    scans: dict[str, int]
    asked: int
    silent: int
    streaming: int
    age: float
    primary: bool

    def unknown(self) -> str | None:
        """Why an index without scans may be in use all the same; None when it is not."""
        if not self.primary:
            return "this server is a replica itself"
        if self.silent:
            return f"{self.silent} replicas did not answer"
        if self.streaming > self.asked:
            return f"{self.streaming} replicas follow this server and {self.asked} were asked (--replica)"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """min_gain:      part of a statement's planner cost that an index must save, 0 to 1.
    unused_after:  seconds that the use of indexes must have been counted before one is called unused.

    Raises ConfigurationError for values that cannot work.
    """

    min_gain: float = 0.3
    unused_after: float = 7 * DAY

    def __post_init__(self) -> None:
        if not 0 < self.min_gain < 1:
            raise ConfigurationError(f"--min-gain must be between 0 and 1, got {self.min_gain:g}")
        if self.unused_after < 0:
            raise ConfigurationError(f"--unused-after must be >= 0, got {self.unused_after:g}")


async def advise(
    url: str,
    *,
    cluster: str = "main",
    statements: Path | None = None,
    replicas: Sequence[str] = (),
    cores: int | None = None,
    settings: Settings | None = None,
) -> Advice:
    """Look at the database behind `url`.

    statements: a folder of snapshots; None means that only the server is asked.
    replicas:   addresses of its replicas, asked for their use of indexes; "" is one without an address.
    cores:      how many the server's machine has; None means unknown.

    Raises DatabaseUnavailable, and ConfigurationError when the parser is not installed.
    """
    try:
        import sqlglot  # noqa: F401 - the rest imports it
    except ImportError:
        raise ConfigurationError(
            "reading statements needs the parser sqlglot: pip install 'springtide[advise]'"
        ) from None
    connection = await _connect(url)
    try:
        outer = connection.transaction(isolation="repeatable_read")
        await outer.start()
        try:
            await connection.execute("set local lock_timeout = '2s'; set local statement_timeout = '60s'")
            elsewhere = await _ask_replicas(connection, replicas)
            return await _look(connection, cluster, statements, elsewhere, cores, settings or Settings())
        except asyncpg.PostgresError as error:
            raise DatabaseUnavailable(f"the database cannot be looked at: {error}") from error
        finally:
            if not connection.is_closed():
                await outer.rollback()
    finally:
        connection.terminate()


async def _connect(url: str) -> asyncpg.Connection[Any]:
    try:
        return await asyncpg.connect(
            url,
            timeout=CONNECT_TIMEOUT,
            statement_cache_size=0,
            server_settings={"application_name": "springtide advise"},
            ssl=await tls(url),
        )
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise DatabaseUnavailable(
            f"the database cannot be asked: {str(error) or type(error).__name__}"
        ) from error


async def _ask_replicas(connection: asyncpg.Connection[Any], urls: Sequence[str]) -> Elsewhere:
    from springtide.ops.advise.catalog import AGE

    scans: dict[str, int] = {}
    ages: list[float] = []
    for url in filter(None, urls):
        try:
            replica = await _connect(url)
        except DatabaseUnavailable:
            continue
        try:
            found, age = await replica.fetch(_SCANS), await replica.fetchval(AGE)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            continue
        finally:
            replica.terminate()
        ages.append(age or 0.0)
        for row in found:
            scans[row["name"]] = scans.get(row["name"], 0) + row["scans"]
    here: Any = await connection.fetchrow(_STREAMING)
    return Elsewhere(
        scans=scans, asked=len(ages), silent=len(urls) - len(ages), streaming=here["streaming"],
        age=min(ages, default=math.inf), primary=not here["replica_itself"],
    )  # fmt: skip


async def _look(
    connection: asyncpg.Connection[Any],
    cluster: str,
    folder: Path | None,
    elsewhere: Elsewhere,
    cores: int | None,
    settings: Settings,
) -> Advice:
    from springtide.ops.advise import asking, indexing, judging, observed, present, server
    from springtide.ops.advise.catalog import read_catalog
    from springtide.ops.advise.reading import read

    snapshots = await asyncio.to_thread(observed.read_snapshots, folder) if folder is not None else []
    own = observed.from_snapshots(snapshots, cluster)
    window = observed.merged([own, await observed.from_server(connection)])
    catalog = await read_catalog(connection)
    facts = await server.read_facts(connection, cores)
    total = sum(statement.seconds for statement in window.statements)
    asked: list[indexing.Asked] = []
    unread = 0
    for statement in window.statements:
        reading = read(statement.text, catalog)
        if reading is not None:
            asked.append(indexing.ask(statement, reading, catalog))
        elif statement.text.lstrip("( ").lower().startswith(("select", "with", "insert", "update", "delete")):
            unread += 1
    judge = await judging.open_judge(connection)
    min_gain, allowance = settings.min_gain, indexing.Allowance(judge)
    missing, refused = await indexing.missing_indexes(
        asked, judge, catalog, allowance, total=total, min_gain=min_gain
    )
    deleted_from = {
        one.reading.target.key
        for one in asked
        if one.reading.kind == "delete" and one.reading.target is not None
    }
    begun = {(finding.table, finding.columns[:n]) for finding in missing for n in (1, 2, 3)}
    keys = [
        key
        for key in present.keys_without_index(catalog, deleted_from)
        if (key.table, key.columns) not in begun
    ]
    findings: list[Finding] = [
        *missing,
        *await indexing.missing_for_keys(
            keys, asked, judge, catalog, allowance, total=total, min_gain=min_gain
        ),
        *asking.loops(asked, total=total),
        *asking.deep_offsets(asked, total=total),
        *asking.stars(asked, catalog, total=total),
        *present.duplicates(catalog, total=total),
    ]
    told = {finding.index for finding in findings if finding.kind == "duplicate_index"}
    notes: list[str] = []
    if (unknown := elsewhere.unknown()) is not None:
        notes.append(f"{unknown}: no index is called unused")
    else:
        lazy, why = present.unused(
            replace(catalog, age=min(catalog.age, elsewhere.age)), elsewhere.scans,
            replicas=elsewhere.asked, min_age=settings.unused_after, told=told, total=total,
        )  # fmt: skip
        findings += lazy
        notes += why
    findings += server.machine(facts)
    if not window.statements:
        notes.append(
            "no statements: start the application under `springtide up`, or install pg_stat_statements; "
            "only the catalog was looked at"
        )
    if allowance.ended:
        notes.append(f"{allowance.ended}: not all statements were looked at")
    if catalog.locked:
        notes.append(f"locked by somebody and not looked at: {', '.join(catalog.locked)}")
    if unread:
        notes.append(f"{unread} statements could not be parsed and were not looked at")
    if refused:
        notes.append(f"{len(refused)} statements could not be planned again: {refused[0][:120]}")
    findings.sort(key=lambda finding: -finding.share)
    return Advice(
        cluster=cluster,
        seconds=total,
        calls=sum(statement.calls for statement in window.statements),
        window=window.seconds,
        sources=(window.source,) if window.source else (),
        findings=tuple(findings),
        notes=tuple(notes),
    )
