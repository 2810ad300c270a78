"""The tables of the users module: the only place with its SQL.

An account is in the bucket of its id, a follow in the bucket of the follower. Everything that names one
person is one statement on one shard; `people` is one statement per shard, however many ids are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType

from market.search.api import Versioned
from market.users.jobs import PersonChanged, PersonJoined, PersonPictured, PersonRenamed
from market.users.rules import fold
from springtide.db import ASC, Consistency, Database, WriteTransaction, bucket_of

__all__ = ["FOLLOWING", "PEOPLE", "AccountRow", "Follow", "Person", "UserStore"]

ACCOUNT = """
select id, username, email, password_hash, bio, image, version
from users.account
where bucket = $1 and id = $2
"""

INSERT = """
insert into users.account (bucket, id, username, email, password_hash, bio, image, created_at, updated_at)
values ($1, $2, $3, $4, $5, null, null, $6, $6)
"""

UPDATE = """
update users.account
set username = coalesce($3, username),
    email = coalesce($4, email),
    password_hash = coalesce($5, password_hash),
    bio = case when $6 then $7 else bio end,
    image = case when $8 then $9 else image end,
    version = version + 1,
    updated_at = greatest($10::timestamptz, updated_at + interval '1 millisecond')
where bucket = $1 and id = $2 and username = $11 and email = $12
returning id, username, email, password_hash, bio, image, version
"""

REHASH = """
update users.account set password_hash = $3 where bucket = $1 and id = $2 and password_hash = $4
"""

PEOPLE = """
select account.id, account.username, account.bio, account.image, account.version
from unnest($1::bigint[]) as wanted (id)
join users.account on account.bucket = (wanted.id & 1023)::smallint and account.id = wanted.id
"""

VERSIONS = """
select bucket, id, version from users.account where (bucket, id) > ($1::smallint, $2::bigint)
"""

FOLLOWED = """
select followee_id from users.follow
where bucket = $1 and follower_id = $2 and followee_id = any($3::bigint[]) and following
"""

FOLLOWING = """
select followee_id from users.follow
where bucket = $1 and follower_id = $2 and following
order by created_at desc, followee_id desc
limit $3
"""

FOLLOW = """
insert into users.follow as known (bucket, follower_id, followee_id, created_at)
values ($1, $2, $3, $4)
on conflict (bucket, follower_id, followee_id) do update
set following = true, version = known.version + 1, created_at = excluded.created_at
where not known.following
returning version
"""

UNFOLLOW = """
update users.follow set following = false, version = version + 1
where bucket = $1 and follower_id = $2 and followee_id = $3 and following
returning version
"""

FOLLOW_NOW = """
select following, version from users.follow where bucket = $1 and follower_id = $2 and followee_id = $3
"""


class AccountRow(msgspec.Struct, frozen=True):
    id: int
    username: str
    email: str
    password_hash: str
    bio: str | None
    image: str | None
    version: int


class Person(msgspec.Struct, frozen=True):
    """The public part of an account."""

    id: int
    username: str
    bio: str | None
    image: str | None
    version: int


class Follow(msgspec.Struct, frozen=True):
    """Whether somebody follows somebody, and how often that has changed."""

    following: bool
    version: int


class UserStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def find(self, kind: str, value: str, *, consistency: Consistency | None = None) -> int | None:
        """Whose `kind` (username or email) is `value`, whatever its case."""
        return await self._db.lookup(kind, fold(value), consistency=consistency)

    async def account(self, id: int, *, consistency: Consistency | None = None) -> AccountRow | None:
        row = await self._db.read(id, consistency=consistency).fetch_one(ACCOUNT, bucket_of(id), id)
        return None if row is None else AccountRow(*row)

    async def person(self, id: int) -> Person | None:
        found = await self.people([id])
        return found[0] if found else None

    async def people(self, ids: Sequence[int]) -> list[Person]:
        return [Person(*row) for row in await self._db.fetch_many(PEOPLE, list(ids))]

    async def versions(self, after: int | None, limit: int) -> list[Versioned]:
        """Everybody behind the id `after` (None: from the first), bucket by bucket."""
        behind = (-1, -1) if after is None else (bucket_of(after), after)
        rows = await self._db.scatter(VERSIONS, *behind, order=[("bucket", ASC), ("id", ASC)], limit=limit)
        return [Versioned(id=row["id"], version=row["version"]) for row in rows]

    async def insert(self, *, username: str, email: str, password_hash: str, at: datetime) -> AccountRow:
        """Raises AlreadyReserved when the username or the address is taken."""
        id = await self._db.ids.take_anywhere()
        claim = {"username": fold(username), "email": fold(email)}
        async with self._db.reserving(id, claim=claim) as tx:
            await tx.execute(INSERT, bucket_of(id), id, username, email, password_hash, at)
            await _tell(tx, id)
            await tx.enqueue(PersonJoined(id))
            self._stale_person(tx, id)
        return AccountRow(id, username, email, password_hash, None, None, version=1)

    async def update(
        self,
        known: AccountRow,
        *,
        username: str | None,
        email: str | None,
        password_hash: str | None,
        bio: str | UnsetType | None,
        image: str | UnsetType | None,
        at: datetime,
    ) -> AccountRow | None:
        """Change what is given; None when the account's names are no longer those of `known`.

        The guard keeps two updates of one account from leaving a name reserved that nobody has.
        Raises AlreadyReserved.
        """
        claim, release = renamed(known, {"username": username, "email": email})
        introduce = username not in (None, known.username) or email not in (None, known.email)
        id, pictured = known.id, image is not UNSET
        values = (
            bucket_of(id),
            id,
            username,
            email,
            password_hash,
            bio is not UNSET,
            None if bio is UNSET else bio,
            pictured,
            None if image is UNSET else image,
            at,
            known.username,
            known.email,
        )
        if not claim:
            async with self._db.write(id) as tx:
                row = await tx.fetch_one(UPDATE, *values)
                if row is not None:
                    await _tell(tx, id, renamed=introduce, pictured=pictured)
                    self._stale_person(tx, id)
            return None if row is None else AccountRow(*row)
        try:
            async with self._db.reserving(id, claim=claim, release=release) as tx:
                row = await tx.fetch_one(UPDATE, *values)
                if row is None:
                    raise _Changed
                await _tell(tx, id, renamed=introduce, pictured=pictured)
                self._stale_person(tx, id)
        except _Changed:
            return None
        return AccountRow(*row)

    async def rehash(self, known: AccountRow, password_hash: str) -> None:
        async with self._db.write(known.id) as tx:
            await tx.execute(REHASH, bucket_of(known.id), known.id, password_hash, known.password_hash)

    async def followed(self, follower: int, ids: Sequence[int]) -> set[int]:
        """Those among `ids` whom `follower` follows."""
        rows = await self._db.read(follower).fetch(FOLLOWED, bucket_of(follower), follower, list(ids))
        return {row[0] for row in rows}

    async def following(self, follower: int, limit: int) -> list[int]:
        rows = await self._db.read(follower).fetch(FOLLOWING, bucket_of(follower), follower, limit)
        return [row[0] for row in rows]

    async def follow(self, follower: int, followee: int, at: datetime, news: msgspec.Struct) -> None:
        """`news` is the job that tells others; there is none when nothing changes."""
        async with self._db.write(follower) as tx:
            if await tx.fetch_value(FOLLOW, bucket_of(follower), follower, followee, at) is not None:
                await tx.enqueue(news, unique_key=f"{follower}-{followee}")
                self._stale_following(tx, follower)

    async def unfollow(self, follower: int, followee: int, news: msgspec.Struct) -> None:
        async with self._db.write(follower) as tx:
            if await tx.fetch_value(UNFOLLOW, bucket_of(follower), follower, followee) is not None:
                await tx.enqueue(news, unique_key=f"{follower}-{followee}")
                self._stale_following(tx, follower)

    async def follow_now(self, follower: int, followee: int) -> Follow | None:
        """None when they never followed."""
        row = await self._db.read(follower).fetch_one(FOLLOW_NOW, bucket_of(follower), follower, followee)
        return None if row is None else Follow(*row)

    # What a write makes stale; here nothing is kept, so there is nothing to tell (`cached.py`).

    def _stale_person(self, tx: WriteTransaction, id: int) -> None:
        """The public part of an account."""

    def _stale_following(self, tx: WriteTransaction, follower: int) -> None:
        """Whom `follower` follows."""


async def _tell(tx: WriteTransaction, id: int, *, renamed: bool = False, pictured: bool = False) -> None:
    """One job of a kind for all changes that it has not begun to tell of."""
    await tx.enqueue(PersonChanged(id), unique_key=str(id))
    if renamed:
        await tx.enqueue(PersonRenamed(id), unique_key=str(id))
    if pictured:
        await tx.enqueue(PersonPictured(id), unique_key=str(id))


class _Changed(Exception):
    """Rolls a reserving transaction back; never leaves this module."""


def renamed(known: AccountRow, names: Mapping[str, str | None]) -> tuple[dict[str, str], dict[str, str]]:
    """The reservations to claim and to release when `names` (None: unchanged) are given to `known`."""
    claim: dict[str, str] = {}
    release: dict[str, str] = {}
    for kind, value in names.items():
        before = fold(getattr(known, kind))
        if value is not None and fold(value) != before:
            claim[kind], release[kind] = fold(value), before
    return claim, release
