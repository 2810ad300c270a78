"""What happens to orders is counted by day, each once, from events that are appended with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.jobs_support import until
from tests.market.harness import Api, one_platform, settled
from tests.market.ordering import Shop, buyer, shop
from tests.market.test_catalog_api import good, refused, send

from market.analytics.api import Analytics
from market.analytics.store import DayStore
from market.faults import Stale

pytestmark = one_platform

APPENDED = "select (select count(*) from orders._event_new) + (select count(*) from orders._event)"


@pytest_asyncio.fixture(loop_scope="module")
async def there(urls: list[str], home: Path, tmp_path: Path) -> AsyncIterator[Shop]:
    async with shop(urls, home, tmp_path) as made:
        await made.open()
        yield made


async def counted(there: Shop) -> dict[str, int]:
    """All of it, whichever day it was: midnight may come."""
    await settled(there.platform)
    found: dict[str, int] = {}
    for day in await there.platform.service(Analytics).order_days(2):
        numbers = {"placed": day.placed, "confirmed": day.confirmed, "cancelled": day.cancelled, **day.failed}
        found = {what: found.get(what, 0) + numbers.get(what, 0) for what in found | numbers}
    return found


async def test_orders_are_counted_once_whoever_counts(there: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers at once, and counting that fails after it has written: what is counted is what happened."""
    lamp = await there.listing(stock=100)
    placed = [(who, await there.place(who, lamp)) for who in (buyer() for _ in range(12))]
    for _ in range(3):
        await there.place(buyer(), lamp, source="card_declined")
    await there.work()
    for who, order in placed[:4]:
        await there.orders.cancel(order.id, who)
    await there.work()
    wanted = {"placed": 15, "confirmed": 12, "cancelled": 4, "declined": 3}
    add, failures = DayStore.add, 0

    async def fails(store: DayStore, tx: Any, counted: Any) -> None:
        nonlocal failures
        await add(store, tx, counted)
        if failures < 3:
            failures += 1
            raise RuntimeError("after it was written")

    async def all_counted() -> bool:
        found = await counted(there)
        assert all(number <= wanted[what] for what, number in found.items()), found
        return found == wanted

    monkeypatch.setattr(DayStore, "add", fails)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            for service in there.platform._event_worker(5.0):
                await service.start()
                stack.push_async_callback(service.stop)
        await until(all_counted)
    assert failures == 3


async def test_an_event_is_in_the_log_if_its_order_is_there(there: Shop) -> None:
    """Appended with it, and not with one that was refused."""
    orders = there.platform.database("orders")
    lamp, ada = await there.listing(), buyer()
    await there.orders.put(ada, lamp.id, 1)
    with pytest.raises(Stale):
        await there.place(ada, cart_version=99)
    assert await orders.scatter_sum(APPENDED) == 0
    await there.place(ada, lamp)
    await there.work()
    assert await orders.scatter_sum(APPENDED) == 2


async def test_statistics_are_everybodys(api: Api) -> None:
    """Days without orders too; the window has a bound."""
    found = await good(api, "GET", "/statistics?days=3")
    last = date.fromisoformat(found["days"][-1]["day"])
    assert abs((datetime.now(UTC).date() - last).days) <= 1
    assert [day["placed"] for day in found["days"]] == [0, 0, 0]
    assert len((await good(api, "GET", "/statistics"))["days"]) == 30
    for days in ("0", "367", "x"):
        assert list(await refused(api, 422, "GET", f"/statistics?days={days}")) == ["days"]
    known = (await send(api, "GET", "/statistics")).headers["etag"]
    assert (await send(api, "GET", "/statistics", If_None_Match=known)).status_code == 304
