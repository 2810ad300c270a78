"""Keep what people upload, show what we made of it, forget what nothing refers to.

A blob is written before the row that names it, and deleted by a job after the row is gone; so a row never
names a blob that is not there, and what a crash leaves behind is a blob without a row, which the sweep
removes. Serving asks no database: an address says all that is needed.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import msgspec

from market.faults import Conflict, NotFound
from market.media import rules
from market.media.api import (
    DOCUMENT_DAYS,
    PART_BYTES,
    UNATTACHED_HOURS,
    Medium,
    Part,
    Purpose,
    Variant,
)
from market.media.blobs import Blobs, NoBlob, disposition
from market.media.formats import Format
from market.media.jobs import Erase, Render
from market.media.lifecycle import Sweeper
from market.media.settings import MediaSettings
from market.media.store import Blob, MediaStore, Row
from market.media.workshop import Workshop
from market.moments import moment
from springtide.clock import Clock
from springtide.db import BUCKETS, WriteTransaction
from springtide.db.idempotency import Answer, Idempotency, Once
from springtide.services import ModuleContext

__all__ = ["URL_SECONDS", "MediaService", "build"]

URL_SECONDS = 900.0
"""How long a signed address is good."""

_Finish = Callable[[WriteTransaction, Medium], Awaitable[None]]
"""Writes what shall commit with the row."""

UNATTACHED = timedelta(hours=UNATTACHED_HOURS)
DOCUMENT = timedelta(days=DOCUMENT_DAYS)


def build(context: ModuleContext) -> MediaService:
    settings = context.settings or MediaSettings()
    return MediaService(
        _rows(context),
        Blobs(settings, home=context.home, clock=context.clock),
        keys=Idempotency(context.db, sink=context.sink),
        settings=settings,
        clock=context.clock,
    )


def _rows(context: ModuleContext) -> MediaStore:
    if not context.cached:
        return MediaStore(context.db)
    from market.media.cached import CachedMedia

    return CachedMedia(context.db, context.cache)


class MediaService:
    """Implements `market.media.api.Media`; a lifecycle service because of its blobs.

    What the workers do with `rows` and `blobs` is in `jobs.py` and `lifecycle.py`.
    """

    name = "media"

    def __init__(
        self, rows: MediaStore, blobs: Blobs, *, keys: Idempotency, settings: MediaSettings, clock: Clock
    ) -> None:
        self.rows = rows
        self.blobs = blobs
        self.settings = settings
        self.workshop = Workshop()
        self._sweeper = Sweeper(secrets.randbelow(BUCKETS))
        self._keys = keys
        self._clock = clock

    async def start(self) -> None:
        await self.blobs.start()

    async def stop(self) -> None:
        return None

    async def sweep(self) -> None:
        """For the workers, periodically: see `lifecycle.py`."""
        await self._sweeper.sweep(self)

    async def has_video_tools(self) -> bool:
        return await asyncio.to_thread(shutil.which, self.settings.ffmpeg) is not None

    def now(self) -> datetime:
        return moment(self._clock)

    async def store(
        self, owner: int, name: str, content: bytes, purpose: Purpose = "public", once: Once | None = None
    ) -> Medium:
        rules.check_name(name)
        if once is None:
            return await self._store(owner, name, content, purpose)
        async with self._keys.claim(once, home=owner) as claim:
            if claim.answer is not None:
                return msgspec.json.decode(claim.answer.body, type=Medium)

            async def finish(tx: WriteTransaction, medium: Medium) -> None:
                await claim.finish(tx, Answer(201, body=msgspec.json.encode(medium)))

            return await self._store(owner, name, content, purpose, finish)

    async def _store(
        self, owner: int, name: str, content: bytes, purpose: Purpose, finish: _Finish | None = None
    ) -> Medium:
        found = await asyncio.to_thread(rules.check_upload, content)
        id, at = await self.rows.new_id(owner), self.now()
        original = Blob(
            "original", rules.original_path(id, found.content_type), found.content_type, len(content)
        )
        await self.blobs.put(original.path, content, found.content_type)
        row = _row(id, owner, name, purpose, found, original, at)
        async with self.rows.write(owner) as tx:
            await self.rows.insert(tx, row)
            await tx.enqueue(Render(id))
            if finish is not None:
                await finish(tx, row.shown())
        return row.shown()

    async def keep_document(
        self, owner: int, name: str, content: bytes, content_type: str, key: str
    ) -> Medium:
        rules.check_document(name, content, content_type, key)
        known = await self.rows.document(owner, key)
        if known is not None:
            return known.shown()
        id, at = await self.rows.new_id(owner), self.now()
        path = rules.variant_path(id, "private", "document", content_type)
        await self.blobs.put(path, content, content_type, name=name)
        row = Row(
            id=id, owner_id=owner, kind="document", purpose="private", name=name, content_type=content_type,
            size=len(content), width=None, height=None, state="ready", note=None,
            blobs=(Blob("document", path, content_type, len(content)),), expires_at=at + DOCUMENT,
            created_at=at, updated_at=at,
        )  # fmt: skip
        async with self.rows.write(owner) as tx:
            first = await self.rows.insert(tx, row, key)
        if first:
            return row.shown()
        await self.blobs.delete(path)
        known = await self.rows.document(owner, key)
        if known is None:  # it was the last moment of its 30 days
            raise Conflict("document", "has just expired; ask again")
        return known.shown()

    async def media(self, ids: list[int]) -> list[Medium]:
        wanted = rules.check_ids(ids)
        rows = await self.rows.shown(wanted)
        return [rows[id].shown() for id in wanted if id in rows]

    async def medium(self, id: int, owner: int) -> Medium:
        return (await self._own(id, owner)).shown()

    async def url(self, id: int, variant: Variant, viewer: int | None = None) -> str:
        row = await self._shown(id)
        blob = None if row is None else row.blob(variant)
        if row is None or blob is None or (row.purpose == "private" and row.owner_id != viewer):
            raise NotFound("medium")
        return await self._address(row, blob)

    async def urls(self, ids: list[int], variant: Variant) -> dict[int, str]:
        rows = await self.rows.shown(rules.check_ids(ids))
        found = ((row, row.blob(variant)) for row in rows.values() if row.purpose == "public")
        return {row.id: await self._address(row, blob) for row, blob in found if blob is not None}

    async def attach(self, owner: int, thing: str, ids: list[int], version: int) -> list[int]:
        ids = rules.check_attachment(thing, ids, version)
        return await self.rows.attach(owner, thing, ids, version, self.now() + UNATTACHED)

    async def release(self, owner: int, thing: str) -> None:
        rules.check_attachment(thing, [], 0)
        await self.rows.attach(owner, thing, [], None, self.now() + UNATTACHED)

    async def delete(self, id: int, owner: int, once: Once | None = None) -> None:
        if not rules.is_id(id):
            raise NotFound("medium")

        async def effect(tx: WriteTransaction) -> Answer:
            row = await self.rows.lock(tx, id)
            if row is None or row.owner_id != owner:
                raise NotFound("medium")
            if row.expires_at is None:
                raise Conflict("medium", "is attached to something: take it away there first")
            await self.forget(tx, row)
            return Answer(204)

        if once is None:
            async with self.rows.write(id) as tx:
                await effect(tx)
        else:
            await self._keys.run(once, effect, home=owner)

    async def part(self, address: str, query: str, first: int = 0, length: int = PART_BYTES) -> Part:
        place, name = rules.place_of(address), None
        if place is None:
            raise NotFound("file")
        if not place.public:
            genuine, name = self.blobs.opened(address, query)
            if not genuine:
                raise NotFound("file")
        try:
            content, size = await self.blobs.part(address, max(first, 0), min(max(length, 1), PART_BYTES))
        except NoBlob:
            raise NotFound("file") from None
        return Part(
            content=content, size=size, content_type=place.content_type, etag=place.etag,
            public=place.public, disposition=disposition(name),
        )  # fmt: skip

    async def forget(self, tx: WriteTransaction, row: Row) -> None:
        """In a transaction that has locked the row: it goes now, its blobs afterwards."""
        await self.rows.delete(tx, row.id)
        await tx.enqueue(Erase([blob.path for blob in row.blobs]))

    async def _own(self, id: int, owner: int) -> Row:
        row = await self._shown(id)
        if row is None or row.owner_id != owner:
            raise NotFound("medium")
        return row

    async def _shown(self, id: int) -> Row | None:
        return (await self.rows.shown([id])).get(id) if rules.is_id(id) else None

    async def _address(self, row: Row, blob: Blob) -> str:
        name = row.name if row.kind == "document" else None
        return await self.blobs.address(blob.path, URL_SECONDS, public=row.purpose == "public", name=name)


def _row(
    id: int, owner: int, name: str, purpose: Purpose, found: Format, original: Blob, at: datetime
) -> Row:
    return Row(
        id=id, owner_id=owner, kind=found.kind, purpose=purpose, name=name, content_type=found.content_type,
        size=original.size, width=found.width, height=found.height, state="processing", note=None,
        blobs=(original,), expires_at=at + UNATTACHED, created_at=at, updated_at=at,
    )  # fmt: skip
