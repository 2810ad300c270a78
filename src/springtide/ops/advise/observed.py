"""Statements with their figures: from the snapshots of processes, and from pg_stat_statements.

A process knows constants, loops and call sites; the server knows the statements of everybody. A statement
that both know is taken from the processes. Texts have parameters for literals; constants are put back.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from springtide.db._statements import describe
from springtide.db.insight import Snapshot, StatementTotals

__all__ = ["Observed", "Window", "from_server", "from_snapshots", "merged", "read_snapshots"]

MAX_STATEMENTS = 2000

_PARAMETER = re.compile(r"\$(\d+)")
_TYPED = re.compile(r"\b(interval|date|timestamptz|timestamp|time)\s+(\$\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One statement. `blocks` are those it touched in all, None where only the server would know."""

    text: str
    calls: int
    seconds: float
    slowest: float
    rows: int
    blocks: int | None = None
    repeated_requests: int = 0
    repeated_calls: int = 0
    repeated_most: int = 0
    sites: dict[str, int] = field(default_factory=dict)
    deepest_offset: int | None = None

    def shown(self) -> dict[str, Any]:
        mean = 1000 * self.seconds / max(self.calls, 1)
        return {"text": self.text, "calls": self.calls, "mean_ms": round(mean, 3), "rows": self.rows}


@dataclass(frozen=True, slots=True)
class Window:
    """The statements of one cluster, and how many seconds they were collected for."""

    statements: tuple[Observed, ...]
    seconds: float
    source: str


def read_snapshots(folder: Path) -> list[Snapshot]:
    """Those that can be read; [] when there are none."""
    found: list[Snapshot] = []
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            found.append(msgspec.json.decode(file.read_bytes(), type=Snapshot))
        except (OSError, msgspec.MsgspecError):
            continue  # a version that noted other things
    return found


def from_snapshots(snapshots: Sequence[Snapshot], cluster: str) -> Window | None:
    """Every process's figures for `cluster` and its replicas, added up; None when no process knows it."""
    by_label: dict[str, list[StatementTotals]] = {}
    known: list[Snapshot] = []
    for snapshot in snapshots:
        tables = [found for name, found in snapshot.clusters.items() if name.partition("/")[0] == cluster]
        known += [snapshot] * bool(tables)
        for totals in (one for table in tables for one in table):
            by_label.setdefault(totals.label, []).append(totals)
    if not known:
        return None
    statements = tuple(_added(several) for several in by_label.values())
    seconds = sum(max(snapshot.written - snapshot.since, 0.0) for snapshot in known) / len(known)
    nodes = ", ".join(snapshot.node for snapshot in known[:8])
    return Window(statements, seconds, f"{len(known)} processes ({nodes})")


def _added(several: Sequence[StatementTotals]) -> Observed:
    first = several[0]
    constants = {
        number: literal
        for number, literal in first.constants.items()
        if all(totals.constants.get(number) == literal for totals in several)
    }
    sites: dict[str, int] = {}
    for totals in several:
        for site, count in totals.sites.items():
            sites[site] = sites.get(site, 0) + count
    depths = [totals.deepest_offset for totals in several if totals.deepest_offset is not None]
    return Observed(
        text=_with_constants(first.text, constants),
        calls=sum(totals.calls for totals in several),
        seconds=sum(totals.seconds for totals in several),
        slowest=max(totals.slowest for totals in several),
        rows=sum(totals.rows for totals in several),
        repeated_requests=sum(totals.repeated_requests for totals in several),
        repeated_calls=sum(totals.repeated_calls for totals in several),
        repeated_most=max(totals.repeated_most for totals in several),
        sites=sites,
        deepest_offset=max(depths, default=None),
    )


def _with_constants(text: str, constants: dict[str, str]) -> str:
    """A parameter cannot follow a type's name as a literal can, so one that is left there is cast."""
    filled = _PARAMETER.sub(lambda match: constants.get(match[1], match[0]), text)
    return _TYPED.sub(r"cast(\2 as \1)", filled)


async def from_server(connection: Any) -> Window | None:
    """pg_stat_statements of this database; None where it is not installed or may not be read."""
    schema = await connection.fetchval(
        "select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace"
        " where e.extname = 'pg_stat_statements'"
    )
    if schema is None:
        return None
    view = f'"{schema}".pg_stat_statements'
    columns = {
        row["attname"]
        for row in await connection.fetch(
            "select attname from pg_attribute where attrelid = $1::text::regclass and attnum > 0", view
        )
    }
    # renamed in version 1.8 of the extension, when planning got a time of its own
    total, most = (
        ("total_exec_time", "max_exec_time") if "total_exec_time" in columns else ("total_time", "max_time")
    )
    top = "and s.toplevel" if "toplevel" in columns else ""
    try:
        rows = await connection.fetch(
            f"select s.query, sum(s.calls)::bigint as calls, sum(s.{total}) / 1000 as seconds,"  # noqa: S608
            f" max(s.{most}) / 1000 as slowest, sum(s.rows)::bigint as rows,"
            " sum(s.shared_blks_hit + s.shared_blks_read)::bigint as blocks"
            f" from {view} s where s.dbid = (select oid from pg_database where datname = current_database())"
            f" {top} and s.query is not null group by s.query order by seconds desc limit $1",
            MAX_STATEMENTS,
        )
    except Exception as error:  # not in shared_preload_libraries, or not permitted
        if getattr(error, "sqlstate", None) in ("55000", "42501"):
            return None
        raise
    since = None
    if "stats_since" not in columns:
        info = f'"{schema}".pg_stat_statements_info'
        if await connection.fetchval("select to_regclass($1) is not null", info):
            since = await connection.fetchval(f"select stats_reset from {info}")  # noqa: S608 - a name
    seconds = time.time() - since.timestamp() if since is not None else 0.0
    statements = tuple(
        Observed(
            text=_with_constants(_without_comments(row["query"]), {}),
            calls=row["calls"],
            seconds=row["seconds"],
            slowest=row["slowest"],
            rows=row["rows"],
            blocks=row["blocks"],
        )
        for row in rows
    )
    return Window(statements, max(seconds, 0.0), "pg_stat_statements")


_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)


def _without_comments(text: str) -> str:
    """The server's text on one line, without its comments."""
    return " ".join(_COMMENT.sub(" ", text).split()).rstrip("; ")


def merged(windows: Iterable[Window | None]) -> Window:
    """The first window's statements, and those that only the later ones know."""
    given = [window for window in windows if window is not None]
    if not given:
        return Window((), 0.0, "")
    known: dict[str, Observed] = {}
    for window in given:
        for statement in window.statements:
            key = describe(statement.text).label.lower()
            if key not in known:
                known[key] = statement
            elif statement.blocks is not None and known[key].blocks is None:
                per_call = statement.blocks / max(statement.calls, 1)
                known[key] = replace(known[key], blocks=round(per_call * known[key].calls))
    return Window(
        tuple(known.values()),
        max(window.seconds for window in given),
        " and ".join(window.source for window in given),
    )
