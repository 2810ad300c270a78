"""The relays of one cache: one for each database cluster that classes have values of.

Each process has them; of all processes one leads (`_leading`), and tells what writers could not.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from springtide.cache._codec import Codec
from springtide.cache._level2 import Level2
from springtide.cache._names import Names, scope_name, slot_name
from springtide.cache._relay import Relay
from springtide.cache.classes import MAX_COPIES
from springtide.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from springtide.cache._class import CacheClass
    from springtide.clock import Clock
    from springtide.db.pool import Pool
    from springtide.redis import Redis
    from springtide.signals import Sink

__all__ = ["relays_of"]

STRANGERS_LIFE = 300.0
"""Seconds that versions of a stranger's tags stay; without one, no value that names the tag is good."""


def relays_of(
    platform: str,
    classes: Collection[CacheClass[Any]],
    *,
    redis: Redis,
    dsns: Mapping[str, str] | None,
    clock: Clock,
    sink: Sink,
) -> list[Relay]:
    """For the classes as they are now. dsns: see `Cache`."""
    found: dict[str, tuple[Pool, dict[str, None]]] = {}
    for cls in classes:
        if cls.database is not None:
            for shard, pool in cls.database.pools.items():
                found.setdefault(shard, (pool, {}))[1][cls.database.schema] = None
    return [
        Relay(
            platform,
            cluster=shard,
            pool=pool,
            dsn=functools.partial(_dsn, dsns, shard, pool),
            schemas=list(schemas),
            slots=functools.partial(_slots, classes, shard),
            strangers=functools.partial(_strangers, platform, redis, shard),
            clock=clock,
            sink=sink,
        )
        for shard, (pool, schemas) in found.items()
    ]


def _dsn(dsns: Mapping[str, str] | None, shard: str, pool: Pool) -> str:
    if dsns is not None:
        return dsns[shard]
    if pool.dsn is None:
        raise DatabaseUnavailable(f"nobody knows where {shard} is")
    return pool.dsn


def _strangers(
    platform: str, redis: Redis, shard: str, epoch: int, cls: str, schema: str
) -> list[Level2[Any]] | None:
    """The slots of a class that this process does not know, of as many copies as it may have."""
    found: list[Level2[Any]] = []
    for copy in range(MAX_COPIES):
        slot = slot_name(cls, shard, copy=copy)
        link = redis.link(f"{{{slot}}}")
        if link is None:
            return None
        names = Names(slot, scope_name(platform, link.run_id, shard, epoch, schema))
        found.append(Level2(link, names, Codec(bytes), cluster=shard, epoch=epoch, life=STRANGERS_LIFE))
    return found


def _slots(
    classes: Collection[CacheClass[Any]], shard: str, epoch: int
) -> dict[str, list[Level2[Any]] | None]:
    """What the relay of a cluster tells and beats: the level of each class there."""
    found: dict[str, list[Level2[Any]] | None] = {}
    for cls in classes:
        if shard in cls.places:
            levels = cls.places[shard].levels_now(epoch).values()
            reached = [level for level in levels if level is not None]
            found[cls.name] = reached if len(reached) == len(levels) else None
    return found
