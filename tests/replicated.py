"""A database over a cluster with replicas, for tests: registers whose writes are counted, and sessions.

    async with registers(world, tmp_path) as (db, servers):
        session = Session(db, "ann")
        await session.write("cart")
        await session.read("cart")

Each `Session` is one client: what it does in turn shares a causality token, which goes through its text form
between two of its operations, as it would between two requests. Operations land in one history.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests._cluster import Cluster

from springtide.context import CausalityToken, RequestContext, activate
from springtide.db import Consistency, Database, Migrator, ShardMap, bucket_of
from springtide.db.members import Fixed, Member
from springtide.db.pool import Pool
from springtide.db.servers import RoutingSettings, Servers
from springtide.testing.history import Operation, Read, Write

QUICK = RoutingSettings(settle=0.2, look_every=0.05, look_timeout=1.0, recover=0.1, slow_start=0.0)

TABLE = """
create table registers.register (
    bucket  smallint not null,
    key     text     not null,
    version integer  not null,
    value   text     not null,
    primary key (bucket, key)
);
"""

WRITE = """
insert into registers.register (bucket, key, version, value) values ($1, $2, 1, $3)
on conflict (bucket, key) do update set version = register.version + 1, value = excluded.value
returning version
"""

READ = "select version, value from registers.register where bucket = $1 and key = $2"


def members(world: Cluster) -> list[Member]:
    replicas = [
        Member(node=f"replica-{number}", url=world.url(replica))
        for number, replica in enumerate(world.replicas, 1)
    ]
    return [Member(node="primary", url=world.url()), *replicas]


@asynccontextmanager
async def registers(
    world: Cluster,
    folder: Path,
    *,
    settings: RoutingSettings = QUICK,
    source: Any = None,
    migrate: bool = True,
    pool_sink: Any = None,
    patience: float = 2.0,
    **options: Any,
) -> AsyncIterator[tuple[Database, Servers]]:
    """The database `registers` on `world`, with its servers watched; replicas join within a second.

    patience: seconds that a caller waits for a connection; where that must not fail, give plenty.
    """
    (folder / "0001_register.sql").write_text(TABLE)
    pool = Pool(world.url(), cluster="main", sink=pool_sink, acquire_timeout=patience)
    servers = Servers(
        "main",
        pool,
        source or Fixed(members(world)),
        replica_pool=lambda member: Pool(
            member.url, cluster=f"main/{member.node}", reserved=0, acquire_timeout=patience
        ),
        settings=settings,
        **options,
    )
    async with pool:
        if migrate:
            await Migrator("registers", folder, {"main": pool}).apply()
        await servers.start()
        try:
            yield (
                Database("registers", ShardMap.even(["main"]), {"main": pool}, servers={"main": servers}),
                servers,
            )
        finally:
            await servers.stop()


async def until(condition: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    """What `condition` answers once that is true."""
    async with asyncio.timeout(seconds):
        while not (answer := condition()):
            await asyncio.sleep(0.01)
    return answer


def states(servers: Servers) -> list[str]:
    return [replica.state for replica in servers.replicas]


async def serving(servers: Servers, count: int) -> None:
    """Return when exactly so many replicas serve."""
    await until(lambda: states(servers).count("serving") == count)


_numbers = itertools.count()


class Session:
    """One client; not to be used by two tasks at once."""

    def __init__(self, db: Database, name: str, history: list[Operation] | None = None) -> None:
        self.db = db
        self.name = name
        self.token = ""
        self.history: list[Operation] = [] if history is None else history

    @asynccontextmanager
    async def request(self, **options: Any) -> AsyncIterator[RequestContext]:
        context = RequestContext(causality=CausalityToken.decode(self.token), **options)
        with activate(context):
            yield context
        self.token = context.causality.encode()

    async def write(self, key: str) -> int:
        value = f"{self.name}-{next(_numbers)}"
        began = time.monotonic()
        async with self.request(), self.db.write(key) as tx:
            version: int = await tx.fetch_value(WRITE, bucket_of(key), key, value)
        self._note(Write, key, value, version, began)
        return version

    async def write_one(self, key: str) -> int:
        """As `write`, by one statement."""
        value = f"{self.name}-{next(_numbers)}"
        began = time.monotonic()
        async with self.request():
            row = await self.db.write_one(key, WRITE, bucket_of(key), key, value)
        assert row is not None
        self._note(Write, key, value, row["version"], began)
        return int(row["version"])

    async def read(self, key: str, *, consistency: Consistency | None = None) -> int:
        began = time.monotonic()
        async with self.request():
            reader = self.db.read(key, consistency=consistency)
            row = await reader.fetch_one(READ, bucket_of(key), key)
        version, value = (row["version"], row["value"]) if row is not None else (0, None)
        self._note(Read, key, value, version, began, consistency=consistency or Consistency.SESSION)
        return int(version)

    def _note(self, kind: Any, key: str, value: str | None, version: int, began: float, **more: Any) -> None:
        self.history.append(
            kind(
                session=self.name,
                key=key,
                value=value,
                version=version,
                began=began,
                ended=time.monotonic(),
                **more,
            )
        )
