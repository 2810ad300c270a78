"""What requests carry: JSON bodies, limits and cursors, ids; each with the types that were promised.

Here: is it JSON, has each field its type (415, 422, all wrong fields named at once). In the modules: are the
values good. A field that is not known is refused, so that a misspelt one is not taken for left out.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request

from market.checks import Checks, storable
from market.faults import Invalid, NotFound
from springtide.db.idempotency import Once
from springtide.web.idempotency import once_of, read_key

__all__ = [
    "DEFAULT_LIMIT",
    "MAX_LIMIT",
    "id_of",
    "ids_of",
    "number_of",
    "once",
    "read_body",
    "text_of",
    "window",
]

DEFAULT_LIMIT = 20
MAX_LIMIT = 100

T = TypeVar("T", bound=msgspec.Struct)

_WHOLE = re.compile(r"[0-9]{1,16}")


async def read_body(request: Request, shape: type[T]) -> T:
    """The body as a `shape`. Raises Invalid (422), HTTPException 415."""
    _check_type(request.headers.get("content-type"))
    try:
        body = msgspec.json.decode(await request.body())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Invalid({"body": ["is not valid JSON"]}) from None
    if not isinstance(body, dict):
        raise Invalid({"body": ["must be a JSON object"]})
    checks = Checks()
    known = {field.encode_name: field for field in msgspec.structs.fields(shape)}
    values: dict[str, Any] = {}
    for name in body:
        if name not in known:
            checks.fault(name if storable(name) and len(name) <= 100 else "body", "is not known here")
    for name, field in known.items():
        if name in body and not _in_range(body[name]):
            checks.fault(name, "has a number that is out of range")
        elif name in body:
            try:
                values[field.name] = msgspec.convert(body[name], field.type)
            except msgspec.ValidationError as error:
                checks.fault(name, _sentence(error))
        elif field.required:
            checks.fault(name, "is missing")
    checks.finish()
    return shape(**values)


async def once(request: Request) -> Once | None:
    """What the request's Idempotency-Key makes of it, None without one; for the module that has the effect.

    Call it after the sender is known. Raises IdempotencyKeyInvalid (400).
    """
    key = read_key(request.scope["headers"])
    return None if key is None else once_of(request.scope, await request.body(), key)


def window(request: Request) -> tuple[int, str | None]:
    """`limit` (1 to 100, more is taken as 100) and `after`. Raises Invalid."""
    text = request.query_params.get("limit")
    if text is not None and (_WHOLE.fullmatch(text) is None or int(text) < 1):
        raise Invalid({"limit": ["must be a whole number, 1 or more"]})
    limit = DEFAULT_LIMIT if text is None else min(int(text), MAX_LIMIT)
    return limit, request.query_params.get("after") or None


def number_of(request: Request, name: str, default: int) -> int:
    """A whole number of the query. Raises Invalid for what is none; its range is the module's to judge."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if _WHOLE.fullmatch(text) is None:
        raise Invalid({name: ["must be a whole number"]})
    return int(text)


def text_of(request: Request, name: str) -> str | None:
    """A filter of the query; None when it is left out or empty."""
    value = request.query_params.get(name) or None
    if value is not None and not storable(value):
        raise Invalid({name: ["contains characters that cannot be stored"]})
    return value


def id_of(request: Request, thing: str) -> int:
    """`{id}` of the path. Raises NotFound for what is no id."""
    text = request.path_params["id"]
    if _WHOLE.fullmatch(text) is None:
        raise NotFound(thing)
    return int(text)


def ids_of(text: str) -> list[int]:
    """`1,2,3`. Raises Invalid."""
    parts = text.split(",")
    if not all(_WHOLE.fullmatch(part) for part in parts):
        raise Invalid({"ids": ["must be whole numbers with commas between"]})
    return [int(part) for part in parts]


def _in_range(value: Any) -> bool:
    """Whether all whole numbers are below 2**53: what every JSON reader and every module call can carry."""
    if isinstance(value, int):
        return abs(value) <= 1 << 53
    if isinstance(value, list):
        return all(map(_in_range, value))
    return not isinstance(value, dict) or all(map(_in_range, value.values()))


def _sentence(error: msgspec.ValidationError) -> str:
    """msgspec's message as part of a sentence: `Expected `int`, got `str` - at `$.amount``."""
    said, _, place = str(error).partition(" - at `$")
    inner = place.rstrip("`").lstrip(".")
    said = said.replace("`", "")
    said = said[:1].lower() + said[1:]
    return f"{inner}: {said}" if inner else said


def _check_type(content_type: str | None) -> None:
    """A body is JSON in UTF-8; one that does not say what it is, is taken for that."""
    if content_type is None:
        return
    media, *parameters = (part.strip().lower() for part in content_type.split(";"))
    charset = next(
        (part.removeprefix("charset=").strip('"') for part in parameters if "charset=" in part), ""
    )
    if not (media == "application/json" or (media.startswith("application/") and media.endswith("+json"))):
        raise HTTPException(415)
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise HTTPException(415)
