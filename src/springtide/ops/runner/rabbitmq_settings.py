"""What a supervised RabbitMQ is told: the files it reads, and what is read out of what it says. Pure.

It is alone: nobody else is in its cluster, so a quorum queue confirms a message when this server has synced
it to disk. Erlang's name server (epmd), its distribution and the figures listen on 127.0.0.1, on ports of
this server's own; names are looked up in a file, because a name server that does not answer would hold up
every start.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from springtide.errors import RunnerError

__all__ = [
    "DEFAULT_BYTES",
    "INETRC",
    "NODE",
    "PLUGINS",
    "USER",
    "RabbitTold",
    "conf",
    "definitions",
    "environment",
    "told",
    "watermark_bytes",
]

USER = "springtide"
NODE = "rabbit@localhost"

DEFAULT_BYTES = 512 * 1024 * 1024
"""What it is thought to have when the node has no `memory_bytes`. Empty, it takes about 130 MB."""

SHARE = 0.7
"""Of a node's memory, the part above which publishers wait until consumers have made room."""

DISK_FREE_BYTES = 200 * 1024 * 1024
"""With less room on its disk it takes no message: the disk must not become full."""

PLUGINS = "[rabbitmq_prometheus].\n"

INETRC = '{lookup, [file]}.\n{host, {127,0,0,1}, ["localhost"]}.\n'


def watermark_bytes(memory_bytes: int | None) -> int:
    """How much a node of so much memory uses before publishers wait."""
    return int((DEFAULT_BYTES if memory_bytes is None else memory_bytes) * SHARE)


def conf(*, port: int, figures_port: int, max_bytes: int, folder: Path, tls: bool) -> str:
    """rabbitmq.conf. `tls`: clients must speak TLS; certificate, key and authority are in `folder`."""
    listen: dict[str, object] = {"listeners.tcp.1": f"127.0.0.1:{port}"}
    if tls:
        listen = {
            "listeners.tcp": "none",
            "listeners.ssl.1": f"127.0.0.1:{port}",
            "ssl_options.certfile": _plain(folder / "server.crt"),
            "ssl_options.keyfile": _plain(folder / "server.key"),
            "ssl_options.cacertfile": _plain(folder / "ca.crt"),
            "ssl_options.verify": "verify_none",
            "ssl_options.versions.1": "tlsv1.3",
            "ssl_options.versions.2": "tlsv1.2",
        }
    settings: dict[str, object] = {
        **listen,
        "load_definitions": _plain(folder / "definitions.json"),
        "prometheus.tcp.ip": "127.0.0.1",
        "prometheus.tcp.port": figures_port,
        "vm_memory_high_watermark.absolute": max_bytes,
        "disk_free_limit.absolute": DISK_FREE_BYTES,
        "heartbeat": 20,
        "log.file": "false",
        "log.console": "true",
        "log.console.level": "info",
        "log.connection.level": "error",  # each look at whether it answers is a connection
    }
    lines = ["# Written by Springtide; a change is lost at the next start."]
    return "\n".join([*lines, *(f"{name} = {value}" for name, value in settings.items()), ""])


def definitions(password: str) -> str:
    """The one user and virtual host, read at every start. There is no guest."""
    salt = secrets.token_bytes(4)
    digest = base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
    user = {"name": USER, "password_hash": digest, "tags": []}
    right = {"user": USER, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
    return json.dumps({"users": [user], "vhosts": [{"name": "/"}], "permissions": [right]})


def environment(folder: Path, *, epmd_port: int, distribution_port: int) -> dict[str, str]:
    """Where the server finds its files; nothing of the machine's own installation is read or written."""
    return {
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_FLAGS": "-start_epmd false",  # it would be a daemon that outlives the server
        "ERL_INETRC": str(folder / "inetrc"),
        "ERL_CRASH_DUMP_BYTES": "0",
        "RABBITMQ_NODENAME": NODE,
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "no-advanced.config"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RUNNING_UNDER_SYSTEMD": "true",  # no shell stays between us and the server
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitTold:
    """What a RabbitMQ says of itself. `ready`: messages that wait; `taken`: those consumers have in hand."""

    version: str
    connections: int
    memory_bytes: int
    max_bytes: int
    queues: int
    ready: int
    taken: int


def told(figures: str) -> RabbitTold:
    """Read its Prometheus figures. Raises RunnerError when they are none."""
    found = _figures(figures)
    version = re.search(r'rabbitmq_version="([^"]+)"', figures)
    try:
        return RabbitTold(
            version=version[1] if version is not None else "unknown",
            connections=found["rabbitmq_connections"],
            memory_bytes=found["rabbitmq_process_resident_memory_bytes"],
            max_bytes=found["rabbitmq_resident_memory_limit_bytes"],
            queues=found["rabbitmq_queues"],
            ready=found.get("rabbitmq_queue_messages_ready", 0),
            taken=found.get("rabbitmq_queue_messages_unacked", 0),
        )
    except KeyError as error:
        raise RunnerError(f"what RabbitMQ says of itself is not understood: it lacks {error}") from error


def _figures(text: str) -> Mapping[str, int]:
    """Those without labels: they are of the whole server."""
    pairs = re.findall(r"^(rabbitmq_\w+) (\S+)$", text, re.MULTILINE)
    return {name: int(float(value)) for name, value in pairs}


def _plain(path: Path) -> str:
    """As rabbitmq.conf takes it: everything up to the end of the line, without quotes."""
    text = str(path)
    if any(mark in text for mark in "\n\0#'\"\\"):
        raise RunnerError(f"RabbitMQ cannot use a folder with quotes, # or \\ in its name: {text!r}")
    return text
