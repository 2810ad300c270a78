"""The relays of one cache: one for each database cluster that classes have values of.

Each process has them; of all processes one leads (`_leading`), and tells what writers could not.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from springtide.cache._relay import Relay
from springtide.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from springtide.cache._class import CacheClass
    from springtide.cache._level2 import Level2
    from springtide.clock import Clock
    from springtide.db.pool import Pool
    from springtide.signals import Sink

__all__ = ["relays_of"]


def relays_of(
    platform: str,
    classes: Collection[CacheClass[Any]],
    *,
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
