"""The notifications module: told once, numbered, counted, and what may be told to whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.market.harness import one_platform, one_shard
from tests.market.notices import World, comment, notice, somebody, world

from market.faults import Invalid
from market.notifications import store
from market.notifications.api import DATA, KEPT, KINDS, Notice, Recipient, Unread
from market.notifications.settings import NotificationSettings

pytestmark = one_platform


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _worlds(_databases: list[str], home: Path) -> AsyncIterator[dict[int, World]]:
    settings = NotificationSettings()
    async with world(_databases[:1], home, settings) as one, world(_databases, home, settings) as two:
        yield {1: one, 2: two}


@pytest.fixture
def told(_worlds: dict[int, World], urls: list[str]) -> World:
    """Without a mail server: nothing leaves."""
    return _worlds[len(urls)]


async def test_a_cause_is_told_once(told: World) -> None:
    """However often and from however many places at once."""
    ann = await told.introduced()
    notices = told.notifications
    await asyncio.gather(*(notices.notify(comment(ann, ann, "job-1")) for _ in range(5)))
    await notices.notify(comment(ann, ann, "job-1", data={"excerpt": "another text"}))
    await notices.notify(comment(ann, ann, "job-2"))
    page = await notices.inbox(ann)
    assert [item.id for item in page.items] == [2, 1]
    assert page.unread == 2


async def test_what_is_told_twice_after_it_was_dropped_stays_told(told: World) -> None:
    ann = await told.introduced()
    for number in range(KEPT + 3):
        await told.notifications.notify(comment(ann, ann, f"job-{number}"))
    await _tidy(told)
    await told.notifications.notify(comment(ann, ann, "job-0"))
    assert await told.notifications.unread([ann]) == [Unread(recipient=ann, count=KEPT, newest=KEPT + 3)]
    rows = await told.db.scatter("select number from notifications.notice")
    assert sorted(row[0] for row in rows) == list(range(4, KEPT + 4))


async def test_numbers_have_no_gaps_and_come_in_order(told: World) -> None:
    """Whoever has seen a number finds no smaller one appear later, whatever is told at once."""
    ann = await told.introduced()
    seen: list[int] = []

    async def one(number: int) -> None:
        await told.notifications.notify(comment(ann, ann, f"job-{number}"))
        items = (await told.notifications.inbox(ann, limit=100)).items
        assert [item.id for item in items] == list(range(len(items), 0, -1))
        seen.append(len(items))

    await asyncio.gather(*(one(number) for number in range(12)))
    assert max(seen) == 12


async def test_inboxes_are_paged_from_the_newest(told: World) -> None:
    ann, bob = await told.introduced("Ann"), await told.introduced("Bob")
    for number in range(5):
        await told.notifications.notify(comment(ann, bob, f"job-{number}"))
    await told.notifications.notify(comment(bob, ann, "job-0"))
    pages, after = [], None
    while True:
        page = await told.notifications.inbox(ann, 2, after)
        pages.append([item.id for item in page.items])
        after = page.next
        if after is None:
            break
    assert pages == [[5, 4], [3, 2], [1]]
    with pytest.raises(Invalid, match="after"):
        await told.notifications.inbox(ann, 2, "nonsense")
    with pytest.raises(Invalid, match="limit"):
        await told.notifications.inbox(ann, 101)


async def test_reading_is_up_to_a_number_and_never_undone(told: World) -> None:
    ann = await told.introduced()
    notices = told.notifications
    for number in range(4):
        await notices.notify(comment(ann, ann, f"job-{number}"))
    assert await notices.mark_read(ann, 3) == Unread(recipient=ann, count=1, newest=4)
    assert await notices.mark_read(ann, 1) == Unread(recipient=ann, count=1, newest=4)
    assert [item.read for item in (await notices.inbox(ann)).items] == [False, True, True, True]
    assert (await notices.mark_read(ann, 1 << 50)).count == 0
    await notices.notify(comment(ann, ann, "job-later"))
    assert (await notices.unread([ann]))[0] == Unread(recipient=ann, count=1, newest=5)
    nobody = somebody()
    assert await notices.mark_read(nobody, 5) == Unread(recipient=nobody, count=0, newest=0)


async def test_unread_is_one_statement_per_shard_for_everybody(told: World) -> None:
    """Also those who never were told anything, in the order that was asked for."""
    people = [somebody() for _ in range(40)]
    for id in people[:20]:
        await told.notifications.notify(notice(id, "welcome", "joined"))
    told.recorder.statements.clear()
    answer = await told.notifications.unread([*people, people[0]])
    assert [found.recipient for found in answer] == [*people, people[0]]
    assert [found.count for found in answer] == [1] * 20 + [0] * 20 + [1]
    assert len(told.recorder.statements) == len(told.db.pools)
    assert await told.notifications.unread([]) == []
    with pytest.raises(Invalid, match="recipients"):
        await told.notifications.unread(list(range(1, 5_002)))


async def test_names_are_those_that_were_introduced_last(told: World) -> None:
    """The newest version wins, whatever the order; who is not known is called Somebody."""
    ann = await told.introduced("Ann")
    bob = somebody()
    await told.notifications.notify(comment(ann, bob, "job-1"))
    assert (await told.notifications.inbox(ann)).items[0].title == "Somebody commented on “On tides”"
    for version, name in ((5, "Robert"), (4, "Bob"), (5, "Bobby")):
        person = Recipient(id=bob, name=name, email="bob@example.com", version=version)
        await told.notifications.introduce(person)
    assert (await told.notifications.inbox(ann)).items[0].title == "Robert commented on “On tides”"


DATA_OF_ALL: dict[str, str] = {
    "url": "https://hooks.example.com/a",
    "actor": "5", "article": "On tides", "excerpt": "Well\nsaid", "order": "77", "total": "12.50 EUR",
    "titles": "Lamp\nChair", "reason": "The card was declined.", "money": "You get back: EUR 12.50",
}  # fmt: skip


@one_shard
async def test_every_kind_has_its_words(told: World) -> None:
    ann = await told.introduced()
    for kind in KINDS:
        data = {name: DATA_OF_ALL[name] for name in DATA[kind]}
        await told.notifications.notify(notice(ann, kind, kind, **data))
    shown = {item.kind: item for item in (await told.notifications.inbox(ann)).items}
    assert set(shown) == set(KINDS)
    for kind in KINDS:
        whole = f"{shown[kind].title}\n{shown[kind].text}"
        needed = [name for name in DATA[kind] if name != "actor"]
        assert all(line in whole for name in needed for line in DATA_OF_ALL[name].split("\n")), whole
        assert ("Somebody" in whole) == ("actor" in DATA[kind])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"key": ""}, "key"),
    ({"key": "k" * 201}, "key"),
    ({"link": "https://evil.example/"}, "link"),
    ({"link": "//evil.example"}, "link"),
    ({"link": "/\\evil.example"}, "link"),
    ({"link": "/a\r\nBcc: x"}, "link"),
    ({"link": "orders"}, "link"),
    ({"data": {"article": "a", "excerpt": "e"}}, "data.actor"),
    ({"data": {"actor": "5", "article": "a", "excerpt": "e", "more": "m"}}, "data"),
    ({"data": {"actor": "five", "article": "a", "excerpt": "e"}}, "data.actor"),
    ({"data": {"actor": "99999999999999999999", "article": "a", "excerpt": "e"}}, "data.actor"),
    ({"data": {"actor": "5", "article": " ", "excerpt": "e"}}, "data.article"),
    ({"data": {"actor": "5", "article": "a\0", "excerpt": "e"}}, "data.article"),
    ({"data": {"actor": "5", "article": "a", "excerpt": "e" * 501}}, "data.excerpt"),
    ({"recipient": 0}, "recipient"),
    ({"recipient": 1 << 53}, "recipient"),
]


@one_shard
@pytest.mark.parametrize(("fields", "named"), WRONG, ids=[f"{n}-{i}" for i, (_, n) in enumerate(WRONG)])
async def test_what_cannot_be_told_is_refused_by_name(
    told: World, fields: dict[str, Any], named: str
) -> None:
    values = {
        "recipient": 1024, "kind": "comment", "key": "k", "link": "/",
        "data": {"actor": "5", "article": "a", "excerpt": "e"},
    }  # fmt: skip
    with pytest.raises(Invalid) as refused:
        await told.notifications.notify(Notice(**{**values, **fields}))
    assert list(refused.value.errors) == [named]


@one_shard
async def test_who_cannot_be_told_is_refused_by_name(told: World) -> None:
    for fields, named in (
        ({"name": ""}, "name"), ({"name": "x" * 65}, "name"), ({"email": "a\0@b"}, "email"),
        ({"id": 0}, "id"), ({"version": -1}, "version"),
    ):  # fmt: skip
        values: dict[str, Any] = {"id": 1024, "name": "Ann", "email": "a@b.example", "version": 1, **fields}
        with pytest.raises(Invalid) as refused:
            await told.notifications.introduce(Recipient(**values))
        assert list(refused.value.errors) == [named]


async def test_an_installation_without_a_mail_server_says_so(told: World) -> None:
    """No job waits for a server that nobody named, and the notice shows why there is no mail."""
    ann = await told.introduced()
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    assert await told.mail_states(ann) == ["unconfigured"]
    assert await told.jobs() == []
    assert not (await told.notifications.preferences(ann)).mailing


async def test_what_was_told_long_ago_is_forgotten(told: World) -> None:
    """Not what was told lately: a repetition of that is still to come."""
    ann = await told.introduced()
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    now = datetime.now(UTC)
    await _tidy(told, now + store.REMEMBERED - timedelta(minutes=5))
    assert len(await told.db.scatter("select key from notifications.told")) == 1
    await _tidy(told, now + store.REMEMBERED + timedelta(minutes=5))
    assert await told.db.scatter("select key from notifications.told") == []


async def test_a_full_inbox_keeps_what_has_to_be_mailed(told: World) -> None:
    """A mail server that is away while much happens costs nobody a mail."""
    ann = await told.introduced()
    for number in range(KEPT + 5):
        await told.notifications.notify(comment(ann, ann, f"job-{number}"))
    for pool in told.db.pools.values():
        await pool.execute("update notifications.notice set mail = 'queued' where number in (2, 3)")
    await _tidy(told)
    rows = await told.db.scatter("select number from notifications.notice where number < 10")
    assert sorted(row[0] for row in rows) == [2, 3, 6, 7, 8, 9]
    shown = (await told.notifications.inbox(ann, 100)).items
    assert all(item.id > 5 for item in shown)
    await told.notifications.notify(comment(ann, ann, "one more"))
    await _tidy(told, datetime.now(UTC) + store.MAILABLE + timedelta(minutes=5))
    rows = await told.db.scatter("select number from notifications.notice where number < 10")
    assert sorted(row[0] for row in rows) == [7, 8, 9]


async def _tidy(told: World, now: datetime | None = None) -> None:
    await store.NotificationStore(told.db).tidy(now or datetime.now(UTC))
