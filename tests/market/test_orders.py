"""Placing an order: what is sold is paid once, what is not sold costs nothing, whoever fails when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.market.catalog import ANNA, BERT
from tests.market.harness import one_platform
from tests.market.ordering import Shop, buyer, shop

pytestmark = one_platform


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _shop_of_1(
    _databases: list[str], home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shop]:
    async with shop(_databases[:1], home, tmp_path_factory.mktemp("one")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _shop_of_2(
    _databases: list[str], home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shop]:
    async with shop(_databases, home, tmp_path_factory.mktemp("two")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def there(request: pytest.FixtureRequest, urls: list[str], _shop_of_1: Shop, _shop_of_2: Shop) -> Shop:
    """Two sellers and a provider that is well; nothing else."""
    made = _shop_of_1 if len(urls) == 1 else _shop_of_2
    await made.open()
    return made


async def test_an_order_is_paid_once_and_sold(there: Shop) -> None:
    """Of two sellers, on any shards; each line remembers what it was."""
    lamp, book = await there.listing(), await there.listing(BERT, title="A book")
    ada = buyer()
    order = await there.place(ada, lamp, book, quantity=2)
    assert (order.state, order.reason) == ("confirmed", None)
    assert order.total == lamp.price * 4
    assert {(line.seller_id, line.title) for line in order.lines} == {(ANNA, "A lamp"), (BERT, "A book")}
    assert await there.left(lamp) == await there.left(book) == (3, 0)
    await there.work()
    assert (await there.orders.history(ada, 10, None)).items == [await there.orders.order(order.id, ada)]
    assert await there.check()
