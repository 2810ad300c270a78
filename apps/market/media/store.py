"""The tables of media: the only place with their SQL. Everything of one owner is in the owner's bucket.

Whoever changes several media locks their rows in the order of their ids; a thing's row is locked before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any

import msgspec

from market.media.api import Kind, Medium, Purpose, State, Variant
from springtide.db import ASC, Consistency, Database, WriteTransaction, bucket_of

__all__ = ["MEDIA", "Blob", "MediaStore", "Row", "row_of"]

COLUMNS = """
    id, owner_id, kind, purpose, name, content_type, size, width, height, state, note, blobs, expires_at,
    created_at, updated_at
"""

INSERT = """
insert into media.medium
    (bucket, id, owner_id, kind, purpose, name, key, content_type, size, width, height, state, blobs,
     expires_at, created_at, updated_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $15)
on conflict (bucket, owner_id, key) where key is not null do nothing
returning id
"""

MEDIUM = f"select {COLUMNS} from media.medium where bucket = $1 and id = $2"  # noqa: S608

LOCK = f"{MEDIUM} for update"

DOCUMENT = f"""
select {COLUMNS} from media.medium where bucket = $1 and owner_id = $2 and key = $3
"""  # noqa: S608 - constants only

MEDIA = f"""
select {COLUMNS}
from unnest($1::bigint[]) as wanted (wanted_id)
cross join lateral (
    select * from media.medium where bucket = (wanted_id & 1023)::smallint and id = wanted_id limit 1
) as found
"""  # noqa: S608 - constants only

SETTLE = """
update media.medium
set state = $3, note = $4, blobs = coalesce($5::jsonb, blobs),
    updated_at = greatest($6::timestamptz, updated_at + interval '1 millisecond')
where bucket = $1 and id = $2 and state in ('processing', 'waiting')
"""

RESUME = """
update media.medium
set state = 'processing', note = null, updated_at = $3
where bucket = $1 and id = $2 and state = 'waiting'
returning id
"""

DELETE = "delete from media.medium where bucket = $1 and id = $2"

EXPIRED = "select id, expires_at from media.medium where expires_at <= $1"
WAITING = "select id, updated_at from media.medium where state = 'waiting'"

TELL = """
insert into media.thing as known (bucket, owner_id, thing, version)
values ($1, $2, $3, $4)
on conflict (bucket, owner_id, thing) do update set version = excluded.version
where known.version < excluded.version or (known.version is not null and excluded.version is null)
returning thing
"""

ATTACHED = """
select medium_id from media.attachment where bucket = $1 and owner_id = $2 and thing = $3 order by medium_id
"""

LOCK_OWN = """
select id from media.medium
where bucket = $1 and owner_id = $2 and id = any($3::bigint[]) and kind <> 'document'
order by id
for update
"""

DETACH = """
delete from media.attachment
where bucket = $1 and owner_id = $2 and thing = $3 and medium_id <> all($4::bigint[])
"""

ATTACH = """
insert into media.attachment (bucket, owner_id, thing, medium_id)
select $1, $2, $3, unnest($4::bigint[])
on conflict do nothing
"""

KEEP = """
update media.medium
set expires_at = case
    when exists (
        select 1 from media.attachment where bucket = medium.bucket and medium_id = medium.id
    ) then null
    else coalesce(expires_at, $3) end
where bucket = $1 and id = any($2::bigint[])
"""


class Blob(msgspec.Struct, frozen=True):
    """`variant` is `original` for what was uploaded."""

    variant: str
    path: str
    content_type: str
    size: int
    width: int | None = None
    height: int | None = None


class Row(msgspec.Struct, frozen=True):
    id: int
    owner_id: int
    kind: Kind
    purpose: Purpose
    name: str
    content_type: str
    size: int
    width: int | None
    height: int | None
    state: State
    note: str | None
    blobs: tuple[Blob, ...]
    expires_at: datetime | None
    created_at: datetime
    updated_at: datetime

    def blob(self, variant: str) -> Blob | None:
        return next((blob for blob in self.blobs if blob.variant == variant), None)

    def shown(self) -> Medium:
        variants: list[Variant] = [
            msgspec.convert(blob.variant, Variant) for blob in self.blobs if blob.variant != "original"
        ]
        return Medium(
            id=self.id,
            owner_id=self.owner_id,
            kind=self.kind,
            purpose=self.purpose,
            name=self.name,
            content_type=self.content_type,
            size=self.size,
            width=self.width,
            height=self.height,
            state=self.state,
            variants=variants,
            note=self.note,
            attached=self.expires_at is None,
            created_at=self.created_at,
            updated_at=self.updated_at,
        )


class MediaStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def new_id(self, owner: int) -> int:
        """An id in the owner's bucket."""
        return await self._db.ids.take(owner)

    def write(self, key: int) -> AbstractAsyncContextManager[Any]:
        """Everything in the block is one transaction: this class's methods join it."""
        return self._db.write(key)

    async def insert(self, tx: Any, row: Row, key: str | None = None) -> bool:
        """False when the owner has a document of this key already."""
        id: int | None = await tx.fetch_value(
            INSERT, bucket_of(row.id), row.id, row.owner_id, row.kind, row.purpose, row.name, key,
            row.content_type, row.size, row.width, row.height, row.state, row.blobs, row.expires_at,
            row.created_at,
        )  # fmt: skip
        self._stale_medium(tx, row.id)
        return id is not None

    async def medium(self, id: int) -> Row | None:
        return row_of(await self._db.read(id).fetch_one(MEDIUM, bucket_of(id), id))

    async def lock(self, tx: Any, id: int) -> Row | None:
        return row_of(await tx.fetch_one(LOCK, bucket_of(id), id))

    async def document(self, owner: int, key: str) -> Row | None:
        """As it is now: who was not the first to make it must find it."""
        reader = self._db.read(owner, consistency=Consistency.STRONG)
        return row_of(await reader.fetch_one(DOCUMENT, bucket_of(owner), owner, key))

    async def media(self, ids: Sequence[int]) -> dict[int, Row]:
        if not ids:
            return {}
        rows = [row_of(row) for row in await self._db.fetch_many(MEDIA, ids)]
        return {row.id: row for row in rows if row is not None}

    async def shown(self, ids: Sequence[int]) -> dict[int, Row]:
        """As pages show them; nothing may be decided by it."""
        return await self.media(ids)

    async def settle(
        self, id: int, state: State, note: str | None, blobs: list[Blob] | None, at: datetime
    ) -> bool:
        """What became of it; False when that was known already, or it is gone."""
        async with self._db.write(id) as tx:
            changed: str = await tx.execute(SETTLE, bucket_of(id), id, state, note, blobs, at)
            self._stale_medium(tx, id)
        return changed == "UPDATE 1"

    async def resume(self, tx: Any, id: int, at: datetime) -> bool:
        self._stale_medium(tx, id)
        return await tx.fetch_value(RESUME, bucket_of(id), id, at) is not None

    async def delete(self, tx: Any, id: int) -> None:
        await tx.execute(DELETE, bucket_of(id), id)
        self._stale_medium(tx, id)

    async def expired(self, now: datetime, limit: int) -> list[int]:
        """The longest expired."""
        order = [("expires_at", ASC), ("id", ASC)]
        return [row["id"] for row in await self._db.scatter(EXPIRED, now, order=order, limit=limit)]

    async def waiting(self, limit: int) -> list[int]:
        order = [("updated_at", ASC), ("id", ASC)]
        return [row["id"] for row in await self._db.scatter(WAITING, order=order, limit=limit)]

    async def attach(
        self, owner: int, thing: str, ids: Sequence[int], version: int | None, expires_at: datetime
    ) -> list[int]:
        """What is attached to `thing` now; an older version than the known one changes nothing."""
        bucket = bucket_of(owner)
        async with self._db.write(owner) as tx:
            told = await tx.fetch_value(TELL, bucket, owner, thing, version)
            before = [row["medium_id"] for row in await tx.fetch(ATTACHED, bucket, owner, thing)]
            if told is None:
                return before
            touched = sorted({*before, *ids})
            own = {row["id"] for row in await tx.fetch(LOCK_OWN, bucket, owner, touched)}
            wanted = [id for id in ids if id in own]
            await tx.execute(DETACH, bucket, owner, thing, wanted)
            await tx.execute(ATTACH, bucket, owner, thing, wanted)
            await tx.execute(KEEP, bucket, sorted(own), expires_at)
            for id in own:
                self._stale_medium(tx, id)
        return sorted(wanted)

    # What a write makes stale; here nothing is kept, so there is nothing to tell (`cached.py`).

    def _stale_medium(self, tx: WriteTransaction, id: int) -> None:
        """What is shown of a medium."""


def row_of(row: Any) -> Row | None:
    if row is None:
        return None
    values = dict(row)
    values["blobs"] = msgspec.convert(values["blobs"], tuple[Blob, ...])
    return Row(**values)
