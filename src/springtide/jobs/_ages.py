"""How long the oldest job of each kind waits, written down by workers for producers.

A worker knows below which time nothing is ready, so it measures without passing what a held transaction
keeps; an app server does not. So the upkeep of one worker at a time (`turn`) measures and writes one row per
kind, and every process that enqueues reads those few rows once a second (`pressure.py`). A row has the time
since when the oldest job is due, not its age: while no worker lives it goes on growing older by itself.
A measurement of the future is none: the database's clock was set back since.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["Ages"]

APART = 1.0
"""Seconds between two measurements of a line, over all workers."""


class Queries(Protocol):
    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """Every row."""


class Ages:
    """The statements, for the jobs in `schema`. `reading` gives rows of (kind, age)."""

    def __init__(self, schema: str) -> None:
        table = f"{schema}._job_age"
        self._turn = f"""
            INSERT INTO {table} AS a (kind, measured_at) VALUES ('', clock_timestamp())
            ON CONFLICT (kind) DO UPDATE SET measured_at = clock_timestamp()
            WHERE a.measured_at NOT BETWEEN
                clock_timestamp() - make_interval(secs => {APART}) AND clock_timestamp()
            RETURNING kind
        """  # noqa: S608 - the schema is an identifier checked by Database, here and below
        self._write = f"""
            INSERT INTO {table} AS a (kind, oldest_at, measured_at)
            SELECT n.kind, clock_timestamp() - make_interval(secs => n.age), clock_timestamp()
            FROM unnest($1::text[], $2::float8[]) AS n (kind, age) ORDER BY n.kind
            ON CONFLICT (kind) DO UPDATE
            SET oldest_at = excluded.oldest_at, measured_at = excluded.measured_at
        """  # noqa: S608
        self.reading = f"""
            SELECT kind, greatest(extract(epoch FROM clock_timestamp() - oldest_at), 0)::float8 AS age
            FROM {table} WHERE oldest_at IS NOT NULL
        """  # noqa: S608

    async def turn(self, queries: Queries) -> bool:
        """Whether it is this worker's turn to measure."""
        return bool(await queries.fetch(self._turn))

    async def write(self, queries: Queries, ages: Mapping[str, float | None]) -> None:
        """Per kind how many seconds its oldest due job waits; None where nothing does."""
        await queries.fetch(self._write, list(ages), list(ages.values()))

    async def read(self, queries: Queries) -> dict[str, float]:
        """The ages now, of kinds that had something waiting when they were measured."""
        return {row["kind"]: row["age"] for row in await queries.fetch(self.reading)}
