"""Clients of the register, a process of its own: sessions that read and write, and a record of what they saw.

    python -m bench._sessions PLAN      (a file that holds a `Plan` as JSON)

A session of kind "cookie" keeps cookies as a browser does, "header" hands the token back in a header, and
"bearer" sends its access token and returns nothing that it was given. Half of the cookie and of the bearer
sessions have two requests under way at once, as pages do. Half of the sessions ask without a pause; the
others think between requests as people do, so that some of their reads come seconds after a write. Every
request goes to an app process chosen at random. A line with the number of reads so far is printed twice a
second. When stdin ends, the record is written and the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
import uvloop

__all__ = ["HEADER", "KINDS", "Plan", "Record"]

KINDS = ("cookie", "header", "bearer")
HEADER = "springtide-causality"
TIMEOUT = 15.0
THINK = 0.5
"""Mean seconds that a session which thinks waits between two turns; exponential."""
IDLE = 3.0
"""Seconds after which a connection is not used again: the server closes it after 5."""


class Record(msgspec.Struct, array_like=True):
    """One operation. Writes have `outcome` "ok" or "unknown", reads "read"; version 0 is "nothing there"."""

    session: str
    key: str
    value: str | None
    version: int
    began: float
    ended: float
    outcome: str


class Plan(msgspec.Struct):
    """What one client process does. `pin` is how the app chooses a server: "token", "window" or "none"."""

    urls: list[str]
    name: str
    sessions: int
    tokens: list[str]
    """Access tokens of the bearer sessions, in turn."""
    keys: list[int]
    pin: str
    writes: float
    """Share of requests that write."""
    reads: int
    """Keys that a request reads, one after the other."""
    out: str
    seed: int


class Lost(Exception):
    """No whole answer came."""


class _Wire(asyncio.Protocol):
    """One TCP connection, one request at a time."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, bytes, bytes]] | None = None
        self.used = time.monotonic()
        self.transport: asyncio.Transport | None = None
        self._buffer = b""

    @property
    def answered(self) -> bool:
        """Whether a part of the answer to the last message has come."""
        return bool(self._buffer)

    @property
    def fresh(self) -> bool:
        open = self.transport is not None and not self.transport.is_closing()
        return open and time.monotonic() - self.used < IDLE

    def send(self, message: bytes) -> asyncio.Future[tuple[int, bytes, bytes]]:
        assert self.transport is not None
        self._buffer = b""
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(message)
        return self.answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = _header(head, b"content-length")
        if len(body) < int(length[0] if length else 0):
            return
        self.used = time.monotonic()
        if self.answer is not None and not self.answer.done():
            self.answer.set_result((int(head[9:12]), head, body))

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error or ConnectionResetError("the server closed the connection"))


class Connection:
    """To one app process; connects again when there is no connection that may be used."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._host = parts.netloc
        self._wire: _Wire | None = None

    async def ask(self, method: str, path: str, headers: Sequence[str]) -> tuple[int, bytes, bytes]:
        """Status, head and body. Raises Lost.

        A server may close a connection that idles, at the moment in which it is used again. A GET that got no
        byte on a used connection is asked once more on a new one, as every client does (RFC 9112, 9.3.1).
        """
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}", *headers]
        if method == "POST":
            lines.append("Content-Length: 0")
        message = "\r\n".join([*lines, "", ""]).encode()
        try:
            async with asyncio.timeout(TIMEOUT):
                wire, used = self._wire, True
                if wire is None or not wire.fresh:
                    wire, used = await self._connect(), False
                try:
                    return await wire.send(message)
                except ConnectionError:
                    if not used or wire.answered or method != "GET":
                        raise
                return await (await self._connect()).send(message)
        except (OSError, TimeoutError) as error:
            self.close()
            raise Lost(type(error).__name__) from error

    async def _connect(self) -> _Wire:
        self.close()
        _, self._wire = await asyncio.get_running_loop().create_connection(_Wire, *self._address)
        return self._wire

    def close(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None and wire.transport is not None:
            wire.transport.abort()


def _header(head: bytes, name: bytes) -> list[bytes]:
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return [value.strip() for found, _, value in lines if found.lower() == name]


@dataclass
class Session:
    """What the session keeps between its requests."""

    name: str
    kind: str
    token: str
    cookies: dict[str, str] = field(default_factory=dict)
    header: str = ""
    wrote: float = float("-inf")

    def headers(self, pin: str) -> list[str]:
        lines = [f"X-Pin: {pin}"]
        if pin == "window":
            lines.append(f"X-Since-Write: {min(time.monotonic() - self.wrote, 1e6):.4f}")
        if self.kind == "bearer":
            lines.append(f"Authorization: Bearer {self.token}")
        elif self.kind == "header" and self.header:
            lines.append(f"{HEADER}: {self.header}")
        elif self.kind == "cookie" and self.cookies:
            lines.append("Cookie: " + "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        return lines

    def heard(self, head: bytes) -> None:
        if self.kind == "cookie":
            for line in _header(head, b"set-cookie"):
                pair, *attributes = line.decode().split(";")
                name, _, value = pair.partition("=")
                if any(one.strip().lower() == "max-age=0" for one in attributes):
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = value
        elif self.kind == "header":
            for line in _header(head, HEADER.encode()):
                self.header = line.decode()


class Clients:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._chance = random.Random(plan.seed)
        self.records: list[Record] = []
        self.failed: Counter[str] = Counter()
        self.reads = 0
        self._numbers = iter(range(10**9))

    async def run(self, ended: asyncio.Event) -> None:
        plan = self._plan
        async with asyncio.TaskGroup() as group:
            for number in range(plan.sessions):
                kind = KINDS[number % len(KINDS)]
                token = plan.tokens[number // len(KINDS)] if kind == "bearer" else ""
                session = Session(f"{plan.name}-{number}-{kind}", kind, token)
                keys = self._chance.sample(plan.keys, 2 * plan.reads)
                lanes = 1 if kind == "header" or number % 2 else 2
                think = THINK if number // (2 * len(KINDS)) % 2 else 0.0
                group.create_task(self._begin(session, keys, lanes, think, ended))

    async def _begin(
        self, session: Session, keys: list[int], lanes: int, think: float, ended: asyncio.Event
    ) -> None:
        """A session begins with a write: whoever has never written and is nobody known is given no token."""
        connection = Connection(self._plan.urls[0])
        while not ended.is_set() and session.wrote < 0:
            await self._write(session, connection, keys[0])
        connection.close()
        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(self._live(session, keys, think, ended))

    async def _live(self, session: Session, keys: list[int], think: float, ended: asyncio.Event) -> None:
        """One turn after the other; every write is followed by a read of what was written."""
        connections = [Connection(url) for url in self._plan.urls]
        chance = self._chance
        try:
            while not ended.is_set():
                chosen = chance.sample(keys, self._plan.reads)
                if chance.random() < self._plan.writes:
                    await self._write(session, chance.choice(connections), chosen[0])
                await self._read(session, chance.choice(connections), chosen)
                if think:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(ended.wait(), chance.expovariate(1 / think))
        finally:
            for connection in connections:
                connection.close()

    async def _write(self, session: Session, connection: Connection, key: int) -> None:
        value = f"{session.name}.{next(self._numbers)}"
        began = time.monotonic()
        body = await self._ask(session, connection, "POST", f"/write?key={key}&value={value}")
        ended = time.monotonic()
        if body is not None:
            session.wrote = ended
        version = 0 if body is None else int(json.loads(body))
        outcome = "unknown" if body is None else "ok"
        self.records.append(Record(session.name, str(key), value, version, began, ended, outcome))

    async def _read(self, session: Session, connection: Connection, keys: list[int]) -> None:
        began = time.monotonic()
        body = await self._ask(session, connection, "GET", f"/read?keys={','.join(map(str, keys))}")
        ended = time.monotonic()
        if body is None:
            return
        for key, (version, value) in zip(keys, json.loads(body), strict=True):
            self.records.append(Record(session.name, str(key), value, version, began, ended, "read"))
        self.reads += len(keys)

    async def _ask(self, session: Session, connection: Connection, method: str, path: str) -> bytes | None:
        """The body; None when the request failed, which is counted."""
        try:
            status, head, body = await connection.ask(method, path, session.headers(self._plan.pin))
        except Lost as error:
            self.failed[f"{method} {error}"] += 1
            return None
        session.heard(head)
        if status != 200:
            kind = json.loads(body).get("title", "") if body[:1] == b"{" else ""
            self.failed[f"{method} {status} {kind}"] += 1
            return None
        return body


async def main(plan: Plan) -> None:
    clients = Clients(plan)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, lambda: None if sys.stdin.buffer.read1() else ended.set())
    running = asyncio.create_task(clients.run(ended))
    while not running.done():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(running), 0.5)
        print(clients.reads, flush=True)
    loop.remove_reader(sys.stdin)
    running.result()
    found: dict[str, Any] = {"records": clients.records, "failed": dict(clients.failed)}
    Path(plan.out).write_bytes(msgspec.msgpack.encode(found))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Plan)))
