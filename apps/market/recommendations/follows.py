"""The tables of who follows whom: with `store.py`, the only place with the module's SQL.

A follow is in the bucket of the follower, with a copy in the bucket of the followee, where followers are
counted. News of a pair has a version: what is older than what is known changes nothing, in both places.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from springtide.db import Bucket, Database, WriteTransaction, bucket_of
from springtide.db.scatter import ASC, DESC

__all__ = [
    "AUTHORS",
    "CHART",
    "CHART_HOME",
    "FOLLOWS",
    "MOST_FOLLOWED",
    "Follow",
    "FollowStore",
]

CHART_HOME = Bucket(0)
MOST_FOLLOWED = "most-followed"

PUT_FOLLOW = """
insert into recommendations.follow as known
    (bucket, follower_id, followee_id, following, version, changed_at)
values ($1, $2, $3, $4, $5, $6)
on conflict (bucket, follower_id, followee_id) do update
set following = excluded.following, version = excluded.version, changed_at = excluded.changed_at
where known.version < excluded.version
returning version
"""

NEWS = """
insert into recommendations.suggestion as known (bucket, person_id, changes, made_at)
values ($1, $2, 1, $3)
on conflict (bucket, person_id) do update set changes = known.changes + 1
"""

FOLLOW = """
select following, version from recommendations.follow
where bucket = $1 and follower_id = $2 and followee_id = $3
"""

LOCK_POPULARITY = """
insert into recommendations.popularity as known (bucket, person_id, followers) values ($1, $2, 0)
on conflict (bucket, person_id) do update set followers = known.followers
returning followers
"""

FAN = """
select following, version from recommendations.fan
where bucket = $1 and followee_id = $2 and follower_id = $3
"""

PUT_FAN = """
insert into recommendations.fan (bucket, followee_id, follower_id, following, version)
values ($1, $2, $3, $4, $5)
on conflict (bucket, followee_id, follower_id) do update
set following = excluded.following, version = excluded.version
"""

COUNT_FOLLOWER = """
update recommendations.popularity set followers = followers + $3 where bucket = $1 and person_id = $2
"""

CHANGES = "select changes from recommendations.suggestion where bucket = $1 and person_id = $2"

FOLLOWING = """
select wanted.id as follower_id, known.followee_id
from unnest($1::bigint[]) as wanted (id)
cross join lateral (
    select followee_id from recommendations.follow
    where bucket = (wanted.id & 1023)::smallint and follower_id = wanted.id and following
    order by changed_at desc, followee_id desc
    limit $2
) as known
"""

FOLLOWS = """
select followee_id from recommendations.follow
where bucket = $1 and follower_id = $2 and following
order by changed_at desc, followee_id desc
limit $3
"""

FOLLOWED = """
select followee_id from recommendations.follow
where bucket = $1 and follower_id = $2 and following and followee_id = any($3::bigint[])
"""

PUT_AUTHORS = """
update recommendations.suggestion set authors = $3, version = $4, made_at = $5
where bucket = $1 and person_id = $2 and version <= $4
"""

AUTHORS = "select authors from recommendations.suggestion where bucket = $1 and person_id = $2"

OLD_AUTHORS = "select person_id, made_at from recommendations.suggestion where made_at < $1"

POPULAR = "select person_id, followers from recommendations.popularity where followers > 0"

PUT_CHART = """
insert into recommendations.chart as known (bucket, name, people, made_at) values ($1, $2, $3, $4)
on conflict (bucket, name) do update set people = excluded.people, made_at = excluded.made_at
where known.made_at <= excluded.made_at
"""

CHART = "select people from recommendations.chart where bucket = $1 and name = $2"


class Follow(NamedTuple):
    following: bool
    version: int


class FollowStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def put(
        self, tx: WriteTransaction, follower: int, followee: int, follow: Follow, at: datetime
    ) -> bool:
        """False when as much or more is known. What follows from it for the follower is to be made anew."""
        bucket = bucket_of(follower)
        if await tx.fetch_value(PUT_FOLLOW, bucket, follower, followee, *follow, at) is None:
            return False
        await tx.execute(NEWS, bucket, follower, at)
        self._stale_follows(tx, follower)
        return True

    async def follow(self, follower: int, followee: int) -> Follow | None:
        row = await self._db.read(follower).fetch_one(FOLLOW, bucket_of(follower), follower, followee)
        return None if row is None else Follow(*row)

    async def copy(self, follower: int, followee: int, follow: Follow) -> None:
        """Keep it with the followee too, and count followers. Older news than what is known is dropped."""
        bucket = bucket_of(followee)
        async with self._db.write(followee) as tx:
            await tx.fetch_value(LOCK_POPULARITY, bucket, followee)
            row = await tx.fetch_one(FAN, bucket, followee, follower)
            known = Follow(False, 0) if row is None else Follow(*row)
            if follow.version <= known.version:
                return
            await tx.execute(PUT_FAN, bucket, followee, follower, *follow)
            if follow.following != known.following:
                await tx.execute(COUNT_FOLLOWER, bucket, followee, 1 if follow.following else -1)

    async def changes(self, person: int) -> int:
        """How much news there was; 0 for who never followed anybody."""
        return await self._db.read(person).fetch_value(CHANGES, bucket_of(person), person) or 0

    async def following(self, people: Sequence[int], limit: int) -> dict[int, list[int]]:
        """Whom each of them follows, the `limit` newest; one statement per shard."""
        found: dict[int, list[int]] = {}
        for follower, followee in await self._db.fetch_many(FOLLOWING, people, limit):
            found.setdefault(follower, []).append(followee)
        return found

    async def followed(self, person: int, among: Sequence[int]) -> set[int]:
        """Those of `among` whom `person` follows."""
        rows = await self._db.read(person).fetch(FOLLOWED, bucket_of(person), person, list(among))
        return {row[0] for row in rows}

    async def put_authors(self, person: int, authors: list[int], version: int, at: datetime) -> None:
        """Changes nothing when there is a list that was made from more news."""
        async with self._db.write(person) as tx:
            await tx.execute(PUT_AUTHORS, bucket_of(person), person, authors, version, at)
            self._stale_authors(tx, person)

    async def authors(self, person: int) -> list[int]:
        found = await self._db.read(person).fetch_value(AUTHORS, bucket_of(person), person)
        return list(found or [])

    async def old_authors(self, before: datetime, limit: int) -> list[int]:
        rows = await self._db.scatter(OLD_AUTHORS, before, order=[("made_at", ASC)], limit=limit)
        return [row["person_id"] for row in rows]

    async def popular(self, limit: int) -> list[int]:
        """The most followed of all, counted now."""
        order = [("followers", DESC), ("person_id", DESC)]
        return [row["person_id"] for row in await self._db.scatter(POPULAR, order=order, limit=limit)]

    async def put_chart(self, people: list[int], at: datetime) -> None:
        async with self._db.write(CHART_HOME) as tx:
            await tx.execute(PUT_CHART, CHART_HOME.number, MOST_FOLLOWED, people, at)
            self._stale_chart(tx)

    async def chart(self) -> list[int]:
        """The most followed as of the last look."""
        found = await self._db.read(CHART_HOME).fetch_value(CHART, CHART_HOME.number, MOST_FOLLOWED)
        return list(found or [])

    # What a write makes stale; here nothing is kept, so there is nothing to tell (`cached.py`).

    def _stale_follows(self, tx: WriteTransaction, person: int) -> None:
        """Whom the person follows."""

    def _stale_authors(self, tx: WriteTransaction, person: int) -> None:
        """Whom the person may want to follow."""

    def _stale_chart(self, tx: WriteTransaction) -> None:
        """The most followed of all."""
