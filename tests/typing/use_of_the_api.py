"""The public API as an application uses it. mypy --strict reads this file; nothing runs it."""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Protocol, assert_type

import msgspec
from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection

from springtide.cache.behind import Changed, WriteBehind
from springtide.clock import Clock, SystemClock
from springtide.context import Part, RequestContext, activate, current
from springtide.db import Database, WriteTransaction
from springtide.errors import SpringtideError, Unavailable
from springtide.identity.keys import KeyRing
from springtide.identity.passwords import Passwords, Verified
from springtide.identity.tokens import AccessTokens, Claims
from springtide.lifecycle import Group, Periodic, Service, StartStop, Supervised
from springtide.platform import Platform
from springtide.services import Background, Module, ModuleContext, raises
from springtide.signals import FanOut, NullSink, Signal, Sink
from springtide.testing import ManualClock, stress
from springtide.topology import Topology, load
from springtide.web.caching import CachingLayer, HttpPolicy, cacheable, unchanged
from springtide.web.fastapi import install, service


class Greeting(msgspec.Struct, frozen=True):
    text: str


class Rude(SpringtideError):
    """Somebody was rude."""


class Greeter(Protocol):
    @raises(Rude)
    async def greet(self, name: str, *, loud: bool = False) -> Greeting: ...


class Polite:
    def __init__(self, context: ModuleContext) -> None:
        assert_type(context.db, Database)
        assert_type(context.clock, Clock)
        assert_type(context.passwords, Passwords)
        assert_type(context.tokens, AccessTokens)

    async def greet(self, name: str, *, loud: bool = False) -> Greeting:
        return Greeting(f"Hello {name}{'!' if loud else '.'}")

    async def sweep(self) -> None:
        return None


MODULES = [
    Module(
        "greeter",
        migrations=Path("migrations"),
        provides=Greeter,
        factory=Polite,
        requires=(),
        background=[Background(name="sweep", every=60.0, method=Polite.sweep)],
    )
]


class Deaf:
    def emit(self, signal: Signal) -> None:
        return None


async def platform() -> None:
    topology = load(Path("springtide.toml"))
    assert_type(topology, Topology)
    async with Platform(topology, modules=MODULES, sink=Deaf()) as running:
        greeter = running.service(Greeter)
        assert_type(greeter, Greeter)
        assert_type(await greeter.greet("you", loud=True), Greeting)
        assert_type(running.database("greeter"), Database)
        work: list[Service] = running.background()
        assert_type(work, list[Service])


async def rim(greeter: Annotated[Greeter, Depends(service(Greeter))], platform: Platform) -> None:
    install(FastAPI(), platform)
    provided: Callable[[HTTPConnection], Awaitable[Greeter]] = service(Greeter)
    assert_type(greeter, Greeter)
    assert_type(provided, Callable[[HTTPConnection], Awaitable[Greeter]])


async def identity() -> None:
    passwords = Passwords(concurrency=2)
    verdict = await passwords.verify("secret", await passwords.hash("secret"))
    assert_type(verdict, Verified)
    assert_type(verdict.ok, bool)
    tokens = AccessTokens(lambda: KeyRing([]), issuer="me", audience="you")
    assert_type(tokens.verify(tokens.issue(7, scopes=["read"])), Claims)


async def core() -> None:
    sink: Sink = FanOut([NullSink(), Deaf()])

    async def nothing() -> None:
        return None

    services: list[Service] = [
        Supervised("a", nothing, clock=ManualClock()),
        Periodic("b", nothing, every=1.0, clock=SystemClock(), sink=sink),
        StartStop("c", nothing, nothing),
    ]
    group: Service = Group("all", services)
    await stress(lambda: group)
    with activate(RequestContext()) as context:
        context.ledger.add(Part.CPU, 0.1)
        assert_type(current(), RequestContext | None)
    try:
        await nothing()
    except Unavailable as error:
        assert_type(error.retry_after, float | None)


@cacheable(HttpPolicy(public=True, edge_max_age=30, vary=("Accept-Language",)))
async def shown(slug: str) -> dict[str, str]:
    assert_type(unchanged(slug, 7), bool)
    return {"slug": slug}


@cacheable(ignores_cookies=True)
def plainly(slug: str) -> str:
    return slug


async def behind(database: Database) -> None:
    async def apply(tx: WriteTransaction, changes: Mapping[Changed, int]) -> None:
        assert_type(changes[7], int)

    views = WriteBehind("views", database, int, merge=operator.add, apply=apply, every=0.5)
    async with database.write(7) as tx:
        await views.put(7, 1, tx=tx)
    assert_type(await views.pending(7), int | None)
    assert_type(await views.flush(), int)
    started: Service = views.service()
    await started.start()
    assert_type(await shown("a"), dict[str, str])
    assert_type(plainly("a"), str)
    CachingLayer(FastAPI(), trusted_proxies=["10.0.0.0/8"], personal_headers=["X-Api-Key"])
