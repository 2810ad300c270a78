"""One GET of a small JSON document, for what announces itself over HTTP.

HTTP/1.0, so that an answer ends with its connection and is never chunked. Everything is bounded: the whole
exchange in time, the answer in size. No redirects, no connection kept: it is asked about once a second.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any
from urllib.parse import urlsplit

import msgspec

__all__ = ["get_json"]

MAX_BYTES = 1_048_576


async def get_json(url: str, *, timeout: float) -> Any:
    """The document at `url`. Raises OSError (TimeoutError among them), ValueError for an answer that is none.

    An answer with another status than 200 is a ValueError that names it.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    async with asyncio.timeout(timeout):
        # reading the authorities' certificates is a matter of the disk
        tls = await asyncio.to_thread(ssl.create_default_context) if secure else None
        reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=tls)
        try:
            target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
            head = f"GET {target} HTTP/1.0\r\nHost: {parts.netloc}\r\nAccept: application/json\r\n\r\n"
            writer.write(head.encode("ascii"))
            answer = bytearray()
            while chunk := await reader.read(65_536):
                answer += chunk
                if len(answer) > MAX_BYTES:
                    raise ValueError(f"{url} answers with more than {MAX_BYTES} bytes")
        finally:
            writer.transport.abort()
    first, _, _ = answer.partition(b"\r\n")
    _, _, body = answer.partition(b"\r\n\r\n")
    words = first.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):
        raise ValueError(f"{url} does not speak HTTP")
    if words[1] != b"200":
        raise ValueError(f"{url} answers with status {words[1].decode('latin-1')}")
    return msgspec.json.decode(bytes(body))
