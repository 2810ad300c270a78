"""Events as an application uses them. mypy --strict reads this file; nothing runs it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, assert_type
from uuid import UUID

import msgspec

from springtide.db import Database, WriteTransaction
from springtide.errors import EventFailed
from springtide.events import (
    Delivery,
    EventWorker,
    Group,
    On,
    Publisher,
    Subscription,
    Upcast,
    event,
    kind_of,
    operating,
    publish,
    publish_many,
)  # fmt: skip
from springtide.lifecycle import Service
from springtide.outbox import Bell
from springtide.services import Module, ModuleContext


@event(kind="orders.placed", version=2)
class Placed(msgspec.Struct, frozen=True):
    order_id: int


class Figures(Protocol):
    async def total(self) -> int: ...


class FigureService:
    def __init__(self, context: ModuleContext) -> None:
        self._db = context.db

    async def total(self) -> int:
        return 0

    async def count(self, placed: Placed, delivery: Delivery) -> None:
        assert_type(delivery.id, UUID)
        assert_type(delivery.tx, WriteTransaction)
        if placed.order_id < 0:
            raise EventFailed("no such order")

    async def count_many(self, placed: list[Placed], deliveries: list[Delivery]) -> None:
        assert_type(deliveries[0].again, bool)


group = Group(
    "figures.sales",
    [On(Placed, FigureService.count, effect="transactional", upcasts=[Upcast(1, lambda fields: fields)])],
    source="orders",
    start=datetime(2026, 1, 1, tzinfo=UTC),
    on_dead="block",
)
many = Group("figures.many", [On(Placed, FigureService.count_many, batch=10)], start="now")

module = Module(
    "figures",
    migrations=Path("migrations"),
    provides=Figures,
    factory=FigureService,
    publishes=[Placed],
    groups=[group, many],
)


async def use(db: Database, bell: Bell) -> None:
    db.publish = Publisher(names=[kind_of(Placed).name], bell=bell)
    async with db.write(7) as tx:
        assert_type(await tx.publish(Placed(7), key="order 7"), UUID)
        assert_type(await tx.publish_many([Placed(7)]), list[UUID])
        assert_type(await publish(tx, Placed(7)), UUID)
        assert_type(await publish_many(tx, [Placed(7)], key="k"), list[UUID])
    subscription = Subscription(group=group, log=db, implementation=None)
    worker: Service = EventWorker(
        [subscription], dsns={"main": "postgresql://"}, keep=60.0, keep_at_most=90.0
    )
    await worker.start()
    assert_type(await operating.replay(db, "figures.sales", 7), int)
    assert_type(await operating.replay(db, "figures.sales", "now", shard="main", lane=3), int)
