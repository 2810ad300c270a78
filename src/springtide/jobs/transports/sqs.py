"""SQS: one standard queue per line.

    sent -> in the queue -> received: nobody else gets it for `visibility` seconds -> deleted
                 ^------- given back, or that time is over -------'

A standard queue may give a message twice and in any order; both are judged by SQL. A message is settled once
its job is claimed, however long that runs: so `visibility` needs no prolonging, and if it ends early, the
claim of whoever gets the message finds the job taken.

Messages are asked for by long polls that outlive a call of `receive`: one that is broken off may have taken
messages with it. So a poll puts what it got into this process's hands, where it lies for HOLD seconds before
it is given back. A line is polled only while those before it are known to be empty, and a poll is long only
where the one before brought nothing: so earlier lines come first, and an idle worker asks seldom.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import math
import os
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import botocore.session
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from springtide.clock import Clock, SystemClock
from springtide.context import detached
from springtide.errors import TransportRefused, TransportUnavailable
from springtide.jobs.transports._fetched import Fetched
from springtide.jobs.transports._sqs_address import parse, queue_name
from springtide.jobs.transports.seam import Capabilities, Delivery, Message, readable
from springtide.lifecycle import Periodic, StartStop
from springtide.signals import Sink

__all__ = ["SqsTransport"]

TIMEOUT = 10.0
"""Seconds that a request may take, and all of one call together; a long poll has its wait in addition."""

CONNECT_TIMEOUT = 3.0

ATTEMPTS = 2
"""Of each request: the service now and then answers one with an error that the next one does not meet."""

BATCH = 10
"""Messages per request, by the service's rule."""

REQUESTS = 16
"""Requests of one driver under way at once, long polls not counted."""

POLLS = 4
"""Of one line at once, while it has more than a poll brings."""

MAX_POLL = 20

HOLD = 2.0
"""Seconds for which a message may lie here before somebody takes it."""

RETENTION = 86_400
"""Seconds after which a queue forgets a message that nobody wanted. SQL has sent it again long before."""

GONE = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})

LOGIN = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "MissingAuthenticationToken",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
"""Answers to a login that will not get better by asking again."""

DENIED = 403
"""Status of an answer to a login that is known and not allowed what it asked for."""

ERRORS = (BotoCoreError, ClientError, OSError)


class _Handle(NamedTuple):
    queue: str
    receipt: str


class SqsTransport:
    """See the module; a lifecycle service."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        durable="the service has stored it on several servers in at least two zones of the region",
        survives_restart=True,
        redelivers=True,
        ordered=False,
        deduplicates=False,
        delays=False,
        priorities=False,
        max_body=192 * 2**10,
    )

    def __init__(self, url: str, *, name: str, clock: Clock | None = None, sink: Sink | None = None) -> None:
        self._address = parse(url, key=f"the sqs node's url of {name}", environment=os.environ)
        self._clock = clock or SystemClock()
        self.name = f"sqs {self._address.endpoint.partition('://')[2]}"
        self._platform = name
        self._client: Any = None
        self._context: Any = None
        self._queues: dict[str, str] = {}
        self._empty: set[str] = set()
        self._full: set[str] = set()
        self._polls: dict[asyncio.Task[None], str] = {}
        self._failed: BaseException | None = None
        self._fetched = Fetched(self._clock)
        self._unsettled: dict[_Handle, Delivery] = {}
        self._receiving = asyncio.Lock()
        self._room = asyncio.Semaphore(REQUESTS)
        self._returning = Periodic(f"{self.name}: give back", self._give_back_stale, every=HOLD / 2)
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def _open(self) -> None:
        address = self._address
        config = AioConfig(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=MAX_POLL + TIMEOUT,
            max_pool_connections=REQUESTS * 4,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        )
        login = {"aws_access_key_id": address.key or None, "aws_secret_access_key": address.secret or None}
        where = {"endpoint_url": address.endpoint, "region_name": address.region}
        try:
            session = await asyncio.to_thread(_session, where)
            self._context = session.create_client("sqs", config=config, **where, **login)
            self._client = await self._context.__aenter__()
        except (BotoCoreError, ValueError) as error:
            raise TransportRefused(
                self.name, "url", str(error), "must be one that the client takes"
            ) from error
        try:
            await self._judge()
        except BaseException:
            await self._leave()
            raise
        await self._returning.start()

    async def _judge(self) -> None:
        """Raise TransportRefused when the service answers and will never serve this login."""
        try:
            async with asyncio.timeout(TIMEOUT):
                await self._client.get_queue_url(QueueName=queue_name(self._platform, ""))
        except (NoCredentialsError, PartialCredentialsError) as error:
            rule = "must be in the node's url, the environment, a profile or the machine's role"
            raise TransportRefused(self.name, "credentials", None, rule) from error
        except ClientError as error:
            if (code := _code(error)) in LOGIN:
                raise TransportRefused(self.name, "credentials", code, "must be valid") from error
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == DENIED:
                rule = "must be allowed to get, make, read and write queues"
                raise TransportRefused(self.name, "credentials", code, rule) from error
        except (TimeoutError, BotoCoreError, OSError):
            pass  # it is not there yet; the next call tries again

    async def _close(self) -> None:
        await self._returning.stop()
        for poll in self._polls:
            poll.cancel()
        if self._polls:
            await asyncio.wait(self._polls)
        with contextlib.suppress(TransportUnavailable):  # else it comes again when its time is over
            await self.give_back([*self._fetched.take_all(), *self._unsettled.values()])
        self._unsettled.clear()
        self._queues.clear()
        self._empty.clear()
        self._full.clear()
        await self._leave()

    async def _leave(self) -> None:
        context, self._context, self._client = self._context, None, None
        if context is not None:
            await context.__aexit__(None, None, None)

    # -- the seam --------------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Message]) -> Sequence[bool]:
        confirmed = [False] * len(messages)
        lines: dict[str, list[int]] = {}
        for number, message in enumerate(messages):
            lines.setdefault(message.line, []).append(number)

        async def send(line: str, numbers: Sequence[int]) -> None:
            entries = [
                {"Id": str(number), "MessageBody": base64.b64encode(messages[number].body).decode()}
                for number in numbers
            ]
            answer = await self._asked(line, "send_message_batch", Entries=entries)
            for entry in answer.get("Successful", ()):
                confirmed[int(entry["Id"])] = True

        failed = await self._all([(send, line, some) for line, some in _batches(lines)])
        if failed is not None and not any(confirmed):
            raise failed
        return confirmed

    async def receive(self, lines: Collection[str], most: int, wait: float) -> Sequence[Delivery]:
        """Nothing is said only after an answer: that is how a caller learns whether the service is there."""
        end = self._clock.monotonic() + wait
        asked: set[asyncio.Task[None]] = set()
        async with self._receiving:
            self._failed = None
            while not (found := self._fetched.take(self._served(lines), most)):
                left = end - self._clock.monotonic()
                if self._failed is not None:
                    raise TransportUnavailable(self.name, _words(self._failed)) from self._failed
                answered = any(poll.done() for poll in asked)
                if left <= 0 and answered and all(line in self._empty for line in lines):
                    break
                self._poll(lines, most, max(left, 0.0))
                asked.update(self._polls)
                await self._fetched.news(left if left > 0 else TIMEOUT)
        self._unsettled.update((delivery.handle, delivery) for delivery in found)
        return found

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._settle(deliveries, "delete_message_batch")

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        await self._settle(deliveries, "change_message_visibility_batch", VisibilityTimeout=0)

    async def depth(self, line: str) -> int | None:
        """About so many: the service counts as it can."""
        names = [f"ApproximateNumberOfMessages{suffix}" for suffix in ("", "NotVisible", "Delayed")]
        answer = await self._asked(line, "get_queue_attributes", AttributeNames=names)
        return sum(int(answer.get("Attributes", {}).get(name, 0)) for name in names)

    # -- polls -----------------------------------------------------------------------------------------

    def _served(self, lines: Collection[str]) -> list[str]:
        """Those that are looked at now: up to the first that is not known to be empty."""
        found: list[str] = []
        for line in lines:
            found.append(line)
            if line not in self._empty:
                break
        return found

    def _poll(self, lines: Collection[str], most: int, wait: float) -> None:
        for line in self._served(lines):
            missing = most - self._fetched.count(line)
            under_way = list(self._polls.values()).count(line)
            wanted = min(-(-missing // BATCH), POLLS) if line in self._full else min(missing, 1)
            for _ in range(wanted - under_way):
                seconds = min(math.ceil(wait), MAX_POLL) if line in self._empty else 0
                poll = asyncio.get_running_loop().create_task(
                    self._polled(line, min(missing, BATCH), seconds),
                    name=f"{self.name}: poll {line}",
                    context=detached(),
                )
                self._polls[poll] = line
                poll.add_done_callback(self._poll_ended)

    def _poll_ended(self, poll: asyncio.Task[None]) -> None:
        self._polls.pop(poll, None)
        if not poll.cancelled() and (error := poll.exception()) is not None:
            self._failed = error
        self._fetched.wake()

    async def _polled(self, line: str, most: int, seconds: int) -> None:
        async with asyncio.timeout(seconds + TIMEOUT):
            answer = await self._call(
                line,
                "receive_message",
                MaxNumberOfMessages=most,
                WaitTimeSeconds=seconds,
                VisibilityTimeout=self._address.visibility,
            )
        entries = answer.get("Messages", ())
        (self._empty.discard if entries else self._empty.add)(line)
        (self._full.add if len(entries) == BATCH else self._full.discard)(line)
        queue, strange = self._queues.get(line, ""), []
        for entry in entries:
            handle = _Handle(queue, entry["ReceiptHandle"])
            message = readable(line, _bytes(entry["Body"]))
            if message is not None:
                self._fetched.put(Delivery(message, handle))
            else:
                strange.append(handle.receipt)
        if strange:
            entries = [{"Id": str(number), "ReceiptHandle": one} for number, one in enumerate(strange)]
            await self._call(line, "delete_message_batch", Entries=entries)

    async def _give_back_stale(self) -> None:
        if self._fetched.stale(HOLD) and not self._receiving.locked():
            with contextlib.suppress(TransportUnavailable):  # then it comes again when its time is over
                await self.give_back(self._fetched.take_all())

    # -- requests --------------------------------------------------------------------------------------

    async def _settle(self, deliveries: Sequence[Delivery], how: str, **options: Any) -> None:
        lines: dict[str, list[int]] = {}
        for number, delivery in enumerate(deliveries):
            self._unsettled.pop(delivery.handle, None)
            lines.setdefault(delivery.message.line, []).append(number)

        async def send(line: str, numbers: Sequence[int]) -> None:
            queue = await self._queue(line)
            entries = [
                {"Id": str(number), "ReceiptHandle": deliveries[number].handle.receipt, **options}
                for number in numbers
                if deliveries[number].handle.queue == queue  # else what it was in is gone
            ]
            if entries:
                await self._asked(line, how, Entries=entries)

        failed = await self._all([(send, line, some) for line, some in _batches(lines)])
        if failed is not None:
            raise failed

    async def _all(self, calls: Sequence[tuple[_Call, str, Sequence[int]]]) -> TransportUnavailable | None:
        """Make these calls, at most REQUESTS at once; what one of them failed of, if any did."""
        failed: list[TransportUnavailable] = []

        async def one(call: _Call, line: str, numbers: Sequence[int]) -> None:
            async with self._room:
                try:
                    await call(line, numbers)
                except TransportUnavailable as error:
                    failed.append(error)

        try:
            async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
                for call, line, numbers in calls:
                    group.create_task(one(call, line, numbers))
        except TimeoutError:
            failed.append(TransportUnavailable(self.name, f"no answer within {TIMEOUT:g} s"))
        return failed[0] if failed else None

    async def _asked(self, line: str, operation: str, **options: Any) -> Any:
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._call(line, operation, **options)
        except (TimeoutError, *ERRORS) as error:
            raise TransportUnavailable(self.name, _words(error)) from error

    async def _call(self, line: str, operation: str, **options: Any) -> Any:
        """The answer; a queue that somebody deleted, or that a stand-in lost, is made again."""
        queue = await self._queue(line)
        try:
            return await getattr(self._client, operation)(QueueUrl=queue, **options)
        except ClientError as error:
            if _code(error) not in GONE:
                raise
            if self._queues.get(line) == queue:
                del self._queues[line]
        return await getattr(self._client, operation)(QueueUrl=await self._queue(line), **options)

    async def _queue(self, line: str) -> str:
        """The URL of the queue of `line`, which is made where it is missing: twice at once does no harm."""
        if self._client is None:
            raise TransportUnavailable(self.name, "it was not started")
        if (known := self._queues.get(line)) is not None:
            return known
        name = queue_name(self._platform, line)
        try:
            answer = await self._client.get_queue_url(QueueName=name)
        except ClientError as error:
            if _code(error) not in GONE:
                raise
            attributes = {
                "MessageRetentionPeriod": str(RETENTION),
                "VisibilityTimeout": str(self._address.visibility),
            }
            answer = await self._client.create_queue(QueueName=name, Attributes=attributes)
        url: str = answer["QueueUrl"]
        self._queues[line] = url
        return url


_Call = Callable[[str, Sequence[int]], Awaitable[None]]


def _session(where: Mapping[str, str]) -> AioSession:
    """A session that has read from disk what a client for SQS is made of: the loop must not wait for that."""
    session = AioSession()
    _ = session.full_config
    warm = botocore.session.Session()
    warm.register_component("data_loader", session.get_component("data_loader"))
    warm.create_client("sqs", aws_access_key_id="none", aws_secret_access_key="none", **where)  # noqa: S106
    return session


def _batches(lines: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Sequence[int]]]:
    for line, numbers in lines.items():
        for start in range(0, len(numbers), BATCH):
            yield line, numbers[start : start + BATCH]


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _bytes(text: str) -> bytes:
    """What a message has; of somebody else's, nothing."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
