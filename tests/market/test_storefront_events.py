"""Live notices: who may listen, how many, what is heard, and what ends it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.market.harness import Api, one_platform, one_shard
from tests.market.pages import Browser, browser

from market.notifications.api import Notice, Notifications
from market.storefront.events.hub import Hub, Listener
from springtide.errors import Unavailable
from springtide.identity.sessions import Session, SessionService

pytestmark = [one_platform, one_shard]

ALL_TOGETHER = 30.0
"""Seconds that only tell ending from hanging."""


class Listening:
    """One open `/events`, as the server sees it."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""
        self.over = False
        self.left = asyncio.Event()
        self._changed = asyncio.Condition()

    async def receive(self) -> dict[str, Any]:
        if not self.headers and not self.status:
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        async with self._changed:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                self.text += message.get("body", b"").decode()
                self.over = not message.get("more_body", False)
            self._changed.notify_all()

    async def until(self, part: str) -> None:
        """Fails at once when the stream, or what was answered instead of one, ends without it."""
        async with asyncio.timeout(ALL_TOGETHER), self._changed:
            await self._changed.wait_for(lambda: self.over or re.search(part, self.text))
        assert re.search(part, self.text), f"answered {self.status}: {self.text}"


def events(text: str) -> list[tuple[str, str]]:
    """Names and data."""
    return re.findall(r"event: (\w+)\n(?:id: \S+\n)?data: (.*)\n", text)


@asynccontextmanager
async def listening(one: Browser, **headers: str) -> AsyncIterator[tuple[Listening, asyncio.Task[None]]]:
    application = one.client._transport.app  # type: ignore[attr-defined]
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in one.client.cookies.jar)
    given = {"host": "market.test", "cookie": cookies, **headers}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "https",
        "path": "/events", "raw_path": b"/events", "query_string": b"", "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items() if value],
        "client": ("127.0.0.1", 1), "server": ("market.test", 443), "state": {},
    }  # fmt: skip
    open_one = Listening()
    task = asyncio.create_task(application(scope, open_one.receive, open_one.send))
    try:
        yield open_one, task
    finally:
        open_one.left.set()
        async with asyncio.timeout(ALL_TOGETHER):
            await asyncio.wait([task])


@pytest.fixture
def hub(api: Api) -> Hub:
    assert api.store is not None
    return api.store.hub


def sessions(api: Api) -> SessionService:
    return api.service(SessionService)


async def tell(api: Api, person: int, key: str) -> None:
    notice = Notice(recipient=person, kind="welcome", key=key, link="/")
    await api.service(Notifications).notify(notice)


async def id_of(api: Api, name: str) -> int:
    found = await api.platform.database("users").scatter_sum(
        "select coalesce(max(id), 0) from users.account where username = $1", name
    )
    return int(found)


async def test_what_is_new_is_heard_at_once(api: Api) -> None:
    """The state when it opens, then each change; never twice the same; a stream nobody may keep."""
    jake = await browser(api).sign_up("Jake")
    person = await id_of(api, "Jake")
    async with listening(jake) as (stream, _):
        await stream.until("event: unread")
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "private, no-store"
        await tell(api, person, "one")
        await stream.until('"count":1')
        await tell(api, person, "two")
        await stream.until('"count":2')
        told = [data for name, data in events(stream.text) if name == "unread"]
        assert len(told) == len(set(told))


async def test_who_comes_back_hears_only_what_is_new(api: Api) -> None:
    """Last-Event-ID names what the browser knows."""
    jake = await browser(api).sign_up("Jake")
    person = await id_of(api, "Jake")
    await tell(api, person, "one")
    async with listening(jake) as (stream, _):
        await stream.until('"count":1')
        (known,) = re.findall(r"id: (\S+)\n.*\"count\":1", stream.text)
    async with listening(jake, **{"last-event-id": known}) as (stream, _):
        await tell(api, person, "two")
        await stream.until('"count":2')
        assert events(stream.text)[0][1].startswith('{"count":2')


async def test_nobody_hears_nothing(api: Api) -> None:
    """204: browsers do not ask again."""
    answer = await browser(api).client.get("/events")
    assert (answer.status_code, answer.content) == (204, b"")


async def test_one_hears_nothing_of_another(api: Api) -> None:
    jake, anna = await browser(api).sign_up("Jake"), await browser(api).sign_up("Anna")
    async with listening(jake) as (his, _), listening(anna) as (hers, _):
        await his.until("event: unread")
        await hers.until("event: unread")
        await tell(api, await id_of(api, "Anna"), "one")
        await hers.until('"count":1')
        assert '"count":1' not in his.text


async def test_it_ends_with_the_session(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signing out ends the stream without a look at the session, and says that nothing is to come."""
    monkeypatch.setattr("market.storefront.events.hub.CHECK_EVERY", 1e9)
    jake = await browser(api).sign_up("Jake")
    async with listening(jake) as (stream, task):
        await stream.until("event: unread")
        await jake.send("/sign-out")
        await stream.until("event: end")
        async with asyncio.timeout(ALL_TOGETHER):
            await task


async def test_it_ends_when_the_session_is_ended_elsewhere(
    api: Api, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another server, where this process hears of it by looking."""
    monkeypatch.setattr("market.storefront.events.hub.CHECK_EVERY", 0.0)
    jake = await browser(api).sign_up("Jake")
    async with listening(jake) as (stream, task):
        await stream.until("event: unread")
        await sessions(api).revoke_all(await id_of(api, "Jake"))
        await stream.until("event: end")
        async with asyncio.timeout(ALL_TOGETHER):
            await task


async def test_listening_keeps_nobody_signed_in(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at a session for a stream does not count as using it."""
    monkeypatch.setattr("market.storefront.events.hub.CHECK_EVERY", 0.0)
    jake = await browser(api).sign_up("Jake")
    async with listening(jake) as (stream, _):
        await stream.until("event: unread")
        for pool in api.platform.database("sessions").pools.values():
            await pool.execute("update sessions.session set seen_at = seen_at - interval '1 hour'")
        (before,) = await sessions(api).list_of(await id_of(api, "Jake"))
        await tell(api, await id_of(api, "Jake"), "one")
        await stream.until('"count":1')
        (after,) = await sessions(api).list_of(await id_of(api, "Jake"))
        assert after.seen_at == before.seen_at


async def test_who_comes_during_a_look_is_not_ended(
    api: Api, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that begins after the question is in no answer to it."""
    monkeypatch.setattr("market.storefront.events.hub.CHECK_EVERY", 0.0)
    person, known, came = 5_000_000, hub._sessions, list[Listener]()

    class Slow:
        """Whose answers are on the way while somebody signs in."""

        async def list_of(self, subject: int) -> list[Session]:
            found = await known.list_of(subject)
            if not came:
                came.append(hub.join(person, (await known.open(person)).session.handle))
            return found

    monkeypatch.setattr(hub, "_sessions", Slow())
    gone = hub.join(person, "a handle of none")
    try:
        await hub.ask()
        assert (gone.session_ended, came[0].session_ended) == (True, False)
    finally:
        for one in (gone, *came):
            hub.leave(one)


async def test_who_leaves_makes_room(api: Api, hub: Hub) -> None:
    """A person's connections are bounded, the next is refused (503); one that leaves is forgotten at once."""
    jake = await browser(api).sign_up("Jake")
    person = await id_of(api, "Jake")
    places = [hub.join(person, f"handle {number}") for number in range(6)]
    try:
        assert (await jake.client.get("/events")).status_code == 503
        hub.leave(places.pop())
        async with listening(jake) as (stream, _):
            await stream.until("event: unread")
            with pytest.raises(Unavailable):
                hub.join(person, "one more")
        places.append(hub.join(person, "one more"))
    finally:
        for place in places:
            hub.leave(place)
    assert person not in hub._listeners
    assert hub._count == 0


async def test_one_question_serves_everybody(api: Api, hub: Hub) -> None:
    """However many listen, a round is one statement per shard."""
    places = [hub.join(person, "h") for person in range(5_000_000, 5_000_050) for _ in range(3)]
    try:
        api.recorder.statements.clear()
        await hub.ask()
        asked = [one.statement for one in api.recorder.statements]
        assert len(asked) == 1, asked
        assert all(place.known is not None for place in places)
    finally:
        for place in places:
            hub.leave(place)


async def test_draining_ends_every_stream(api: Api, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the next question, without a word: browsers connect to another server; new ones are refused."""
    jake = await browser(api).sign_up("Jake")
    async with listening(jake) as (stream, task):
        await stream.until("event: unread")
        monkeypatch.setattr(api.platform.health, "_draining", True)
        async with asyncio.timeout(ALL_TOGETHER):
            await task
        assert "event: end" not in stream.text
    assert (await jake.client.get("/events")).status_code == 503
