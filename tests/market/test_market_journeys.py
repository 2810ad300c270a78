"""The journeys against market itself, over TCP: nothing fails, the mix is as said, orders are charged."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn
from tests.market.harness import replicas_serve, settled, topology
from tests.market.paying import KEY, SECRET, ProviderProcess

from market.application import served
from market.journeys import journeys
from market.payments.settings import PaymentSettings
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
async def market(
    urls: list[str], home: Path, *, users: int, provider: ProviderProcess | None = None
) -> AsyncIterator[str]:
    """The address of market on a socket, with so many seeded users; it charges at `provider`."""
    paying = PaymentSettings(url=provider.url, key=KEY, secret=SECRET) if provider else None
    platform = Platform(topology(urls), modules=modules(provider=paying), home=home)
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
                await replicas_serve(platform)
                await settled(platform)  # whoever comes now has not seeded
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


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[ProviderProcess]:
    made = ProviderProcess(tmp_path / "journal", None)
    await made.start()
    yield made
    await made.kill()
    await made.http.aclose()


def test_the_mix_is_80_12_3_5_by_requests() -> None:
    """Browsing, searching, buying, posting; and within them most requests read."""
    share = {journey.name: journey.weight * journey.steps for journey in journeys()}
    total = sum(share.values())
    posting = sum(share[name] for name in ("react", "follow", "write", "offer", "join"))
    found = [share["find"] / total, share["buy"] / total, posting / total]
    assert found == pytest.approx([0.12, 0.03, 0.05], abs=0.005)
    assert 1 - sum(found) == pytest.approx(0.8, abs=0.01)


async def test_every_journey_succeeds_twice(urls: list[str], home: Path) -> None:
    """The second run has the same seed and plan, and still invents new names and titles."""
    async with market(urls, home, users=100) as url:
        for _ in range(2):
            results = await driven(url, rate=25, duration=2)
            assert results.errors == {} and results.unsent == 0
            assert results.timed == results.ok  # the server says where its time went
            assert not [warning for warning in warnings(results) if "declares" in warning]
        reads = sum(route.ok for name, route in results.routes.items() if name.startswith("GET "))
        assert 0.9 <= reads / results.ok <= 0.99


async def test_each_journey_makes_the_requests_that_it_declares(
    urls: list[str], home: Path, provider: ProviderProcess
) -> None:
    """And who buys is charged, once for each order."""
    async with market(urls, home, users=50, provider=provider) as url:
        phase = Phase(name="steady", duration=5, start_rate=25, end_rate=25)
        even = [replace(journey, weight=1) for journey in journeys()]
        generator = Generator(Options(url=url, phases=(phase,), timeout=20.0), even)
        await generator.prepare()
        results = await generator.run()
        assert results.errors == {}
        for name, result in results.journeys.items():
            assert result.completed == result.planned > 0, name
            assert result.requests == result.completed * result.steps, name
        charges = (await provider.journal())["charges"]
        assert 0 < len(charges) <= results.journeys["buy"].completed
        assert {charge["status"] for charge in charges} == {"succeeded"}


async def test_an_empty_site_is_refused_with_what_to_do(urls: list[str], home: Path) -> None:
    async with market(urls, home, users=0) as url:
        with pytest.raises(LoadError, match="springtide seed"):
            await driven(url, rate=1, duration=1)
