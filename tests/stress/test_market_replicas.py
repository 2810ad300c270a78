"""RealWorld and market pass their acceptance tests over three replicas that lag, as they are."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ACCEPTANCE = [
    "test_market_articles.py", "test_market_lists.py", "test_market_users.py", "test_orders_api.py",
    "test_catalog_api.py", "test_storefront_comments.py",
]  # fmt: skip
"""Those whose clients do everything over HTTP. What a test puts into a database by itself is nobody's write:
a replica may show it later."""


async def passes(*files: str, timeout: float) -> None:
    """Run tests of market in a process of their own, with replicas; fails with what they printed."""
    paths = [f"tests/market/{file}" for file in files]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *paths,
        cwd=ROOT,
        env={**os.environ, "SPRINGTIDE_TEST_REPLICAS": "1"},
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


@pytest.mark.timeout(400)
async def test_accounts_work_over_replicas_that_lag() -> None:
    """A part that every run of the tests can afford: registering, logging in, following."""
    await passes("test_market_users.py", timeout=380)


@pytest.mark.stress
async def test_acceptance_tests_pass_over_replicas_that_lag() -> None:
    """The suites know nothing of replicas: what each client wrote, its next request sees."""
    await passes(*ACCEPTANCE, timeout=1700)
