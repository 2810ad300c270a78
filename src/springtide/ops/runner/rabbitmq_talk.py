"""Ask one RabbitMQ whether it is there, and for its figures. Both block, at most `timeout` per step.

For the runner and its commands, which ask seldom and must stay small; what jobs use is
`springtide.jobs.transports.rabbitmq`. The supervisor calls them in a thread.
"""

from __future__ import annotations

import socket
import ssl
import urllib.request
from urllib.parse import parse_qs, urlsplit

__all__ = ["figures", "greets"]

HEADER = b"AMQP\x00\x00\x09\x01"
START = b"\x01\x00\x00"
"""A method frame of channel 0: the server begins the conversation."""

MAX_BYTES = 8 * 1024 * 1024


def greets(url: str, *, timeout: float) -> bool:
    """Whether a broker speaks AMQP 0-9-1 at `url` (amqp, amqps). Raises OSError when nobody does in time."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 5672), timeout=timeout) as plain:
        if parts.scheme != "amqps":
            return _greeted(plain)
        context = ssl.create_default_context(cafile=parse_qs(parts.query).get("ssl_ca_certs", [None])[-1])
        with context.wrap_socket(plain, server_hostname=parts.hostname) as secure:
            return _greeted(secure)


def _greeted(connection: socket.socket) -> bool:
    connection.sendall(HEADER)
    return connection.recv(len(START)) == START


def figures(port: int, *, timeout: float) -> str:
    """Its Prometheus figures, as text. Raises OSError when it does not give them."""
    address = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(address, timeout=timeout) as answer:
        text: bytes = answer.read(MAX_BYTES)
    return text.decode(errors="replace")
