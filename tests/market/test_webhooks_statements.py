"""What the webhooks module asks of the database, and by which plans."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from tests.market.plans import paged, plan_faults, scaled

from market.webhooks import store

WHO = (300 << 10) + 300
PLACE = (WHO & 1023, WHO)
NOW = datetime(2026, 6, 1, tzinfo=UTC)
JOB = UUID(int=7)

SCALE = """
insert into webhooks.endpoint (bucket, seller_id, id, url, events, secret, created_at, updated_at)
    select (n / 5) & 1023, (n / 5 << 10) + ((n / 5) & 1023), n, 'https://h.example/' || n,
        '{order.confirmed,listing.sold_out}', 's', now(), now()
    from generate_series(1, 5000) as n;
insert into webhooks.delivery
    (bucket, seller_id, id, endpoint_id, type, subject, number, body, state, job_id, created_at)
    select bucket, seller_id, endpoint.id * 5000 + n, endpoint.id, 'order.confirmed', 'order ' || n, 1, '{}',
        case when n % 50 = 0 then 'queued' else 'delivered' end, gen_random_uuid(),
        '2026-01-01'::timestamptz + n * interval '1 s'
    from webhooks.endpoint, generate_series(1, case when endpoint.id = 1500 then 3000 else 5 end) as n;
insert into webhooks._job
    (bucket, id, kind, version, payload, context, priority, state, max_attempts, run_at, enqueued_at)
    select bucket, job_id, 'webhooks.deliver', 1, '', '{}', 1, 'ready', 20, created_at, created_at
    from webhooks.delivery;
analyze webhooks.endpoint, webhooks.delivery, webhooks._job;
"""

HOT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "count": (store.COUNT, PLACE),
    "endpoints": paged(store.ENDPOINTS, store.NEWEST, *PLACE),
    "endpoint": (store.ENDPOINT, (*PLACE, 1500)),
    "change": (store.CHANGE, (*PLACE, 1500, None, None, False, NOW, None)),
    "delete": (store.DELETE, (*PLACE, 1500)),
    "rotate": (store.ROTATE, (*PLACE, 1500, "s", NOW, NOW)),
    "listening": (store.LISTENING, (*PLACE, ["order.confirmed"])),
    "lock": (store.LOCK, (*PLACE, ["order.confirmed"])),
    "make": (store.MAKE, (*PLACE, 7, 1500, "order.confirmed", "order 9000", 1, "{}", NOW)),
    "make of a subject": (store.MAKE, (*PLACE, 7, 1500, "order.shipped", "order 9", 2, "{}", NOW)),
    "ordered": (store.ORDERED, (*PLACE, 1500 * 5000 + 9, JOB)),
    "messages": paged(store.MESSAGES, store.NEWEST, WHO & 1023, 1500),
    "messages, a later page": paged(
        store.MESSAGES, store.NEWEST, WHO & 1023, 1500, after=(1500 * 5000 + 900,)
    ),
    "message": (store.MESSAGE, (*PLACE, 1500 * 5000 + 9)),
    "again": (store.AGAIN, (*PLACE, 1500 * 5000 + 9, JOB)),
    "parcel": (store.PARCEL, (*PLACE, 1500 * 5000 + 50)),
    "tried": (store.TRIED, (*PLACE, 1500 * 5000 + 50, "queued", 500, "x", NOW)),
    "untried": (store.UNTRIED, (*PLACE, 1500 * 5000 + 50, "unsent", "x")),
    "works": (store.WORKS, (*PLACE, 1500, "https://h.example/1500")),
    "fails": (store.FAILS, (*PLACE, 1500, "https://h.example/1500", NOW)),
    "disable": (store.DISABLE, (*PLACE, 1500, "x", NOW)),
    "forget": (store.FORGET, (50, datetime(2027, 1, 1, tzinfo=UTC))),
}


@pytest.fixture
def shards() -> int:
    return 1


@pytest.fixture
async def large(urls: list[str]) -> AsyncIterator[asyncpg.Connection]:
    """A thousand sellers with five endpoints each, one of which was told 3,000 things; a job for each."""
    async with scaled(urls[0], SCALE) as connection:
        yield connection


async def test_hot_statements_walk_indexes(large: asyncpg.Connection) -> None:
    """None scans a table, and none looks at many times more rows than it answers."""
    assert not await plan_faults(large, HOT, rows=200)


async def test_what_is_erased_is_found_by_its_endpoint(large: asyncpg.Connection) -> None:
    erase = {"erase": (store.ERASE, (*PLACE, 1500, 100))}
    assert not await plan_faults(large, erase, rows=200)


async def test_an_erasure_that_meets_another_deletes_as_many(
    large: asyncpg.Connection, urls: list[str]
) -> None:
    """Fewer would mean to it that nothing is left."""
    erase = store.ERASE, *PLACE, 1500, 100
    other = await asyncpg.connect(urls[0])
    try:
        async with other.transaction():
            await other.execute(*erase)
            erasing = asyncio.create_task(large.execute(*erase))
            waits = "select count(*) from pg_locks where not granted and pid = $1"
            while not await other.fetchval(waits, large.get_server_pid()):
                assert not erasing.done(), "it did not wait"
        assert await erasing == "DELETE 100"
    finally:
        await other.close()
