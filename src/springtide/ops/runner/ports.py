"""The public socket: bound once by the supervisor, handed to every app server, so none can lose it."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from pathlib import Path

from springtide.errors import RunnerError

__all__ = ["bind", "holder", "is_free"]

BACKLOG = 2048


def bind(host: str, port: int, *, remedy: str) -> socket.socket:
    """A listening socket on `host`:`port` (0: a free port).

    Raises RunnerError saying who has the port, and `remedy`.
    """
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise RunnerError(f"servers.host {host!r} is no address of this machine: {error.strerror}") from error
    listener = socket.socket(info[0], socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(info[4])
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            by = f" by {who}" if (who := holder(port)) else ""
            raise RunnerError(f"port {port} on {host} is taken{by}: {remedy}") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise RunnerError(f"port {port} needs a right that you do not have: {remedy}") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise RunnerError(f"servers.host {host!r} is no address of this machine") from None
        raise RunnerError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def is_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether nobody has `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def holder(port: int) -> str | None:
    """Who listens on `port`: "process 123 (nginx)"; None when we may not know."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):  # ended meanwhile, or another user's
            for link in (process / "fd").iterdir():
                if str(link.readlink()) in inodes:
                    return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return None
