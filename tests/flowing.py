"""A module with workflows for tests: an order that is reserved, paid, packed and sent, and who does that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from tests.jobs_support import FAST, until
from tests.sharded import SHARDS

from springtide.db import Bucket, Database
from springtide.errors import StepRefused
from springtide.flows import Flows, FlowStatus, FlowUpkeep, Step, StepRun, Workflow
from springtide.jobs import Queue, Worker


class Order(msgspec.Struct, frozen=True):
    id: str
    paid: int = 0
    parcel: str = ""


Act = Callable[[str, Order, StepRun], Awaitable[Any]]


class Shop:
    """Writes down what happens (`deeds.effect`: what, and the key of the run) and does what a test says.

    `act` is called with `do reserve`, `undo pay` and so on, before the effect; what it returns is the step's.
    """

    def __init__(self, database: Database, act: Act | None = None) -> None:
        self.database = database
        self.calls: list[str] = []
        self._act = act

    async def happen(self, what: str, order: Order, run: StepRun) -> Any:
        self.calls.append(what)
        value = await self._act(what, order, run) if self._act is not None else None
        async with self.database.write(order.id) as tx:
            await tx.execute(
                "insert into deeds.effect (bucket, what, job) values ($1, $2, $3)",
                tx.bucket, f"{order.id} {what}", run.key,
            )  # fmt: skip
        return value

    def refuse(self, order: Order) -> None:
        """Called before an order is refused."""

    async def reserve(self, order: Order, run: StepRun) -> Any:
        return await self.happen("do reserve", order, run)

    async def release(self, order: Order, run: StepRun) -> None:
        await self.happen("undo reserve", order, run)

    async def pay(self, order: Order, run: StepRun) -> Any:
        return await self.happen("do pay", order, run) or msgspec.structs.replace(order, paid=7)

    async def give_back(self, order: Order, run: StepRun) -> None:
        await self.happen("undo pay", order, run)

    async def send(self, order: Order, run: StepRun) -> Any:
        if order.id.startswith("unsendable"):
            self.refuse(order)
            raise StepRefused("nobody lives there")
        return await self.happen("do send", order, run)


QUICK: dict[str, Any] = {"max_attempts": 3, "backoff": 0.01, "max_backoff": 0.05}
UNDONE: dict[str, Any] = {**QUICK, "undo_attempts": 3}

RESERVE = Step("reserve", Shop.reserve, undo=Shop.release, effect="transactional", **UNDONE)
PAY = Step("pay", Shop.pay, undo=Shop.give_back, **UNDONE)
SEND = Step("send", Shop.send, effect="transactional", **QUICK)

PLACE = Workflow("shop.place", Order, [RESERVE, PAY, SEND])


@asynccontextmanager
async def running(flows: Flows, shop: Shop, urls: Sequence[str], **options: Any) -> AsyncIterator[Worker]:
    """A worker for the flows, and their upkeep."""
    queue = Queue(database=flows.database, handlers=flows.handlers, implementation=shop)
    worker = Worker([queue], dsns=dict(zip(SHARDS, urls, strict=False)), **{**FAST, **options})
    upkeep = FlowUpkeep(flows, every=0.1, measure=0.1)
    await worker.start()
    await upkeep.start()
    try:
        yield worker
    finally:
        await upkeep.stop()
        await worker.stop()


async def begin(flows: Flows, id: str, workflow: Workflow[Order] = PLACE, **options: Any) -> Any:
    async with flows.database.write(id) as tx:
        return await flows.start(tx, workflow, Order(id), **options)


async def reach(flows: Flows, key: str, id: Any, *states: str) -> FlowStatus:
    """Wait until the flow is in one of these states."""
    found: list[FlowStatus] = []

    async def there() -> bool:
        status = await flows.look(key, id)
        assert status is not None
        found.append(status)
        return status.state in states

    try:
        await until(there)
    except TimeoutError:
        raise AssertionError(f"{key} is {found[-1]}, not {states}") from None
    return found[-1]


async def effects(database: Database, id: str) -> list[str]:
    """What happened to an order, in its order."""
    rows = await database.scatter("select id, what from deeds.effect")
    rows.sort(key=lambda row: row["id"])
    return [row["what"].removeprefix(f"{id} ") for row in rows if row["what"].startswith(f"{id} ")]


async def cancel(flows: Flows, status_or_bucket: int, id: Any, **options: Any) -> bool:
    async with flows.database.write(Bucket(status_or_bucket)) as tx:
        return await flows.cancel(tx, id, **options)
