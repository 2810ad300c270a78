"""What the workers do for media: make variants, and delete the blobs of media that are gone.

Render:  read the original, make its variants by programs with limits, write them, then say in the row that
         they are there. Done twice it writes other blobs, of which the row names one set; the sweep removes
         the other. What cannot be read, or needs more than it may, has failed for good: another try would not
         help.
Erase:   idempotent; what is not there is gone already.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from market.media import rules
from market.media.api import MAX_PIXELS, Variant
from market.media.blobs import NoBlob
from market.media.store import Blob, Row
from market.media.video import preview_command, still_command
from market.media.workshop import Ended, Workshop
from springtide.context import Priority
from springtide.jobs import Run, job

if TYPE_CHECKING:
    from market.media.service import MediaService

__all__ = ["NO_VIDEO_TOOLS", "SIDES", "Erase", "Render", "erase", "render"]

_log = logging.getLogger(__name__)

IMAGES = Path(__file__).with_name("images.py")

SIDES: dict[Variant, int] = {"thumb": 320, "large": 1280}

NO_VIDEO_TOOLS = "waits: no preview can be made here before ffmpeg is installed"
UNREADABLE = "cannot be read"
TOO_MUCH = "takes more time or memory than it may"
"""What a medium's `note` says."""


@job(kind="media.render", max_run=300.0)
class Render(msgspec.Struct, frozen=True):
    medium_id: int


@job(kind="media.erase", priority=Priority.BULK)
class Erase(msgspec.Struct, frozen=True):
    paths: list[str]


class Unreadable(Exception):
    """The medium has failed; the message is its note."""


async def render(media: MediaService, job: Render, run: Run) -> None:
    row = await media.rows.medium(job.medium_id)
    original = None if row is None else row.blob("original")
    if row is None or original is None or row.state not in ("processing", "waiting"):
        return  # gone, or done by an earlier run
    if row.kind == "video" and not await media.has_video_tools():
        await media.rows.settle(row.id, "waiting", NO_VIDEO_TOOLS, None, media.now())
        return
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=media.blobs.scratch))
    try:
        source = folder / "source"
        content = await media.blobs.read(original.path)
        await asyncio.to_thread(source.write_bytes, content)
        del content
        if row.kind == "video":
            made = await _video(media.workshop, media.settings.ffmpeg, source, row.content_type, folder)
        else:
            made = await _pictures(media.workshop, source, row.content_type, folder)
        blobs = [original, *[await _keep(media, row, *one) for one in made]]
    except NoBlob:
        if await media.rows.medium(row.id) is None:
            return  # deleted while we worked
        raise  # another machine's folder, or a lost disk: somebody may bring it back
    except Unreadable as fault:
        await media.rows.settle(row.id, "failed", str(fault), None, media.now())
        return
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    if not await media.rows.settle(row.id, "ready", None, blobs, media.now()):
        for blob in blobs[1:]:
            await media.blobs.delete(blob.path)


async def erase(media: MediaService, job: Erase, run: Run) -> None:
    for path in job.paths:
        await media.blobs.delete(path)


Made = tuple[Variant, Path, str, int | None, int | None]


async def _pictures(workshop: Workshop, source: Path, content_type: str, folder: Path) -> list[Made]:
    sides = [f"{name}={side}" for name, side in SIDES.items()]
    given = (str(source), content_type, str(folder), str(MAX_PIXELS))
    ended = await workshop.run([sys.executable, "-I", str(IMAGES), *given, *sides])
    _check(ended)
    made = msgspec.json.decode(ended.output, type=list[tuple[Variant, int, int]])
    return [(name, folder / f"{name}.webp", "image/webp", width, height) for name, width, height in made]


async def _video(
    workshop: Workshop, ffmpeg: str, source: Path, content_type: str, folder: Path
) -> list[Made]:
    still, preview = folder / "still.png", folder / "preview.mp4"
    _check(await workshop.run(still_command(ffmpeg, source, content_type, still)))
    _check(await workshop.run(preview_command(ffmpeg, source, content_type, preview)))
    if not await asyncio.to_thread(preview.exists):
        raise Unreadable(UNREADABLE)
    pictures = await _pictures(workshop, still, "image/png", folder)
    return [*pictures, ("preview", preview, "video/mp4", None, None)]


def _check(ended: Ended) -> None:
    """Raises Unreadable unless the program did what it should."""
    if ended.code is None or ended.code < 0:
        raise Unreadable(TOO_MUCH)
    if ended.code:
        _log.info("a medium cannot be read: %s", (ended.output or ended.errors)[:500])
        raise Unreadable(UNREADABLE)


async def _keep(
    media: MediaService,
    row: Row,
    variant: Variant,
    file: Path,
    content_type: str,
    width: int | None,
    height: int | None,
) -> Blob:
    path = rules.variant_path(row.id, row.purpose, variant, content_type)
    content: Any = await asyncio.to_thread(file.read_bytes)
    await media.blobs.put(path, content, content_type, public=row.purpose == "public")
    return Blob(variant, path, content_type, len(content), width, height)
