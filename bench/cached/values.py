"""The registers' values, how they are loaded, and what is done to loads on purpose."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from springtide.db import bucket_of
from springtide.db.router import Queries

__all__ = ["Entry", "Group", "LoaderTold", "Loading", "entry_type", "group_of", "members"]

SIZE = 4
"""Registers of a group."""

READ = "select version, value from cached.entry where bucket = $1 and id = $2"
READ_MANY = "select id, version, value from cached.entry where bucket = any($1) and id = any($2)"
READ_GROUP = "select id, version, value from cached.entry where bucket = $1 and id = any($2)"


class Entry(msgspec.Struct, frozen=True):
    version: int
    value: str


class Entry2(msgspec.Struct, frozen=True):
    """As the next version of the application has it."""

    version: int
    value: str
    length: int


class Group(msgspec.Struct, frozen=True):
    id: int
    entries: tuple[tuple[int, int, str], ...]
    """id, version and value of those members that were written."""

    def member(self, key: int) -> Entry | None:
        found = (Entry(version, value) for id, version, value in self.entries if id == key)
        return next(found, None)


def group_of(key: int) -> int:
    """A group's id: its members share its bucket."""
    return (key >> 10) // SIZE << 10 | key & 1023


def members(group: int) -> list[int]:
    return [((group >> 10) * SIZE + place) << 10 | group & 1023 for place in range(SIZE)]


def entry_type(key: int) -> type[Entry] | type[Entry2]:
    """Those of odd keys are of another shape where CACHED_SCHEMA is 2."""
    return Entry2 if (key >> 10) & 1 and os.environ.get("CACHED_SCHEMA") == "2" else Entry


class LoaderTold(Exception):
    """A loader that was told to fail."""


class Loading:
    """trouble: "" for none, "slow" (some loads take their time with the value in hand) or "raising"."""

    def __init__(self, counts: Counter[str]) -> None:
        self.trouble = ""
        self._counts = counts
        self._chance = random.Random(os.getpid())

    async def entry(self, source: Queries, key: int) -> Entry | Entry2 | None:
        row = await source.fetch_one(READ, bucket_of(key), key)
        await self._endure()
        return None if row is None else _made(key, row["version"], row["value"])

    async def entries(self, source: Queries, keys: Sequence[int]) -> Mapping[int, Entry | Entry2]:
        rows = await source.fetch(READ_MANY, [bucket_of(key) for key in keys], list(keys))
        await self._endure()
        return {row["id"]: _made(row["id"], row["version"], row["value"]) for row in rows}

    async def group(self, source: Queries, group: int) -> Group:
        rows = await source.fetch(READ_GROUP, bucket_of(group), members(group))
        await self._endure()
        return Group(group, tuple((row["id"], row["version"], row["value"]) for row in rows))

    async def _endure(self) -> None:
        self._counts["asked database"] += 1
        if self.trouble == "slow" and self._chance.random() < 0.3:
            self._counts["slow loads"] += 1
            await asyncio.sleep(self._chance.uniform(0.02, 1.5))
        elif self.trouble == "raising" and self._chance.random() < 0.3:
            self._counts["raised loads"] += 1
            raise LoaderTold


def _made(key: int, version: int, value: str) -> Entry | Entry2:
    kind = entry_type(key)
    return Entry2(version, value, len(value)) if kind is Entry2 else Entry(version, value)
