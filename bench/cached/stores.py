"""What the registers are read through: the cache of Springtide, or a naive one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from bench.cached.naive import Aside
from bench.cached.values import Group, Loading, entry_type, group_of
from springtide.db import Database
from springtide.services import ModuleContext

__all__ = ["BUDGET", "Naive", "Ours", "Store"]

BUDGET = 2.0
"""Seconds that a value may be stale after a write that invalidates it."""

TTL = 30.0


class Store(Protocol):
    async def entry(self, key: int) -> Any: ...

    async def entries(self, keys: Sequence[int]) -> Mapping[int, Any]: ...

    async def group(self, group: int) -> Group: ...

    def written(self, tx: Any, key: int) -> None:
        """Within the transaction that writes it."""

    async def committed(self, key: int) -> None: ...


class Ours:
    def __init__(self, context: ModuleContext, loading: Loading) -> None:
        options: dict[str, Any] = {"database": context.db, "ttl": TTL, "budget": BUDGET, "negative": 5.0}
        self._kinds = [
            context.cache.define(
                f"{name}:{{id}}",
                entry_type(place << 10),
                load_many=loading.entries,
                key=lambda id: id,
                **options,
            )
            for place, name in enumerate(("even", "odd"))
        ]
        self._groups = context.cache.define(
            "group:{id}", Group, load=loading.group, key=lambda id: id, tags=("members:{id}",), **options
        )

    def _kind(self, key: int) -> Any:
        return self._kinds[(key >> 10) & 1]

    async def entry(self, key: int) -> Any:
        return await self._kind(key).get(key)

    async def entries(self, keys: Sequence[int]) -> Mapping[int, Any]:
        halves = [[key for key in keys if self._kind(key) is kind] for kind in self._kinds]
        even, odd = await asyncio.gather(
            *(kind.get_many(half) for kind, half in zip(self._kinds, halves, strict=True))
        )
        return {**even, **odd}

    async def group(self, group: int) -> Group:
        found: Group = await self._groups.get(group)
        return found

    def written(self, tx: Any, key: int) -> None:
        tx.invalidate(self._kind(key), key)
        tx.invalidate(self._groups, tags=(f"members:{group_of(key)}",))

    async def committed(self, key: int) -> None:
        """All that has to be done is done by the transaction."""

    def counts(self) -> Counter[str]:
        """What the classes have counted, added up."""
        found: Counter[str] = Counter()
        for kind in (*self._kinds, self._groups):
            for name in kind.stats.__slots__:
                value = getattr(kind.stats, name)
                if isinstance(value, Counter):
                    found.update({f"{name} {what}": number for what, number in value.items()})
                elif isinstance(value, int | float):
                    found[name] += value
        return found


class Naive:
    def __init__(self, cache: Aside, database: Database, loading: Loading) -> None:
        self._cache = cache
        self._db = database
        self._loading = loading

    async def entry(self, key: int) -> Any:
        async def load() -> Any:
            return await self._loading.entry(self._db.read(key), key)

        return await self._cache.get(f"entry:{key}", entry_type(key) | None, load)

    async def entries(self, keys: Sequence[int]) -> Mapping[int, Any]:
        found = await asyncio.gather(*(self.entry(key) for key in keys))
        return dict(zip(keys, found, strict=True))

    async def group(self, group: int) -> Group:
        async def load() -> Group:
            return await self._loading.group(self._db.read(group), group)

        return await self._cache.get(f"group:{group}", Group, load)

    def written(self, tx: Any, key: int) -> None:
        """Nothing can be done before the commit."""

    async def committed(self, key: int) -> None:
        await self._cache.drop(f"entry:{key}", f"group:{group_of(key)}")
