"""The list of what all processes were asked for, in a real Redis."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests._redis import RedisServer, until

from springtide.cache import _popular
from springtide.cache._popular import MOST, Popular, arguments_of, member_of
from springtide.errors import RedisUnavailable
from springtide.redis import Redis

pytestmark = pytest.mark.needs("redis-server")


def test_arguments_come_back_as_they_went() -> None:
    """Whole numbers of 64 bits and texts stay apart; what somebody else wrote is passed over."""
    for arguments in ((7,), ("7",), (), ("de", -(2**63)), ("\n\u20ac", 2**63 - 1)):
        assert arguments_of(member_of(arguments)) == arguments
    assert arguments_of(b"7") is None
    assert arguments_of(b"[1.5]") is None


async def test_processes_add_up_and_the_list_is_bounded(redis_server: RedisServer) -> None:
    """Two processes tell of the same keys: one order of both together, no more than MOST, with an end."""
    async with _client(redis_server) as redis:
        popular = Popular(redis, "shop")
        assert await popular.add("user", [((1,), 5.0), ((2,), 3.0), (("a", 2), 1.0)])
        assert await popular.add("user", [((2,), 3.5)])
        assert [arguments for arguments, _ in await popular.top("user")] == [(2,), (1,), ("a", 2)]
        assert dict(await popular.top("user", 1))[(2,)] == pytest.approx(6.5, rel=0.1)
        assert await Popular(redis, "another").top("user") == []
        assert await popular.top("post") == []
        await popular.add("user", [((n,), 10.0 + n) for n in range(3 * MOST)])
        found = await popular.top("user", 10 * MOST)
        assert len(found) == MOST and found[0][0] == (3 * MOST - 1,)
        keys = await asyncio.to_thread(redis_server.command, "KEYS", "*")
        assert len(keys) == 2
        for key in keys:
            assert await asyncio.to_thread(redis_server.command, "PTTL", key) > 0


async def test_what_nobody_asks_for_any_more_sinks(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some half-lives what was far ahead is behind what little is asked for now; a server's clock that
    was set back only stops that."""
    monkeypatch.setattr(_popular, "HALF_LIFE", 0.05)
    async with _client(redis_server) as redis:
        popular = Popular(redis, "shop")
        await popular.add("user", [(("old",), 1000.0)])
        since = time.monotonic()
        await asyncio.to_thread(until, lambda: time.monotonic() > since + 1.0, "twenty half-lives")
        await popular.add("user", [(("new",), 1.0)])
        assert [arguments for arguments, _ in await popular.top("user")] == [("new",), ("old",)]
        (aged,) = [k for k in await asyncio.to_thread(redis_server.command, "KEYS", "*") if k.endswith("A")]
        await asyncio.to_thread(redis_server.command, "SET", aged, "99999999999999")
        await popular.add("user", [(("new",), 1.0)])
        assert [arguments for arguments, _ in await popular.top("user")] == [("new",), ("old",)]


async def test_without_redis_nobody_is_told(redis_server: RedisServer) -> None:
    """Telling fails quietly, asking says so."""
    redis = Redis(redis_server.url)
    popular = Popular(redis, "shop")
    assert not await popular.add("user", [((1,), 5.0)])
    with pytest.raises(RedisUnavailable):
        await popular.top("user")


class _client:
    def __init__(self, server: RedisServer) -> None:
        self._redis = Redis(server.url, timeout=20.0)

    async def __aenter__(self) -> Redis:
        await self._redis.start()
        return self._redis

    async def __aexit__(self, *_: object) -> None:
        await self._redis.stop()
