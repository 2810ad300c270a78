"""What asyncpg is told of TLS for one url.

asyncpg would read certificates from disk in the event loop, those of the user's home among them, so what the
url says of verifying a server by an authority's file is done here, in a thread; the rest is left to it.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

__all__ = ["is_local", "tls"]

VERIFYING = ("verify-ca", "verify-full")
OURS = {"sslmode", "sslrootcert"}


def is_local(dsn: str) -> bool:
    """True when the server is on this machine and the URL does not speak of TLS."""
    url = urlsplit(dsn)
    return "ssl" not in url.query and url.hostname in ("127.0.0.1", "::1", "localhost")


async def tls(dsn: str) -> ssl.SSLContext | Literal[False] | None:
    """The `ssl` of asyncpg.connect: False is none, None leaves it to asyncpg and the url.

    Raises OSError when the authority's file cannot be read, ssl.SSLError (an OSError) when it holds none.
    """
    if is_local(dsn):
        return False
    said = dict(parse_qsl(urlsplit(dsn).query))
    named = {name for name in said if name.startswith("ssl")}
    if said.get("sslmode") not in VERIFYING or named != OURS:
        return None
    return await asyncio.to_thread(_context, said["sslrootcert"], said["sslmode"] == "verify-full")


def _context(root: str, names: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = names
    context.load_verify_locations(cafile=root)
    return context
