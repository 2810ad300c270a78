"""CPU time of a hit: ours beside the libraries that Python programs use, each as its manual shows.

What is kept is an object of five fields in every one of them. Ours checks at every hit that nothing has
invalidated it, and hands out one value that nobody can change; theine and async-lru hand out what was put in,
with no expiry asked for; dogpile.cache and theine are called without await.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiocache
import async_lru
import cashews
import dogpile.cache
import msgspec
import theine

from bench._harness import Rounds, alternate, drive
from springtide.cache import Cache, CacheClass

__all__ = ["User", "at_work", "first_level", "second_level", "user"]

KEYS = 100


class User(msgspec.Struct, frozen=True):
    id: int
    name: str
    email: str
    bio: str
    scopes: tuple[str, ...]


def user(id: int) -> User:
    return User(id, f"user {id}", f"user{id}@example.com", "Lives by the sea. " * 10, ("read", "write"))


async def load(id: int) -> User:
    return user(id)


Read = Callable[[int], Awaitable[object]]


async def cpu(read: Read, *, total: int, concurrency: int) -> float:
    """Seconds of this process's CPU per read."""
    begun = time.process_time()
    await drive(lambda number: read(number % KEYS), total=total, concurrency=concurrency)
    return (time.process_time() - begun) / total


def cpu_of_calls(read: Callable[[int], object], *, total: int) -> float:
    begun = time.process_time()
    for number in range(total):
        read(number % KEYS)
    return (time.process_time() - begun) / total


# -- the first level ---------------------------------------------------------------------------------------


async def at_work(users: CacheClass[User]) -> None:
    """Return when the cache keeps values: it does once it has heard that Redis keeps it informed."""
    async with asyncio.timeout(30):
        while True:
            before = users.stats.loads
            await users.get(-1)
            await asyncio.sleep(0.01)
            await users.get(-1)
            if users.stats.loads - before < 2:
                return


@asynccontextmanager
async def ours_in_memory(url: str) -> AsyncIterator[Read]:
    cache = Cache("bench", redis=url)
    users = cache.define("memory:{id}", User, load=load, ttl=3600.0, l1=3600.0)
    async with cache:
        await at_work(users)
        yield users.get


@asynccontextmanager
async def cashews_get() -> AsyncIterator[Read]:
    cache = cashews.Cache()
    cache.setup("mem://")
    for id in range(KEYS):
        await cache.set(f"user:{id}", user(id), expire="1h")
    yield lambda id: cache.get(f"user:{id}")
    await cache.close()


@asynccontextmanager
async def cashews_decorator() -> AsyncIterator[Read]:
    cache = cashews.Cache()
    cache.setup("mem://")

    @cache(ttl="1h", key="user:{id}")
    async def read(id: int) -> User:
        return user(id)

    yield read
    await cache.close()


@asynccontextmanager
async def aiocache_get() -> AsyncIterator[Read]:
    cache = aiocache.SimpleMemoryCache()
    for id in range(KEYS):
        await cache.set(f"user:{id}", user(id), ttl=3600)
    yield lambda id: cache.get(f"user:{id}")
    await cache.close()


@asynccontextmanager
async def aiocache_decorator() -> AsyncIterator[Read]:
    @aiocache.cached(ttl=3600, key_builder=lambda function, id: f"user:{id}")
    async def read(id: int) -> User:
        return user(id)

    yield read


@asynccontextmanager
async def async_lru_decorator() -> AsyncIterator[Read]:
    @async_lru.alru_cache(maxsize=1000, ttl=3600)
    async def read(id: int) -> User:
        return user(id)

    yield read
    await read.cache_close()


def theine_get() -> Callable[[int], object]:
    cache: theine.Cache[str, User] = theine.Cache(1000)
    for id in range(KEYS):
        cache.set(f"user:{id}", user(id))
    return lambda id: cache.get(f"user:{id}")


def dogpile_get() -> Callable[[int], object]:
    region = dogpile.cache.make_region().configure("dogpile.cache.memory", expiration_time=3600)
    for id in range(KEYS):
        region.set(f"user:{id}", user(id))
    return lambda id: region.get(f"user:{id}")


IN_MEMORY = {
    "cashews": cashews_decorator,
    "cashews_get": cashews_get,
    "aiocache": aiocache_decorator,
    "aiocache_get": aiocache_get,
    "async_lru": async_lru_decorator,
}
CALLED = {"theine": theine_get, "dogpile": dogpile_get}


async def first_level(url: str, *, rounds: int, total: int) -> Rounds:
    """Of one caller: a hit in memory never waits, so there is nothing that callers could share."""
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(ours_in_memory(url))
        racers: dict[str, Callable[[], Awaitable[float]]] = {"springtide": _racer(ours, total, 1)}
        for name, enter in IN_MEMORY.items():
            read = await stack.enter_async_context(enter())
            racers[name] = _racer(read, total, 1)
        for name, make in CALLED.items():
            racers[name] = _caller(make(), total)
        return await alternate(racers, rounds=rounds)


# -- the second level --------------------------------------------------------------------------------------


@asynccontextmanager
async def ours_in_redis(url: str) -> AsyncIterator[Read]:
    cache = Cache("bench", redis=url)
    users = cache.define("user:{id}", User, load=load, ttl=3600.0, l1=0.0)
    async with cache:
        await at_work(users)
        yield users.get


@asynccontextmanager
async def cashews_in_redis(url: str) -> AsyncIterator[Read]:
    cache = cashews.Cache()
    cache.setup(url)
    for id in range(KEYS):
        await cache.set(f"cashews:{id}", user(id), expire="1h")
    yield lambda id: cache.get(f"cashews:{id}")
    await cache.close()


@asynccontextmanager
async def aiocache_in_redis(url: str) -> AsyncIterator[Read]:
    cache = aiocache.Cache.from_url(url)
    cache.serializer = aiocache.serializers.PickleSerializer()
    for id in range(KEYS):
        await cache.set(f"aiocache:{id}", user(id), ttl=3600)
    yield lambda id: cache.get(f"aiocache:{id}")
    await cache.close()


IN_REDIS: Mapping[str, Callable[[str], Any]] = {
    "springtide": ours_in_redis,
    "cashews": cashews_in_redis,
    "aiocache": aiocache_in_redis,
}


async def second_level(url: str, *, rounds: int, total: int, concurrency: int) -> Rounds:
    async with AsyncExitStack() as stack:
        racers = {
            name: _racer(await stack.enter_async_context(enter(url)), total, concurrency)
            for name, enter in IN_REDIS.items()
        }
        return await alternate(racers, rounds=rounds)


def _caller(read: Callable[[int], object], total: int) -> Callable[[], Awaitable[float]]:
    async def race() -> float:
        return cpu_of_calls(read, total=total)

    return race


def _racer(read: Read, total: int, concurrency: int) -> Callable[[], Awaitable[float]]:
    async def race() -> float:
        return await cpu(read, total=total, concurrency=concurrency)

    return race
