"""The session's cookie: how it is set, read, and tied to the forms of our own pages.

`__Host-session; Secure; HttpOnly; SameSite=Lax; Path=/`: the prefix makes browsers refuse one that a
subdomain or plain http has planted. `secure=False` is for development on plain http: then the cookie has
no prefix, and it is neither read from nor set for anybody but this machine.

A form proves that we made it with a token: an HMAC under the cookie's own secret, so it needs no storage, is
worth nothing in another session and dies with a rotation. Each rendering masks it anew (BREACH).
Pure: nothing here does I/O.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from springtide.errors import CsrfRefused

__all__ = ["COOKIE_CHARS", "SAFE_METHODS", "SessionCookie", "check_origin", "csrf_token", "csrf_valid"]

COOKIE_CHARS = 64
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

_MAC_BYTES = 32
_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")

Headers = Iterable[tuple[bytes, bytes]]


class SessionCookie:
    """One cookie of an application. `name` gets the prefix `__Host-`, unless `secure` is False."""

    def __init__(self, *, name: str = "session", secure: bool = True) -> None:
        if not name or not _NAME.issuperset(name):
            raise ValueError(f"a cookie's name must be letters, digits, - and _, got {name!r}")
        self.secure = secure
        self.name = f"__Host-{name}" if secure else name
        self._attributes = f"Path=/; {'Secure; ' if secure else ''}HttpOnly; SameSite=Lax"

    def serves(self, scope: Mapping[str, Any]) -> bool:
        """Whether the cookie may pass here: always when it is secure, else on this machine alone."""
        return self.secure or _is_loopback(scope)

    def read(self, scope: Mapping[str, Any]) -> str | None:
        """The value that an ASGI scope's request brings; None when there is none, or two that differ."""
        if not self.serves(scope):
            return None
        found: set[str] = set()
        for header, line in scope["headers"]:
            if header == b"cookie":
                for pair in line.decode("latin-1").split(";"):
                    name, _, value = pair.strip(" \t").partition("=")
                    if name == self.name:
                        found.add(value.strip('"'))
        value = found.pop() if len(found) == 1 else ""
        return value if len(value) == COOKIE_CHARS and _ALPHABET.issuperset(value) else None

    def set(self, value: str, *, max_age: float | None = None) -> str:
        """The Set-Cookie header. `max_age` in seconds; None means until the browser is closed."""
        if len(value) != COOKIE_CHARS or not _ALPHABET.issuperset(value):
            raise ValueError(
                f"a session's cookie has {COOKIE_CHARS} characters of base64url, got another one"
            )
        age = "" if max_age is None else f"; Max-Age={max(int(max_age), 0)}"
        return f"{self.name}={value}; {self._attributes}{age}"

    def clear(self) -> str:
        """The Set-Cookie header that removes it."""
        return f"{self.name}=; {self._attributes}; Max-Age=0"


def csrf_token(cookie: str) -> str:
    """A token for the forms of the session with this cookie; another text each time, all of them valid."""
    mask = secrets.token_bytes(_MAC_BYTES)
    return base64.urlsafe_b64encode(mask + _xor(mask, _mac(cookie))).decode().rstrip("=")


def csrf_valid(cookie: str, token: str) -> bool:
    """Whether `token` was made for this cookie; takes the same time whatever is wrong with its content."""
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return False
    if len(data) != 2 * _MAC_BYTES:
        return False
    return hmac.compare_digest(_xor(data[:_MAC_BYTES], data[_MAC_BYTES:]), _mac(cookie))


def check_origin(scope: Mapping[str, Any], *, origins: Collection[str] = ()) -> None:
    """Raises CsrfRefused when the browser says that another site's page sent this unsafe request.

    `Sec-Fetch-Site` where there is one, else `Origin` against the request's own scheme and host; `origins`
    are other ones that may (`https://shop.example`). A client that sends neither is not a browser's page of
    today: the token has the last word on it.
    """
    if scope["method"] in SAFE_METHODS:
        return
    sites, origin_lines, hosts = (
        [value.decode("latin-1").strip().lower() for name, value in scope["headers"] if name == wanted]
        for wanted in (b"sec-fetch-site", b"origin", b"host")
    )
    if origin_lines and all(origin in origins for origin in origin_lines):
        return
    if sites:
        if any(site not in ("same-origin", "none") for site in sites):
            raise CsrfRefused(f"the request comes from another site (sec-fetch-site: {sites[0][:40]})")
        return
    own = f"{scope.get('scheme', 'http')}://{hosts[0]}" if len(hosts) == 1 else None
    if any(origin != own for origin in origin_lines):
        raise CsrfRefused(f"the request comes from another origin: {origin_lines[0][:200]}")


def _mac(cookie: str) -> bytes:
    return hmac.digest(cookie.encode("latin-1", "replace"), b"springtide csrf 1", hashlib.sha256)


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def _is_loopback(scope: Mapping[str, Any]) -> bool:
    client = scope.get("client")
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
