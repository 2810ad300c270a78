"""What the notifications module asks of the database: by which plans, and how many statements."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from tests.market.plans import explain, nodes, paged, plan_faults, scaled

from market.notifications import store

WHO = (300 << 10) + 300
MANY = [(n << 10) + (n & 1023) for n in range(1, 400)]
NOW = datetime(2026, 6, 1, tzinfo=UTC)
PLACE = (WHO & 1023, WHO)

SCALE = """
insert into notifications.recipient (bucket, id, name, email, version)
    select n & 1023, (n << 10) + (n & 1023), 'n' || n, n || '@example.com', 1 from generate_series(1, 5000) n;
insert into notifications.inbox (bucket, recipient_id, newest, read_to, dropped_to)
    select bucket, id, case when id >> 10 = 300 then 3000 when id >> 10 < 10 then 600 else 8 end, 4, 0
    from notifications.recipient;
insert into notifications.notice (bucket, recipient_id, number, kind, data, link, mail, created_at)
    select bucket, recipient_id, number, 'comment', '{}', '/', 'sent', now()
    from notifications.inbox, generate_series(1, least(newest, 3000)) as number;
insert into notifications.told (bucket, recipient_id, key, told_at)
    select bucket, recipient_id, 'k' || number, '2026-01-01'::timestamptz + number * interval '1 s'
    from notifications.notice where number <= 8;
insert into notifications.preference (bucket, recipient_id, kind, mail, push)
    select bucket, id, kind, false, true
    from notifications.recipient, unnest('{comment,sale}'::text[]) as kind;
insert into notifications.subscription (bucket, recipient_id, id, endpoint, p256dh, auth, subscribed_at)
    select bucket, id, id, 'https://push.example/' || id, 'p', 'a', now() from notifications.recipient;
analyze notifications.recipient, notifications.inbox, notifications.notice, notifications.told,
    notifications.preference, notifications.subscription;
"""


def page(after: tuple[object, ...] = ()) -> Any:
    return paged(store.INBOX, store.NEWEST, *PLACE, 0, after=after)


HOT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "introduce": (store.INTRODUCE, (*PLACE, "n", "n@example.com", 7)),
    "names": (store.NAMES, (MANY[:40],)),
    "tell": (store.TELL, (*PLACE, "new", NOW)),
    "number": (store.NUMBER, PLACE),
    "wishes": (store.WISHES, (*PLACE, "comment")),
    "subscriptions": (store.SUBSCRIPTIONS, PLACE),
    "inbox": page(),
    "inbox, a later page": page((1500,)),
    "counters": (store.COUNTERS, PLACE),
    "unread": (store.UNREAD, (MANY[:100],)),
    "read": (store.READ, (*PLACE, 7)),
    "letter": (store.LETTER, (*PLACE, 7)),
    "settle mail": (store.SETTLE_MAIL, (*PLACE, 7, "sent")),
    "refused": (store.REFUSED, (*PLACE, "n@example.com", "550")),
    "trust": (store.TRUST, PLACE),
    "parcel": (store.PARCEL, (*PLACE, 7, WHO)),
    "drop": (store.DROP, (*PLACE, 500)),
    "address": (store.ADDRESS, PLACE),
    "preferences": (store.PREFERENCES, PLACE),
    "prefer": (store.PREFER, (*PLACE, "sale", True, True)),
    "stop mail": (store.STOP_MAIL, (*PLACE, "sale")),
    "make room": (store.MAKE_ROOM, (*PLACE, 10)),
    "unsubscribe": (store.UNSUBSCRIBE, (*PLACE, "https://push.example/1")),
    "forget": (store.FORGET, (50, datetime(2027, 1, 1, tzinfo=UTC))),
}


@pytest.fixture
def shards() -> int:
    return 1


@pytest.fixture
async def large(urls: list[str]) -> AsyncIterator[asyncpg.Connection]:
    """5,000 people, and somebody who was told 3,000 things."""
    async with scaled(urls[0], SCALE) as connection:
        yield connection


async def test_hot_statements_walk_indexes(large: asyncpg.Connection) -> None:
    """None scans a table, and none looks at many times more rows than it answers."""
    assert not await plan_faults(large, HOT, rows=200)


async def test_many_unread_are_looked_up_and_not_searched_for(large: asyncpg.Connection) -> None:
    """Hundreds at once: what one of them costs does not grow with the number of inboxes."""
    plan = await explain(large, store.UNREAD, (MANY,))
    inboxes = [node for node in nodes(plan) if node.get("Relation Name") == "inbox"]
    assert inboxes
    assert all("Index" in node["Node Type"] for node in inboxes), plan


async def test_trimming_looks_at_full_inboxes_alone(large: asyncpg.Connection) -> None:
    plan = await explain(large, f"{store.FULL} order by kept desc, recipient_id limit 100", ())
    found = list(nodes(plan))
    assert {node.get("Index Name") for node in found if "Scan" in node["Node Type"]} == {"inbox_full"}
    assert max(node["Actual Rows"] for node in found) == 10
    plan = await explain(large, store.DELETE_NOTICES, (*PLACE, 40, NOW))
    assert not [node for node in nodes(plan) if node["Node Type"] == "Seq Scan"], plan
    # not all 3,000; a bitmap also has the rows that the same statement deleted when it was explained before
    assert max(node["Actual Rows"] for node in nodes(plan)) <= 200
