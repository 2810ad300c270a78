"""What forms send: text fields, each a bounded number, after the proof that a page of ours sent them.

Browsers send line ends as CRLF; texts have LF. Text that is not UTF-8 is refused (400): no browser sends it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request

from springtide.db.idempotency import Once
from springtide.web.idempotency import check_key
from springtide.web.sessions import CSRF_FIELD, check_csrf

__all__ = ["KEY_FIELD", "Form", "local", "new_key", "submitted"]

KEY_FIELD = "key"
MAX_FIELDS = 400
MAX_WHOLE_DIGITS = 16

FORM = "application/x-www-form-urlencoded"


class Form:
    """The fields of a form, in the order in which they came."""

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self.fields = [(name, value.replace("\r\n", "\n")) for name, value in fields]
        self._first: dict[str, str] = {}
        for name, value in self.fields:
            self._first.setdefault(name, value)

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Form:
        """What a form shows at first; None is an empty field."""
        return cls((name, "" if value is None else str(value)) for name, value in values.items())

    def __contains__(self, name: str) -> bool:
        return name in self._first

    def text(self, name: str) -> str:
        """The field's text, empty when it was not sent."""
        return self._first.get(name, "")

    def all(self, name: str) -> list[str]:
        return [value for other, value in self.fields if other == name]

    def whole(self, name: str) -> int | None:
        """The field as a whole number, None when it is none."""
        text = self.text(name).strip()
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= MAX_WHOLE_DIGITS):
            return None
        return int(text)

    def once(self, request: Request, sender: int, *, apart: str = "") -> Once:
        """This form sent by `sender`: one effect per rendering, however often it is sent.

        Where another effect from the same rendering is meant (somebody came back to the page and wrote
        something else), `apart` is what tells them apart.
        The token against forgery differs with each rendering and counts for nothing here.
        Raises IdempotencyKeyInvalid (400) for a key that no page of ours has made.
        """
        key = check_key(self.text(KEY_FIELD))
        what = [part for name, value in self.fields if name != CSRF_FIELD for part in (name, value)]
        return Once.of((f"subject {sender}", request.method, request.url.path, key, apart), what)


def new_key() -> str:
    """The Idempotency-Key of one rendered form."""
    return secrets.token_urlsafe(18)


async def submitted(request: Request) -> Form:
    """The fields of a form that a page of ours made for this session. Raises CsrfRefused, HTTPException."""
    await check_csrf(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM:
        raise HTTPException(415)
    try:
        text = (await request.body()).decode("ascii")
        return Form(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"))
    except ValueError:
        raise HTTPException(400) from None


def local(target: str | None, otherwise: str = "/") -> str:
    """`target` if it is an address of this site (a path and a query), else `otherwise`.

    Browsers take `//host`, `/\\host` and addresses with control characters in them elsewhere.
    """
    if not target or len(target) > 2_000 or not target.startswith("/") or target[1:2] in ("/", "\\"):
        return otherwise
    if "\\" in target or not target.isascii() or not target.isprintable() or " " in target:
        return otherwise
    try:
        parts = urlsplit(target)
    except ValueError:
        return otherwise
    return otherwise if parts.scheme or parts.netloc else target
