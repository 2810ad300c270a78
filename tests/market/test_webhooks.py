"""Sellers' programs are told: signed, at least once, in order; and who listens badly holds nobody else up."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import tests
from standardwebhooks import WebhookVerificationError
from tests.jobs_support import until
from tests.market.harness import one_platform, one_shard
from tests.market.hooking import RESCUED, Hooks, Receiver, hooks, receiver, seller
from tests.market.paying import APPS

from market.faults import Conflict, NotFound
from market.webhooks import rules, signing
from market.webhooks.api import MAX_ENDPOINTS, EndpointChanges
from market.webhooks.jobs import MAX_PAUSE
from market.webhooks.settings import WebhookSettings
from springtide.context import RequestContext, activate
from springtide.testing import ManualClock

pytestmark = one_platform

ROOT = Path(tests.__path__[0]).parent
SETTINGS = WebhookSettings(loopback=True, timeout=25.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _worlds(_databases: list[str], home: Path) -> AsyncIterator[dict[int, Hooks]]:
    async with hooks(_databases[:1], home, SETTINGS) as one, hooks(_databases, home, SETTINGS) as two:
        yield {1: one, 2: two}


@pytest.fixture
def world(_worlds: dict[int, Hooks], urls: list[str]) -> Hooks:
    return _worlds[len(urls)]


@pytest_asyncio.fixture(loop_scope="module")
async def there() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


async def test_a_message_is_signed_and_says_what_happened(world: Hooks, there: Receiver) -> None:
    """Verified by the specification's own library; another secret does not fit, nor another body."""
    anna = seller()
    made = await world.registered(anna, there.url("/hook?key=1"))
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
    await world.tell(anna, at=at, mark=5)
    assert await world.run() == 1
    (request,) = there.got
    assert there.verify(made.secret) == {
        "type": "order.confirmed", "version": 1, "timestamp": at.isoformat().replace("+00:00", ".000Z"),
        "data": {"object": "listing", "listing_id": 5, "title": "Ä lamp", "turn": 1},
    }  # fmt: skip
    (message,) = await world.messages(anna, made)
    assert request.headers["webhook-id"] == f"msg_{message.id}"
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 60
    assert (request.path, request.headers["content-type"]) == ("/hook?key=1", "application/json")
    assert (message.state, message.attempts, message.status, message.note) == ("delivered", 1, 204, None)
    with pytest.raises(WebhookVerificationError):
        there.verify(signing.new_secret())
    there.got[-1] = type(request)(request.path, request.headers, request.body + b" ")
    with pytest.raises(WebhookVerificationError):
        there.verify(made.secret)


async def test_it_is_tried_again_under_the_same_id_until_it_is_taken(world: Hooks, there: Receiver) -> None:
    """An error, a connection that breaks, a redirection: none is a delivery; each says why."""
    anna = seller()
    made = await world.registered(anna, there.url())
    await world.tell(anna)
    there.does = [500, "die", (302, {"Location": there.url("/elsewhere")}), 404]
    for attempts, status, note in (
        (1, 500, "it answered 500"),
        (2, None, "it does not answer as HTTP does"),
        (3, 302, "it answered 302"),
        (4, 404, "it answered 404"),
    ):
        assert await world.run() == 1
        (message,) = await world.messages(anna, made)
        assert (message.attempts, message.status, message.note) == (attempts, status, note)
        assert message.state == "queued"
        assert message.next_at is not None and message.next_at > message.created_at
        assert (await world.webhooks.endpoint(anna, made.endpoint.id)).failing_since is not None
    await world.run()
    (message,) = await world.messages(anna, made)
    assert (message.state, message.attempts, message.next_at) == ("delivered", 5, None)
    assert (await world.webhooks.endpoint(anna, made.endpoint.id)).failing_since is None
    assert len(set(there.ids)) == 1 and {one.path for one in there.got} == {"/hook"}
    assert {one.body for one in there.got} == {there.got[0].body}


@one_shard
async def test_silence_is_no_delivery(urls: list[str], home: Path, there: Receiver) -> None:
    anna = seller()
    there.then = "hang"
    async with hooks(urls, home, WebhookSettings(loopback=True, timeout=0.5)) as world:
        made = await world.registered(anna, there.url())
        await world.tell(anna)
        assert await world.run() == 1
        (message,) = await world.messages(anna, made)
        assert (message.state, message.attempts, message.status) == ("queued", 1, None)
        assert message.note == "no answer within 0.5 s"


@pytest.mark.parametrize(("asked", "wanted"), [("600", 600.0), ("99999999", MAX_PAUSE)])
async def test_who_asks_for_time_gets_it_up_to_a_bound(
    world: Hooks, there: Receiver, asked: str, wanted: float
) -> None:
    anna = seller()
    made = await world.registered(anna, there.url())
    await world.tell(anna)
    there.does = [(503, {"Retry-After": asked})]
    await world.run()
    (message,) = await world.messages(anna, made)
    assert message.next_at is not None and message.tried_at is not None
    assert (message.next_at - message.tried_at).total_seconds() > wanted - 1.0
    assert (message.next_at - datetime.now(UTC)).total_seconds() <= wanted


async def test_who_says_gone_is_called_no_more(world: Hooks, there: Receiver) -> None:
    """What waits is unsent; its seller is told once, can enable it, and have the messages sent again."""
    anna = seller()
    made = await world.registered(anna, there.url("/hook?key=secret"))
    await world.tell(anna)
    there.does = [410]
    assert await world.run() == 1
    await world.tell(anna, "order 6")
    assert await world.run() == 1  # who is told
    endpoint = await world.webhooks.endpoint(anna, made.endpoint.id)
    assert (endpoint.enabled, endpoint.reason) == (False, "it answered 410: it is gone")
    assert [one.state for one in await world.messages(anna, made)] == ["failed"]
    (notice,) = await world.inbox(anna)
    assert notice.kind == "webhook_disabled" and "/hook" in notice.text and "secret" not in notice.text
    (message,) = await world.messages(anna, made)
    with pytest.raises(Conflict):
        await world.webhooks.send_again(anna, message.id)
    with pytest.raises(Conflict):
        await world.webhooks.test(anna, made.endpoint.id)
    changed = await world.webhooks.change(anna, made.endpoint.id, EndpointChanges(enabled=True), None)
    assert (changed.enabled, changed.reason, changed.failing_since) == (True, None, None)
    assert (await world.webhooks.send_again(anna, message.id)).state == "queued"
    with pytest.raises(Conflict):
        await world.webhooks.send_again(anna, message.id)
    await world.run()
    assert [one.state for one in await world.messages(anna, made)] == ["delivered"]
    assert there.ids == [f"msg_{message.id}"] * 2


@one_shard
async def test_what_an_address_answers_says_nothing_of_the_next_one(
    urls: list[str], home: Path, there: Receiver
) -> None:
    """It moves while its old address is about to say that it is gone: the new one gets the message."""
    anna = seller()
    there.does = ["late"]
    async with hooks(urls, home, SETTINGS) as world:
        made = await world.registered(anna, there.url("/old"))
        await world.tell(anna)
        running = asyncio.create_task(world.run())
        await until(lambda: there.got)
        moved = EndpointChanges(url=there.url("/new"))
        await world.webhooks.change(anna, made.endpoint.id, moved, None)
        there.let_go.set()
        assert await running == 1
        endpoint = await world.webhooks.endpoint(anna, made.endpoint.id)
        assert (endpoint.enabled, endpoint.failing_since) == (True, None)
        (message,) = await world.messages(anna, made)
        assert (message.state, message.status) == ("queued", 410)
        assert await world.run() == 1
        assert [one.path for one in there.got] == ["/old", "/new"]
        assert [one.state for one in await world.messages(anna, made)] == ["delivered"]


async def test_what_waits_for_a_disabled_endpoint_is_unsent(world: Hooks, there: Receiver) -> None:
    anna = seller()
    made = await world.registered(anna, there.url())
    await world.tell(anna)
    await world.webhooks.change(anna, made.endpoint.id, EndpointChanges(enabled=False), None)
    await world.run()
    (message,) = await world.messages(anna, made)
    assert (message.state, message.note) == ("unsent", "the endpoint is disabled")
    assert there.got == []


async def test_a_message_that_nobody_takes_has_failed_in_the_end(world: Hooks, there: Receiver) -> None:
    """After the last try; it keeps no operator busy, and the next one of its subject goes."""
    anna = seller()
    made = await world.registered(anna, there.url())
    await world.tell(anna, number=1)
    await world.tell(anna, number=2, type="order.shipped")
    there.does = [500]
    await world.run(attempt=30)
    await world.run()
    assert [one.state for one in await world.messages(anna, made)] == ["failed", "delivered"]
    assert not await world.db.scatter("select id from webhooks._job", limit=1)


async def test_of_one_subject_messages_come_in_their_order(world: Hooks, there: Receiver) -> None:
    """One that is tried again holds back what follows it, and nothing else."""
    anna = seller()
    made = await world.registered(anna, there.url())
    await world.tell(anna, "order 5", 1, mark=1)
    await world.tell(anna, "order 5", 3, "order.cancelled", mark=2)
    await world.tell(anna, "order 6", 1, mark=3)
    there.does = [500]
    await world.run()
    states = [(one.state, one.next_at is not None) for one in await world.messages(anna, made)]
    assert states == [("queued", True), ("queued", False), ("delivered", False)]
    while await world.run():
        pass
    said = [there.verify(made.secret, one)["data"]["listing_id"] for one in there.got]
    assert sorted(said) == [1, 1, 2, 3] and said.index(2) == 3


async def test_news_are_told_once_and_never_after_later_ones(world: Hooks, there: Receiver) -> None:
    """Nor what was before the endpoint, nor what it does not want, nor what may be forgotten to be told."""
    anna = seller()
    now = datetime.now(UTC)
    made = await world.registered(anna, there.url(), "order.confirmed", "order.cancelled")
    await world.tell(anna, "order 5", 1)
    await asyncio.gather(*(world.tell(anna, "order 5", 1) for _ in range(4)))
    await world.tell(anna, "order 6", 3, "order.cancelled")
    await world.tell(anna, "order 6", 1)
    await world.tell(anna, "order 7", 2, "order.shipped")
    await world.tell(anna, "order 8", 1, at=now - timedelta(minutes=1))
    await world.tell(seller(), "order 9", 1)
    assert [(one.subject, one.type) for one in await world.messages(anna, made)] == [
        ("order 5", "order.confirmed"), ("order 6", "order.cancelled"),
    ]  # fmt: skip
    assert rules.is_old(now - timedelta(days=26), now) and not rules.is_old(now - timedelta(days=24), now)


async def test_news_find_an_endpoint_that_was_registered_just_now(world: Hooks, there: Receiver) -> None:
    """Whoever brings them has seen nothing of it: what they look at is not a replica that lags (tiers.py)."""
    anna = seller()
    with activate(RequestContext()):
        made = await world.registered(anna, there.url())
    with activate(RequestContext()):
        await world.tell(anna)
    assert [one.subject for one in await world.messages(anna, made)] == ["order 5"]


async def test_a_queue_has_an_end(world: Hooks, there: Receiver) -> None:
    """A thousand wait for an endpoint; what comes then is unsent, and says so."""
    anna = seller()
    made = await world.registered(anna, there.url())
    async with world.db.write(anna) as tx:
        await tx.execute(
            "insert into webhooks.delivery (bucket, seller_id, id, endpoint_id, type, subject, number, body,"
            " state, created_at) select $1::smallint, $2::bigint, n, $3::bigint, 'test', 'test', n, '{}',"
            " 'queued', now() from generate_series(1, 1000) as n",
            anna & 1023, anna, made.endpoint.id,
        )  # fmt: skip
    await world.tell(anna)
    assert await world.run() == 0
    newest = (await world.webhooks.messages(anna, made.endpoint.id, 1, None)).items[0]
    assert (newest.state, newest.note) == ("unsent", "too many messages were waiting for the endpoint")
    with pytest.raises(Conflict, match="1000 messages that wait"):
        await world.webhooks.test(anna, made.endpoint.id)
    assert (await world.webhooks.messages(anna, made.endpoint.id, 1, None)).items == [newest]


async def test_a_secret_is_replaced_with_an_overlap(urls: list[str], home: Path, there: Receiver) -> None:
    """For a day both fit, then only the new one; one that is older does not fit any more."""
    anna, clock = seller(), ManualClock(now=time.time())
    async with hooks(urls, home, SETTINGS, clock=clock) as world:
        made = await world.registered(anna, there.url())
        first = await world.webhooks.rotate(anna, made.endpoint.id)
        await world.webhooks.test(anna, made.endpoint.id)
        await world.run()
        assert there.verify(made.secret) == there.verify(first.secret)
        second = await world.webhooks.rotate(anna, made.endpoint.id)
        await world.webhooks.test(anna, made.endpoint.id)
        await world.run()
        assert there.verify(first.secret) == there.verify(second.secret)
        with pytest.raises(WebhookVerificationError):
            there.verify(made.secret)
        assert second.previous_until is not None
        clock.step((second.previous_until - datetime.now(UTC)).total_seconds() + 5)
        await world.webhooks.test(anna, made.endpoint.id)
        await world.run()
        assert " " not in there.got[-1].headers["webhook-signature"]


async def test_an_endpoint_that_fails_for_days_is_disabled(
    urls: list[str], home: Path, there: Receiver
) -> None:
    """Two days and ten tries without one that succeeds; its seller is told. One that works begins anew."""
    anna, clock = seller(), ManualClock(now=time.time())
    async with hooks(urls, home, SETTINGS, clock=clock) as world:
        made = await world.registered(anna, there.url())
        there.then = 500
        await world.tell(anna)
        for _ in range(9):
            await world.run()
        clock.step(3 * 86_400.0)
        there.does = [200]
        await world.run()
        await world.tell(anna, "order 6")
        for _ in range(12):
            await world.run()
        assert (await world.webhooks.endpoint(anna, made.endpoint.id)).enabled
        clock.step(2 * 86_400.0)
        await world.run()
        endpoint = await world.webhooks.endpoint(anna, made.endpoint.id)
        assert (
            not endpoint.enabled and endpoint.reason == "it has failed for two days, at last: it answered 500"
        )
        await world.run()
        assert [one.kind for one in await world.inbox(anna)] == ["webhook_disabled"]
        assert [one.state for one in await world.messages(anna, made)] == ["delivered", "unsent"]


async def test_what_is_deleted_is_gone(world: Hooks, there: Receiver) -> None:
    """Its messages too, and what waits is not sent; somebody else's is not found."""
    anna = seller()
    made = await world.registered(anna, there.url())
    await world.tell(anna)
    (message,) = await world.messages(anna, made)
    for call in (
        world.webhooks.delete(seller(), made.endpoint.id),
        world.webhooks.endpoint(seller(), made.endpoint.id),
        world.webhooks.rotate(seller(), made.endpoint.id),
        world.webhooks.test(seller(), made.endpoint.id),
        world.webhooks.send_again(seller(), message.id),
        world.webhooks.change(seller(), made.endpoint.id, EndpointChanges(enabled=False), None),
        world.webhooks.messages(seller(), made.endpoint.id, 10, None),
    ):
        with pytest.raises(NotFound):
            await call
    await world.webhooks.delete(anna, made.endpoint.id)
    await world.run()
    assert there.got == []
    for table in ("endpoint", "delivery"):
        assert not await world.db.scatter(
            f"select id from webhooks.{table} where seller_id = $1", anna, limit=1
        )


async def test_ten_endpoints_and_no_more_also_at_once(world: Hooks, there: Receiver) -> None:
    anna = seller()
    made = await asyncio.gather(
        *(world.registered(anna, there.url(f"/{n}")) for n in range(MAX_ENDPOINTS + 3)),
        return_exceptions=True,
    )
    assert sum(isinstance(one, Conflict) for one in made) == 3
    await world.tell(anna)
    assert await world.run() == MAX_ENDPOINTS
    assert len(set(there.ids)) == MAX_ENDPOINTS


async def test_old_messages_are_forgotten(world: Hooks, there: Receiver) -> None:
    anna = seller()
    made = await world.registered(anna, there.url())
    await world.tell(anna, "order 5")
    await world.tell(anna, "order 6")
    async with world.db.write(anna) as tx:
        await tx.execute(
            "update webhooks.delivery set created_at = now() - interval '31 d' where subject = 'order 5'"
        )
    service: Any = world.platform._registry.implementation("webhooks")
    await service.tidy()
    assert [one.subject for one in await world.messages(anna, made)] == ["order 6"]


@one_shard
async def test_endpoints_that_hang_hold_nobody_else_up(urls: list[str], home: Path, there: Receiver) -> None:
    """More of them than a worker has slots: who listens well has its messages meanwhile."""
    async with hooks(urls, home, SETTINGS) as world, receiver() as silent:
        silent.then = "hang"
        for bad in [seller() for _ in range(6)]:
            made = await world.registered(bad, silent.url())
            async with world.db.write(bad) as tx:
                await tx.execute(
                    "update webhooks.endpoint set failures = 1, failing_since = now() where id = $1",
                    made.endpoint.id,
                )
            await world.tell(bad)
        good = seller()
        await world.registered(good, there.url())
        async with world.working(slots=3):
            await until(lambda: silent.got)
            for number in range(20):
                await world.tell(good, f"order {number}")
            await until(lambda: len(there.got) == 20)
            assert silent.most == 1
            silent.let_go.set()


@one_shard
async def test_an_endpoint_gets_one_message_at_a_time(urls: list[str], home: Path, there: Receiver) -> None:
    """So the first one that it hangs on takes one place, however many it has."""
    async with hooks(urls, home, SETTINGS) as world, receiver() as silent:
        silent.then = "hang"
        bad, good = seller(), seller()
        await world.registered(bad, silent.url())
        await world.registered(good, there.url())
        for number in range(10):
            await world.tell(bad, f"order {number}")
        async with world.working(slots=3):
            await until(lambda: silent.got)
            for number in range(10):
                await world.tell(good, f"order {number}")
            await until(lambda: len(there.got) == 10)
            assert silent.most == 1
            silent.let_go.set()


@one_shard
@pytest.mark.timeout(240)
async def test_a_worker_that_is_killed_delivers_again_under_the_same_id(
    urls: list[str], home: Path, there: Receiver
) -> None:
    """SIGKILL while the endpoint has the message and has not answered: at least once, never another one."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}"}
    anna = seller()
    there.does = ["hang"]
    async with hooks(urls, home, SETTINGS) as world:
        made = await world.registered(anna, there.url())
        await world.tell(anna, mark=1)
        command = [sys.executable, "-m", "tests.market.hooking_child", str(home), *urls]
        child = await asyncio.create_subprocess_exec(*command, env=environment, cwd=ROOT)
        try:
            await until(lambda: there.got)
        finally:
            child.kill()
        assert await child.wait() == -signal.SIGKILL
        (message,) = await world.messages(anna, made)
        assert message.state == "queued"
        async with world.working(**RESCUED):
            await until(lambda: len(there.got) >= 2)
            await until(lambda: _delivered(world, anna, made))
    assert set(there.ids) == {f"msg_{message.id}"}
    assert there.verify(made.secret)["data"]["listing_id"] == 1


async def _delivered(world: Hooks, anna: int, made: Any) -> bool:
    return [one.state for one in await world.messages(anna, made)] == ["delivered"]
