"""The runner keeps a cluster: one primary at any time, replicas that follow, acknowledged commits kept."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests._keeping import kept, primaries, until
from tests.servers import scratch

from springtide.errors import RunnerError
from springtide.ops.runner import pgdata
from springtide.ops.runner.clusters import Keeper
from springtide.ops.runner.records import read_record


@pytest.fixture
def home() -> Iterator[Path]:
    made = scratch("springtide-cluster-")
    yield made / "home"
    shutil.rmtree(made, ignore_errors=True)


class Writer:
    """Writes one row after the other to whoever is primary; `acked` are those that were acknowledged."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.acked: list[int] = []
        self.next = 0

    async def write(self) -> None:
        number, self.next = self.next, self.next + 1
        await self.keeper.server().query(f"insert into kept values ({number})", timeout=20.0)
        self.acked.append(number)

    async def run(self) -> None:
        while True:
            try:
                await self.write()
            except (RunnerError, AssertionError):
                await asyncio.sleep(0.02)

    async def lost(self) -> set[int]:
        there = (await self.keeper.server().query("select id from kept")).split()
        return set(self.acked) - {int(row) for row in there}


def left(home: Path) -> list[object]:
    """Processes and half-made folders of a cluster that was stopped."""
    data = home / "data"
    servers: list[object] = [pid for folder in data.iterdir() for pid in pgdata.servers(folder)]
    return servers + [path.name for path in data.iterdir() if path.name.startswith(".")]


async def streaming(keeper: Keeper) -> bool:
    """Whether every replica streams from the primary."""
    try:
        said = await keeper.server().query(
            "select count(*) from pg_stat_replication where state = 'streaming'"
        )
    except RunnerError:
        return False
    return int(said) == len(keeper.replicas)


@pytest.mark.parametrize("how", ["kill", "freeze", "postmaster"])
async def test_a_dead_primary_is_replaced(home: Path, how: str) -> None:
    """Killed or frozen under writes, with quorum: one primary, nothing acknowledged lost, the old rejoins."""
    async with kept(home, replicas=("r1", "r2"), quorum=True, failover_after=1.5) as keeper:
        await keeper.server().query("create table kept (id int)")
        writer = Writer(keeper)
        writing = asyncio.ensure_future(writer.run())
        await until(lambda: asyncio.sleep(0, len(writer.acked) > 5))
        data, pid = keeper.server().data, keeper.server().pid
        if how == "postmaster":
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGSTOP)  # first, so that no new backend appears meanwhile
            for process in await asyncio.to_thread(pgdata.servers, data):
                os.kill(process, signal.SIGSTOP if how == "freeze" else signal.SIGKILL)
        acked = len(writer.acked)
        await until(lambda: asyncio.sleep(0, keeper.primary != "db" and len(writer.acked) > acked + 5))
        await until(lambda: streaming(keeper))
        writing.cancel()
        await asyncio.wait([writing])
        assert await writer.lost() == set()
        assert await asyncio.to_thread(primaries, home) == [keeper.primary]
        assert keeper.role("db") == "replica" and keeper.epoch == 2
        record = await asyncio.to_thread(read_record, home / "clusters", "main")
        assert record is not None and (record.primary, record.promoting) == (keeper.primary, False)
    assert await asyncio.to_thread(left, home) == []
