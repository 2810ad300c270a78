"""A cache as writes see it, for tests: it remembers what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from springtide.db import WriteTransaction
from springtide.db._invalidating import Recorded

__all__ = ["Told", "TellingCache"]


@dataclass
class Told:
    recorded: Recorded
    fields: dict[str, list[str]]


@dataclass
class TellingCache:
    """Classes are their names. `before` runs first of all when it is told something."""

    told: list[Told] = field(default_factory=list)
    before: Callable[[Recorded], Awaitable[None]] | None = None
    more: asyncio.Event = field(default_factory=asyncio.Event)

    def fields_of(
        self, tx: WriteTransaction, cls: Any, key: tuple[Any, ...], tags: Sequence[str]
    ) -> tuple[str, Iterable[str]]:
        keys = [f"k:{','.join(map(str, key))}"] if key else []
        return cls, [*keys, *(f"t:{tag}" for tag in tags)]

    async def void(
        self, tx: WriteTransaction, recorded: Recorded, fields: Mapping[str, Sequence[str]]
    ) -> None:
        if self.before is not None:
            await self.before(recorded)
        assert tx.recorded is recorded
        self.told.append(Told(recorded, {cls: list(named) for cls, named in fields.items()}))
        self.more.set()
