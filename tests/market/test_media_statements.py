"""What media ask of the database: by which plans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from tests.market.plans import plan_faults, scaled

from market.media import store

OWNER = 5
MEDIUM = (6000 << 10) + (6000 % 3000 & 1023)
SOME = [(n << 10) + (n % 3000 & 1023) for n in range(40)]
NOW = datetime(2026, 1, 1, tzinfo=UTC)

SCALE = """
insert into media.medium
    (bucket, id, owner_id, kind, purpose, name, key, content_type, size, state, blobs, expires_at, created_at,
     updated_at)
    select n % 3000 & 1023, (n << 10) + (n % 3000 & 1023), n % 3000,
        case when n % 20 = 0 then 'document' else 'image' end, 'private', 'n',
        case when n % 20 = 0 then 'k' || n end, 'image/png', 1,
        case when n % 1000 = 0 then 'waiting' else 'ready' end, '[]',
        case when n % 500 = 0 then '2025-01-01'::timestamptz when n % 20 = 0 then '2027-01-01' end,
        now(), now()
    from generate_series(0, 29999) n;
insert into media.thing (bucket, owner_id, thing, version)
    select bucket, owner_id, 'listing:' || id, 1 from media.medium;
insert into media.attachment (bucket, owner_id, thing, medium_id)
    select bucket, owner_id, 'listing:' || id, id from media.medium where expires_at is null;
analyze media.medium, media.thing, media.attachment;
"""

PLACE = (OWNER, OWNER, "listing:5125")

HOT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "medium": (store.MEDIUM, (MEDIUM & 1023, MEDIUM)),
    "lock": (store.LOCK, (MEDIUM & 1023, MEDIUM)),
    "media": (store.MEDIA, (SOME,)),
    "document": (store.DOCUMENT, (OWNER, OWNER, "k5")),
    "settle": (store.SETTLE, (MEDIUM & 1023, MEDIUM, "ready", None, None, NOW)),
    "resume": (store.RESUME, (MEDIUM & 1023, MEDIUM, NOW)),
    "delete": (store.DELETE, (MEDIUM & 1023, MEDIUM)),
    "expired": (f"{store.EXPIRED} order by expires_at, id limit 100", (NOW,)),
    "waiting": (f"{store.WAITING} order by updated_at, id limit 100", ()),
    "tell": (store.TELL, (*PLACE, 2)),
    "attached": (store.ATTACHED, PLACE),
    "lock own": (store.LOCK_OWN, (OWNER, OWNER, SOME)),
    "detach": (store.DETACH, (*PLACE, SOME)),
    "attach": (store.ATTACH, (*PLACE, SOME)),
    "keep": (store.KEEP, (OWNER, SOME, NOW)),
}


@pytest.fixture
def shards() -> int:
    return 1


@pytest.fixture
async def large(urls: list[str]) -> AsyncIterator[asyncpg.Connection]:
    """30,000 media with what belongs to them, as the planner sees them after ANALYZE."""
    async with scaled(urls[0], SCALE) as connection:
        yield connection


async def test_hot_statements_walk_indexes(large: asyncpg.Connection) -> None:
    """None scans a table, and none looks at many times more rows than it answers."""
    assert not await plan_faults(large, HOT, rows=200)
