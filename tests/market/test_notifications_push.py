"""Pushes: sealed for one browser, signed as ours, never sent to a neighbour; a real push service answers."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import http_ece
import msgspec
import pytest
import pytest_asyncio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from py_vapid import Vapid02
from py_vapid.utils import b64urldecode
from tests.jobs_support import until
from tests.market.harness import one_platform, one_shard
from tests.market.notices import World, comment, notice, world
from tests.market.pushing import Browser, PushService, push_service

from market.notifications import delivery
from market.notifications.api import MAX_SUBSCRIPTIONS, Preference
from market.notifications.jobs import SendPush
from market.notifications.push import Pusher
from market.notifications.settings import NotificationSettings

pytestmark = one_platform

UNREADABLE = (InvalidTag, http_ece.ECEException)
"""What trying to read a push raises that was sealed for another browser."""

SETTINGS = NotificationSettings(push_loopback=True, push_timeout=25.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _worlds(_databases: list[str], home: Path) -> AsyncIterator[dict[int, World]]:
    async with world(_databases[:1], home, SETTINGS) as one, world(_databases, home, SETTINGS) as two:
        yield {1: one, 2: two}


@pytest.fixture
def told(_worlds: dict[int, World], urls: list[str]) -> World:
    return _worlds[len(urls)]


@pytest_asyncio.fixture(loop_scope="module")
async def service() -> AsyncIterator[PushService]:
    async with push_service() as made:
        yield made


async def subscribed(told: World, service: PushService, id: int, path: str = "send/1") -> Browser:
    browser = Browser(service.url(path))
    await told.notifications.subscribe(id, browser.subscription)
    return browser


async def test_a_push_is_sealed_for_the_browser_and_signed_as_ours(told: World, service: PushService) -> None:
    """RFC 8291: nobody else can read it. RFC 8292: the service can tell that it is from us, and for it."""
    ann, bob = await told.introduced("Ann"), await told.introduced("Bob")
    browser = await subscribed(told, service, ann)
    await told.notifications.notify(comment(ann, bob, "job-1"))
    await told.run_jobs()
    ((headers, content),) = service.got
    assert browser.read(content) == {
        "id": 1, "kind": "comment", "title": "Bob commented on “On tides”", "body": "Well said",
        "link": "/articles/on-tides",
    }  # fmt: skip
    assert b"tides" not in content
    with pytest.raises(UNREADABLE):
        Browser(browser.endpoint).read(content)
    assert headers["content-encoding"] == "aes128gcm"
    assert int(headers["ttl"]) > 0
    assert len(headers["topic"]) <= 32
    assert headers["host"] == f"127.0.0.1:{service.port}"
    said = dict(part.split("=", 1) for part in headers["authorization"].removeprefix("vapid ").split(","))
    assert said["k"] == await told.notifications.push_key()
    assert Vapid02.verify(headers["authorization"])
    claims = msgspec.json.decode(b64urldecode(said["t"].split(".")[1].encode()))
    assert claims["aud"] == f"http://127.0.0.1:{service.port}"
    assert claims["sub"].startswith("mailto:")
    other = ec.generate_private_key(ec.SECP256R1())
    forged = Vapid02(other).sign({"aud": "https://a.example", "sub": "mailto:a@b.example"})
    assert not Vapid02.verify(f"vapid t={forged['Authorization'][8:].split(',')[0][2:]},k={said['k']}")


async def test_each_browser_has_its_own_push(told: World, service: PushService) -> None:
    """One that fails does not repeat the others; what was pushed is not pushed again."""
    ann = await told.introduced()
    browsers = [await subscribed(told, service, ann, f"send/{number}") for number in range(3)]
    service.answers = [201, 503, 201]
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    assert await told.run_jobs() == 3
    assert [row["state"] for row in await told.jobs()].count("done") == 2
    assert await told.run_jobs() == 1
    assert len(service.got) == 4
    read = 0
    for browser in browsers:
        for _, content in service.got:
            try:
                read += browser.read(content)["id"]
            except Exception:
                continue
    assert read == 4


@pytest.mark.parametrize("status", [404, 410])
async def test_a_browser_that_is_gone_is_forgotten(told: World, service: PushService, status: int) -> None:
    ann = await told.introduced()
    await subscribed(told, service, ann)
    service.answers = [status]
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    await told.run_jobs()
    assert [row["state"] for row in await told.jobs()] == ["done"]
    await told.notifications.notify(comment(ann, ann, "job-1"))
    assert await told.run_jobs() == 0


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_push_service_in_trouble_is_asked_again_when_it_says(
    told: World, service: PushService, status: int
) -> None:
    ann = await told.introduced()
    await subscribed(told, service, ann)
    service.answers, service.headers = [status], {"Retry-After": "600"}
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    await told.run_jobs()
    (job,) = await told.jobs()
    assert job["state"] == "ready"
    assert 590 < (job["run_at"] - job["now"]).total_seconds() <= 600
    await told.run_jobs()
    assert len(service.got) == 2
    assert [row["state"] for row in await told.jobs()] == ["done"]


async def test_what_a_push_service_will_not_have_is_not_sent_again(told: World, service: PushService) -> None:
    """Nor is a redirection followed: it could lead to a neighbour."""
    ann = await told.introduced()
    await subscribed(told, service, ann)
    service.answers, service.headers = [400, 307], {"Location": service.url("elsewhere")}
    for key in ("1", "2"):
        await told.notifications.notify(comment(ann, ann, key))
    await told.run_jobs()
    assert [row["state"] for row in await told.jobs()] == ["dead", "dead"]
    assert len(service.got) == 2


async def test_what_somebody_does_not_want_is_not_pushed(told: World, service: PushService) -> None:
    """Also when they say so, or leave, after it was told and before it is sent."""
    ann = await told.introduced()
    browser = await subscribed(told, service, ann)
    await told.notifications.notify(comment(ann, ann, "1"))
    await told.notifications.prefer(ann, [Preference(kind="comment", mail=True, push=False)])
    await told.notifications.notify(comment(ann, ann, "2"))
    assert len(await told.jobs()) == 1
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    await told.notifications.unsubscribe(ann, browser.endpoint)
    await told.run_jobs()
    assert service.got == []
    assert [row["state"] for row in await told.jobs()] == ["done", "done"]


async def test_ten_browsers_and_the_oldest_makes_room(told: World, service: PushService) -> None:
    ann = await told.introduced()
    for number in range(MAX_SUBSCRIPTIONS + 2):
        await subscribed(told, service, ann, f"send/{number}")
    await subscribed(told, service, ann, "send/5")
    await told.notifications.notify(notice(ann, "welcome", "joined"))
    await told.run_jobs()
    assert len(service.got) == MAX_SUBSCRIPTIONS


async def test_every_process_has_the_same_key(told: World, _databases: list[str], home: Path) -> None:
    """One that starts later reads what the first one made; one that was given a key takes that."""
    urls = _databases[: len(told.db.pools)]
    given = dataclasses.replace(SETTINGS, push_key=bytes(31) + b"\x07")
    keys = []
    for settings in (SETTINGS, SETTINGS, given):
        async with world(urls, home, settings) as one:
            keys.append(await one.notifications.push_key())
    assert keys[0] == keys[1] != keys[2]


@one_shard
async def test_a_name_that_leads_to_a_neighbour_is_not_called(
    told: World, service: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However harmless it looked when it was given: what counts is where it leads when it is called."""
    pusher = Pusher(dataclasses.replace(SETTINGS, push_loopback=False))
    await pusher.start()
    try:
        vapid = Vapid02(ec.generate_private_key(ec.SECP256R1()))
        neighbour = (2, 1, 6, "", ("127.0.0.1", service.port))
        answers = [[neighbour], [(2, 1, 6, "", ("93.184.215.14", 443)), neighbour], []]

        def lookup(host: str, port: int, **options: Any) -> list[Any]:
            assert host == "push.example.com"
            return answers.pop()

        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        while answers:
            to = Browser("https://push.example.com/x").subscription
            assert await pusher.send(to, b"{}", vapid, topic="t", now=0.0) == "refused"
    finally:
        await pusher.stop()
    assert service.got == []


@one_shard
async def test_a_silent_push_service_holds_nothing_else_up(told: World, service: PushService) -> None:
    """Pushes that find no place step aside, and are sent once it answers again."""
    people = [await told.introduced() for _ in range(12)]
    for id in people:
        await subscribed(told, service, id)
        await told.notifications.notify(notice(id, "welcome", "joined"))
    service.hold = asyncio.Event()
    async with told.working(drain=0.1):
        await until(lambda: len(service.got) >= delivery.AT_ONCE, seconds=30)
        async with told.db.write(people[0]) as tx:
            other = await tx.enqueue(SendPush(people[0], 99, 99))  # of a notice that there is not
        await until(lambda: told.jobs(f"state = 'done' and id = '{other}'"), seconds=20)
        assert len(service.got) == delivery.AT_ONCE
    service.hold.set()
    service.hold = None
    await told.run_jobs()
    assert len(service.got) == 12 + delivery.AT_ONCE
