"""Files that people send: a raw body, or a form of several parts, read as it comes in, within bounds.

What is held in memory is bounded three times: by the size of one request (`read_upload`, and the web layers
before it), by how many requests are read at once in this process, and by how many of them are one person's.
Beyond that is 503 with Retry-After. Such a request has `READING_SECONDS` more than others.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request

from market.checks import storable
from market.faults import Invalid
from market.media.api import VIDEO_BYTES
from springtide.context import current
from springtide.errors import BodyTooLarge, Unavailable

__all__ = ["UPLOAD_BYTES", "File", "Sent", "Uploads", "read_upload"]

OVERHEAD_BYTES = 65_536
UPLOAD_BYTES = VIDEO_BYTES + OVERHEAD_BYTES
"""The largest request with files in it: the largest file, and what a form puts around it."""

AT_ONCE = 4
OF_ONE_PERSON = 2
READING_SECONDS = 120.0
RETRY_AFTER = 5.0

MAX_FILES = 10
MAX_FIELDS = 20
FIELD_BYTES = 16_384
HEADER_BYTES = 8_192
"""Of one part: its headers, together."""


class File(NamedTuple):
    """`name` is what the client called it: for people to read, never to trust."""

    name: str
    content: bytes


class Sent(NamedTuple):
    """Fields by name, the last of a name; and the files of all names, in their order."""

    fields: dict[str, str]
    files: list[File]


class Uploads:
    """Who may send files now; one per process."""

    def __init__(self, *, at_once: int = AT_ONCE, of_one: int = OF_ONE_PERSON) -> None:
        self._at_once = at_once
        self._of_one = of_one
        self._sending: Counter[int] = Counter()

    @asynccontextmanager
    async def place(self, person: int) -> AsyncIterator[None]:
        """Hold it from before the body is read until its bytes are let go. Raises Unavailable when full."""
        if self._sending.total() >= self._at_once or self._sending[person] >= self._of_one:
            raise Unavailable("too many uploads are under way", retry_after=RETRY_AFTER)
        self._sending[person] += 1
        try:
            yield
        finally:
            self._sending[person] -= 1
            if not self._sending[person]:
                del self._sending[person]


async def read_upload(request: Request, *, limit: int = UPLOAD_BYTES) -> Sent:
    """What the body holds: a form (multipart/form-data), or one file that is the whole body.

    Raises Invalid for a broken form, BodyTooLarge, HTTPException 415 for JSON and the like.
    """
    context = current()
    if context is not None and context.deadline is not None:
        context.deadline += READING_SECONDS
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        return await _form(request, options.get(b"boundary", b""), limit)
    if kind in (b"application/json", b"application/x-www-form-urlencoded"):
        raise HTTPException(415)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise BodyTooLarge(limit)
    return Sent({}, [File("", bytes(content))])


async def _form(request: Request, boundary: bytes, limit: int) -> Sent:
    if not 1 <= len(boundary) <= 70:
        raise Invalid({"body": ["has no boundary"]})
    form = _Form()
    parser = MultipartParser(boundary, form.callbacks(), max_size=limit)  # type: ignore[arg-type]  # a TypedDict
    seen = 0
    try:
        async for chunk in request.stream():
            seen += len(chunk)
            if seen > limit:
                raise BodyTooLarge(limit)
            for at in range(0, len(chunk), 65_536):
                parser.write(chunk[at : at + 65_536])
                await asyncio.sleep(0)  # others have their turn between two pieces
        parser.finalize()
    except FormParserError:
        raise Invalid({"body": ["is no form as multipart/form-data has it"]}) from None
    if not form.ended:
        raise Invalid({"body": ["is cut off"]})
    return form.sent()


class _Form:
    """What the parser tells, kept within bounds. Raises Invalid from its callbacks."""

    def __init__(self) -> None:
        self.ended = False
        self._parts = 0
        self._fields: dict[str, str] = {}
        self._files: list[tuple[str, bytearray]] = []
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value, self._seen = bytearray(), bytearray(), 0
        self._field: str | None = None
        self._part = bytearray()

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin, "on_header_field": self._header_name,
            "on_header_value": self._header_value, "on_header_end": self._header_end,
            "on_headers_finished": self._begin_data, "on_part_data": self._data,
            "on_part_end": self._end_part, "on_end": self._end,
        }  # fmt: skip

    def sent(self) -> Sent:
        return Sent(self._fields, [File(name, bytes(content)) for name, content in self._files])

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_FILES + MAX_FIELDS:
            raise Invalid({"body": [f"has more than {MAX_FILES + MAX_FIELDS} parts"]})
        self._headers, self._seen, self._field, self._part = {}, 0, None, bytearray()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += self._counted(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._counted(data[start:end])

    def _header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        field = _text(options.get(b"name"))
        if field is None:
            raise Invalid({"body": ["has a part without a name"]})
        if b"filename" not in options:
            self._field = field
            if len(self._fields) >= MAX_FIELDS:
                raise Invalid({"body": [f"has more than {MAX_FIELDS} fields"]})
        elif len(self._files) >= MAX_FILES:
            raise Invalid({"body": [f"has more than {MAX_FILES} files"]})
        else:
            self._files.append((_text(options[b"filename"]) or "", self._part))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._part += data[start:end]
        if self._field is not None and len(self._part) > FIELD_BYTES:
            raise Invalid({"body": [f"has a field of more than {FIELD_BYTES} bytes"]})

    def _end_part(self) -> None:
        if self._field is not None:
            value = _text(bytes(self._part))
            if value is None:
                raise Invalid({"body": ["has a field that is no text"]})
            self._fields[self._field] = value
        elif self._files and not self._part and not self._files[-1][0]:
            self._files.pop()  # a browser's empty choice of a file

    def _end(self) -> None:
        self.ended = True

    def _counted(self, piece: bytes) -> bytes:
        self._seen += len(piece)
        if self._seen > HEADER_BYTES:
            raise Invalid({"body": ["has a part with too many headers"]})
        return piece


def _text(value: bytes | None) -> str | None:
    """UTF-8 that can be stored, else None."""
    if value is None:
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if storable(text) else None
