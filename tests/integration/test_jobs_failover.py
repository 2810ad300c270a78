"""A worker whose primary dies: it keeps its leases, and hears of new jobs, at the server that takes over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from tests._cluster import Cluster
from tests.integration.test_failover import LONG, moved
from tests.jobs_support import Doer, deeds, rows, until
from tests.replicated import QUICK, members

from springtide.db.members import Fixed
from springtide.db.pool import Pool
from springtide.db.servers import Servers
from springtide.jobs import Handler, Queue, Run, Worker, job


@job(kind="deed.last", max_run=3 * LONG)
class Last(msgspec.Struct, frozen=True):
    what: str


class Primary(Mapping[str, str]):
    """Where the primary of the one cluster is now, as a platform tells its workers."""

    def __init__(self, servers: Servers, first: str) -> None:
        self._servers = servers
        self._first = first

    def __getitem__(self, cluster: str) -> str:
        return self._servers.address or self._first

    def __iter__(self) -> Iterator[str]:
        return iter(("main",))

    def __len__(self) -> int:
        return 1


async def test_a_worker_goes_where_the_primary_goes(
    own_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """The primary is killed under a running job and its replica is promoted. The lease is renewed there, so
    the job is not started again, and ends there; and the next job is heard of at once, although the worker
    would not ask for a minute."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    (promoted,) = world.replicas
    go = asyncio.Event()

    async def wait(deed: Any, run: Run) -> None:
        if deed.what == "long":
            await go.wait()

    async def enqueue(what: str) -> None:
        async with made.write(3) as tx:
            await tx.enqueue(Last(what))

    async with deeds([world.url()], tmp_path / "migrations", primary_only=True, outage_timeout=LONG) as made:
        pool, doer = made.pools["main"], Doer(wait)
        servers = Servers(
            "main",
            pool,
            Fixed(members(world)),
            replica_pool=lambda member: Pool(member.url, reserved=0),
            settings=QUICK,
        )
        await servers.start()
        worker = Worker(
            [Queue(database=made, handlers=[Handler(Last, Doer.do)], implementation=doer)],
            dsns=Primary(servers, world.url()),
            lease=LONG, heartbeat=0.3, stall=10.0, poll=LONG, upkeep=1.0, drain=5.0,
        )  # fmt: skip
        await worker.start()
        try:
            await enqueue("long")
            await until(lambda: doer.calls, seconds=LONG)
            await asyncio.to_thread(promoted.catch_up)
            (before,) = await rows(made)
            await asyncio.to_thread(world.primary.kill)
            await asyncio.to_thread(promoted.promote)
            await moved(pool, world.url(promoted))
            (there,) = await rows(made)
            assert there["state"] == "running"

            async def renewed() -> bool:
                (row,) = await rows(made)
                return bool(row["leased_until"] > max(before["leased_until"], there["leased_until"]))

            await until(renewed, seconds=LONG)
            listening = "select count(*) from pg_stat_activity where query ilike 'listen%'"

            async def heard() -> bool:
                return bool(await pool.fetch_value(listening))

            await until(heard, seconds=LONG)
            await enqueue("next")
            await until(lambda: len(doer.calls) == 2, seconds=LONG / 2)
            go.set()

            async def done() -> bool:
                return {row["state"] for row in await rows(made)} == {"done"}

            await until(done, seconds=LONG)
            assert [row["attempt"] for row in await rows(made)] == [1, 1]
        finally:
            await worker.stop()
            await servers.stop()
