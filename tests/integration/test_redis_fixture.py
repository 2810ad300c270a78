"""The Redis servers of the tests do what the tests that use them take for granted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests._redis import RedisCluster, RedisServer, SentinelGroup

pytestmark = [
    pytest.mark.needs("redis-server"),
    pytest.mark.needs("redis-sentinel"),
    pytest.mark.timeout(300),
]


def test_a_server_that_was_killed_comes_back_empty_with_another_run_id(
    own_redis: Callable[..., RedisServer],
) -> None:
    """Same address, another run, nothing kept."""
    server = own_redis(password="secret")
    server.command("SET", "a", "1")
    before, port = server.run_id, server.port
    server.restart()
    assert server.run_id != before
    assert server.port == port
    assert server.command("GET", "a") is None


def test_a_failover_names_another_primary(own_sentinel: Callable[..., SentinelGroup]) -> None:
    """The Sentinels agree on the replica that takes over from a primary that was killed."""
    group = own_sentinel(replicas=1)
    old = group.primary
    old.kill()
    assert group.promoted(instead_of=old) is not old


def test_a_moved_slot_has_another_owner(own_redis_cluster: Callable[..., RedisCluster]) -> None:
    """The keys of the slot move with it."""
    cluster = own_redis_cluster()
    owner = cluster.owner("{a}")
    owner.command("SET", "{a}", "1")
    target = next(server for server in cluster.servers if server is not owner)
    cluster.move("{a}", target)
    assert target.command("GET", "{a}") == "1"
