"""What the media module offers to the rest of the application: the only part of it that may be imported.

A medium is what somebody gave us; a *variant* is what we made of it and show:

    image     thumb (320), large (1280)                  made by a job
    video     thumb, large (a still), preview (muted)    made by a job, where ffmpeg is installed
    document  document                                   made by ourselves, kept as it is

    processing -> ready | failed        processing <-> waiting (a video, and no worker has ffmpeg)

What was uploaded is never shown as it came, so nothing that hides in it reaches anybody. A public medium has
addresses that never change, told to whoever has its id; a private one has signed addresses that expire, for
its owner alone. What is attached to nothing is deleted a day later, a document 30 days after it was made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from market.faults import Conflict, Invalid, NotFound
from springtide.db.idempotency import Once
from springtide.services import raises

__all__ = [
    "DOCUMENT_BYTES",
    "DOCUMENT_DAYS",
    "IMAGE_BYTES",
    "MAX_IDS",
    "MAX_PIXELS",
    "NAME_LENGTH",
    "PART_BYTES",
    "THING_LENGTH",
    "UNATTACHED_HOURS",
    "VIDEO_BYTES",
    "Kind",
    "Media",
    "Medium",
    "Part",
    "Purpose",
    "State",
    "Variant",
    "media_ids",
]

IMAGE_BYTES = 10 * 1024 * 1024
VIDEO_BYTES = 40 * 1024 * 1024
DOCUMENT_BYTES = 40 * 1024 * 1024
"""The largest of each; `Media.store` raises BodyTooLarge for a larger one."""

MAX_PIXELS = 50_000_000
"""Width times height of an image or of a video's frame; what phones take has 12 to 50 million."""

NAME_LENGTH = 200
THING_LENGTH = 100
MAX_IDS = 200

PART_BYTES = 1024 * 1024
"""The most that one call of `Media.part` answers."""

UNATTACHED_HOURS = 24.0
DOCUMENT_DAYS = 30.0

Kind = Literal["image", "video", "document"]
Purpose = Literal["public", "private"]
State = Literal["processing", "waiting", "ready", "failed"]
Variant = Literal["thumb", "large", "preview", "document"]

_ID = re.compile(r"[1-9][0-9]{0,15}")


class Medium(msgspec.Struct, frozen=True, kw_only=True):
    """`content_type`, `size` (bytes), `width` and `height` are those of the original; a document has neither
    of the last two. `variants` can be shown now. `note` says why there are none: it failed, or it waits.
    """

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
    variants: list[Variant]
    note: str | None
    attached: bool
    created_at: datetime
    updated_at: datetime


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a blob: `content` begins at the byte that was asked for; `size` is the whole.

    `disposition` says whether a browser shows it or saves it, and under which name (RFC 6266).
    """

    content: bytes
    size: int
    content_type: str
    etag: str
    public: bool
    disposition: str


def media_ids(texts: Iterable[str]) -> list[int]:
    """The ids among `texts`, each once, in their order: a listing's `media` may hold anything."""
    found = dict.fromkeys(int(text) for text in texts if _ID.fullmatch(text))
    return [id for id in found if id < 1 << 53]


class Media(Protocol):
    """Errors are those of `market.faults`; each method names the ones it raises.

    Unavailable when the blobs cannot be reached.
    """

    @raises(Invalid)
    async def store(
        self, owner: int, name: str, content: bytes, purpose: Purpose = "public", once: Once | None = None
    ) -> Medium:
        """Keep an image (JPEG, PNG, WebP, GIF) or a short video (MP4, WebM), known by its content alone.

        `name` is what its owner calls it, never trusted. Its variants are made afterwards. The same `once`
        again answers the same medium. Raises Invalid (`file`) for what is neither, or is broken, and
        BodyTooLarge.
        """

    @raises(Invalid, Conflict)
    async def keep_document(
        self, owner: int, name: str, content: bytes, content_type: str, key: str
    ) -> Medium:
        """Keep a document of our own making (`text/csv`): private, for 30 days, once per owner and `key`."""

    @raises(Invalid)
    async def media(self, ids: list[int]) -> list[Medium]:
        """Those that exist, in the order of `ids`."""

    @raises(NotFound)
    async def medium(self, id: int, owner: int) -> Medium:
        """Raises NotFound also for what is somebody else's."""

    @raises(NotFound)
    async def url(self, id: int, variant: Variant, viewer: int | None = None) -> str:
        """Where `variant` is. Of a private medium: for its owner, signed, good for 15 minutes.

        Raises NotFound when there is none, or not yet, or not for `viewer`.
        """

    @raises(Invalid)
    async def urls(self, ids: list[int], variant: Variant) -> dict[int, str]:
        """Where `variant` of each public medium is, of those that have one: for all pictures of a page."""

    @raises(Invalid)
    async def attach(self, owner: int, thing: str, ids: list[int], version: int) -> list[int]:
        """Of `owner`'s media, exactly `ids` are attached to `thing` (such as `listing:7`) from now on.

        What was attached to it before and is not among them is released. An older `version` than one that
        was told before changes nothing; the same again changes nothing either. Ids of nobody, or of somebody
        else, are left out. Answers the ids that are attached now.
        """

    @raises(Invalid)
    async def release(self, owner: int, thing: str) -> None:
        """Nothing is attached to `thing` any more, whatever version comes later: it is gone."""

    @raises(NotFound, Conflict)
    async def delete(self, id: int, owner: int, once: Once | None = None) -> None:
        """Raises NotFound, also for what is somebody else's; Conflict while it is attached to something."""

    @raises(NotFound)
    async def part(self, address: str, query: str, first: int = 0, length: int = PART_BYTES) -> Part:
        """Bytes of what a URL of ours leads to: `address` is its path below `/media/`, `query` as it came.

        Raises NotFound, also for a private address that is not signed by us or is past its time.
        """
