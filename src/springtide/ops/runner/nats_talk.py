"""Ask one NATS server a few things, one after the other: is it there, are its streams, what does it say.

For the runner and its commands, which ask seldom and must stay small; what jobs use is
`springtide.jobs.transports.nats`. Blocks, at most `timeout` per step; the supervisor calls it in a thread.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Sequence
from typing import BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["NatsRefused", "ask"]

MAX_BYTES = 1024 * 1024
"""No answer that is asked for here comes near."""

INBOX = "_INBOX.runner"


class NatsRefused(Exception):
    """It answered with an error: it is there, and says no."""


def ask(url: str, *subjects: str, timeout: float) -> list[str]:
    """The answers to empty requests to `subjects` of the server at `url` (nats, or tls).

    Raises OSError when nobody answers in time or in the way of NATS, NatsRefused when the answer is an error.
    """
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 4222)
    with socket.create_connection(address, timeout=timeout) as plain, plain.makefile("rb") as lines:
        if not _line(lines).startswith(b"INFO "):
            raise ConnectionError("it does not speak as NATS does")
        if parts.scheme != "tls":
            return _exchange(plain, lines, url, subjects)
        roots = parse_qs(parts.query).get("ssl_ca_certs", [None])
        context = ssl.create_default_context(cafile=roots[-1])
        secure = context.wrap_socket(plain, server_hostname=parts.hostname)
        with secure, secure.makefile("rb") as answers:
            return _exchange(secure, answers, url, subjects)


def _exchange(connection: socket.socket, lines: BinaryIO, url: str, subjects: Sequence[str]) -> list[str]:
    parts = urlsplit(url)
    login = {"user": unquote(parts.username or ""), "pass": unquote(parts.password or "")}
    options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, **login}
    connection.sendall(b"CONNECT %b\r\nSUB %b 1\r\nPING\r\n" % (json.dumps(options).encode(), INBOX.encode()))
    _until(lines, (b"PONG",), connection)
    found = []
    for subject in subjects:
        connection.sendall(f"PUB {subject} {INBOX} 0\r\n\r\n".encode())
        head = _until(lines, (b"MSG ", b"HMSG "), connection)
        if (size := int(head.split()[-1])) > MAX_BYTES:
            raise ConnectionError(f"an answer of {size} bytes was not expected")
        text = lines.read(size + 2)[:-2].decode(errors="replace")
        if head.startswith(b"HMSG "):  # of these requests, only that nobody listens has a header
            raise NatsRefused(f"nobody answers to {subject}: {text.strip()}")
        found.append(text)
    return found


def _until(lines: BinaryIO, words: tuple[bytes, ...], connection: socket.socket) -> bytes:
    """The next line that begins with one of `words`."""
    while not (line := _line(lines)).startswith(words):
        if line.startswith(b"-ERR"):
            raise NatsRefused(line[5:].decode(errors="replace").strip().strip("'"))
        if line.startswith(b"PING"):
            connection.sendall(b"PONG\r\n")
    return line


def _line(lines: BinaryIO) -> bytes:
    line = lines.readline(MAX_BYTES)
    if not line.endswith(b"\r\n"):
        raise ConnectionError("it closed the connection, or it does not speak as NATS does")
    return line
