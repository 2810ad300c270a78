"""One attempt to connect, with everything that must be known before the link is handed out.

One round trip after the connection: login, name, database, and INFO for what the server is.

A link's `run_id` names the run of the server and its replication history, which Redis begins anew whenever a
replica is promoted. One that was a replica for a while, and never restarted, has had the data of another
server meanwhile: what was built from its run id before must not be found again. Its first replica, too, and
an hour without any, begin a history; then the link is exchanged for nothing, which does no harm.
Refused for ever (ConfigurationError): a login that is wrong, a command that the user may not use, a database
that is not there, a server older than MIN_VERSION or of another kind, TLS files that cannot be read. For now
(RedisUnavailable): all else, among it a replica where a primary is needed and a server that loads its data.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from springtide.errors import ConfigurationError, RedisError, RedisUnavailable
from springtide.redis._address import Endpoint, Login, Tls
from springtide.redis.link import Link

__all__ = ["CLUSTER", "SENTINEL", "STANDALONE", "Connector", "facts"]

MIN_VERSION = (6, 2)

STANDALONE, SENTINEL, CLUSTER = "standalone", "sentinel", "cluster"
"""What INFO calls the kinds of server."""

HOPELESS = ("WRONGPASS", "NOAUTH", "NOPERM")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """`mode`: what INFO must call the server."""

    login: Login
    db: int
    tls: Tls | None
    name: str
    mode: str
    timeout: float
    connect_timeout: float

    async def __call__(self, endpoint: Endpoint, *, block: float = 0.0) -> Link:
        """A link to `endpoint`. Raises RedisUnavailable or ConfigurationError; leaves nothing behind then."""
        link = Link(str(endpoint), timeout=self.timeout, block=block)
        try:
            async with asyncio.timeout(self.connect_timeout):
                await self._open(endpoint, link)
                await self._greet(link)
        except TimeoutError as error:
            link.close()
            what = f"no connection within {self.connect_timeout:g} s"
            raise RedisUnavailable(link.address, what) from error
        except OSError as error:
            link.close()
            raise RedisUnavailable(link.address, f"no connection: {error}") from error
        except BaseException:
            link.close()
            raise
        return link

    async def _open(self, endpoint: Endpoint, link: Link) -> None:
        loop = asyncio.get_running_loop()
        secure = await asyncio.to_thread(_context, self.tls) if self.tls is not None else None
        if endpoint.path:
            await loop.create_unix_connection(lambda: link, endpoint.path)
            return
        transport, _ = await loop.create_connection(lambda: link, endpoint.host, endpoint.port, ssl=secure)
        plain = transport.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    async def _greet(self, link: Link) -> None:
        asked: list[tuple[str, asyncio.Future[Any]]] = []

        def ask(what: str, *command: str | int) -> asyncio.Future[Any]:
            future = link.send(*command)
            asked.append((what, future))
            return future

        if self.login.password:
            user = (self.login.username,) if self.login.username else ()
            ask("the login", "AUTH", *user, self.login.password)
        ask("CLIENT SETNAME", "CLIENT", "SETNAME", self.name)
        if self.db:
            ask(f"database {self.db}", "SELECT", self.db)
        info = ask("INFO", "INFO", "server")
        loading = ask("INFO", "INFO", "persistence") if self.mode != SENTINEL else None
        role = ask("INFO", "INFO", "replication") if self.mode != SENTINEL else None
        slots = ask("CLUSTER INFO", "CLUSTER", "INFO") if self.mode == CLUSTER else None
        for what, future in asked:
            try:
                await future
            except RedisError as error:
                if error.code in HOPELESS or what.startswith("database"):
                    raise ConfigurationError(f"{error}: {what} was refused") from error
                if what != "CLUSTER INFO":  # of a server without cluster mode, which is said better below
                    raise RedisUnavailable(link.address, f"{what} was refused: {error.what}") from error
        self._judge(link, facts(await info))
        if loading is not None and facts(await loading).get("loading") == "1":
            raise RedisUnavailable(link.address, "the server is loading its data")
        if role is not None:
            stands = facts(await role)
            if (found := stands.get("role", "server of an unknown role")) != "master":
                raise RedisUnavailable(link.address, f"it is a {_role(found)}, and a primary is needed")
            link.run_id += _history(stands)
        if slots is not None:
            link.run_id += _epoch(await slots)

    async def changed(self, link: Link) -> str | None:
        """Why the server of `link` is not what it was when it was connected to; None while it is.

        Raises RedisUnavailable when it does not answer in time.
        """
        role, slots = link.send("INFO", "replication"), None
        if self.mode == CLUSTER:
            slots = link.send("CLUSTER", "INFO")
        try:
            stands = facts(await role)
            if stands.get("role") != "master":
                return "it is no primary any more"
            if link.run_id.split(":")[1] != _history(stands)[1:]:
                return "its replication history is another one"
            if slots is not None and not link.run_id.endswith(_epoch(await slots)):
                return "the node took over slots"
        except RedisError as error:
            return f"it does not say what it is: {error.what}"
        return None

    def _judge(self, link: Link, server: dict[str, str]) -> None:
        shown = server.get("redis_version", "unknown")
        link.version = tuple(int(part) for part in re.findall(r"\d+", shown)[:3])
        link.run_id = server.get("run_id", "")
        mode = server.get("redis_mode", "unknown")
        if link.version < MIN_VERSION:
            needed = ".".join(map(str, MIN_VERSION))
            raise ConfigurationError(f"redis {link.address}: its version must be >= {needed}, got {shown}")
        if mode != self.mode:
            raise ConfigurationError(f"redis {link.address}: it must run as {self.mode}, got {mode}")
        if not link.run_id:
            raise ConfigurationError(f"redis {link.address}: INFO server must give a run id")


def facts(text: bytes) -> dict[str, str]:
    """What INFO says, by key."""
    lines = text.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _epoch(info: bytes) -> str:
    return f":{facts(info)['cluster_my_epoch']}"


def _history(stands: dict[str, str]) -> str:
    return f":{stands.get('master_replid', '')}"


def _role(found: str) -> str:
    return "replica" if found == "slave" else found


def _context(tls: Tls) -> ssl.SSLContext:
    """Reads files, so not in the loop; anew for each connection, so that renewed certificates are found."""
    try:
        made = ssl.create_default_context(cafile=tls.authorities or None)
        made.check_hostname = tls.check_hostname
        if tls.certificate:
            made.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        files = ", ".join(filter(None, (tls.authorities, tls.certificate, tls.key)))
        raise ConfigurationError(
            f"the files of TLS must be readable PEM files, got {files}: {error}"
        ) from error
    return made
