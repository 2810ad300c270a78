"""Entity tags and what a client has already (RFC 9110, sections 8.8.3, 13.1.2 and 15.4.5). Pure."""

from __future__ import annotations

import base64
import re
from hashlib import blake2b

from springtide.web._sharing import Headers

__all__ = ["matches", "not_modified", "tag_of", "weak_tag_of"]

_TAG = re.compile(rb'[ \t]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|$)')
_EMPTY = re.compile(rb"[ \t]*,")

OF_THE_BODY = frozenset(
    {
        b"content-encoding",
        b"content-language",
        b"content-length",
        b"content-range",
        b"content-type",
        b"transfer-encoding",
    }
)
"""Headers that describe a body, which a 304 has not."""

Bytes = bytes | bytearray | memoryview


def tag_of(body: Bytes) -> bytes:
    """A strong tag: equal for equal bytes alone."""
    return b'"%s"' % _digest(body)


def weak_tag_of(version: Bytes) -> bytes:
    """A weak tag: equal for answers that mean the same."""
    return b'W/"%s"' % _digest(version)


def matches(if_none_match: bytes, tag: bytes) -> bool:
    """Whether the client has it, by weak comparison; what is malformed matches nothing."""
    if_none_match = if_none_match.strip(b" \t")
    if if_none_match == b"*":
        return True
    wanted = tag.removeprefix(b"W/")
    at, found = 0, False
    while at < len(if_none_match):
        if (part := _TAG.match(if_none_match, at)) is not None:
            found = found or part[1].removeprefix(b"W/") == wanted
        elif (part := _EMPTY.match(if_none_match, at)) is None:
            return False
        at = part.end()
    return found


def not_modified(headers: Headers) -> Headers:
    """What a 304 keeps of the answer that it stands for."""
    return [pair for pair in headers if pair[0].lower() not in OF_THE_BODY]


def _digest(data: Bytes) -> bytes:
    return base64.urlsafe_b64encode(blake2b(data, digest_size=15).digest())
