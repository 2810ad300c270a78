"""The users module's reads over the cache.

    username:{name}    whose it is: a hint, judged by the person that it leads to
    person:{id}        the public part of an account
    following:{id}     whom somebody follows, the newest first

A hint needs no invalidation: a person's row says what the name is now, and that value is stale with the
commit that changes it. Accounts, with what only their owner may see, are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from market.users.rules import fold
from market.users.store import FOLLOWING, PEOPLE, Person, UserStore
from springtide.cache import Cache
from springtide.db import Consistency, Database, Queries, WriteTransaction, bucket_of

__all__ = ["CachedUsers"]

MAX_KEPT = 5_000
"""Followed people that are kept of somebody; more are looked for in the database."""


class CachedUsers(UserStore):
    """`UserStore` with a cache before its reads; writes say what they make stale."""

    def __init__(self, db: Database, cache: Cache) -> None:
        super().__init__(db)
        self._hints = cache.define("username:{name:str}", int, load=self._whose, negative=None)
        self._people = cache.define("person:{id:int}", Person, database=db, load_many=_load_people)
        self._followees = cache.define(
            "following:{id:int}", tuple[int, ...], database=db, load=_load_following
        )

    async def find(self, kind: str, value: str, *, consistency: Consistency | None = None) -> int | None:
        if kind == "username" and consistency is None:
            name = fold(value)
            id = await self._hints.get(name)
            person = None if id is None else await self._people.get(id)
            if person is not None and fold(person.username) == name:
                return id
        return await super().find(kind, value, consistency=consistency)

    async def people(self, ids: Sequence[int]) -> list[Person]:
        return list((await self._people.get_many(ids)).values())

    async def followed(self, follower: int, ids: Sequence[int]) -> set[int]:
        known = await self._followees.get(follower) or ()
        if len(known) == MAX_KEPT:
            return await super().followed(follower, ids)
        return set(known).intersection(ids)

    async def following(self, follower: int, limit: int) -> list[int]:
        if limit > MAX_KEPT:
            return await super().following(follower, limit)
        return list((await self._followees.get(follower) or ())[:limit])

    def _stale_person(self, tx: WriteTransaction, id: int) -> None:
        tx.invalidate(self._people, id)

    def _stale_following(self, tx: WriteTransaction, follower: int) -> None:
        tx.invalidate(self._followees, follower)

    async def _whose(self, name: str) -> int | None:
        return await super().find("username", name)


async def _load_people(source: Queries, ids: Sequence[int]) -> dict[int, Person]:
    return {row["id"]: Person(*row) for row in await source.fetch(PEOPLE, list(ids))}


async def _load_following(source: Queries, follower: int) -> tuple[int, ...]:
    rows = await source.fetch(FOLLOWING, bucket_of(follower), follower, MAX_KEPT)
    return tuple(row[0] for row in rows)
