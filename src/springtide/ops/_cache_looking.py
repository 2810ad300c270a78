"""What the commands of `springtide cache` ask and do: with the platform's own classes, its pools and Redis.

Only what is needed is started: no module, no relay, no reader of the bus.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from springtide.cache._names import key_field
from springtide.cache._popular import Popular
from springtide.context import Consistency
from springtide.errors import ConfigurationError, RedisError, RedisUnavailable
from springtide.lifecycle import Group

if TYPE_CHECKING:
    from springtide.cache import CacheClass
    from springtide.cache._level2 import Level2
    from springtide.cache._place import Place
    from springtide.db import Database
    from springtide.lifecycle import Service
    from springtide.platform import Platform
    from springtide.redis import Link, Redis

__all__ = ["hottest", "invalidate", "look", "sentences"]


@asynccontextmanager
async def _reaching(platform: Platform, *, databases: bool = True) -> AsyncIterator[Redis]:
    redis = platform.cache.redis
    if redis is None:
        raise ConfigurationError("the platform's cache has no Redis")
    parts: list[Service] = [redis]
    if databases:
        parts += [*platform.servers.values(), *platform.pools.values()]
    async with _running(Group("cache commands", parts)):
        yield redis


@asynccontextmanager
async def _running(group: Group) -> AsyncIterator[None]:
    try:
        await group.start()
        yield
    finally:
        await group.stop()


async def hottest(platform: Platform, names: Sequence[str], count: int) -> dict[str, Any]:
    """Per class the keys asked for most, and how often; empty where Redis does not say."""
    async with _reaching(platform, databases=False) as redis:
        popular = Popular(redis, platform.cache.platform)
        try:
            return {name: await popular.top(name, count) for name in names}
        except (RedisUnavailable, RedisError):
            return {}


async def look(platform: Platform, cls: CacheClass[Any], key: Sequence[int | str]) -> list[dict[str, Any]]:
    """What the shared level has of the value: each copy of it, on each shard that may have it."""
    found = []
    async with _reaching(platform) as redis:
        for place in cls.places_of(key):
            epoch = await _epoch(place.database, place.shard)
            for slot, level in place.levels_now(epoch).items():
                link = place.link_now(slot)
                if level is None or link is None:
                    raise RedisUnavailable(redis.name, "nobody answers")
                found.append(await _look(cls, place, key, level, link))
    return found


async def _look(
    cls: CacheClass[Any], place: Place, key: Sequence[int | str], level: Level2[Any], link: Link
) -> dict[str, Any]:
    name, names = cls.key(*key), level.names
    field, prefix = key_field(name), names.prefix
    asked = [
        link.send("GET", names.value(name)),
        link.send("PTTL", names.value(name)),
        link.send("GET", names.lease(name)),
        link.send("PTTL", names.lease(name)),
        link.send("EXISTS", names.aside(name)),
        link.send("GET", names.sequence),
        *(link.send("HGET", prefix + part, field) for part in ("T", "O")),
        link.send("HGET", prefix + "T", "#horizon"),
    ]
    raw, left, lease, held, aside, sequence, young, old, horizon = [await answer for answer in asked]
    found = (await level.read([name])).found[0]
    remaining = left / 1000 if raw is not None and left >= 0 else None
    return {
        "key": name,
        "shard": place.shard,
        "slot": names.slot,
        "there": found is not None,
        "value": None if found is None else msgspec.to_builtins(found.value, str_keys=True),
        "nothing": found is not None and found.value is None,
        "void": raw is not None and found is None,
        "bytes": None if raw is None else len(raw),
        "oldest": None if remaining is None else round(max(level.life - remaining, 0.0), 3),
        "remaining": remaining,
        "lease": None if lease is None else held / 1000,
        "aside": bool(aside),
        "sequence": int(sequence or 0),
        "tombstones": [text.decode() for text in (young, old) if text is not None],
        "fills": place.database is None or horizon is not None,
        "memory": cls.definition.lives(0 if found is None else found.value)[1],
    }


async def _epoch(database: Database | None, shard: str | None) -> int:
    """The history of the database now."""
    if database is None or shard is None:
        return 0
    async with database.seeing(shard, consistency=Consistency.STRONG) as sight:
        return sight.seen.epoch


def sentences(place: dict[str, Any]) -> list[str]:
    """What `look` found, for people."""
    lines = [f"{place['key']} in {place['slot']}"]
    if place["void"]:
        lines.append("  value      there, but a tag of it was invalidated: nobody is given it")
    elif not place["there"]:
        lines.append("  value      not in Redis")
    elif place["nothing"]:
        lines.append("  value      it is known that there is nothing")
    else:
        lines.append(f"  value      {msgspec.json.encode(place['value']).decode()}")
    if place["there"]:
        oldest, left = place["oldest"], place["remaining"]
        lines.append(f"  age        at most {oldest:.1f} s, {left:.1f} s left; {place['bytes']:,} bytes")
    if place["memory"]:
        lines.append(f"  memory     a process keeps it for {place['memory']:g} s, or until it is invalidated")
    lease = place["lease"]
    lines.append("  load       " + ("none" if lease is None else f"under way, at most {lease:.1f} s more"))
    if place["aside"]:
        lines.append("  old value  kept for when its loader fails")
    fence = f"invalidation {place['sequence']} of {place['slot']} was the last"
    if place["tombstones"]:
        fence += f"; of this key by {_writers(place['tombstones'])}"
    if not place["fills"]:
        fence += "; nothing is kept until the relay has asked the primary"
    return [*lines, f"  fence      {fence}"]


def _writers(tombstones: Sequence[str]) -> str:
    """Transactions, each listed or all up to one."""
    listed = [xid for text in tombstones if text[0] != "<" for xid in text.split(",")]
    most = [f"those up to {text[1:].partition('@')[0]}" for text in tombstones if text[0] == "<"]
    names = [*dict.fromkeys(listed), *most]
    return f"transaction{'s' if len(names) > 1 or most else ''} {', '.join(names)}"


async def invalidate(
    platform: Platform, cls: CacheClass[Any], key: tuple[int | str, ...], tags: Sequence[str]
) -> dict[str, bool]:
    """Invalidate by a write on every shard that may have such values; whether Redis was told at once."""
    async with _reaching(platform):
        if cls.database is None:
            await cls.invalidate(*key, tags=tags)
            return {"": True}
        told = {}
        places = list(cls.places.values()) if tags else cls.places_of(key)
        own = {place.shard for place in cls.places_of(key)} if key or not tags else set()
        for place in places:
            assert place.shard is not None
            before = cls.stats.unvoided
            async with cls.database.write(_key_on(cls.database, place.shard)) as tx:
                tx.invalidate(cls, *(key if place.shard in own else ()), tags=tags)
            told[place.shard] = cls.stats.unvoided == before
        return told


def _key_on(database: Database, shard: str) -> int:
    """A key that the shard has: what a write on it is named by."""
    return next(number for number in range(1 << 20) if database.shards.shard_of(number) == shard)
