"""What is SQS's own: batches judged one by one, logins, queues that vanish, messages that nobody takes.

On moto's server, a faithful stand-in, and where a service has to misbehave, on a few lines of HTTP.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import boto3
import pytest
from aiohttp import web
from tests._sqs import SqsStandIn
from tests.transports import fresh_name

from springtide.errors import TransportRefused, TransportUnavailable
from springtide.jobs.transports import Message, sqs
from springtide.jobs.transports._sqs_address import queue_name
from springtide.jobs.transports.sqs import SqsTransport

LINE = "mail.main.1"

FAILED = (400, "KmsThrottled")

QUERY = "?region=eu-central-1&visibility=600"


@pytest.fixture(scope="module")
def stand_in() -> Iterator[SqsStandIn]:
    server = SqsStandIn()
    try:
        yield server.start()
    finally:
        server.close()


@asynccontextmanager
async def running(url: str, name: str) -> AsyncIterator[SqsTransport]:
    transport = SqsTransport(url + QUERY, name=name)
    await transport.start()
    try:
        yield transport
    finally:
        await transport.stop()


def by_hand(server: SqsStandIn, name: str, call: str, **options: Any) -> Any:
    """Ask the stand-in as somebody else would."""
    login = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    client = boto3.client("sqs", endpoint_url=server.url(), region_name="eu-central-1", **login)
    url = client.get_queue_url(QueueName=queue_name(name, LINE))["QueueUrl"]
    return getattr(client, call)(QueueUrl=url, **options)


def login(server: SqsStandIn) -> str:
    return f"http://key:secret@127.0.0.1:{server.port}"


def message(number: int) -> Message:
    return Message(LINE, 1, UUID(int=number), 1)


@asynccontextmanager
async def service(answer: Callable[[str, Any], Awaitable[Any]]) -> AsyncIterator[str]:
    """A service whose every answer is `answer(operation, request)`; (status, code) is an error."""

    async def handle(request: web.Request) -> web.Response:
        operation = request.headers["X-Amz-Target"].partition(".")[2]
        found = await answer(operation, json.loads(await request.text()))
        if isinstance(found, tuple):
            body = {"__type": f"com.amazonaws.sqs#{found[1]}"}
            return web.json_response(body, status=found[0], content_type="application/x-amz-json-1.0")
        return web.json_response(found, content_type="application/x-amz-json-1.0")

    application = web.Application()
    application.router.add_post("/", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://key:secret@127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_each_entry_of_a_batch_is_judged_alone() -> None:
    """The service takes some of a batch, refuses others, does not name the rest, and fails one batch as a
    whole: exactly what it names as taken is confirmed."""
    batches = 0

    async def answer(operation: str, request: Any) -> Any:
        nonlocal batches
        if operation == "GetQueueUrl":
            return {"QueueUrl": "http://queue"}
        batches += 1
        ids = [entry["Id"] for entry in request["Entries"]]
        if "20" in ids:
            return FAILED
        refused = [{"Id": id, "SenderFault": False, "Code": "InternalError"} for id in ids[1::3]]
        taken = [{"Id": id, "MessageId": id, "MD5OfMessageBody": id} for id in ids[::3]]
        return {"Successful": taken, "Failed": refused}

    async with service(answer) as url, running(url, fresh_name()) as transport:
        confirmed = await transport.publish([message(number) for number in range(25)])
        assert batches == 3
        expected = {number for start in (0, 10) for number in range(start, start + 10, 3)}
        assert {number for number, sure in enumerate(confirmed) if sure} == expected


async def test_a_batch_that_nobody_takes_is_said() -> None:
    """The service answers each request with an error: publishing raises what it said."""

    async def answer(operation: str, request: Any) -> Any:
        return {"QueueUrl": "http://queue"} if operation == "GetQueueUrl" else FAILED

    async with service(answer) as url, running(url, fresh_name()) as transport:
        with pytest.raises(TransportUnavailable, match="KmsThrottled"):
            await transport.publish([message(1)])


async def test_a_service_that_never_answers_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call ends within its time-out, a long poll within that and its wait."""
    monkeypatch.setattr(sqs, "TIMEOUT", 0.5)
    hanging = asyncio.Event()

    async def answer(operation: str, request: Any) -> Any:
        if operation == "GetQueueUrl":
            return {"QueueUrl": "http://queue"}
        await hanging.wait()
        return {}

    async with service(answer) as url, running(url, fresh_name()) as transport:
        async with asyncio.timeout(60):
            for call in (
                transport.publish([message(1)]),
                transport.receive([LINE], 1, 0.1),
                transport.depth(LINE),
            ):
                with pytest.raises(TransportUnavailable):
                    await call
        hanging.set()


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("UnrecognizedClientException", "must be valid"),
        ("AccessDenied", "must be allowed to get, make, read and write queues"),
    ],
)
async def test_a_login_that_is_refused_ends_the_start(code: str, rule: str) -> None:
    """What will not be better later is said at the start, with key, value and rule."""

    async def answer(operation: str, request: Any) -> Any:
        return (403, code)

    async with service(answer) as url:
        transport = SqsTransport(url + QUERY, name="test")
        with pytest.raises(TransportRefused, match=f"credentials {rule}, got '{code}'"):
            await transport.start()
        assert transport.state == "failed"


async def test_a_queue_that_somebody_deletes_is_made_again(stand_in: SqsStandIn) -> None:
    """Senders and receivers that know it go on."""
    name = fresh_name()
    async with running(login(stand_in), name) as transport:
        await transport.publish([message(1)])
        await asyncio.to_thread(by_hand, stand_in, name, "delete_queue")
        assert await transport.receive([LINE], 1, 0.1) == []
        await asyncio.to_thread(by_hand, stand_in, name, "delete_queue")
        assert await transport.publish([message(2)]) == [True]
        (got,) = await transport.receive([LINE], 1, 20.0)
        assert got.message == message(2)
        await transport.ack([got])


async def test_what_nobody_takes_goes_back(stand_in: SqsStandIn) -> None:
    """A poll that outlived its caller got a message: others get it, long before it would come by itself."""
    name = fresh_name()
    async with running(login(stand_in), name) as busy, running(login(stand_in), name) as other:
        assert await busy.receive([LINE], 1, 0.1) == []
        await other.publish([message(1)])
        async with asyncio.timeout(60):
            while not (got := await other.receive([LINE], 1, 1.0)):
                pass
        assert got[0].message == message(1)
        await other.ack(got)
        assert await other.depth(LINE) == 0


async def test_what_is_none_of_ours_is_deleted(stand_in: SqsStandIn) -> None:
    """It does not come again and again, and keeps nothing of ours back."""
    name = fresh_name()
    async with running(login(stand_in), name) as transport:
        assert await transport.depth(LINE) == 0
        for body in ("hello", "AAAA", "{}"):
            await asyncio.to_thread(by_hand, stand_in, name, "send_message", MessageBody=body)
        await transport.publish([message(1)])
        found = []
        async with asyncio.timeout(60):
            while not found or await transport.depth(LINE) > 1:
                found += await transport.receive([LINE], 10, 0.2)
        assert [one.message for one in found] == [message(1)]
        await transport.ack(found)
        assert await transport.depth(LINE) == 0
