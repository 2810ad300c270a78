"""The inbox: one reader, nothing stolen, nothing buffered."""

from __future__ import annotations

import asyncio

import pytest

from springtide.errors import BodyTooLarge
from springtide.web._body import Inbox
from springtide.web._types import Message


class Server:
    """A `receive` whose messages the test sends; two readers at once are an error."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.reading = False
        self.taken = 0

    def send(self, body: bytes, *, more: bool) -> None:
        self.messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> Message:
        assert not self.reading, "two readers at once"
        self.reading = True
        try:
            message = await self.messages.get()
        finally:
            self.reading = False
        self.taken += 1
        return message


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_watcher_holds_one_message_and_the_application_gets_it() -> None:
    server = Server()
    inbox = Inbox(server.receive, 100)
    gone: list[bool] = []
    watcher = asyncio.create_task(inbox.watch(lambda: gone.append(True), prefetch=True))
    for body in (b"a", b"b", b"c"):
        server.send(body, more=True)
    server.send(b"", more=False)
    await settle()
    assert server.taken == 1, "more than one message would be a buffer"
    received = [await inbox.receive() for _ in range(4)]
    assert [message["body"] for message in received] == [b"a", b"b", b"c", b""]
    assert inbox.ended
    server.leave()
    await settle()
    assert gone == [True]
    assert await inbox.receive() == {"type": "http.disconnect"}
    await watcher


async def test_without_prefetch_the_body_is_the_applications_and_watching_begins_after_it() -> None:
    server = Server()
    inbox = Inbox(server.receive, 100)
    gone: list[bool] = []
    watcher = asyncio.create_task(inbox.watch(lambda: gone.append(True), prefetch=False))
    await settle()
    assert not server.reading
    server.send(b"x", more=False)
    assert (await inbox.receive())["body"] == b"x"
    server.leave()
    await settle()
    assert gone == [True]
    await watcher


async def test_an_application_that_reads_while_the_watcher_listens_gets_what_comes() -> None:
    server = Server()
    inbox = Inbox(server.receive, 100)
    watcher = asyncio.create_task(inbox.watch(lambda: None, prefetch=True))
    await settle()
    reading = asyncio.create_task(inbox.receive())
    await settle()
    assert inbox.waiting
    server.send(b"late", more=False)
    assert (await reading)["body"] == b"late"
    watcher.cancel()
    await asyncio.wait([watcher])


async def test_a_reader_that_gives_up_loses_nothing_for_the_next_one() -> None:
    server = Server()
    inbox = Inbox(server.receive, 100)
    watcher = asyncio.create_task(inbox.watch(lambda: None, prefetch=True))
    await settle()
    impatient = asyncio.create_task(inbox.receive())
    await settle()
    impatient.cancel()
    await asyncio.wait([impatient])
    server.send(b"x", more=False)
    assert (await inbox.receive())["body"] == b"x"
    watcher.cancel()
    await asyncio.wait([watcher])


async def test_an_application_that_hears_of_the_departure_itself_is_not_told_twice() -> None:
    server = Server()
    inbox = Inbox(server.receive, 100)
    gone: list[bool] = []
    reading = asyncio.create_task(inbox.receive())
    await settle()
    watcher = asyncio.create_task(inbox.watch(lambda: gone.append(True), prefetch=True))
    server.leave()
    assert (await reading)["type"] == "http.disconnect"
    await watcher
    assert inbox.gone and gone == []


async def test_past_the_limit_every_read_fails_and_the_server_is_not_asked_again() -> None:
    server = Server()
    inbox = Inbox(server.receive, 3)
    server.send(b"abc", more=True)
    server.send(b"d", more=True)
    server.send(b"e", more=True)
    assert (await inbox.receive())["body"] == b"abc"
    for _ in range(3):
        with pytest.raises(BodyTooLarge, match="at most 3 bytes"):
            await inbox.receive()
    assert server.taken == 2
