"""market runs over what the environment asks for: otherwise its tests would say nothing about it."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from tests.market import tiers
from tests.market.carrying import claiming
from tests.market.harness import Api

from springtide.jobs._store import Store


async def test_statements_go_through_the_pooler_where_there_is_one(api: Api) -> None:
    """The server that answers listens elsewhere than where market connects."""
    for cluster, pool in api.platform.pools.items():
        port = urlsplit(api.platform.topology.client_url(cluster)).port
        assert (await pool.fetch_value("select inet_server_port()") != port) == tiers.pooled()


async def test_replicas_answer_where_there_are_some(api: Api) -> None:
    """Somebody who has written nothing, and somebody whose writes have arrived."""
    assert (set(api.platform.servers) == set(api.platform.pools)) == tiers.replicated()
    before = {cluster: reads(api, cluster) for cluster in api.platform.servers}
    for _ in range(20):
        await api.titles("/articles")
    assert all(reads(api, cluster) > had for cluster, had in before.items())


def reads(api: Api, cluster: str) -> int:
    return sum(replica.reads for replica in api.platform.servers[cluster].replicas)


async def test_jobs_come_over_the_broker_where_there_is_one(api: Api) -> None:
    """What a request has enqueued is sent once before it is claimed; else nothing is ever sent."""
    await api.article(await api.person())
    turns: list[int] = []
    async with claiming(api.platform) as claim:
        for module in api.platform.modules:
            database = api.platform.database(module.name)
            for shard in database.pools if module.jobs else ():
                await claim(Store(database, shard), [handler.kind.name for handler in module.jobs])
            if module.jobs:
                rows = await database.scatter(f"select turn from {database.schema}._job where attempt = 1")
                turns += [row["turn"] for row in rows]
    assert turns and set(turns) == {0 if tiers.carried() is None else 1}


async def test_values_are_kept_where_there_is_a_cache(api: Api) -> None:
    """An article that is read again and again is not read from the database each time."""
    author = await api.person()
    slug = (await api.article(author))["slug"]
    assert (api.platform.topology.cache is not None) == tiers.cached()
    if not tiers.cached():
        before = await api.statements("GET", f"/articles/{slug}")
        assert before == await api.statements("GET", f"/articles/{slug}") > 0
        return
    async with asyncio.timeout(60):
        while await api.statements("GET", f"/articles/{slug}"):
            await asyncio.sleep(0.05)  # the relay has to have come round, and the bus to have heard it
    await api.call("POST", f"/articles/{slug}/favorite", by=author, expect=200)
    seen = (await api.call("GET", f"/articles/{slug}", by=author, expect=200))["article"]
    assert (seen["favorited"], seen["favoritesCount"]) == (True, 1)
