"""Bring a module's tables on every one of its shards to the newest migration, forward only.

Each PostgreSQL database keeps its own record, `springtide.migration`. One process at a time migrates a
database (advisory lock, polled: a session that *waits* for it would hold a snapshot and so block CREATE INDEX
CONCURRENTLY). A file and its record commit together, so a crash leaves either both or neither; a
`no-transaction` file records each statement, and an index that a crash left invalid is dropped and built
again. What is applied never changes: checksums are compared, and a difference ends the run before anything
is done on that shard.

A statement that needs a lock waits for it at most `lock_timeout` and then lets the traffic behind it pass
before it tries again: a migration queues nobody behind a long transaction for longer than that.

States of a migration on a shard: pending -> (partial ->) applied. Faults: changed, renamed, skipped, unknown.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from springtide.clock import Clock, SystemClock
from springtide.db import _migration_files as files
from springtide.db._migration_files import MigrationFile
from springtide.db._names import identifier
from springtide.db._sql import Statement
from springtide.errors import DatabaseUnavailable, MigrationError

if TYPE_CHECKING:
    from springtide.db.pool import Pool

__all__ = ["MigrationStatus", "Migrator"]

LOCK_KEY = int.from_bytes(blake2b(b"springtide.migration", digest_size=8).digest(), "big", signed=True)
LOCK_POLL = 0.1
MAX_RETRY_PAUSE = 5.0

BOOTSTRAP = """
CREATE SCHEMA IF NOT EXISTS springtide;
CREATE TABLE IF NOT EXISTS springtide.migration (
    module          text        NOT NULL,
    source          text        NOT NULL CHECK (source IN ('springtide', 'module')),
    number          integer     NOT NULL,
    name            text        NOT NULL,
    checksum        text        NOT NULL,
    statements_done integer,
    began_at        timestamptz NOT NULL DEFAULT now(),
    applied_at      timestamptz,
    PRIMARY KEY (module, source, number)
)
"""

RECORDED = """
SELECT source, number, name, checksum, statements_done, applied_at
FROM springtide.migration WHERE module = $1 ORDER BY source DESC, number
"""

RECORD = """
INSERT INTO springtide.migration (module, source, number, name, checksum, statements_done, applied_at)
VALUES ($1, $2, $3, $4, $5, $6::integer, CASE WHEN $6::integer IS NULL THEN now() END)
"""

PROGRESS = """
UPDATE springtide.migration
SET statements_done = $4::integer, applied_at = CASE WHEN $4::integer IS NULL THEN now() END
WHERE module = $1 AND source = $2 AND number = $3
"""

INDEX_VALID = """
SELECT i.indisvalid FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2
"""


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """One migration on one shard. `source` is "springtide" for the data layer's own tables, else "module".

    state: pending, partial (a no-transaction file in the middle), applied, changed (the file differs from
    what was applied), renamed, skipped (later ones are applied), unknown (recorded, but not in the folder).
    """

    module: str
    shard: str
    source: str
    number: int
    name: str
    state: str
    checksum: str
    recorded_checksum: str | None
    applied_at: datetime | None
    statements_done: int | None = None

    @property
    def fault(self) -> str | None:
        """What is wrong, in a sentence; None for pending, partial and applied."""
        where = f"{self.module}/{self.name} on {self.shard}"
        if self.state == "changed":
            return (
                f"{where} was changed after it was applied (was {(self.recorded_checksum or '')[:12]}, is"
                f" {self.checksum[:12]}): an applied migration is never edited; restore it and add a new file"
            )
        if self.state == "renamed":
            return f"{where} was applied under another name with the same number: restore the name"
        if self.state == "skipped":
            return f"{where} is not applied although a later one is: give it the next free number"
        if self.state == "unknown":
            return f"{where} is applied but not in the folder: this is older code than the database"
        return None


class Migrator:
    """The migrations of the module `name` in `folder` (None: only the data layer's own), on all `pools`.

    lock_timeout:  seconds that a statement may wait for a lock before it makes way for traffic.
    lock_attempts: how often a file is tried before the run fails.
    wait:          seconds to wait for another process that is migrating the same database.
    """

    def __init__(
        self,
        name: str,
        folder: Path | None,
        pools: Mapping[str, Pool],
        *,
        lock_timeout: float = 2.0,
        lock_attempts: int = 30,
        wait: float = 900.0,
        clock: Clock | None = None,
    ) -> None:
        if lock_timeout <= 0:
            raise ValueError(f"lock_timeout must be > 0 seconds, got {lock_timeout}")
        if lock_attempts < 1:
            raise ValueError(f"lock_attempts must be >= 1, got {lock_attempts}")
        if wait < 0:
            raise ValueError(f"wait must be >= 0 seconds, got {wait}")
        self.name = identifier(name)
        self._folder = folder
        self._pools = dict(pools)
        self._lock_timeout = lock_timeout
        self._lock_attempts = lock_attempts
        self._wait = wait
        self._clock = clock or SystemClock()

    async def apply(self) -> list[str]:
        """Apply what is pending, shard by shard; returns `module/file on shard` of each, oldest first.

        Raises MigrationError for a fault in the folder, a difference to the record or a file that fails:
        what was applied before stays, and the next call goes on from there.
        """
        wanted = await self._files()
        applied: list[str] = []
        for shard, pool in self._pools.items():
            async with self._locked(shard, pool) as connection:
                await self._run(connection, BOOTSTRAP, f"making the record of migrations on {shard}")
                statuses = await self._compare(connection, shard, wanted)
                _refuse([fault for status in statuses if (fault := status.fault) is not None])
                await self._run(connection, f"CREATE SCHEMA IF NOT EXISTS {self.name}", f"making {self.name}")
                todo = {(s.source, s.number): s for s in statuses if s.state in ("pending", "partial")}
                for source, file in wanted:
                    status = todo.get((source, file.number))
                    if status is not None:
                        await self._apply(connection, shard, source, file, status.statements_done)
                        applied.append(_label(status))
        return applied

    async def status(self) -> list[MigrationStatus]:
        """Every migration on every shard; changes nothing."""
        wanted = await self._files()
        found: list[MigrationStatus] = []
        for shard, pool in self._pools.items():
            async with pool.acquire() as connection:
                found += await self._compare(connection, shard, wanted)
        return found

    async def pending(self) -> list[str]:
        """What `apply` would do, as it would return it. Raises MigrationError for a difference to the record.

        Migrations that only the database knows are no fault here: while a newer version is being rolled
        out, servers of the older one still start.
        """
        statuses = await self.status()
        _refuse([s.fault for s in statuses if s.fault is not None and s.state != "unknown"])
        return [_label(status) for status in statuses if status.state in ("pending", "partial")]

    async def _files(self) -> list[tuple[str, MigrationFile]]:
        """The data layer's own migrations, then the module's."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> list[tuple[str, MigrationFile]]:
        own = [files.parse(p.name, p.read_text("utf-8")) for p in sorted(_OWN.glob("*.sql"))]
        theirs = files.load(self._folder, self.name) if self._folder is not None else []
        return [*(("springtide", file) for file in own), *(("module", file) for file in theirs)]

    async def _compare(
        self, connection: Any, shard: str, wanted: Sequence[tuple[str, MigrationFile]]
    ) -> list[MigrationStatus]:
        found = await connection.fetch("SELECT to_regclass('springtide.migration') IS NOT NULL AS exists")
        rows = await connection.fetch(RECORDED, self.name) if found[0]["exists"] else []
        return compare(self.name, shard, wanted, rows)

    @asynccontextmanager
    async def _locked(self, shard: str, pool: Pool) -> AsyncIterator[Any]:
        """A connection that holds the database's migration lock; it ends with the session at the latest."""
        async with pool.acquire() as connection:
            raw = connection.raw
            await raw.execute("SET statement_timeout = 0")
            until = self._clock.monotonic() + self._wait
            while not await raw.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):
                if self._clock.monotonic() >= until:
                    raise MigrationError(f"another process has been migrating {shard} for {self._wait:g} s")
                await self._clock.sleep(LOCK_POLL * random.uniform(0.5, 1.5))  # noqa: S311 - spreads polls
            yield raw  # when this raises, the pool closes the connection, which ends the lock
            await self._run(raw, f"SELECT pg_advisory_unlock({LOCK_KEY})", f"ending the migration of {shard}")

    async def _apply(
        self, connection: Any, shard: str, source: str, file: MigrationFile, done: int | None
    ) -> None:
        what = f"{self.name}/{file.name} on {shard}"
        identity = (self.name, source, file.number)
        if file.transactional:
            text = file.text.replace("__schema__", self.name) if source == "springtide" else file.text

            async def whole() -> None:
                await connection.execute(text)
                await connection.execute(RECORD, *identity, file.name, file.checksum, None)

            await self._in_transaction(connection, whole, what, file)
            return
        if done is None:
            await connection.execute(RECORD, *identity, file.name, file.checksum, 0)
        for index, statement in enumerate(file.statements):
            if index < (done or 0):
                continue
            finished = None if index + 1 == len(file.statements) else index + 1
            if any(token.word("concurrently") for token in statement.tokens[:4]):
                await self._concurrently(connection, statement, resumed=index == done, what=what)
                await connection.execute(PROGRESS, *identity, finished)
            else:
                one = statement.text

                async def single(one: str = one, finished: int | None = finished) -> None:
                    await connection.execute(one)
                    await connection.execute(PROGRESS, *identity, finished)

                await self._in_transaction(connection, single, what, file, offset=statement.start)

    async def _concurrently(self, connection: Any, statement: Statement, *, resumed: bool, what: str) -> None:
        """Run CREATE or DROP INDEX CONCURRENTLY; `resumed`: an earlier run may have done it already."""
        created = files.created_index(statement) if statement.begins("create") else None
        name = created or files.dropped_index(statement)
        if name is not None:
            valid = await connection.fetchval(INDEX_VALID, *name)
            if created is not None and valid is False:
                quoted = ".".join('"' + part.replace('"', '""') + '"' for part in name)
                await self._run(connection, f"DROP INDEX CONCURRENTLY {quoted}", what)
            elif resumed and (valid is True if created is not None else valid is None):
                return
        await self._run(connection, statement.text, what)

    async def _in_transaction(
        self,
        connection: Any,
        body: Callable[[], Awaitable[None]],
        what: str,
        file: MigrationFile,
        *,
        offset: int = 0,
    ) -> None:
        for attempt in range(1, self._lock_attempts + 1):
            try:
                async with connection.transaction():
                    await connection.execute(f"SET LOCAL lock_timeout = {int(self._lock_timeout * 1000)}")
                    await body()
                return
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
                if attempt == self._lock_attempts:
                    raise MigrationError(
                        f"{what} got no lock in {attempt} tries of {self._lock_timeout:g} s: a transaction is"
                        f" open for long, look at pg_stat_activity ({error})"
                    ) from error
                pause = min(0.1 * 2**attempt, MAX_RETRY_PAUSE)
                await self._clock.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads tries
            except asyncpg.PostgresConnectionError as error:
                raise _lost(what, error) from error
            except asyncpg.PostgresError as error:
                line = ""
                if error.position is not None:
                    line = f", line {files.line_of(file.text, offset + int(error.position) - 1)}"
                raise MigrationError(f"{what}{line} failed: {error}") from error
            except (asyncpg.InterfaceError, OSError) as error:
                raise _lost(what, error) from error

    async def _run(self, connection: Any, sql: str, what: str) -> None:
        try:
            await connection.execute(sql)
        except asyncpg.PostgresConnectionError as error:
            raise _lost(what, error) from error
        except asyncpg.PostgresError as error:
            raise MigrationError(f"{what} failed: {error}") from error
        except (asyncpg.InterfaceError, OSError) as error:
            raise _lost(what, error) from error


_OWN = Path(__file__).parent / "sql"


def compare(
    module: str, shard: str, wanted: Sequence[tuple[str, MigrationFile]], rows: Sequence[Mapping[str, Any]]
) -> list[MigrationStatus]:
    """What the folder wants against what the database recorded, in the order of application; pure."""
    recorded = {(row["source"], row["number"]): row for row in rows}
    newest = {source: max((n for s, n in recorded if s == source), default=0) for source, _ in recorded}
    found: list[MigrationStatus] = []
    for source, file in wanted:
        row = recorded.pop((source, file.number), None)
        if row is None:
            state = "skipped" if newest.get(source, 0) > file.number else "pending"
        elif row["checksum"] != file.checksum:
            state = "changed"
        elif row["name"] != file.name:
            state = "renamed"
        else:
            state = "applied" if row["statements_done"] is None else "partial"
        found.append(
            MigrationStatus(
                module,
                shard,
                source,
                file.number,
                file.name,
                state,
                file.checksum,
                None if row is None else row["checksum"],
                None if row is None else row["applied_at"],
                None if row is None else row["statements_done"],
            )
        )
    for (source, number), row in sorted(recorded.items()):
        found.append(
            MigrationStatus(
                module, shard, source, number, row["name"], "unknown", "", row["checksum"], row["applied_at"]
            )
        )
    return found


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise MigrationError("\n".join(faults))


def _label(status: MigrationStatus) -> str:
    own = "springtide:" if status.source == "springtide" else ""
    return f"{status.module}/{own}{status.name} on {status.shard}"


def _lost(what: str, error: Exception) -> DatabaseUnavailable:
    return DatabaseUnavailable(f"the connection was lost during {what}; run it again to go on ({error})")
