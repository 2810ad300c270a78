"""Where links are found: sockets, TLS, databases, behind Sentinels, in a cluster; and when they move."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from tests._redis import RedisCluster, RedisServer, SentinelGroup
from tests._redis_use import answers, linked, refused, started, until

from springtide.errors import RedisError, RedisUnavailable
from springtide.ops.runner import certificates
from springtide.redis import Script
from springtide.redis._cluster import slot

pytestmark = [
    pytest.mark.needs("redis-server"),
    pytest.mark.needs("redis-sentinel"),
    pytest.mark.timeout(300),
]


async def test_a_url_names_user_database_and_socket(own_redis: Callable[..., RedisServer]) -> None:
    """A user of the access list, by TCP and by the socket, each in the database that the URL names."""
    server = own_redis(unix=True, user="app on >s3cret ~* &* +@all")
    async with started(f"redis://app:s3cret@127.0.0.1:{server.port}/2", name="app-1") as redis:
        link = await linked(redis)
        await link.send("SET", "k", "two")
        assert b"app-1" in await link.send("CLIENT", "GETNAME")
        assert await link.send("ACL", "WHOAMI") == b"app"
    async with started(f"unix://app:s3cret@{server.socket}?db=2") as redis:
        assert await (await linked(redis)).send("GET", "k") == b"two"
    async with started(f"unix://{server.socket}") as redis:
        assert await (await linked(redis)).send("GET", "k") is None


async def test_a_user_needs_what_the_page_names_and_nothing_more(
    own_redis: Callable[..., RedisServer],
) -> None:
    """With these commands alone links are made, scripts run and the once-a-second look succeeds; without one
    of them the start says which is missing."""
    rules = "on >pw ~* +auth +select +client|setname +info +evalsha +eval"
    server = own_redis(user=f"few {rules}")
    url = f"redis://few:pw@127.0.0.1:{server.port}/1"
    async with started(url) as redis:
        link = await linked(redis)
        assert await link.call(Script("one", "return 1"), []) == 1
        looks = server.commands_done("info")
        mine = itertools.count(looks + 1)  # to ask that is one more
        await until(lambda: server.commands_done("info") > next(mine))
        assert redis.link() is link
        with pytest.raises(RedisError) as caught:
            await link.send("GET", "k")
        assert caught.value.code == "NOPERM"
    server.command("ACL", "SETUSER", "few", "-info")
    assert "INFO was refused" in await refused(url)


async def test_a_database_that_is_not_there_is_said_at_the_start(redis_server: RedisServer) -> None:
    """Waiting would not mend it."""
    assert "database 99 was refused" in await refused(redis_server.url.replace("/0", "/99"))


async def test_tls_checks_who_answers(own_redis: Callable[..., RedisServer], tmp_path: Path) -> None:
    """With the authority that signed the server's certificate the link is made, with none it is not, and not
    when the certificate is for another name."""
    await certificates.ensure(tmp_path, ["redis"], authority=True)
    ca = tmp_path / "ca.crt"
    server = own_redis(tls=(tmp_path / "redis.crt", tmp_path / "redis.key", ca), bind="127.0.0.1 127.0.0.2")
    async with started(f"{server.url}?ssl_ca_certs={ca}") as redis:
        assert await (await linked(redis)).send("PING") == b"PONG"
    async with started(server.url) as redis:
        assert redis.link() is None
    async with started(f"rediss://127.0.0.2:{server.port}?ssl_ca_certs={ca}") as redis:
        assert redis.link() is None
    async with started(
        f"rediss://127.0.0.2:{server.port}?ssl_ca_certs={ca}&ssl_check_hostname=false"
    ) as redis:
        assert await (await linked(redis)).send("PING") == b"PONG"
    assert "files of TLS" in await refused(f"{server.url}?ssl_ca_certs={tmp_path}/none.pem")


async def test_a_replica_is_no_place_to_write(own_sentinel: Callable[..., SentinelGroup]) -> None:
    """The address of a replica gives no link; a primary that becomes one loses its link, and its callers are
    told that nobody serves them rather than that their commands are wrong."""
    group = own_sentinel(replicas=1, sentinels=1)
    primary = group.primary
    replica = next(server for server in group.servers if server is not primary)
    async with started(replica.url) as redis:
        assert redis.link() is None
    group.sentinels[0].stop()  # so that nobody turns it back
    async with started(primary.url) as redis:
        link = await linked(redis)
        primary.command("REPLICAOF", "127.0.0.1", replica.port)
        with pytest.raises(RedisUnavailable, match="no primary any more"):
            await link.send("SET", "k", "v")
        await until(lambda: not link.alive and redis.link() is None)


async def test_an_idle_link_is_lost_when_its_server_is_no_primary(
    own_sentinel: Callable[..., SentinelGroup],
) -> None:
    """Nobody has to write to find out."""
    group = own_sentinel(replicas=1, sentinels=1)
    primary = group.primary
    group.sentinels[0].stop()
    async with started(primary.url) as redis:
        link = await linked(redis)
        other = next(server for server in group.servers if server is not primary)
        primary.command("REPLICAOF", "127.0.0.1", other.port)
        await until(lambda: not link.alive)
        assert "no primary" in link.why


@pytest.mark.parametrize("how", ["killed", "frozen", "asked for"])
async def test_a_failover_leads_to_the_new_primary(
    own_sentinel: Callable[..., SentinelGroup], how: str
) -> None:
    """The old link is lost, the new one is to another run, and it can write; the old primary that comes back
    is not used."""
    group = own_sentinel(replicas=1)
    async with started(group.url, timeout=0.25) as redis:
        link, old = await linked(redis), group.primary
        assert link.run_id == old.run_id
        if how == "asked for":
            new = await asyncio.to_thread(group.failover)
        else:
            old.kill() if how == "killed" else old.freeze()
            new = await asyncio.to_thread(group.promoted, instead_of=old)
            old.start() if how == "killed" else old.thaw()
        await until(lambda: (found := redis.link()) is not None and found.run_id == new.run_id)
        assert not link.alive
        assert await answers(redis, "SET", "k", "v") == b"OK"


async def test_a_primary_that_lives_on_cut_off_is_left(
    own_sentinel: Callable[..., SentinelGroup], own_redis: Callable[..., RedisServer]
) -> None:
    """It answers, it can be written, it knows nothing; but the Sentinels name another one."""
    group, other = own_sentinel(replicas=0), own_redis()
    async with started(group.url) as redis:
        link = await linked(redis)
        for sentinel in group.sentinels:
            sentinel.command("SENTINEL", "REMOVE", "main")
            sentinel.command("SENTINEL", "MONITOR", "main", "127.0.0.1", other.port, 2)
        await until(lambda: (found := redis.link()) is not None and found.run_id == other.run_id)
        assert link.why == "another server is the primary now"


async def test_a_question_to_sentinels_ends_with_its_client(
    own_sentinel: Callable[..., SentinelGroup],
) -> None:
    """Whoever waits for one, or for the next, is told that nobody says so, and is not cancelled."""
    group = own_sentinel(replicas=0)
    async with started(group.url, timeout=60.0) as redis:
        link = await linked(redis)
        assert await redis.leads(link)
        for sentinel in group.sentinels:
            sentinel.freeze()
        try:
            first = asyncio.ensure_future(redis.leads(link))
            await asyncio.sleep(0)  # asked
            await asyncio.sleep(0)
            second = asyncio.ensure_future(redis.leads(link))
            await asyncio.sleep(0)
            async with asyncio.timeout(20):
                await redis.stop()
                assert await asyncio.gather(first, second) == [False, False]
        finally:
            for sentinel in group.sentinels:
                sentinel.thaw()


async def test_a_primary_that_was_a_replica_meanwhile_is_another_run(
    own_redis: Callable[..., RedisServer],
) -> None:
    """Failed over and back, without a restart: it has had another server's data in between, and perhaps has
    its own of before again, from which things are missing that were done elsewhere."""
    first, second = own_redis(), own_redis()
    second.command("REPLICAOF", "127.0.0.1", first.port)
    await until(lambda: first.info("replication")["connected_slaves"] == "1")
    async with started(first.url) as redis:
        link = await linked(redis)
        second.command("REPLICAOF", "NO", "ONE")
        first.command("REPLICAOF", "127.0.0.1", second.port)
        first.command("REPLICAOF", "NO", "ONE")
        await until(lambda: not link.alive)
        assert "history" in link.why or "no primary" in link.why
        again = await linked(redis)
        assert again.run_id.split(":")[0] == link.run_id.split(":")[0]
        assert again.run_id != link.run_id
        reader = await redis.reader()
        assert reader.run_id == again.run_id
        reader.close()


async def test_sentinels_that_do_not_know_the_name_are_a_mistake(
    own_sentinel: Callable[..., SentinelGroup],
) -> None:
    """Said at the start, with the name."""
    group = own_sentinel(replicas=0, sentinels=1)
    assert "no primary of this name, got 'other'" in await refused(group.url.replace("/main", "/other"))


async def test_a_cluster_serves_each_tag_by_its_node(own_redis_cluster: Callable[..., RedisCluster]) -> None:
    """One link per node, whatever the tag; all nodes are used; the slot is computed as the server does."""
    cluster = own_redis_cluster()
    tags = [f"class-{n}" for n in range(50)]
    async with started(cluster.url.split(",")[0]) as redis:  # one node is enough to find all
        for tag in tags:
            link = await linked(redis, tag)
            assert slot(f"{{{tag}}}:k") == slot(tag) == cluster.slot(tag)
            assert await link.send("SET", f"{{{tag}}}:k", tag) == b"OK"
            assert link.address.endswith(f":{cluster.owner(tag).port}")
        assert len({redis.link(tag) for tag in tags}) == 3


async def test_a_slot_that_moves_takes_its_tag_along(own_redis_cluster: Callable[..., RedisCluster]) -> None:
    """Its callers are told that it is elsewhere, then served there. A slot that comes back comes back as
    another run, because what is in it was changed elsewhere."""
    cluster = own_redis_cluster()
    home = cluster.owner("{t}")
    away = next(server for server in cluster.servers if server is not home)
    async with started(cluster.url) as redis:
        link = await linked(redis, "t")
        await link.send("SET", "{t}:k", "v")
        cluster.begin_moving("{t}", away)
        with pytest.raises(RedisUnavailable, match="ASK"):
            await link.send("GET", "{t}:absent")
        assert await link.send("GET", "{t}:k") == b"v"
        cluster.finish_moving("{t}", away)
        with pytest.raises(RedisUnavailable, match="MOVED"):
            await link.send("GET", "{t}:k")
        await until(
            lambda: (found := redis.link("t")) is not None and found.address.endswith(f":{away.port}")
        )
        assert await (await linked(redis, "t")).send("GET", "{t}:k") == b"v"
        cluster.move("{t}", home)
        await until(
            lambda: (found := redis.link("t")) is not None and found.address.endswith(f":{home.port}")
        )
        back = await linked(redis, "t")
        assert back is not link
        assert back.run_id.split(":")[0] == link.run_id.split(":")[0]
        assert back.run_id != link.run_id


async def test_a_node_that_dies_takes_down_its_own_tags_only(
    own_redis_cluster: Callable[..., RedisCluster],
) -> None:
    """The others are served on; when it is back its tags are served by another run."""
    cluster = own_redis_cluster(timeout=0)
    tags = [f"class-{n}" for n in range(50)]
    async with started(cluster.url) as redis:
        before = {tag: await linked(redis, tag) for tag in tags}
        dead = cluster.servers[1]
        mine = [tag for tag in tags if before[tag].address.endswith(f":{dead.port}")]
        dead.kill()
        await until(lambda: all(redis.link(tag) is None for tag in mine))
        assert all(redis.link(tag) is before[tag] for tag in tags if tag not in mine)
        reader = await redis.reader(next(tag for tag in tags if tag not in mine))
        assert await reader.send("PING") == b"PONG"
        with pytest.raises(RedisUnavailable):
            await redis.reader(mine[0])


async def test_a_failover_in_a_cluster_leads_to_the_replica(
    own_redis_cluster: Callable[..., RedisCluster],
) -> None:
    """The tags of a node that was killed are served by its replica, as another run, and can be written."""
    cluster = own_redis_cluster(cluster_node_timeout=1000)
    primary = cluster.owner("t")
    replica = cluster.add_replica(primary)
    async with started(cluster.url) as redis:
        link = await linked(redis, "t")
        assert link.address.endswith(f":{primary.port}")
        primary.kill()
        await until(
            lambda: (found := redis.link("t")) is not None and found.address.endswith(f":{replica.port}")
        )
        new = await linked(redis, "t")
        assert new.run_id != link.run_id
        assert await new.send("SET", "t", "v") == b"OK"


async def test_a_server_without_cluster_mode_is_no_cluster(redis_server: RedisServer) -> None:
    """And the other way round: each says what was found."""
    url = redis_server.url.replace("redis://", "redis+cluster://")
    assert "must run as cluster, got standalone" in await refused(url)
