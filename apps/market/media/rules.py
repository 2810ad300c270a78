"""What names, things and documents may be, where blobs lie and what their addresses look like. Pure.

    originals/0005/7173-<token>.jpg        what was uploaded; never has an address
    public/0005/7173-thumb-<token>.webp    for everybody, for ever
    private/0005/7173-thumb-<token>.webp   signed
    reports/0005/7174-document-<token>.csv signed; the bucket may forget it by itself, see lifecycle.py

The number in the middle is the medium's bucket of ids. A token is random: a name is never used again and
cannot be guessed, so a blob never changes and its address is as good as its entity tag.
"""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from market.checks import Checks
from market.faults import Invalid
from market.media.api import (
    DOCUMENT_BYTES,
    IMAGE_BYTES,
    MAX_IDS,
    MAX_PIXELS,
    NAME_LENGTH,
    THING_LENGTH,
    VIDEO_BYTES,
    Purpose,
    Variant,
)
from market.media.formats import Broken, Format, Unknown, identify, kind_of
from springtide.errors import BodyTooLarge

__all__ = [
    "AREAS",
    "DOCUMENT_TYPES",
    "Place",
    "check_attachment",
    "check_document",
    "check_ids",
    "check_name",
    "check_upload",
    "is_id",
    "medium_of",
    "original_path",
    "place_of",
    "variant_path",
]

MAX_ID = (1 << 53) - 1
MAX_VERSION = (1 << 62) - 1

AREAS = ("originals", "public", "private", "reports")

ENDINGS = {
    "image/jpeg": "jpg", "image/png": "png", "image/gif": "gif", "image/webp": "webp", "video/mp4": "mp4",
    "video/webm": "webm", "text/csv": "csv",
}  # fmt: skip
TYPES = {"webp": "image/webp", "mp4": "video/mp4", "csv": "text/csv; charset=utf-8"}
"""Of what is shown: ending -> content type."""

DOCUMENT_TYPES = frozenset({"text/csv"})

_SHOWN = re.compile(
    r"(public|private|reports)/([0-9]{4})/([0-9]{1,16})-(thumb|large|preview|document)-[0-9a-f]{32}"
    r"\.(webp|mp4|csv)"
)
_ANY = re.compile(r"[a-z]+/[0-9]{4}/([0-9]{1,16})-[a-z0-9-]+\.[a-z0-9]+")
_THING = re.compile(r"[a-z]+:[0-9A-Za-z_-]+")


class Place(NamedTuple):
    """What the path of a blob that may be shown says about it."""

    public: bool
    content_type: str
    etag: str


def is_id(value: int) -> bool:
    return 0 < value <= MAX_ID


def check_name(name: str) -> None:
    checks = Checks()
    checks.text("name", name, max_length=NAME_LENGTH)
    checks.finish()


def check_upload(content: bytes) -> Format:
    """Looks through all of `content`: call it off the loop. Raises Invalid, BodyTooLarge."""
    if not content:
        raise Invalid({"file": ["is empty"]})
    limit = IMAGE_BYTES if kind_of(content[:12]) == "image" else VIDEO_BYTES
    if len(content) > limit:
        raise BodyTooLarge(limit)
    try:
        found = identify(content)
    except (Broken, Unknown) as fault:
        raise Invalid({"file": [str(fault)]}) from None
    if (found.width or 0) * (found.height or 0) > MAX_PIXELS:
        raise Invalid({"file": [f"has more than {MAX_PIXELS // 1_000_000} million pixels"]})
    return found


def check_document(name: str, content: bytes, content_type: str, key: str) -> None:
    checks = Checks()
    checks.text("name", name, max_length=NAME_LENGTH)
    checks.text("key", key, max_length=NAME_LENGTH)
    if content_type not in DOCUMENT_TYPES:
        checks.fault("content_type", f"must be one of {', '.join(sorted(DOCUMENT_TYPES))}")
    if not content:
        checks.fault("content", "is empty")
    if len(content) > DOCUMENT_BYTES:
        checks.fault("content", f"is too long (maximum is {DOCUMENT_BYTES} bytes)")
    checks.finish()


def check_ids(ids: list[int]) -> list[int]:
    """The ids that can be, each once, in their order. Raises Invalid for too many."""
    if len(ids) > MAX_IDS:
        raise Invalid({"ids": [f"are too many (maximum is {MAX_IDS})"]})
    return [id for id in dict.fromkeys(ids) if is_id(id)]


def check_attachment(thing: str, ids: list[int], version: int) -> list[int]:
    checks = Checks()
    if len(thing) > THING_LENGTH or not _THING.fullmatch(thing):
        checks.fault("thing", "must be a kind and an id, such as listing:7")
    if not 0 <= version <= MAX_VERSION:
        checks.fault("version", "must not be negative")
    checks.finish()
    return check_ids(ids)


def original_path(id: int, content_type: str) -> str:
    return f"originals/{id & 1023:04}/{id}-{secrets.token_hex(16)}.{ENDINGS[content_type]}"


def variant_path(id: int, purpose: Purpose, variant: Variant, content_type: str) -> str:
    area = "reports" if variant == "document" else purpose
    return f"{area}/{id & 1023:04}/{id}-{variant}-{secrets.token_hex(16)}.{ENDINGS[content_type]}"


def place_of(path: str) -> Place | None:
    """None for what is no path of a blob that may be shown."""
    found = _SHOWN.fullmatch(path)
    if found is None or int(found[2]) != int(found[3]) & 1023:
        return None
    return Place(found[1] == "public", TYPES[found[5]], f'"{path.rpartition("-")[2].partition(".")[0]}"')


def medium_of(path: str) -> int | None:
    """Whose blob it is, by its path; None for a file that is none of ours."""
    found = _ANY.fullmatch(path)
    return int(found[1]) if found is not None and int(found[1]) <= MAX_ID else None
