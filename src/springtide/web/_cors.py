"""Which other origins' pages may read our answers (the CORS protocol of the Fetch standard).

`*` opens everything to everybody, but never together with credentials (cookies); listed origins are answered
by name, with `Vary: Origin` so that caches keep the answers apart, and may send credentials.
`Authorization` is a header like any other here: it is allowed because preflights name it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["Cors"]

METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
EXPOSED = b"X-Request-Id, Server-Timing, Retry-After, Location, ETag"
MAX_AGE = b"600"
DEFAULT_HEADERS = b"Authorization, Content-Type"

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?", re.ASCII)
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]{1,2048}")

Headers = list[tuple[bytes, bytes]]


class Cors:
    """Pure: origin in, response headers out."""

    def __init__(self, origins: Sequence[str]) -> None:
        for origin in origins:
            if origin != "*" and _ORIGIN.fullmatch(origin.lower()) is None:
                raise ValueError(
                    f"cors_origins must be '*' or scheme://host[:port] without a path, got {origin!r}"
                )
        if "*" in origins and len(origins) > 1:
            raise ValueError(f"cors_origins must be '*' alone or a list without it, got {list(origins)!r}")
        self._any = "*" in origins
        self._origins = frozenset(origin.lower().encode() for origin in origins)
        self.enabled = bool(origins)

    def response(self, origin: bytes | None) -> Headers:
        """What every answer carries."""
        if self._any:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED)]
        headers: Headers = [(b"vary", b"Origin")]
        if origin is not None and origin.lower() in self._origins:
            headers += [
                (b"access-control-allow-origin", origin),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", EXPOSED),
            ]
        return headers

    def preflight(self, origin: bytes, requested_headers: bytes | None) -> Headers | None:
        """The answer to a preflight, without the headers of `response`; None: this origin may not."""
        if not self._any and origin.lower() not in self._origins:
            return None
        wanted = requested_headers or DEFAULT_HEADERS
        return [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", wanted if _HEADER_NAMES.fullmatch(wanted) else DEFAULT_HEADERS),
            (b"access-control-max-age", MAX_AGE),
            (b"vary", b"Access-Control-Request-Headers"),
        ]
