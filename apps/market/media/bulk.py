"""Pictures for seeded listings: a few motifs, drawn once, kept as if somebody had uploaded them.

Their blobs are written before the load commits its rows, as everywhere; a load that is interrupted leaves
blobs that the sweep removes.
"""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from market.media import rules
from market.media.api import Variant
from market.media.blobs import Blobs
from market.media.jobs import SIDES
from market.media.settings import MediaSettings
from market.media.store import Blob
from springtide.db import Database, bucket_of
from springtide.ops.load.seeding import BulkLoad

if TYPE_CHECKING:
    from springtide.platform import Platform

__all__ = ["MOTIFS", "BulkPicture", "Motif", "blobs_of", "copy_pictures", "draw"]

MOTIFS = 12
AT_ONCE = 16

COLUMNS = (
    "bucket", "id", "owner_id", "kind", "purpose", "name", "content_type", "size", "width", "height", "state",
    "blobs", "created_at", "updated_at",
)  # fmt: skip


class Motif(NamedTuple):
    """One picture, drawn: variant -> WebP, width and height."""

    name: str
    variants: dict[Variant, tuple[bytes, int, int]]


class BulkPicture(NamedTuple):
    """`id` is of the owner's bucket; `thing` such as `listing:7`, at its first version."""

    id: int
    owner: int
    thing: str
    motif: Motif
    at: datetime


async def blobs_of(platform: Platform) -> Blobs:
    """Where the media module of `platform` keeps its blobs."""
    settings = next((module.settings for module in platform.modules if module.name == "media"), None)
    blobs = Blobs(settings or MediaSettings(), home=platform.home, clock=platform.clock)
    await blobs.start()
    return blobs


async def draw(seed: int) -> list[Motif]:
    """The motifs; the same for the same seed."""
    return await asyncio.to_thread(lambda: [_motif(seed, number) for number in range(MOTIFS)])


async def copy_pictures(load: BulkLoad, db: Database, blobs: Blobs, pictures: Sequence[BulkPicture]) -> None:
    """`pictures`, attached. All are in memory: a seed has pictures for some listings, not for millions."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(picture: BulkPicture) -> list[Blob]:
        written: list[Blob] = []
        for variant, (content, width, height) in picture.motif.variants.items():
            path = rules.variant_path(picture.id, "public", variant, "image/webp")
            async with slots:
                await blobs.put(path, content, "image/webp", public=True)
            written.append(Blob(variant, path, "image/webp", len(content), width, height))
        return written

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(picture)) for picture in pictures]

    def rows() -> Iterator[Sequence[Any]]:
        for picture, task in zip(pictures, tasks, strict=True):
            large = picture.motif.variants["large"]
            yield (
                bucket_of(picture.id), picture.id, picture.owner, "image", "public", picture.motif.name,
                "image/webp", len(large[0]), large[1], large[2], "ready", msgspec.to_builtins(task.result()),
                picture.at, picture.at,
            )  # fmt: skip

    await load.copy(db, "medium", list(COLUMNS), rows())
    things = {(bucket_of(one.id), one.owner, one.thing, 1) for one in pictures}
    await load.copy(db, "thing", ["bucket", "owner_id", "thing", "version"], sorted(things))
    attached = ((bucket_of(one.id), one.owner, one.thing, one.id) for one in pictures)
    await load.copy(db, "attachment", ["bucket", "owner_id", "thing", "medium_id"], attached)


def _motif(seed: int, number: int) -> Motif:
    """A few soft shapes on a plain ground, square."""
    from PIL import Image, ImageDraw, ImageFilter  # only a seed draws

    rng = random.Random(f"{seed}:picture:{number}")  # noqa: S311 - invents pictures, hides nothing
    side = SIDES["large"] // 2
    image = Image.new("RGB", (side, side), _colour(rng, 200, 245))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randrange(3, 7)):
        x, y, size = rng.randrange(side), rng.randrange(side), rng.randrange(side // 6, side // 2)
        shape = rng.choice((pen.ellipse, pen.rectangle))
        shape((x - size, y - size, x + size, y + size), fill=_colour(rng, 60, 220))
    image = image.filter(ImageFilter.GaussianBlur(2))
    variants: dict[Variant, tuple[bytes, int, int]] = {}
    for name, most in SIDES.items():
        file, small = io.BytesIO(), image.copy()
        small.thumbnail((most, most))
        small.save(file, "WEBP", quality=75)
        variants[name] = (file.getvalue(), *small.size)
    return Motif(f"picture {number + 1}", variants)


def _colour(rng: random.Random, low: int, high: int) -> tuple[int, int, int]:
    return rng.randrange(low, high), rng.randrange(low, high), rng.randrange(low, high)
