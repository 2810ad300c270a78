"""Request bodies: JSON decoded, unwrapped, and its fields handed out with the types that were promised.

Two duties are kept apart. Here: is it JSON, is a field of the right type (415, 422). In the modules: are the
values good. A field that is absent or null and must be there reads as "", which every module calls blank, so
that one answer names all of them. Unknown fields are ignored.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType
from starlette.exceptions import HTTPException
from starlette.requests import Request

from market.checks import BLANK, Checks
from market.faults import Invalid

__all__ = ["Form", "read_form"]


async def read_form(request: Request, wrapper: str) -> Form:
    """The object under `wrapper` in the request's body. Raises Invalid (422), HTTPException 415."""
    _check_type(request.headers.get("content-type"))
    raw = await request.body()
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Invalid({"body": ["is not valid JSON"]}) from None
    if not isinstance(body, dict):
        raise Invalid({"body": ["must be a JSON object"]})
    fields = body.get(wrapper)
    if fields is None:
        raise Invalid({wrapper: [BLANK]})
    if not isinstance(fields, dict):
        raise Invalid({wrapper: ["must be an object"]})
    return Form(wrapper, fields)


class Form:
    """The fields of one body. Wrong types are collected; `finish` raises Invalid for all of them."""

    __slots__ = ("_checks", "_fields", "_name")

    def __init__(self, name: str, fields: dict[str, object]) -> None:
        self._name = name
        self._fields = fields
        self._checks = Checks()

    def text(self, field: str) -> str:
        """Text that must be there; "" when it is not."""
        value = self._fields.get(field)
        if value is None:
            return ""
        if not isinstance(value, str):
            self._checks.fault(field, "must be a string")
            return ""
        return value

    def change(self, field: str) -> str | UnsetType:
        """Text that may be left out; null reads as ""."""
        return self.text(field) if field in self._fields else UNSET

    def clearable(self, field: str) -> str | UnsetType | None:
        """Text that may be left out, or cleared by null."""
        if field not in self._fields:
            return UNSET
        return None if self._fields[field] is None else self.text(field)

    def texts(self, field: str) -> list[str] | UnsetType:
        """A list of texts that may be left out."""
        if field not in self._fields:
            return UNSET
        value = self._fields[field]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._checks.fault(field, "must be a list of strings")
            return UNSET
        return value

    def some(self, *fields: str) -> None:
        """Refuse a body that changes nothing."""
        if not any(field in self._fields for field in fields):
            self._checks.fault(self._name, "must have at least one field to change")

    def finish(self) -> None:
        self._checks.finish()


def _check_type(content_type: str | None) -> None:
    """A body is JSON in UTF-8; one that does not say what it is, is taken for that."""
    if content_type is None:
        return
    kind, _, parameters = content_type.lower().partition(";")
    kind = kind.strip()
    json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    charset = ""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip() == "charset":
            charset = value.strip().strip('"')
    if not json or charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise HTTPException(415)
