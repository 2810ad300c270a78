"""The RealWorld API's specification as data: which operation answers which status with which body.

Transcribed from the "RealWorld Conduit API" OpenAPI document, version 2.0.0 (MIT license, see LICENSE in this
folder). The acceptance suite holds every response that it meets against these facts.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NULLABLE: Schema = {"type": ["string", "null"]}
NUMBER: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
MOMENT: Schema = {"type": "string", "format": "date-time"}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "required": sorted(properties), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


USER = _object(email=TEXT, token=TEXT, username=TEXT, bio=NULLABLE, image=NULLABLE)
PROFILE = _object(username=TEXT, bio=NULLABLE, image=NULLABLE, following=FLAG)
SUMMARY = _object(
    slug=TEXT,
    title=TEXT,
    description=TEXT,
    tagList=_list(TEXT),
    createdAt=MOMENT,
    updatedAt=MOMENT,
    favorited=FLAG,
    favoritesCount=NUMBER,
    author=PROFILE,
)
ARTICLE = _object(**SUMMARY["properties"], body=TEXT)
COMMENT = _object(id=NUMBER, createdAt=MOMENT, updatedAt=MOMENT, body=TEXT, author=PROFILE)

ERRORS = _object(errors={"type": "object", "additionalProperties": _list(TEXT)})
ONE_USER = _object(user=USER)
ONE_PROFILE = _object(profile=PROFILE)
ONE_ARTICLE = _object(article=ARTICLE)
MANY_ARTICLES = _object(articles=_list(SUMMARY), articlesCount=NUMBER)
ONE_COMMENT = _object(comment=COMMENT)
MANY_COMMENTS = _object(comments=_list(COMMENT))
ALL_TAGS = _object(tags=_list(TEXT))
EMPTY: Schema | None = None

OPERATIONS: dict[tuple[str, str], tuple[int, Schema | None, tuple[int, ...]]] = {
    ("POST", "/users/login"): (200, ONE_USER, (401, 422)),
    ("POST", "/users"): (201, ONE_USER, (409, 422)),
    ("GET", "/user"): (200, ONE_USER, (401, 422)),
    ("PUT", "/user"): (200, ONE_USER, (401, 422)),
    ("GET", "/profiles/{username}"): (200, ONE_PROFILE, (401, 404, 422)),
    ("POST", "/profiles/{username}/follow"): (200, ONE_PROFILE, (401, 404, 422)),
    ("DELETE", "/profiles/{username}/follow"): (200, ONE_PROFILE, (401, 404, 422)),
    ("GET", "/articles/feed"): (200, MANY_ARTICLES, (401, 422)),
    ("GET", "/articles"): (200, MANY_ARTICLES, (401, 422)),
    ("POST", "/articles"): (201, ONE_ARTICLE, (401, 409, 422)),
    ("GET", "/articles/{slug}"): (200, ONE_ARTICLE, (404, 422)),
    ("PUT", "/articles/{slug}"): (200, ONE_ARTICLE, (401, 403, 404, 422)),
    ("DELETE", "/articles/{slug}"): (204, EMPTY, (401, 403, 404, 422)),
    ("GET", "/articles/{slug}/comments"): (200, MANY_COMMENTS, (401, 404, 422)),
    ("POST", "/articles/{slug}/comments"): (201, ONE_COMMENT, (401, 404, 422)),
    ("DELETE", "/articles/{slug}/comments/{id}"): (204, EMPTY, (401, 403, 404, 422)),
    ("POST", "/articles/{slug}/favorite"): (200, ONE_ARTICLE, (401, 404, 422)),
    ("DELETE", "/articles/{slug}/favorite"): (200, ONE_ARTICLE, (401, 404, 422)),
    ("GET", "/tags"): (200, ALL_TAGS, (422,)),
}
"""(method, path) -> status and schema of success, statuses of refusals (all of them with ERRORS)."""

TRANSPORT = (413, 415)
"""What HTTP itself asks for, whatever the operation."""

_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")


def operation(method: str, path: str) -> tuple[str, str] | None:
    """The specification's name for a request, None when it has none. `path` is without /api and query."""
    exact = (method, path)
    if exact in OPERATIONS:
        return exact
    for candidate in OPERATIONS:
        pattern = re.sub(r"\{\w+\}", "[^/]+", candidate[1])
        if candidate[0] == method and re.fullmatch(pattern, path):
            return candidate
    return None


def faults(schema: Schema, value: Any, where: str = "$") -> list[str]:
    """Where `value` breaks `schema`. Stricter than JSON Schema: unknown properties are faults, too."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(_is(kind, value) for kind in kinds):
        return [f"{where}: {value!r} is not {' or '.join(kinds)}"]
    found: list[str] = []
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        rest = schema.get("additionalProperties")
        found += [f"{where}: {name} is missing" for name in schema.get("required", ()) if name not in value]
        for name, item in value.items():
            inner = properties.get(name, rest)
            if inner is None:
                found.append(f"{where}: {name} is not in the specification")
            else:
                found += faults(inner, item, f"{where}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += faults(schema["items"], item, f"{where}[{index}]")
    elif schema.get("format") == "date-time":
        if not _MOMENT.fullmatch(value):
            found.append(f"{where}: {value!r} is not ISO 8601 with milliseconds and Z")
        else:
            datetime.fromisoformat(value)
    elif isinstance(value, int) and not isinstance(value, bool) and not 0 <= value < 2**53:
        found.append(f"{where}: {value} is not a whole number that JavaScript keeps")
    return found


def _is(kind: str, value: Any) -> bool:
    types: dict[str, type | tuple[type, ...]] = {
        "string": str,
        "integer": int,
        "boolean": bool,
        "object": dict,
        "array": list,
        "null": type(None),
    }
    return isinstance(value, types[kind]) and not (kind == "integer" and isinstance(value, bool))
