"""market runs over what the environment asks for: otherwise its tests would say nothing about it."""

from __future__ import annotations

from urllib.parse import urlsplit

from tests.market import tiers
from tests.market.harness import Api


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
