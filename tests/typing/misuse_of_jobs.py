"""What mypy --strict must refuse: exactly the lines marked so."""

from __future__ import annotations

import msgspec

from springtide.db import WriteTransaction
from springtide.jobs import Handler, Run, Worker, job


@job(kind="a")
class A(msgspec.Struct, frozen=True):
    x: int


@job(kind="b")
class B(msgspec.Struct, frozen=True):
    x: int


class Plain:
    pass


job(kind="c")(Plain)  # fault


class Service:
    async def a(self, job: A, run: Run) -> None: ...

    def b(self, job: B, run: Run) -> None: ...

    async def c(self, job: A) -> None: ...


Handler(B, Service.a)  # fault
Handler(B, Service.b)  # fault
Handler(A, Service.c)  # fault
Handler(A, Service.a, effect="once")  # fault
Worker([], slots=1)  # fault


async def misuse(tx: WriteTransaction) -> None:
    await tx.enqueue(A(1), 5.0)  # fault
    text: str = await tx.enqueue(A(1))  # fault
    print(text)
