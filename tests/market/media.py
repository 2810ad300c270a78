"""Media without the rim: files to upload, a folder and a bucket to keep them in, a clock to move."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image
from tests.market.harness import settled, topology

from market.media import jobs, lifecycle
from market.media.api import Medium
from market.media.blobs import Blobs
from market.media.jobs import Erase, Render
from market.media.service import MediaService
from market.media.settings import MediaSettings
from market.media.store import MediaStore
from market.platform import modules
from springtide.db import Bucket, Database
from springtide.db.idempotency import Idempotency
from springtide.jobs import Run
from springtide.platform import Platform
from springtide.testing import ManualClock

ANNA, BERT = (7 << 10) | 5, (7 << 10) | 1000
"""Two owners in the first and the last buckets: on two shards where there are two."""

GPS = 34853

HANDLERS: dict[str, Any] = {"media.render": (Render, jobs.render), "media.erase": (Erase, jobs.erase)}
JOBS = "select bucket, id, kind, payload from media._job where state = 'ready'"
NAMED = "select jsonb_array_elements(blobs) ->> 'path' as path from media.medium"
DONE = "delete from media._job where bucket = $1 and id = $2"


def picture(format: str = "PNG", size: tuple[int, int] = (640, 480), **options: Any) -> bytes:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, (200, 20, 20))
    image.paste((20, 20, 200), (size[0] // 2, 0, *size))
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def photo() -> bytes:
    """As a phone takes it: lying on its side, with the place where it was taken."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    exif[0x010E] = "a secret description"
    exif[GPS] = {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)}
    return picture("JPEG", (640, 480), exif=exif, comment=b"a secret comment")


def animation(frames: int = 5) -> bytes:
    pictures = [Image.new("RGB", (600, 400), (20 * n, 255 - 20 * n, 90)) for n in range(frames)]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=80, loop=0)
    return file.getvalue()


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few bytes that says it has billions of pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def opened_picture(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


async def done(platform: Platform) -> int:
    """Do all media jobs that there are, as a worker would, and let them arrive everywhere; how many."""
    found = await _work(platform.database("media"), platform._registry.implementation("media"))
    await settled(platform)  # what jobs have written is no client's own
    return found


async def _work(db: Database, service: MediaService) -> int:
    found = await db.scatter(JOBS)
    for row in found:
        shape, handler = HANDLERS[row["kind"]]
        run = Run(id=row["id"], key="k", attempt=1, max_attempts=8, enqueued_at=datetime.now(UTC))
        await handler(service, msgspec.json.decode(row["payload"], type=shape), run)
        async with db.write(Bucket(row["bucket"])) as tx:
            await tx.execute(DONE, row["bucket"], row["id"])
    return len(found)


class Studio:
    """A media service whose jobs run when they are told to."""

    def __init__(self, platform: Platform, settings: MediaSettings, home: Path) -> None:
        self.platform = platform
        self.db = db = platform.database("media")
        self.clock = ManualClock(now=time.time())  # blobs have the time of their disk
        self.blobs = Blobs(settings, home=home, clock=self.clock)
        self.service = MediaService(
            MediaStore(db), self.blobs, keys=Idempotency(db), settings=settings, clock=self.clock
        )

    async def work(self) -> int:
        """Do all jobs that there are; how many."""
        return await _work(self.db, self.service)

    async def stored(self, content: bytes, owner: int = ANNA, **options: Any) -> Medium:
        return await self.service.store(owner, "a file", content, **options)

    async def ready(self, content: bytes, owner: int = ANNA, **options: Any) -> Medium:
        medium = await self.stored(content, owner, **options)
        await self.work()
        (found,) = await self.service.media([medium.id])
        return found

    async def names(self) -> set[str]:
        """Every blob there is."""
        return {found.path async for found in self.blobs.under("")}

    async def named(self) -> set[str]:
        """Every blob that a row names."""
        rows = await self.db.scatter(NAMED)
        return {row["path"] for row in rows}

    async def shown(self, medium: Medium, variant: Any) -> bytes:
        """What the variant's blob holds."""
        row = await self.service.rows.medium(medium.id)
        assert row is not None
        blob = row.blob(variant)
        assert blob is not None
        return await self.blobs.read(blob.path)

    async def sweep(self) -> int:
        """Anna's bucket; how many blobs went."""
        return await lifecycle.Sweeper(ANNA & 1023).sweep(self.service, 1)


@asynccontextmanager
async def studio(urls: Sequence[str], home: Path, settings: MediaSettings) -> AsyncIterator[Studio]:
    platform = Platform(topology(urls), modules=modules(), home=home)
    async with platform:
        made = Studio(platform, settings, home)
        await made.service.start()
        yield made
