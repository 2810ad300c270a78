"""What a file is, by its content: format, width and height, and whether all of it is there. Pure.

Only headers and the chain of blocks are read; nothing is decoded, so a bomb costs nothing here. A file must
begin with its format's signature and run to that format's end; PNG chunks are held to their checksums. What
comes behind the end is not looked at: phones append things to their pictures, and nobody is shown the
original. Sizes are those in the file, before its orientation is applied.
"""

from __future__ import annotations

import struct
import zlib
from typing import Literal, NamedTuple

__all__ = ["Broken", "Format", "Unknown", "identify", "kind_of"]

JPEG_SIZES = frozenset({*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)})
"""Markers of JPEG whose segment has the size: all starts of frame."""

JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers of JPEG without a length behind them."""

MAX_BLOCKS = 200_000
"""A longer chain is no picture that anybody took."""


class Unknown(ValueError):
    """The content begins like nothing that is taken here."""


class Broken(ValueError):
    """It begins like one, and is not: the message completes `the file ...`."""


class Format(NamedTuple):
    """Width and height are None for videos, whose decoder tells them."""

    kind: Literal["image", "video"]
    content_type: str
    width: int | None = None
    height: int | None = None


def kind_of(head: bytes) -> Literal["image", "video"] | None:
    """What the first 12 bytes promise."""
    if head[:8] == b"\x89PNG\r\n\x1a\n" or head[:3] == b"\xff\xd8\xff" or head[:6] in (b"GIF87a", b"GIF89a"):
        return "image"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image"
    if head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3":
        return "video"
    return None


def identify(content: bytes) -> Format:
    """Raises Unknown, Broken."""
    if kind_of(content[:12]) is None:
        raise Unknown("is no JPEG, PNG, WebP or GIF picture and no MP4 or WebM video")
    try:
        found = _READERS[content[:1]](content) if content[4:8] != b"ftyp" else _mp4(content)
    except (IndexError, struct.error):
        raise Broken("is cut off") from None
    if found.kind == "image" and not (found.width and found.height):
        raise Broken("has no size")
    return found


def _png(content: bytes) -> Format:
    at, size = 8, (0, 0)
    for _ in range(MAX_BLOCKS):
        length, name = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if end > len(content):
            raise Broken("is cut off")
        (checksum,) = struct.unpack_from(">I", content, end - 4)
        if zlib.crc32(memoryview(content)[at + 4 : end - 4]) != checksum:
            raise Broken("is damaged")
        if at == 8:
            if name != b"IHDR" or length != 13:
                raise Broken("is no PNG behind its first bytes")
            size = struct.unpack_from(">II", content, at + 8)
        if name == b"IEND":
            return Format("image", "image/png", *size)
        at = end
    raise Broken("has too many parts")


def _jpeg(content: bytes) -> Format:
    at, size = 2, None
    for _ in range(MAX_BLOCKS):
        if content[at] != 0xFF:
            raise Broken("is damaged")
        marker = content[at + 1]
        at += 2
        if marker == 0xFF:  # filling before a marker
            at -= 1
        elif marker in JPEG_ALONE:
            continue
        elif marker == 0xD9:
            break
        else:
            (length,) = struct.unpack_from(">H", content, at)
            if length < 2:
                raise Broken("is damaged")
            if marker in JPEG_SIZES:
                height, width = struct.unpack_from(">HH", content, at + 3)
                size = (width, height)
            if marker == 0xDA:
                if content.find(b"\xff\xd9", at) < 0:
                    raise Broken("is cut off")
                break
            at += length
    if size is None:
        raise Broken("is no JPEG behind its first bytes")
    return Format("image", "image/jpeg", *size)


def _gif(content: bytes) -> Format:
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    pictures = 0
    for _ in range(MAX_BLOCKS):
        block = content[at]
        if block == 0x3B:
            if not pictures:
                raise Broken("has no picture in it")
            return Format("image", "image/gif", width, height)
        if block == 0x21:
            at += 2
        elif block == 0x2C:
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", content, at + 1)
            width, height = max(width, left + wide), max(height, top + high)
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
            pictures += 1
        else:
            raise Broken("is damaged")
        while content[at]:
            at += 1 + content[at]
        at += 1
    raise Broken("has too many parts")


def _webp(content: bytes) -> Format:
    (length,) = struct.unpack_from("<I", content, 4)
    if length + 8 > len(content):
        raise Broken("is cut off")
    name, first = content[12:16], content[20:30]
    if name == b"VP8X":
        width = 1 + int.from_bytes(first[4:7], "little")
        height = 1 + int.from_bytes(first[7:10], "little")
    elif name == b"VP8L" and first[:1] == b"\x2f":
        bits = int.from_bytes(first[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif name == b"VP8 " and first[3:6] == b"\x9d\x01\x2a":
        width, height = (part & 0x3FFF for part in struct.unpack_from("<HH", first, 6))
    else:
        raise Broken("is no WebP behind its first bytes")
    return Format("image", "image/webp", width, height)


def _mp4(content: bytes) -> Format:
    at, names = 0, set[bytes]()
    for _ in range(MAX_BLOCKS):
        if at == len(content):
            break
        length, name = struct.unpack_from(">I4s", content, at)
        if length == 1:
            (length,) = struct.unpack_from(">Q", content, at + 8)
        elif length == 0:  # to the end of the file
            length = len(content) - at
        if length < 8 or at + length > len(content):
            if {b"moov", b"mdat"} <= names:
                break  # all that matters is here
            raise Broken("is cut off")
        names.add(name)
        at += length
    if b"moov" not in names:
        raise Broken("is no MP4 video behind its first bytes")
    return Format("video", "video/mp4")


def _webm(content: bytes) -> Format:
    header, at = _ebml_size(content, 4)
    if header is None or header > 4096:
        raise Broken("is no WebM video behind its first bytes")
    if b"\x42\x82\x84webm" not in content[at : at + header]:
        raise Unknown("is no WebM video: it is of another kind of Matroska")
    at += header
    if content[at : at + 4] != b"\x18\x53\x80\x67":
        raise Broken("is no WebM video behind its first bytes")
    segment, at = _ebml_size(content, at + 4)
    if segment is not None and at + segment > len(content):
        raise Broken("is cut off")
    return Format("video", "video/webm")


def _ebml_size(content: bytes, at: int) -> tuple[int | None, int]:
    """A size as EBML writes it, None for one that is not known; and where what it measures begins."""
    first = content[at]
    if first == 0:
        raise Broken("is damaged")
    length = 9 - first.bit_length()
    if at + length > len(content):
        raise Broken("is cut off")
    value = int.from_bytes(content[at : at + length], "big") & (1 << 7 * length) - 1
    return (None if value == (1 << 7 * length) - 1 else value), at + length


_READERS = {b"\x89": _png, b"\xff": _jpeg, b"G": _gif, b"R": _webp, b"\x1a": _webm}
