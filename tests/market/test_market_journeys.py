"""The journeys against market itself, over TCP: nothing fails, nine in ten requests read, names are new."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn
from tests.market.harness import topology

from market.application import served
from market.journeys import journeys
from market.platform import modules
from market.seed import seed
from springtide.errors import LoadError
from springtide.ops.load.arrivals import Phase
from springtide.ops.load.generator import Generator, Options
from springtide.ops.load.progress import Silent
from springtide.ops.load.report import warnings
from springtide.ops.load.results import Results
from springtide.platform import Platform


@asynccontextmanager
async def market(urls: list[str], home: Path, *, users: int) -> AsyncIterator[str]:
    """The address of market on a socket, with so many seeded users."""
    platform = Platform(topology(urls), modules=modules(), home=home)
    app = served(platform)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            assert not serving.done()
            await asyncio.sleep(0.01)
        try:
            if users:
                await seed(platform, users=users, seed=1, progress=Silent())
            yield url
        finally:
            server.should_exit = True
            await serving


async def driven(url: str, *, rate: float, duration: float) -> Results:
    phase = Phase(name="steady", duration=duration, start_rate=rate, end_rate=rate)
    options = Options(url=url, phases=(phase,), timeout=20.0)
    generator = Generator(options, journeys())
    await generator.prepare()
    return await generator.run()


async def test_every_journey_succeeds_twice_and_nine_in_ten_requests_read(
    urls: list[str], home: Path
) -> None:
    """The second run has the same seed and plan, and still invents new names and titles."""
    async with market(urls, home, users=100) as url:
        for _ in range(2):
            results = await driven(url, rate=40, duration=2)
            assert results.errors == {} and results.unsent == 0
            assert results.timed == results.ok  # the server says where its time went
            assert not [warning for warning in warnings(results) if "declares" in warning]
        reads = sum(route.ok for name, route in results.routes.items() if name.startswith("GET "))
        assert 0.85 <= reads / results.ok <= 0.97


async def test_each_journey_makes_the_requests_that_it_declares(urls: list[str], home: Path) -> None:
    async with market(urls, home, users=50) as url:
        phase = Phase(name="steady", duration=2, start_rate=40, end_rate=40)
        even = [replace(journey, weight=1) for journey in journeys()]
        generator = Generator(Options(url=url, phases=(phase,), timeout=20.0), even)
        await generator.prepare()
        for name, result in (await generator.run()).journeys.items():
            assert result.completed == result.planned > 0, name
            assert result.requests == result.completed * result.steps, name


async def test_an_empty_site_is_refused_with_what_to_do(urls: list[str], home: Path) -> None:
    async with market(urls, home, users=0) as url:
        with pytest.raises(LoadError, match="springtide seed"):
            await driven(url, rate=1, duration=1)
