"""What a supervised NATS server is told: its configuration file, and what is read out of what it says. Pure.

JetStream keeps every stream in files. From 2.10 on each write is synced before it is confirmed; an older
server syncs every two minutes, which a kill survives and a loss of power does not. Clients are in one account
and know one password; the runner asks as a user of the system account.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from springtide.errors import RunnerError

__all__ = ["DEFAULT_BYTES", "SYSTEM", "USER", "NatsTold", "conf", "go_bytes", "told"]

USER = "springtide"
SYSTEM = "runner"

DEFAULT_BYTES = 256 * 1024 * 1024
"""What the server's heap is kept below when the node has no `memory_bytes`."""

SHARE = 0.8
"""Of a node's `memory_bytes`, the part that Go's heap is kept below."""

SYNCS = (2, 10)
"""The first version that can sync each write."""

STORE_BYTES = 10 * 1024**3
"""What all streams together may take on disk; beyond that messages are refused, and stay in the database."""


def go_bytes(memory_bytes: int | None) -> int:
    """GOMEMLIMIT of a node of so much memory."""
    return DEFAULT_BYTES if memory_bytes is None else int(memory_bytes * SHARE)


def conf(
    *,
    name: str,
    port: int,
    password: str,
    system_password: str,
    folder: Path,
    version: tuple[int, int],
    tls: bool,
) -> str:
    """nats.conf. `tls`: clients must speak TLS; certificate and key are in `folder`."""
    store = ["jetstream {", f"  store_dir: {_quoted(folder / 'streams')}"]
    store += ["  max_memory_store: 0", f"  max_file_store: {STORE_BYTES}"]
    if version >= SYNCS:
        store.append("  sync_interval: always")
    lines = [
        "# Written by Springtide; a change is lost at the next start.",
        f"server_name: {_quoted(name)}",
        f'listen: "127.0.0.1:{port}"',
        *store,
        "}",
        "accounts {",
        f"  PLATFORM: {{ jetstream: enabled, users: [{_user(USER, password)}] }}",
        f"  SYSTEM: {{ users: [{_user(SYSTEM, system_password)}] }}",
        "}",
        "system_account: SYSTEM",
    ]
    if tls:
        certificate, key = _quoted(folder / "server.crt"), _quoted(folder / "server.key")
        lines.append(f"tls {{ cert_file: {certificate}, key_file: {key} }}")
    return "\n".join([*lines, ""])


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsTold:
    """What a NATS server says of itself. `ready`: messages that its streams hold."""

    version: str
    connections: int
    memory_bytes: int
    streams: int
    ready: int
    disk_bytes: int


def told(general: str, streams: str) -> NatsTold:
    """Read the answers to VARZ and JSZ. Raises RunnerError when they are none."""
    try:
        one, two = _data(general), _data(streams)
        return NatsTold(
            version=one["version"],
            connections=one["connections"],
            memory_bytes=one["mem"],
            streams=two["streams"],
            ready=two["messages"],
            disk_bytes=two["storage"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunnerError(f"what NATS says of itself is not understood: {error}") from error


def _data(answer: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer)["data"]
    return found


def _user(name: str, password: str) -> str:
    return f"{{ user: {_quoted(name)}, password: {_quoted(password)} }}"


def _quoted(text: object) -> str:
    """As the file quotes: a folder may have spaces in it."""
    said = str(text)
    if "\n" in said or "\0" in said:
        raise RunnerError("a folder or password of NATS must not have line breaks in it")
    return '"' + said.replace("\\", "\\\\").replace('"', '\\"') + '"'
