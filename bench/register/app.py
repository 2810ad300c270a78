"""Registers over HTTP: `POST /write?key=&value=` answers the version, `GET /read?keys=` versions and values.

Each key of a read is read by a statement of its own, as consistent as the request's `X-Pin` says:

    token     session: what the platform promises
    window    strong within 2 s after the session's last write (`X-Since-Write`), else any server
    none      any server
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

from springtide.context import current
from springtide.db import Consistency, bucket_of
from springtide.identity.tokens import AccessTokens
from springtide.platform import Platform
from springtide.services import Module, ModuleContext

__all__ = ["WINDOW", "Registers", "make", "modules"]

WINDOW = 2.0
"""Seconds."""

READ = "select version, value from register.entry where bucket = $1 and id = $2"

WRITE = """
with done as (
    insert into register.entry as e (bucket, id, version, value) values ($1, $2, 1, $3)
    on conflict (bucket, id) do update set version = e.version + 1, value = excluded.value
    returning version
)
insert into register.past (bucket, id, version, value) select $1, $2, version, $3 from done returning version
"""


class Registers(Protocol):
    async def read(self, key: int, pin: str, since_write: float) -> tuple[int, str | None]: ...

    async def write(self, key: int, value: str) -> int: ...


class Register:
    def __init__(self, context: ModuleContext) -> None:
        self._db = context.db

    async def read(self, key: int, pin: str, since_write: float) -> tuple[int, str | None]:
        """Version and value; 0 and None when the key was never written."""
        consistency = Consistency.SESSION
        if pin in ("none", "window"):
            strong = pin == "window" and since_write < WINDOW
            consistency = Consistency.STRONG if strong else Consistency.EVENTUAL
        row = await self._db.read(key, consistency=consistency).fetch_one(READ, bucket_of(key), key)
        return (row["version"], row["value"]) if row is not None else (0, None)

    async def write(self, key: int, value: str) -> int:
        async with self._db.write(key) as tx:
            version: int = await tx.fetch_value(WRITE, bucket_of(key), key, value)
        return version


def modules() -> list[Module]:
    migrations = Path(__file__).parent / "migrations"
    return [Module("register", migrations=migrations, provides=Registers, factory=Register)]


class Web:
    def __init__(self, registers: Registers, tokens: AccessTokens) -> None:
        self._registers = registers
        self._tokens = tokens

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        context = current()
        signed = headers.get(b"authorization")
        if signed is not None and context is not None:
            context.identity = self._tokens.verify(signed.decode().removeprefix("Bearer ")).identity
        query = dict(parse_qsl(scope["query_string"].decode()))
        if scope["method"] == "POST":
            answer: Any = await self._registers.write(int(query["key"]), query["value"])
        else:
            pin = headers.get(b"x-pin", b"token").decode()
            since_write = float(headers.get(b"x-since-write", b"inf"))
            keys = map(int, query["keys"].split(","))
            answer = [await self._registers.read(key, pin, since_write) for key in keys]
        body = json.dumps(answer).encode()
        fields = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": body})


def make() -> Any:
    platform = Platform.from_topology(modules=modules())
    registers: Registers = platform.service(Registers)
    return platform.wrap(Web(registers, platform.tokens))


def __getattr__(name: str) -> Any:
    """`app`, made when a server asks for it: reading the topology is not for those who want `modules`."""
    if name == "app":
        return make()
    raise AttributeError(name)
