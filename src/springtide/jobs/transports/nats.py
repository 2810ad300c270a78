"""NATS JetStream: one stream per line, kept in files, with one consumer that all workers pull from.

    published -> in the stream -> received, for ACK_WAIT seconds at a time -> acknowledged, and gone
                      ^------------ given back, or ACK_WAIT is over ---'

Workers ask for as many messages as they have room for, so none is ahead of its worker: line after line for
what is there now, then all lines for what will come. A request of the second kind stays with the server for
LATER seconds at most, also when its asker has had enough; what comes then and nobody takes for HOLD seconds
goes back. What a worker has in hand is renewed until it is settled: SQL, not the broker, says when a job is
lost. A stream that somebody has made before is taken as it is, if it keeps messages in files until they are
done: its replicas and bounds are its owner's.

A confirm is the server's word that the message is in the stream's file; a message of the same key that comes
within DUPLICATES seconds is confirmed and not kept. Requests and confirms share a subscription each, without
the client's own request for every message; the client's reconnecting is off, ours has jitter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error, NoServersError
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from springtide.clock import Clock, SystemClock
from springtide.errors import TransportRefused, TransportUnavailable
from springtide.jobs.transports._addresses import authorities
from springtide.jobs.transports._fetched import Fetched
from springtide.jobs.transports._reconnecting import Reconnecting
from springtide.jobs.transports.seam import Capabilities, Delivery, Message, readable
from springtide.lifecycle import Periodic, StartStop
from springtide.signals import Sink

__all__ = ["NatsTransport"]

_log = logging.getLogger(__name__)

TIMEOUT = 5.0
"""Seconds that a batch of messages, or a connection, may take."""

NOW = 0.5
"""Seconds that a server has to say what it has of a line now."""

LATER = 2.0
"""Seconds for which the server keeps a request for what will come."""

PING_EVERY = 5
"""Seconds; a server that does not answer twice is lost."""

ACK_WAIT = 10.0
"""Seconds after which what was received and neither settled nor renewed comes again."""

HOLD = 2.0
"""Seconds for which a message may lie here before somebody takes it."""

DUPLICATES = 10.0
"""Seconds for which a stream remembers the keys of messages."""

MAX_UNSETTLED = 50_000
"""Messages of a line that all its workers together may have in hand."""

CONSUMER = "workers"

ACK, NAK, RENEW = b"+ACK", b"-NAK", b"+WPI"

EXISTS = 10058
"""The server's code for a stream that is there with another configuration."""

NOT_ENABLED = (10039, 10076)
"""Its codes for JetStream that is off, for this account or altogether."""

ERRORS = (Error, OSError, EOFError, ValueError)
"""What the library raises when a connection cannot be made or does not hold."""


class NatsTransport:
    """See the module; a lifecycle service."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        durable=(
            "the server, or a majority of a replicated stream's, has written it to a file, which is synced"
            " before the confirm with sync_interval: always (2.10 or newer), else every two minutes"
        ),
        survives_restart=True,
        redelivers=True,
        ordered=True,
        deduplicates=True,
        delays=False,
        priorities=False,
        max_body=2**20,
    )

    def __init__(self, url: str, *, name: str, clock: Clock | None = None, sink: Sink | None = None) -> None:
        self._clock = clock or SystemClock()
        parts = urlsplit(url)
        self._address = f"{parts.hostname}:{parts.port or 4222}"
        self.name = f"nats {self._address}"
        self._scheme = parts.scheme
        self._user, self._password = _login(parts.username), _login(parts.password)
        self._roots = authorities(url, key=f"the nats node's url of {name}")
        self._tls: ssl.SSLContext | None = None
        self._platform = name
        self._fetched = Fetched(self._clock)
        self._unsettled: set[str] = set()
        self._link = Reconnecting(
            self.name, self._connect, _Link.close, _Link.alive, errors=ERRORS, clock=self._clock
        )
        self._receiving = asyncio.Lock()
        self._returning = Periodic(f"{self.name}: give back", self._give_back_stale, every=HOLD / 2)
        self._renewing = Periodic(f"{self.name}: renew", self._renew, every=ACK_WAIT / 3)
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def _open(self) -> None:
        if self._scheme == "tls":
            self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._roots)
        try:
            link = await self._link.get(within=TIMEOUT)
            async with asyncio.timeout(TIMEOUT):
                await link.streams.account_info()
        except APIError as error:
            if error.err_code in NOT_ENABLED:
                await self._link.close()
                raise TransportRefused(self.name, "jetstream", "off", "must be on for this login") from error
        except TransportUnavailable as error:
            if "authorization" in str(error).lower():
                rule = "must have a login that the server accepts"
                raise TransportRefused(self.name, "url", "another login", rule) from error
        except (TimeoutError, *ERRORS) as error:
            _log.warning("%s does not answer yet: %s", self.name, _words(error))
        await self._returning.start()
        await self._renewing.start()

    async def _close(self) -> None:
        await self._returning.stop()
        await self._renewing.stop()
        left = self._fetched.take_all()
        with contextlib.suppress(TransportUnavailable):
            await self._settle(left, NAK)
        if (link := self._link.link) is not None:
            with contextlib.suppress(TimeoutError, *ERRORS):
                await link.client.flush(1)
        self._unsettled.clear()
        await self._link.close()

    # -- the seam --------------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Message]) -> Sequence[bool]:
        link = await self._link.get(within=TIMEOUT)
        batch = _Batch(len(messages))
        failed = ""
        try:
            async with asyncio.timeout(TIMEOUT):
                for line in dict.fromkeys(message.line for message in messages):
                    await self._stream(link, line)
                for number, message in enumerate(messages):
                    reply = link.expect(batch, number)
                    headers = {"Nats-Msg-Id": message.key}
                    await link.client.publish(self._subject(message.line), message.body, reply, headers)
                await batch.done.wait()
        except TimeoutError:
            failed = f"no confirm within {TIMEOUT:g} s"
        except ERRORS as error:
            failed = _words(error)
        finally:
            link.forget(batch)
        if failed or not link.alive():
            await self._link.drop(link, failed or "the connection was lost")
        elif not all(batch.confirmed):
            link.made.clear()  # a stream may be gone: the next call makes sure
        if messages and not any(batch.confirmed):
            raise TransportUnavailable(self.name, failed or batch.refusal or "the connection was lost")
        return batch.confirmed

    async def receive(self, lines: Collection[str], most: int, wait: float) -> Sequence[Delivery]:
        end = self._clock.monotonic() + wait
        async with self._receiving:
            link = await self._link.get(within=TIMEOUT)
            try:
                async with asyncio.timeout(TIMEOUT):
                    found = await self._there(link, lines, most)
                while not found and (left := min(end - self._clock.monotonic(), LATER)) > 0:
                    async with asyncio.timeout(TIMEOUT):
                        for line in lines:
                            await self._ask(link, line, most, left)
                    await self._fetched.news(left)
                    found = self._fetched.take(lines, most)
                    if not link.alive():
                        raise ConnectionError("the connection was lost")
            except (TimeoutError, *ERRORS) as error:
                await self._link.drop(link, _words(error))
                raise TransportUnavailable(self.name, _words(error)) from error
        self._unsettled.update(delivery.handle for delivery in found)
        return found

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._settle(deliveries, ACK)

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        await self._settle(deliveries, NAK)

    async def depth(self, line: str) -> int | None:
        link = await self._link.get(within=TIMEOUT)
        try:
            async with asyncio.timeout(TIMEOUT):
                return (await link.streams.stream_info(self._name(line))).state.messages
        except NotFoundError:
            return 0
        except (TimeoutError, *ERRORS) as error:
            raise TransportUnavailable(self.name, _words(error)) from error

    # -- what it is made of ----------------------------------------------------------------------------

    def _subject(self, line: str) -> str:
        return f"springtide.{self._platform}.jobs.{line}"

    def _name(self, line: str) -> str:
        """A stream's name has no dots."""
        return f"{self._platform}-jobs-{line.replace('.', '=')}"

    async def _connect(self) -> _Link:
        client, told = Client(), list[Exception]()

        async def tell(error: Exception) -> None:
            told.append(error)
            _log.info("%s: %s", self.name, _words(error))

        try:
            async with asyncio.timeout(TIMEOUT):
                await client.connect(
                    f"{self._scheme}://{self._address}",
                    name=f"{self._platform}-jobs",
                    allow_reconnect=False,
                    max_reconnect_attempts=1,  # these hold for a first connection, too, which would try on
                    reconnect_time_wait=0,
                    connect_timeout=int(TIMEOUT),
                    ping_interval=PING_EVERY,
                    tls=self._tls,
                    error_cb=tell,
                    closed_cb=self._woken,
                    user=self._user,
                    password=self._password,
                )
                link = _Link(client, client.jetstream(timeout=TIMEOUT))
                await client.subscribe(f"{link.inbox}.confirm.*", cb=link.confirmed)
                await client.subscribe(f"{link.inbox}.pull.*", cb=self._came)
        except BaseException as error:
            with contextlib.suppress(TimeoutError, *ERRORS):
                async with asyncio.timeout(1.0):
                    await client.close()
            if isinstance(error, NoServersError) and told:
                raise ConnectionError(_words(told[-1])) from told[-1]
            raise
        return link

    async def _woken(self) -> None:
        self._fetched.wake()
        if (link := self._link.link) is not None:
            link.lost()

    async def _stream(self, link: _Link, line: str) -> None:
        """Make sure that the stream of `line` and its consumer are there."""
        if line in link.made:
            return
        wanted = StreamConfig(
            name=self._name(line),
            subjects=[self._subject(line)],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            duplicate_window=DUPLICATES,
        )
        try:
            await link.streams.add_stream(wanted)
        except APIError as error:
            if error.err_code != EXISTS:
                raise
            found = (await link.streams.stream_info(self._name(line))).config
            if found.retention != RetentionPolicy.WORK_QUEUE or found.storage != StorageType.FILE:
                rule = "must keep messages in files until they are done (storage file, retention workqueue)"
                raise TransportUnavailable(self.name, f"stream {found.name} {rule}") from error
        consumer = ConsumerConfig(
            durable_name=CONSUMER,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT,
            max_ack_pending=MAX_UNSETTLED,
        )
        await link.streams.add_consumer(self._name(line), consumer)
        link.made.add(line)

    async def _there(self, link: _Link, lines: Collection[str], most: int) -> list[Delivery]:
        """What is here, and what the streams have now, those of earlier lines first."""
        found: list[Delivery] = []
        for line in lines:
            found += self._fetched.take([line], most - len(found))
            while len(found) < most and not link.asked_for(line, self._clock.monotonic()):
                await self._stream(link, line)
                request = link.ask(line, most - len(found), self._clock.monotonic() + NOW)
                await self._send(link, request, {"no_wait": True})
                with contextlib.suppress(TimeoutError):  # a slow server: its answer is found later
                    async with asyncio.timeout(NOW):
                        await request.done.wait()
                link.end(request.number)
                if not (more := self._fetched.take([line], most - len(found))):
                    break
                found += more
        return found

    async def _ask(self, link: _Link, line: str, most: int, wait: float) -> None:
        """Have the server send up to `most` messages of `line` when they come, what it was asked for before
        included."""
        await self._stream(link, line)
        now = self._clock.monotonic()
        missing = most - self._fetched.count(line) - link.asked_for(line, now)
        if missing > 0:
            await self._send(link, link.ask(line, missing, now + wait), {"expires": int(wait * 1e9)})

    async def _send(self, link: _Link, request: _Request, more: Mapping[str, object]) -> None:
        await link.client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._name(request.line)}.{CONSUMER}",
            json.dumps({"batch": request.left, **more}).encode(),
            f"{link.inbox}.pull.{request.number}",
        )

    async def _came(self, msg: Msg) -> None:
        """A message, or the end of a request: of its time, of the consumer, of the server's patience."""
        link = self._link.link
        if msg.headers is not None and "Status" in msg.headers:
            if link is not None and (status := msg.headers["Status"]) != "100":
                request = link.end(int(msg.subject.rpartition(".")[2]))
                if request is not None and status not in ("404", "408"):
                    link.made.discard(request.line)  # nobody listens, or the consumer was deleted
                    self._fetched.wake()
            return
        line = msg.subject.removeprefix(self._subject(""))
        message = readable(line, msg.data)
        if message is None:
            await msg.ack()
        else:
            self._fetched.put(Delivery(message, msg.reply))
        if link is not None:
            link.arrived(line, last=msg.reply.endswith(".0"))

    async def _settle(self, deliveries: Sequence[Delivery], how: bytes) -> None:
        self._unsettled.difference_update(delivery.handle for delivery in deliveries)
        if not deliveries:
            return
        link = await self._link.get(within=TIMEOUT)
        try:
            async with asyncio.timeout(TIMEOUT):
                for delivery in deliveries:
                    await link.client.publish(delivery.handle, how)
        except (TimeoutError, *ERRORS) as error:
            await self._link.drop(link, _words(error))
            raise TransportUnavailable(self.name, _words(error)) from error

    async def _give_back_stale(self) -> None:
        if self._fetched.stale(HOLD) and not self._receiving.locked():
            with contextlib.suppress(TransportUnavailable):  # then it comes again by itself
                await self._settle(self._fetched.take_all(), NAK)

    async def _renew(self) -> None:
        link = self._link.link
        if link is not None:
            with contextlib.suppress(*ERRORS):
                for handle in tuple(self._unsettled):
                    await link.client.publish(handle, RENEW)


class _Batch:
    """Messages that are published together, until each is confirmed or refused."""

    def __init__(self, size: int) -> None:
        self.confirmed = [False] * size
        self.refusal = ""
        self.done = asyncio.Event()
        self.replies: list[str] = []
        self._left = size
        if not size:
            self.done.set()

    def settle(self, number: int, refusal: str) -> None:
        self.confirmed[number] = not refusal
        self.refusal = self.refusal or refusal
        self._left -= 1
        if not self._left:
            self.done.set()


class _Request:
    """Messages that the server was asked for. `done`: it has sent what it had."""

    def __init__(self, number: int, line: str, left: int, end: float) -> None:
        self.number = number
        self.line = line
        self.left = left
        self.end = end
        self.done = asyncio.Event()


class _Link:
    """A connection: what is awaited over it, and the streams it has seen. Messages' handles outlive it."""

    def __init__(self, client: Client, streams: JetStreamContext) -> None:
        self.client = client
        self.streams = streams
        self.inbox = client.new_inbox()
        self.made: set[str] = set()
        self._number = 0
        self._confirms: dict[str, tuple[_Batch, int]] = {}
        self._asked: dict[int, _Request] = {}

    def alive(self) -> bool:
        return bool(self.client.is_connected)

    async def close(self) -> None:
        with contextlib.suppress(TimeoutError, *ERRORS):
            async with asyncio.timeout(1.0):
                await self.client.close()

    # -- confirms

    def expect(self, batch: _Batch, number: int) -> str:
        """Where the confirm of message `number` of `batch` shall go."""
        self._number += 1
        reply = f"{self.inbox}.confirm.{self._number}"
        self._confirms[reply] = (batch, number)
        batch.replies.append(reply)
        return reply

    def forget(self, batch: _Batch) -> None:
        for reply in batch.replies:
            self._confirms.pop(reply, None)

    async def confirmed(self, msg: Msg) -> None:
        batch, number = self._confirms.pop(msg.subject, (None, 0))
        if batch is None:
            return
        if msg.headers is not None and "Status" in msg.headers:
            batch.settle(number, "there is no stream for it")
            return
        answer = json.loads(msg.data)
        batch.settle(number, answer["error"]["description"] if "error" in answer else "")

    def lost(self) -> None:
        """Nothing more comes over it: nobody shall wait for that."""
        for batch, _ in self._confirms.values():
            batch.done.set()

    # -- requests

    def ask(self, line: str, count: int, end: float) -> _Request:
        self._number += 1
        request = self._asked[self._number] = _Request(self._number, line, count, end)
        return request

    def asked_for(self, line: str, now: float) -> int:
        """How many messages of `line` the server may still send."""
        for number in [number for number, request in self._asked.items() if request.end <= now]:
            self.end(number)
        return sum(request.left for request in self._asked.values() if request.line == line)

    def arrived(self, line: str, *, last: bool) -> None:
        """A message of `line` came; `last`: the stream had no other then."""
        for number, request in self._asked.items():
            if request.line == line:
                request.left -= 1
                if not request.left:
                    self.end(number)
                elif last:
                    request.done.set()
                return

    def end(self, number: int) -> _Request | None:
        request = self._asked.pop(number, None)
        if request is not None:
            request.done.set()
        return request


def _login(text: str | None) -> str | None:
    return None if text is None else unquote(text)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
