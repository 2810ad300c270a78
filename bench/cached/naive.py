"""What is usually written: cache-aside on one Redis, plain or with leases, by redis-py as its manual shows.

    aside   a miss loads and SETs; a write DELs after its commit
    lease   the same, but only who took the key's lease SETs, and a write takes the lease away too (Nishtala
            et al., "Scaling Memcache at Facebook", NSDI 2013, section 3.2.1)

Both load as the platform reads by default (a session's own writes are seen), which is the best that they
could do; when Redis does not answer, they read the database and say nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError

__all__ = ["Aside", "Leases"]

T = TypeVar("T")

TTL = 30
LEASE = 5
"""Seconds; the second is how long a load may take."""

TIMEOUT = 0.25
TURN = 0.01
"""Seconds between two looks of whoever waits for another's load; it looks ten times."""

TAKE = """
local value = redis.call('GET', KEYS[1])
if value then return {value, ''} end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'EX', ARGV[2]) then return {false, ARGV[1]} end
return {false, ''}
"""

FILL = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""


class Aside:
    """`felt` counts what Redis did not do."""

    def __init__(self, url: str, prefix: str) -> None:
        parts = urlsplit(url)
        host, _, port = parts.netloc.partition(":")
        options = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "protocol": 2}
        self._sentinel = Sentinel([(host, int(port))], **options)
        self._redis = self._sentinel.master_for(parts.path.strip("/"), max_connections=1000, **options)
        self._prefix = prefix
        self.felt: Counter[str] = Counter()
        self._take = self._redis.register_script(TAKE)
        self._fill = self._redis.register_script(FILL)

    async def get(self, key: str, type: type[T], load: Callable[[], Awaitable[T]]) -> T:
        name = f"{self._prefix}{key}"
        found: bytes | None = None
        with self._counting("get"):
            found = await self._redis.get(name)
        if found is not None:
            with contextlib.suppress(msgspec.ValidationError):  # another version of the class wrote it
                return msgspec.json.decode(found, type=type)
        value = await load()
        with self._counting("set"):
            await self._redis.set(name, msgspec.json.encode(value), ex=TTL)
        return value

    async def drop(self, *keys: str) -> None:
        with self._counting("del"):
            await self._redis.delete(*(f"{self._prefix}{key}" for key in keys))

    @contextlib.contextmanager
    def _counting(self, what: str) -> object:
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            self.felt[f"{what}: {type(error).__name__}"] += 1


class Leases(Aside):
    async def get(self, key: str, type: type[T], load: Callable[[], Awaitable[T]]) -> T:
        names = [f"{self._prefix}{key}", f"{self._prefix}{key}:lease"]
        mine = ""
        with self._counting("get"):
            for _ in range(10):
                found, taken = await self._take(names, [secrets.token_hex(8), LEASE])
                if found:
                    with contextlib.suppress(msgspec.ValidationError):
                        return msgspec.json.decode(found, type=type)
                    break
                if taken:
                    mine = taken.decode()
                    break
                await asyncio.sleep(TURN)
        value = await load()
        if mine:
            with self._counting("set"):
                await self._fill(names, [mine, msgspec.json.encode(value), TTL])
        return value

    async def drop(self, *keys: str) -> None:
        with self._counting("del"):
            names = [f"{self._prefix}{key}" for key in keys]
            await self._redis.delete(*names, *(f"{name}:lease" for name in names))
