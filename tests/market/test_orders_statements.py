"""What the orders module asks of the database: by which plans, and how many statements an order takes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.market import tiers
from tests.market.harness import Recorder, uncached
from tests.market.ordering import shop
from tests.market.plans import plan_faults, scaled

from market.orders import store

BUYER = 700
ORDER = (9_000 << 10) + BUYER
NOW = datetime(2026, 1, 1, tzinfo=UTC)
DEEP = (datetime(2020, 1, 1, tzinfo=UTC), 1)

SCALE = """
insert into orders.cart (bucket, buyer_id, version, lines, updated_at)
    select n & 1023, n, 1, '[]', now() from generate_series(0, 2999) n;
insert into orders.placed
    (bucket, id, buyer_id, state, lines, amount, currency, source, address, cart_version, pay_by, created_at,
     updated_at)
    select n % 1000, (n << 10) + n % 1000, n % 1000, 'confirmed', '[]', 100, 'EUR', 'card', '{}', n, now(),
        now() - n * interval '1 s', now()
    from generate_series(0, 29999) n;
insert into orders.sale (bucket, seller_id, order_id, state, lines, sold_at, version)
    select n % 500, n % 500, n, 'open', '[]', now() - n * interval '1 s', 1 from generate_series(0, 29999) n;
analyze orders.cart, orders.placed, orders.sale;
"""


def page(sql: str, keyset: Any, *args: object, after: tuple[object, ...] = ()) -> Any:
    """The statement of one page, as the store makes it."""
    columns = ", ".join(column.expression for column in keyset.columns)
    marks = ", ".join(f"${len(args) + 1 + number}" for number in range(len(after)))
    condition = f"({columns}) < ({marks})" if after else "true"
    return f"{sql.format(condition=condition)} order by {keyset.order_by} limit 21", (*args, *after)


HOT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "cart": (store.CART, (BUYER, BUYER)),
    "order": (store.ORDER, (BUYER, ORDER)),
    "lock": (store.LOCK, (BUYER, ORDER)),
    "due": (f"{store.DUE} order by due_at, id limit 100", (NOW,)),
    "of a cart": (store.OF_CART, (BUYER, BUYER, 1700)),
    "turn": (store.TURN, (BUYER, ORDER, "confirmed", ["placing"], None, None)),
    "history": page(store.HISTORY, store.NEWEST, BUYER, BUYER),
    "history, next page": page(store.HISTORY, store.NEWEST, BUYER, BUYER, after=DEEP),
    "sales": page(store.SALES, store.LATEST, 400, 400),
    "every": (store.EVERY.format(condition="true") + " order by bucket, id limit 200", ()),
}


@pytest.fixture
def shards() -> int:
    return 1


OF_AN_ORDER = [
    "INSERT INTO orders._idempotency",
    "BEGIN",  # the order, its workflow, what is said of it and the record of the request
    "INSERT INTO orders._job",
    "INSERT INTO orders._flow",
    "insert into orders.placed",
    "INSERT INTO orders._event_new",
    "UPDATE orders._idempotency",
    "COMMIT",
    "SELECT bucket, id, kind, version,",  # the workflow, as it is driven
    "WITH moved AS",  # its stock is reserved
    "WITH moved AS",  # it is charged
    "BEGIN",  # it is sold, and waits for its seller
    "SELECT pg_advisory_xact_lock",
    "WITH moved AS",
    "update orders.placed",
    "INSERT INTO orders._event_new",
    "INSERT INTO orders._job",
    "COMMIT",
    "select id, buyer_id, state, reason,",
]
"""That it takes of its own database, beside those of the catalog and the payments."""


@pytest.fixture
async def large(urls: list[str]) -> AsyncIterator[asyncpg.Connection]:
    """30,000 orders, as the planner sees them after ANALYZE."""
    async with scaled(urls[0], SCALE) as connection:
        yield connection


@uncached
@pytest.mark.skipif(tiers.replicated(), reason="over replicas each statement that writes is a transaction")
async def test_an_order_takes_so_many_statements(urls: list[str], home: Path, tmp_path: Path) -> None:
    """Each step that is driven is one statement beside its effect; what its seller waits for is a write."""
    recorder = Recorder()
    async with shop(urls, home, tmp_path, sink=recorder) as there:
        await there.open()
        await there.provider.behave(webhooks_held=True)
        lamp = await there.listing()
        await there.place(BUYER, lamp)  # the ids of a block are taken, and what is asked of a server but once
        recorder.statements.clear()
        await there.place(BUYER, lamp)
    said = [signal.statement for signal in recorder.statements]
    own, others = [], False
    for number, statement in enumerate(said):
        if statement.startswith("BEGIN"):
            others = re.search(r"(catalog|payments)\.", said[number + 1]) is not None
        if not others:
            own.append(statement)
        others = others and statement != "COMMIT"
    wanted = zip(own, OF_AN_ORDER, strict=True)
    assert all(statement.startswith(begin) for statement, begin in wanted), own


async def test_hot_statements_walk_indexes(large: asyncpg.Connection) -> None:
    """None scans a table, and none looks at many times more rows than it answers."""
    assert not await plan_faults(large, HOT, rows=200)
