"""Telling all processes what a write has made stale.

After COMMIT every slot concerned is told, each of its copies, and the session takes what it has to ask of the
slot until every process has heard of it (`_session`). What could not be told is in the database, and the
relay tells it. Without Redis there is nobody to tell: then this process alone lets go of loads that began
before.

A write may change again what it has put. So what it puts is no good any more when it invalidates the same
key afterwards, or a tag of the value: then nothing is kept, and whoever asks next loads.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from springtide.cache import _session
from springtide.cache._keeping import AWAY
from springtide.context import current
from springtide.errors import RedisUnavailable

if TYPE_CHECKING:
    from springtide.cache._class import CacheClass
    from springtide.cache._level2 import Level2
    from springtide.cache._place import Place
    from springtide.clock import Clock
    from springtide.db import WriteTransaction
    from springtide.db._invalidating import Recorded
    from springtide.redis import Redis

__all__ = ["Put", "Telling"]


class Put:
    """A value that a write puts, until its COMMIT. good: the same write has not changed it again since."""

    __slots__ = ("good",)

    def __init__(self) -> None:
        self.good = True


class Telling:
    """Of one cache."""

    def __init__(self, redis: Redis | None, clock: Clock) -> None:
        self._redis = redis
        self._clock = clock
        self._puts: WeakKeyDictionary[WriteTransaction, dict[tuple[str, str], list[Put]]] = (
            WeakKeyDictionary()
        )
        """By the block that commits: what has been put in it, by slot and field."""

    def put(self, tx: WriteTransaction, slot: str, fields: Iterable[str]) -> Put:
        """`tx` puts a value which these invalidate."""
        made, puts = Put(), self._puts.setdefault(tx.outermost, {})
        for field in fields:
            puts.setdefault((slot, field), []).append(made)
        return made

    def fields_of(
        self, tx: WriteTransaction, cls: CacheClass[Any], key: tuple[Any, ...], tags: Sequence[str]
    ) -> tuple[str, Iterable[str]]:
        """The class's name and the fields that the write has to write down; none without Redis."""
        cls.check_shard(key, tx.shard)
        named, place = cls.fields(key, tags), cls.places[tx.shard]
        if puts := self._puts.get(tx.outermost):
            for field in named:
                for put in puts.pop((place.slot.name, field), ()):
                    put.good = False
        if self._redis is not None:
            return cls.name, named
        tx.on_commit(functools.partial(place.hear, named, 0))
        return cls.name, ()

    async def committed(
        self, tx: WriteTransaction, recorded: Recorded, fields: Mapping[CacheClass[Any], Sequence[str]]
    ) -> None:
        """`tx` has committed, or may have."""
        committed = self._clock.monotonic()
        epoch = recorded.seen.epoch
        voids = []
        for cls, named in fields.items():
            place = cls.places[tx.shard]
            place.hear(named, 0)
            voids.append(self._void(cls, place, named, recorded.xid, epoch, committed))
        await asyncio.gather(*voids)

    async def invalidate(self, cls: CacheClass[Any], named: Sequence[str]) -> None:
        """Of a class without a database. Raises RedisUnavailable and RedisError."""
        place = cls.places[None]
        place.hear(named, 0)
        failure = await self._void(cls, place, named, None, 0, self._clock.monotonic())
        if failure is not None:
            raise failure

    async def _void(
        self,
        cls: CacheClass[Any],
        place: Place,
        named: Sequence[str],
        xid: int | None,
        epoch: int,
        committed: float,
    ) -> Exception | None:
        """Tell the second level, and the session what it has to ask of it from now on."""
        if self._redis is None:
            return None
        levels = place.levels_now(epoch)
        before = place.slot.name, place.slot.scope
        position = place.slot.position
        if len(levels) == 1:
            told = [await self._void_one(place, level, named, xid) for level in levels.values()]
        else:
            told = await asyncio.gather(
                *(self._void_one(place, level, named, xid) for level in levels.values())
            )
        context, now, budget = current(), self._clock.now(), cls.definition.budget
        failure: Exception | None = None
        for (slot, level), answer in zip(levels.items(), told, strict=True):
            if isinstance(answer, Exception):
                failure = answer
                if context is not None:
                    share = place.slot.share
                    _session.missed(context, slot, now=now, budget=budget, committed=committed, share=share)
            elif context is not None and level is not None:
                scope = level.names.scope
                known = position if (slot, scope) == before else 0
                _session.voided(context, slot, scope, answer, heard=known, now=now, budget=budget)
        if failure is None:
            cls.stats.voided += 1
        else:
            cls.stats.unvoided += 1
        return failure

    async def _void_one(
        self, place: Place, level: Level2[Any] | None, named: Sequence[str], xid: int | None
    ) -> int | Exception:
        """Tell one copy: the sequence, or why it could not be told."""
        assert self._redis is not None
        if level is None:
            return RedisUnavailable(self._redis.name, "nobody is connected")
        try:
            sequence = await level.void(named, xid=xid)
        except AWAY as error:
            return error
        if level.names.slot == place.slot.name:
            place.hear(named, sequence)  # what was begun or filled while it was told
        context = current()
        if (
            context is not None
            and _session.brings_nothing(context)
            and not await self._redis.leads(level.link)
        ):
            return RedisUnavailable(level.link.address, "another server may be the primary now")
        return sequence
