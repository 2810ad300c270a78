"""What this process asks its databases: statements by fingerprint, repeated ones, slow ones with their plan.

Every statement of a watched pool is counted under its fingerprint, in a table with a bound: `MAX_STATEMENTS`
per cluster; when it is full, the twentieth that cost the least goes. The counting is a few additions; a text
is looked at once. Every few seconds the tables are written to `<folder>/<node>.json`, where `springtide db
advise` reads them, also those of a process that has ended.

*Repeated* (the N+1 problem): one request runs the same fingerprint at least `REPEATS` times, `SAME_SITE` of
them from one place of the application. Calls before the `WATCHED_FROM`th cost nothing extra.
*Slow*: at least `slow_statement` seconds. It is told with the plan of the same statement and arguments,
at most one plan per `EXPLAIN_EVERY` seconds and per fingerprint one in `EXPLAIN_AGAIN`; see `_explaining`.

Never here: waiting for the database in a caller's path, arguments in clear, a table without a bound.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from springtide.clock import Clock, SystemClock
from springtide.context import Entry, current
from springtide.db._callsite import Origins, call_site
from springtide.db._explaining import explain
from springtide.db._fingerprint import normalise, offset_argument, same, tellable
from springtide.db._statements import Statement
from springtide.lifecycle import Periodic, StartStop
from springtide.signals import NullSink, Sink, StatementRepeated, StatementSlow

__all__ = ["Insight", "Snapshot", "StatementTable", "StatementTotals"]

MAX_STATEMENTS = 1000
REPEATS = 8
WATCHED_FROM = 4
SAME_SITE = 5
MAX_LOOKS = 24
"""Call sites taken per request and fingerprint."""
MAX_SITES = 4
MAX_VARIANTS = 16
"""Texts of one fingerprint that are compared; after so many, none of its literals is a constant."""

_ASKS = ("select", "insert", "update", "delete", "with", "values", "merge")

EXPLAIN_EVERY = 10.0
EXPLAIN_AGAIN = 600.0
MAX_PENDING = 8
MAX_FILES = 64
"""Files of ended processes that are kept."""


class StatementTotals(msgspec.Struct, frozen=True, kw_only=True):
    """One fingerprint, added up since the process started (or since it came back into the table).

    `text` is normalised; `constants` are literals of the program by parameter number. `repeated_*` count
    requests that ran it at least `REPEATS` times; `sites` are the places they came from, with how often.
    `deepest_offset` is the largest OFFSET seen, None when it has none.
    """

    label: str
    text: str
    calls: int
    seconds: float
    slowest: float
    rows: int
    errors: int
    constants: dict[str, str] = msgspec.field(default_factory=dict)
    repeated_requests: int = 0
    repeated_calls: int = 0
    repeated_most: int = 0
    sites: dict[str, int] = msgspec.field(default_factory=dict)
    deepest_offset: int | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What one process has counted: `since` and `written` are seconds since 1970, by cluster."""

    node: str
    since: float
    written: float
    clusters: dict[str, list[StatementTotals]]


class _Counts:
    __slots__ = (
        "asks",
        "calls",
        "constants",
        "deepest",
        "errors",
        "explained",
        "label",
        "offset_at",
        "repeated_calls",
        "repeated_most",
        "repeated_requests",
        "rows",
        "seconds",
        "sites",
        "slowest",
        "sql",
        "text",
        "variants",
    )

    def __init__(self, label: str, sql: str) -> None:
        self.label = label
        self.sql = sql
        self.text, self.constants = normalise(sql)
        self.offset_at = offset_argument(self.text)
        self.asks = self.text.lower().startswith(_ASKS)  # a BEGIN in a loop is the loop of what is in it
        self.calls = 0
        self.seconds = 0.0
        self.slowest = 0.0
        self.rows = 0
        self.errors = 0
        self.variants = 0
        self.deepest = 0
        self.explained = float("-inf")
        self.repeated_requests = 0
        self.repeated_calls = 0
        self.repeated_most = 0
        self.sites: dict[str, int] = {}

    def totals(self) -> StatementTotals:
        return StatementTotals(
            label=self.label,
            text=self.text,
            constants=tellable(self.text, self.constants) if self.calls > 2 else {},
            calls=self.calls,
            seconds=round(self.seconds, 6),
            slowest=round(self.slowest, 6),
            rows=self.rows,
            errors=self.errors,
            repeated_requests=self.repeated_requests,
            repeated_calls=self.repeated_calls,
            repeated_most=self.repeated_most,
            sites=dict(self.sites),
            deepest_offset=self.deepest if self.offset_at is not None else None,
        )


class StatementTable:
    """The statements of one cluster, as this process sees them. `note` is called after each one."""

    __slots__ = ("_counts", "_insight", "_slow", "cluster", "dropped", "dsn")

    def __init__(self, cluster: str, dsn: Callable[[], str] | None, insight: Insight) -> None:
        self.cluster = cluster
        self.dsn = dsn
        self.dropped = 0
        self._insight = insight
        self._slow = insight.slow_statement
        self._counts: dict[str, _Counts] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def note(
        self,
        statement: Statement,
        sql: str,
        args: tuple[Any, ...],
        seconds: float,
        rows: int,
        error: str | None,
        entry: Entry | None,
    ) -> None:
        """Count one statement; `entry` is its line in the request's ledger, which has counted it already."""
        counts = self._counts.get(statement.label)
        if counts is None:
            counts = self._learn(statement.label, sql)
        counts.calls += 1
        counts.seconds += seconds
        counts.rows += rows
        if seconds > counts.slowest:
            counts.slowest = seconds
        if error is not None:
            counts.errors += 1
        if sql is not counts.sql:
            self._compare(counts, sql)
        if counts.offset_at is not None:
            self._skip(counts, args)
        if entry is not None and entry.calls >= WATCHED_FROM and counts.asks:
            self._again(counts, entry)
        if seconds >= self._slow:
            self._insight._hear_slow(self, counts, statement, sql, args, seconds, error)

    def totals(self) -> list[StatementTotals]:
        return [counts.totals() for counts in self._counts.values()]

    def _learn(self, label: str, sql: str) -> _Counts:
        if len(self._counts) >= MAX_STATEMENTS:
            cheapest = sorted(self._counts.values(), key=lambda counts: counts.seconds)
            for counts in cheapest[: MAX_STATEMENTS // 20]:
                del self._counts[counts.label]
                self.dropped += 1
        made = self._counts[label] = _Counts(label, label if label.startswith("COPY ") else sql)
        return made

    def _compare(self, counts: _Counts, sql: str) -> None:
        """Another text object: mostly the same text; else its literals tell which are the program's."""
        if sql == counts.sql or counts.label.startswith("COPY "):
            counts.sql = sql
            return
        counts.variants += 1
        if counts.variants > MAX_VARIANTS:
            counts.constants = {}
        literal_offset = counts.offset_at is not None and f"${counts.offset_at + 1}" not in sql
        if counts.constants or literal_offset:
            literals = normalise(sql)[1]
            if literal_offset:
                self._deepen(counts, literals.get((counts.offset_at or 0) + 1))
            counts.constants = same(counts.constants, literals)

    def _skip(self, counts: _Counts, args: tuple[Any, ...]) -> None:
        at = counts.offset_at
        assert at is not None
        self._deepen(counts, args[at] if at < len(args) else counts.constants.get(at + 1))

    def _deepen(self, counts: _Counts, skipped: object) -> None:
        if isinstance(skipped, str) and skipped.isdigit():
            skipped = int(skipped)
        if isinstance(skipped, int) and skipped > counts.deepest:
            counts.deepest = skipped

    def _again(self, counts: _Counts, entry: Entry) -> None:
        """The request has run this fingerprint a few times: from where, and is it a loop?"""
        if entry.calls == REPEATS:
            counts.repeated_requests += 1
            counts.repeated_calls += REPEATS
        elif entry.calls > REPEATS:
            counts.repeated_calls += 1
        if entry.calls > counts.repeated_most:
            counts.repeated_most = entry.calls
        if counts.sites and counts.repeated_requests % 16:
            return  # known: every sixteenth request is looked at again
        looks = entry.sites
        if looks is None:
            looks = entry.sites = {}
        if len(looks) >= MAX_LOOKS or looks.get("", 0) >= MAX_LOOKS:
            return
        site = call_site()
        if site is None:
            self._insight._origins.want()
            return
        looks[""] = looks.get("", 0) + 1
        key = f"{self.cluster} {site}"
        looks[key] = looks.get(key, 0) + 1
        if looks[key] == SAME_SITE:
            self._insight._origins.enough()
            if site in counts.sites or len(counts.sites) < MAX_SITES:
                counts.sites[site] = counts.sites.get(site, 0) + 1
            self._insight._sink.emit(StatementRepeated(self.cluster, counts.label, entry.calls, site))


class _Slow(msgspec.Struct, frozen=True):
    table: StatementTable
    counts: Any
    sql: str
    args: tuple[Any, ...]
    read: bool
    seconds: float
    request_id: str


class Insight:
    """The tables of one process. A lifecycle service; a table counts whether it runs or not.

    folder:           where snapshots are written, as `<node>.json`; None writes none. A folder whose parent
                      does not exist is not made: nothing is left where no platform runs.
    node:             this process's name in the snapshot; None means `process-<pid>`.
    slow_statement:   seconds from which a statement is told with its plan.
    explain_timeout:  seconds that looking for one plan may take, connecting included.

    Raises ValueError for options that cannot work.
    """

    name = "insight"

    def __init__(
        self,
        *,
        folder: Path | None = None,
        node: str | None = None,
        slow_statement: float = 0.5,
        explain_timeout: float = 2.0,
        write_every: float = 5.0,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        for option, seconds in (
            ("slow_statement", slow_statement),
            ("explain_timeout", explain_timeout),
            ("write_every", write_every),
        ):
            if not seconds > 0:
                raise ValueError(f"{option} must be > 0 seconds, got {seconds}")
        self.slow_statement = slow_statement
        self._explain_timeout = explain_timeout
        self._folder = folder
        self._node = node or f"process-{os.getpid()}"
        self._clock = clock or SystemClock()
        self._sink = sink or NullSink()
        self._since = time.time()
        self._tables: dict[str, StatementTable] = {}
        self._pending: deque[_Slow] = deque(maxlen=MAX_PENDING)
        self._next_plan = float("-inf")
        self._origins = Origins()
        self._writing = Periodic(
            "insight:write", self._tick, every=write_every, clock=self._clock, sink=self._sink
        )
        self._explaining = Periodic(
            "insight:explain", self._explain_pending, every=1.0, clock=self._clock, sink=self._sink
        )
        self._life = StartStop(self.name, self._start, self._stop, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def _start(self) -> None:
        await self._writing.start()
        await self._explaining.start()

    async def _stop(self) -> None:
        await self._explaining.stop()
        await self._writing.stop()
        self._origins.enough()
        await self.write()

    def table(self, cluster: str, dsn: Callable[[], str] | None = None) -> StatementTable:
        """The table of `cluster`, shared by its pools; `dsn` says where plans come from (None: nowhere)."""
        table = self._tables.get(cluster)
        if table is None:
            table = self._tables[cluster] = StatementTable(cluster, dsn, self)
        return table

    def snapshot(self) -> Snapshot:
        return Snapshot(
            node=self._node,
            since=self._since,
            written=time.time(),
            clusters={cluster: table.totals() for cluster, table in self._tables.items()},
        )

    def watch(self, engine: Any, cluster: str = "main") -> None:
        """Count what a SQLAlchemy engine (`AsyncEngine` or `Engine`) runs, in the table of `cluster`."""
        from springtide.db._orm import watch_engine

        watch_engine(engine, self.table(cluster), self._clock)

    async def write(self) -> None:
        """Replace this process's file with what it has counted until now."""
        if self._folder is not None:
            await asyncio.to_thread(_replace, self._folder, self._node, self.snapshot())

    async def _tick(self) -> None:
        self._origins.enough()
        await self.write()

    # -- slow statements -------------------------------------------------------------------------------

    def _hear_slow(
        self,
        table: StatementTable,
        counts: _Counts,
        statement: Statement,
        sql: str,
        args: tuple[Any, ...],
        seconds: float,
        error: str | None,
    ) -> None:
        now = self._clock.monotonic()
        context = current()
        request_id = context.request_id if context is not None else ""
        wanted = (
            self.state == "running"
            and table.dsn is not None
            and error is None
            and now >= counts.explained + EXPLAIN_AGAIN
            and not counts.label.startswith("COPY ")
        )
        if not wanted or len(self._pending) == MAX_PENDING:
            self._sink.emit(StatementSlow(table.cluster, counts.label, seconds, None, request_id))
            return
        counts.explained = now
        self._pending.append(_Slow(table, counts, sql, args, statement.read, seconds, request_id))

    async def _explain_pending(self) -> None:
        if not self._pending or self._clock.monotonic() < self._next_plan:
            return
        slow = self._pending.popleft()
        self._next_plan = self._clock.monotonic() + EXPLAIN_EVERY
        plan: str | None = None
        try:
            assert slow.table.dsn is not None
            plan = await explain(
                slow.table.dsn(), slow.sql, slow.args, read=slow.read, timeout=self._explain_timeout
            )
        finally:
            self._sink.emit(
                StatementSlow(slow.table.cluster, slow.counts.label, slow.seconds, plan, slow.request_id)
            )


def _replace(folder: Path, node: str, snapshot: Snapshot) -> None:
    """Write the snapshot beside the others, atomically, readable by its owner alone."""
    if not folder.parent.is_dir():
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    half = folder / f".{node}.{os.getpid()}"
    try:
        descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(snapshot))
        half.replace(folder / f"{node}.json")
    finally:
        half.unlink(missing_ok=True)
    files: Mapping[Path, float] = {path: _age(path) for path in folder.glob("*.json")}
    for path in sorted(files, key=files.__getitem__)[:-MAX_FILES]:
        with suppress(OSError):
            path.unlink()


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
