"""Ask one Redis a few things, one after the other: is it there, what does it say of itself.

For the runner and its commands, which ask seldom and must stay small; the platform's own client is
`springtide.redis`. Blocks, at most `timeout` per step; the supervisor calls it in a thread.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["RedisRefused", "talk"]

MAX_BYTES = 1024 * 1024
"""No answer that is asked for here comes near."""


class RedisRefused(Exception):
    """It answered with an error: it is there, and says no."""


def talk(url: str, *commands: Sequence[str], timeout: float) -> list[str]:
    """The answers to `commands` of the Redis at `url` (redis or rediss, one host).

    Raises OSError when nobody answers in time or in Redis's way, RedisRefused when the answer is an error.
    """
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 6379)
    with socket.create_connection(address, timeout=timeout) as plain:
        if parts.scheme != "rediss":
            return _exchange(plain, url, commands)
        roots = parse_qs(parts.query).get("ssl_ca_certs", [None])
        context = ssl.create_default_context(cafile=roots[-1])
        with context.wrap_socket(plain, server_hostname=parts.hostname) as secure:
            return _exchange(secure, url, commands)


def _exchange(connection: socket.socket, url: str, commands: Sequence[Sequence[str]]) -> list[str]:
    parts = urlsplit(url)
    asked = list(commands)
    if parts.password:
        user = [unquote(parts.username)] if parts.username else []
        asked.insert(0, ["AUTH", *user, unquote(parts.password)])
    connection.sendall(b"".join(map(_packed, asked)))
    with connection.makefile("rb") as answers:
        found = [_answer(answers) for _ in asked]
    return found[len(asked) - len(commands) :]


def _packed(words: Sequence[str]) -> bytes:
    encoded = [word.encode() for word in words]
    return b"".join([b"*%d\r\n" % len(encoded), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)])


def _answer(answers: BinaryIO) -> str:
    line = answers.readline(MAX_BYTES)
    kind, text = line[:1], line[1:-2].decode(errors="replace")
    if not line.endswith(b"\r\n") or kind not in b"+:-$":
        raise ConnectionError("it closed the connection, or it does not speak as Redis does")
    if kind == b"-":
        raise RedisRefused(text)
    if kind != b"$":
        return text
    size = int(text) if text.lstrip("-").isdigit() else MAX_BYTES
    if not 0 <= size < MAX_BYTES:
        raise ConnectionError(f"an answer of {text} bytes was not expected")
    data = answers.read(size + 2)
    if len(data) != size + 2:
        raise ConnectionError("it closed the connection")
    return data[:-2].decode(errors="replace")
