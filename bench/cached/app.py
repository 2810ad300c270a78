"""Registers over HTTP, read through a cache.

    POST /write?key=&value=[&hold=s]   the version, and when its COMMIT was answered; `hold` leaves the
                                       transaction open for so long between the statement and the COMMIT
    GET  /read?keys=&how=              of each key its version, its value and when its read began; null for
                                       a read that was cancelled or whose loader raised, as it was told
    POST /trouble?kind=                from now on some loads are "slow" (after they have read) or "raising",
                                       or some reads are "cancelled"; nothing ends it
    POST /gather?plan=                 let a crowd read within this process (bench/cached/crowd.py), as the
                                       file says; `/disperse` ends it
    GET  /counts                       what was counted
    GET  /clock                        this process's wall clock

`how` is "one" (one read after the other), "many" (all in one call) or "group" (each key by its group's list).
The header `X-Cache` names the cache: "springtide", "aside" or "lease". Times are
those of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec

from bench.cached.crowd import Answer, Crowd, CrowdPlan
from bench.cached.naive import Aside, Leases
from bench.cached.stores import Naive, Ours, Store
from bench.cached.values import LoaderTold, Loading, group_of
from springtide.context import current
from springtide.db import bucket_of
from springtide.identity.tokens import AccessTokens
from springtide.platform import Platform
from springtide.services import Module, ModuleContext

__all__ = ["CROWD", "Registers", "make", "modules"]

T = TypeVar("T")

CROWD = "read by crowds"
"""The count of what the crowd of this process has read."""

WRITE = """
with done as (
    insert into cached.entry as e (bucket, id, version, value) values ($1, $2, 1, $3)
    on conflict (bucket, id) do update set version = e.version + 1, value = excluded.value
    returning version
)
insert into cached.past (bucket, id, version, value) select $1, $2, version, $3 from done returning version
"""


class Registers(Protocol):
    async def read(self, keys: Sequence[int], how: str, cache: str) -> list[Answer]: ...

    async def write(self, key: int, value: str, cache: str, hold: float) -> tuple[int, float]: ...

    async def be_in(self, trouble: str) -> None: ...

    async def gather(self, plan: str) -> None: ...

    async def disperse(self) -> None: ...

    async def counts(self) -> dict[str, int]: ...


class Cached:
    def __init__(self, context: ModuleContext) -> None:
        self._db = context.db
        self._counts: Counter[str] = Counter()
        self._loading = Loading(self._counts)
        self._cancelling = False
        self._crowd: Crowd | None = None
        self._chance = random.Random(os.getpid())
        url = os.environ["CACHED_REDIS"]
        self._naive = {"aside": Aside(url, "aside:"), "lease": Leases(url, "lease:")}
        self._stores: dict[str, Store] = {
            name: Naive(cache, context.db, self._loading) for name, cache in self._naive.items()
        }
        self._ours = self._stores["springtide"] = Ours(context, self._loading)

    async def read(self, keys: Sequence[int], how: str, cache: str) -> list[Answer]:
        store, answers = self._stores[cache], list[Answer]()
        if how == "many":
            began = time.monotonic()
            found = await self._endured(store.entries(keys))
            return [None if found is None else _answer(found[0].get(key), began) for key in keys]
        for key in keys:
            began = time.monotonic()
            if how == "group":
                group = await self._endured(store.group(group_of(key)))
                answers.append(None if group is None else _answer(group[0].member(key), began))
            else:
                one = await self._endured(store.entry(key))
                answers.append(None if one is None else _answer(one[0], began))
        return answers

    async def _endured(self, reading: Coroutine[Any, Any, T]) -> tuple[T] | None:
        """None when it was cancelled, or its loader raised, as it was told."""
        task: asyncio.Task[T] | None = None
        if self._cancelling and self._chance.random() < 0.2:
            task = asyncio.create_task(reading)
            await asyncio.wait([task], timeout=self._chance.uniform(0.0, 0.003))
            if task.cancel():
                self._counts["cancelled reads"] += 1
                await asyncio.wait([task])
                return None
        try:
            return (await (task or reading),)
        except LoaderTold:
            self._counts["reads told to fail"] += 1
            return None

    async def write(self, key: int, value: str, cache: str, hold: float) -> tuple[int, float]:
        store, answered = self._stores[cache], list[float]()
        async with self._db.write(key) as tx:
            version: int = await tx.fetch_value(WRITE, bucket_of(key), key, value)
            tx.on_commit(lambda: answered.append(time.monotonic()))  # before what the cache does then
            store.written(tx, key)
            if hold:
                await asyncio.sleep(hold)
        await store.committed(key)
        return version, answered[0]

    async def be_in(self, trouble: str) -> None:
        self._cancelling = trouble == "cancelled"
        self._loading.trouble = trouble

    async def gather(self, plan: str) -> None:
        self._crowd = Crowd(msgspec.json.decode(Path(plan).read_bytes(), type=CrowdPlan), self)

    async def disperse(self) -> None:
        if self._crowd is not None:
            self._crowd.disperse()

    async def counts(self) -> dict[str, int]:
        seen = {CROWD: self._crowd.journal.reads} if self._crowd is not None else {}
        naive = {f"{name} {what}": n for name, cache in self._naive.items() for what, n in cache.felt.items()}
        return {**self._counts, **naive, **seen, **self._ours.counts()}


def _answer(value: Any, began: float) -> Answer:
    return (0, None, began) if value is None else (value.version, value.value, began)


def modules() -> list[Module]:
    migrations = Path(__file__).parent / "migrations"
    return [Module("cached", migrations=migrations, provides=Registers, factory=Cached)]


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
        cache = headers.get(b"x-cache", b"springtide").decode()
        answer: Any = None
        match scope["path"]:
            case "/write":
                hold = float(query.get("hold", 0))
                answer = await self._registers.write(int(query["key"]), query["value"], cache, hold)
            case "/read":
                keys = [int(key) for key in query["keys"].split(",")]
                answer = await self._registers.read(keys, query["how"], cache)
            case "/trouble":
                await self._registers.be_in(query.get("kind", ""))
            case "/gather":
                await self._registers.gather(query["plan"])
            case "/disperse":
                await self._registers.disperse()
            case "/counts":
                answer = await self._registers.counts()
            case "/clock":
                answer = time.time()
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
