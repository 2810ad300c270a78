"""RealWorld and market pass their acceptance tests through a pooler, over replicas that lag, and cached; and
all of market's tests pass whatever broker carries its jobs.

Stage 1 is what every run of the tests has. Here the same tests run unchanged: what each client wrote, its
next request sees, no session of the server is anybody's, and jobs come whoever brings them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from tests.transports import BROKERS

pytestmark = pytest.mark.needs("pgbouncer", "redis-server")

ROOT = Path(__file__).parents[2]

REPLICAS, POOLER, CACHE = (f"SPRINGTIDE_TEST_{tier}" for tier in ("REPLICAS", "POOLER", "CACHE"))
TRANSPORT = "SPRINGTIDE_TEST_TRANSPORT"

PARTS = {
    "realworld": (
        "test_market_articles", "test_market_lists", "test_market_users", "test_market_concurrency",
        "test_market_transport", "test_market_versions", "test_market_hostile",
    ),
    "pages": (
        "test_storefront_pages", "test_storefront_comments", "test_storefront_buying",
        "test_storefront_selling", "test_storefront_visits", "test_storefront_events",
        "test_storefront_browser", "test_market_journeys",
    ),
    "trade": (
        "test_catalog_api", "test_catalog_reservations", "test_orders_api", "test_orders",
        "test_payments",
    ),
    "around": (
        "test_search_api", "test_search", "test_notifications_api", "test_notifications",
        "test_recommendations_api", "test_media_api", "test_dashboard",
    ),
}  # fmt: skip
"""Each in one process, so that its files share the servers."""

FILES = {path.stem for path in (ROOT / "tests/market").glob("test_*.py")}
REST = tuple(sorted(FILES.difference(*PARTS.values())))
ALL = {**PARTS, **{f"rest {number}": REST[number - 1 :: 3] for number in (1, 2, 3)}}
"""Every file of market's tests, in parts of about the same length."""

EVERY_RUN = ("test_tiers", "test_market_users")
"""That the tiers are there; registering, logging in, following."""


async def passes(
    *files: str, over: tuple[str, ...] = (), transport: str = "postgres", timeout: float, only: str = ""
) -> None:
    """Run tests of market in a process of their own, over these tiers; fails with what they printed."""
    paths = [f"tests/market/{file}.py" for file in files]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-q", "-x", "-m", "not stress", "-k", only, "-p", "no:cacheprovider",
        *paths,
        cwd=ROOT,
        env={
            **os.environ, **dict.fromkeys((REPLICAS, POOLER, CACHE), "0"), **dict.fromkeys(over, "1"),
            TRANSPORT: transport,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, output.decode()[-8000:]


def test_every_file_is_in_one_part() -> None:
    """And every file that a part names is there."""
    assert sorted(file for part in ALL.values() for file in part) == sorted(FILES)


@pytest.mark.timeout(600)
async def test_what_every_run_can_afford_passes_behind_all() -> None:
    everything = (REPLICAS, POOLER, CACHE)
    await passes(*EVERY_RUN, over=everything, transport="redis", timeout=580, only="not two-shards")


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "tier", [(REPLICAS,), (POOLER,), (REPLICAS, CACHE)], ids=["replicas", "pooler", "cache and replicas"]
)
@pytest.mark.parametrize("part", PARTS)
async def test_acceptance_tests_pass(part: str, tier: tuple[str, ...]) -> None:
    await passes(*PARTS[part], over=tier, timeout=3500)


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "transport",
    [
        pytest.param(kind, marks=pytest.mark.needs(package) if package else ())
        for kind, (_, package) in BROKERS.items()
    ],
)
@pytest.mark.parametrize("part", ALL)
async def test_all_tests_pass_whoever_carries_the_jobs(part: str, transport: str) -> None:
    await passes(*ALL[part], transport=transport, timeout=3500)
