"""A test finds the tables of market as their migrations left them."""

from __future__ import annotations

from tests.market.emptying import empty_servers
from tests.market.harness import Api


async def test_jobs_of_another_test_are_gone(api: Api, urls: list[str]) -> None:
    """Their tables have pages from the beginning, but no rows."""
    await api.article(await api.person())
    assert await jobs(api)
    await empty_servers(urls)
    assert not await jobs(api)


async def jobs(api: Api) -> int:
    databases = [api.platform.database(module.name) for module in api.platform.modules if module.jobs]
    return sum([await one.scatter_sum(f"select count(*) from {one.schema}._job") for one in databases])
