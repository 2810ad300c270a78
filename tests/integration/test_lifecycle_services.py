"""The services that hold connections keep the start/stop contract too."""

from __future__ import annotations

import contextlib

import pytest
from tests._redis import RedisServer

from springtide.db.pool import Pool
from springtide.errors import DatabaseUnavailable
from springtide.redis import Redis
from springtide.testing import stress


async def test_a_pool_survives_storms_of_start_stop_and_cancel(database_url: str) -> None:
    """The last call decides, and a stopped pool leaves no task."""
    await stress(lambda: Pool(database_url, size=3, reserved=1), storms=8, pause=0.01)


async def test_a_pool_without_a_server_survives_them_too() -> None:
    """Every start fails; nothing hangs, nothing is left."""

    class Absent:
        """Takes no part in the check of states: this service never runs."""

        name = "absent"

        def __init__(self) -> None:
            self._pool = Pool("postgresql://nobody@127.0.0.1:1/none", size=1, reserved=0, acquire_timeout=0.1)

        async def start(self) -> None:
            with contextlib.suppress(DatabaseUnavailable):
                await self._pool.start()

        async def stop(self) -> None:
            await self._pool.stop()

    await stress(Absent, storms=3, pause=0.01)


@pytest.mark.needs("redis-server")
async def test_a_redis_client_survives_storms_of_start_stop_and_cancel(redis_server: RedisServer) -> None:
    """With its server there, and with nobody there: it leaves no task and no reader."""
    await stress(lambda: Redis(redis_server.url, connections=2), storms=8, pause=0.01)
    await stress(lambda: Redis("redis://127.0.0.1:1", connect_timeout=0.1), storms=3, pause=0.01)
    await stress(lambda: Redis("redis+sentinel://127.0.0.1:1/x", connect_timeout=0.1), storms=3, pause=0.01)
    await stress(lambda: Redis("redis+cluster://127.0.0.1:1", connect_timeout=0.1), storms=3, pause=0.01)
