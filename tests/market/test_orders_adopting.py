"""Orders that the release before has begun: it runs on the same tables, and none of them is left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.market.ordering import HOME, Shop, buyer, shop, wanted
from tests.market.paying import CARD

from market.catalog.api import Listing
from market.orders import reasons
from market.orders.api import Order
from market.orders.jobs import Advance
from springtide.db import bucket_of

INSERT = """
insert into orders.placed
    (bucket, id, buyer_id, state, lines, amount, currency, source, address, cart_version, pay_by, due_at,
     created_at, updated_at)
values ($1, $2, $3, 'placing', $4, $5, $6, $7, $8, null, $9, $10, $11, $11)
"""
"""Of the release before."""

LEAVE = """
update orders.placed set flow = null, state = $3, step = $4, reason = $5, due_at = now() - interval '1 s'
where bucket = $1 and id = $2
"""

LEFT = "select id from orders.placed where due_at is not null"


@pytest.fixture
def shards() -> int:
    return 2


@pytest.fixture
async def there(urls: list[str], home: Path, tmp_path: Path) -> AsyncIterator[Shop]:
    async with shop(urls, home, tmp_path) as made:
        await made.open()
        yield made


async def begun(there: Shop, listing: Listing) -> tuple[int, int]:
    """Who has ordered, and the order: nothing is done of it, and its request is dead."""
    ada, at = buyer(), datetime.now(UTC) - timedelta(minutes=1)
    id = await there.db.ids.take(ada)
    async with there.db.write(id) as tx:
        await tx.execute(
            INSERT, bucket_of(id), id, ada, msgspec.to_builtins(wanted(listing)), listing.price.amount,
            "EUR", CARD, msgspec.to_builtins(HOME), at + timedelta(minutes=15), at + timedelta(seconds=30),
            at,
        )  # fmt: skip
    return ada, id


async def leave(there: Shop, order: Order, state: str, step: int, reason: Any = None) -> None:
    """As the release before would have left it there."""
    flow, bucket = await there.flow(order.id), bucket_of(order.id)
    async with there.db.write(order.id) as tx:
        await tx.execute("delete from orders._job where bucket = $1 and id = $2", bucket, flow.job_id)
        await tx.execute("delete from orders._flow where bucket = $1 and id = $2", bucket, flow.id)
        await tx.execute(LEAVE, bucket, order.id, state, step, reason)


async def test_what_the_release_before_has_begun_comes_to_its_end(there: Shop) -> None:
    """Found by its time or by the job that it left: paid once and sold, or undone; and told. One of which
    more was done than a crash left on record is undone."""
    lamp = await there.listing(stock=9)
    placing, by_job = await begun(there, lamp), await begun(there, lamp)
    done = {name: await there.place(buyer(), lamp) for name in ("unrecorded", "confirmed", "cancelling")}
    await there.provider.behave(down=True)
    done["awaiting"] = await there.place(buyer(), lamp)
    await there.provider.behave()
    await leave(there, done["unrecorded"], "placing", 0)
    await leave(there, done["confirmed"], "confirmed", 3)
    await leave(there, done["cancelling"], "cancelling", 3, msgspec.to_builtins(reasons.BUYER))
    await leave(there, done["awaiting"], "awaiting_payment", 1)
    async with there.db.write(by_job[1]) as tx:
        await tx.enqueue(Advance(by_job[1]), unique_key=str(by_job[1]))
        await tx.execute(
            "update orders.placed set due_at = now() + interval '5 hours' where bucket = $1 and id = $2",
            bucket_of(by_job[1]), by_job[1],
        )  # fmt: skip
    await there.service.adopt()
    await there.work()
    orders = {name: (order.buyer_id, order.id) for name, order in done.items()}
    orders |= {"placing": placing, "by job": by_job}
    for name, (ada, id) in orders.items():
        order = await there.orders.order(id, ada)
        ended = {"cancelling": "cancelled", "unrecorded": "failed"}.get(name, "confirmed")
        assert order.state == ended, name
    assert await there.left(lamp) == (5, 0)
    assert len((await there.provider.journal())["charges"]) == 6
    assert await there.db.scatter(LEFT) == []
    assert await there.check()


async def test_what_the_release_before_has_begun_is_cancelled(there: Shop) -> None:
    """By its buyer, before anybody has adopted it, at its beginning and at its end."""
    lamp = await there.listing()
    ada, id = await begun(there, lamp)
    sold = await there.place(buyer(), lamp)
    await leave(there, sold, "confirmed", 3)
    for who, order in ((ada, id), (sold.buyer_id, sold.id)):
        assert (await there.orders.cancel(order, who)).state == "cancelled"
    await there.service.adopt()
    await there.work()
    for who, order in ((ada, id), (sold.buyer_id, sold.id)):
        assert (await there.orders.order(order, who)).state == "cancelled"
    assert await there.left(lamp) == (5, 0)
    assert await there.check()
