"""One HTTP request from its first to its last message.

    open -> started -> complete
    open -> replied (the layers answered instead of the application) -> complete
    open | started -> gone (499) | ended (the connection is closed in the middle of an answer)

Invariant: exactly one `RequestFinished`, whatever happens. The handler runs in the server's own task; a timer
costs little, and the task that listens for a leaving client begins only when a request is not done after
`WATCH_AFTER`, so most requests never pay for it. Frameworks answer 500 to an exception and raise it again:
a complete 500 is held back until the handler has returned, and gives way to the answer that fits the error.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from springtide.clock import Clock
from springtide.context import Part
from springtide.errors import BodyTooLarge, DeadlineExceeded
from springtide.signals import RequestFinished, Sink
from springtide.web import _replies
from springtide.web._body import BodyLimits, Inbox
from springtide.web._cors import Cors
from springtide.web._inbound import Inbound
from springtide.web._meter import Meter
from springtide.web._replies import CLIENT_GONE, ErrorReply, RenderError, problem_json
from springtide.web._routes import RouteLabels
from springtide.web._types import ASGIApp, Message, Receive, Scope, Send
from springtide.web.causality import Carrier

__all__ = ["Exchange", "Rules"]

_log = logging.getLogger("springtide.web")

WATCH_AFTER = 0.05
"""Seconds after which somebody listens whether the client is still there."""

NEARLY_LATE = 0.05
"""Share of the time-out: SQL cancelled by its own time-out this close to the deadline counts as late."""

LINGER_SECONDS = 1.0
"""How long an upload is read and thrown away after its refusal: a client that sends everything before it
reads would otherwise see a reset connection and not the answer."""


EVENT_STREAM = b"text/event-stream"
REQUEST_ID = b"x-request-id"
ENDS = ("http.response.body", "http.response.pathsend")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What all exchanges of one `Layers` share."""

    clock: Clock
    sink: Sink
    body_limits: BodyLimits
    server_timing: bool
    cors: Cors
    routes: RouteLabels
    render_error: RenderError
    carrier: Carrier | None = None


class Exchange:
    """Runs one request; made, run once, thrown away."""

    __slots__ = (
        "_begun", "_cause", "_complete", "_counted", "_held", "_inbound", "_inbox", "_meter", "_path",
        "_root_path", "_rules", "_scope", "_send", "_started", "_status", "_task", "_timer", "_watcher",
    )  # fmt: skip

    def __init__(self, rules: Rules, inbound: Inbound, receive: Receive, send: Send) -> None:
        self._rules = rules
        self._inbound = inbound
        self._scope: Scope = inbound.scope
        self._root_path: str = inbound.scope.get("root_path", "")
        self._path: str = inbound.scope["path"]
        self._inbox = Inbox(receive, rules.body_limits.of(self._path))
        self._send = send
        self._begun = rules.clock.monotonic()
        self._status = 0
        self._started = False
        self._complete = False
        self._counted = False
        self._cause: str | None = None
        self._held: list[Message] | None = None
        self._meter: Meter | None = None
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def run(self, app: ASGIApp) -> None:
        task = self._task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        self._arm()
        error: BaseException | None = None
        try:
            self._meter = Meter(app(self._scope, self._receive, self._respond))
            await self._meter
        except (Exception, asyncio.CancelledError) as caught:
            error = caught
        finally:
            await self._disarm()
        cancelled = isinstance(error, asyncio.CancelledError)
        outside = task.cancelling() - (self._cause is not None) > before
        if self._cause is not None:
            task.uncancel()
        if cancelled and outside:  # the server is being stopped: nobody is left to be answered
            assert error is not None
            raise error
        await self._conclude(error)

    async def refuse(self, reply: ErrorReply) -> None:
        """Answer without asking the application."""
        await self._reply(reply, reply.code)

    async def preflight(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Answer a CORS preflight without asking the application."""
        self._status = 204
        await self._start({"type": "http.response.start", "status": 204, "headers": headers})
        await self._last({"type": "http.response.body", "body": b""})
        self._finish(204, None)

    def cut_off(self, error: BaseException) -> None:
        """Count a request that `error` takes away from the layers: the server stops, or cannot send."""
        name = "cancelled" if isinstance(error, asyncio.CancelledError) else _name(error)
        self._finish(self._status if self._started else 503, name)

    # -- while the handler runs

    async def _receive(self) -> Message:
        return await self._inbox.receive()

    async def _respond(self, message: Message) -> None:
        """The application's `send`."""
        kind = message["type"]
        if not self._started and (self._cause is not None or self._inbox.too_large):
            return  # the layers answer; what the application makes of its failure goes nowhere
        if kind == "http.response.start":
            self._status = message["status"]
            if self._status == 500:
                self._held = [message]
                return
        elif self._held is not None:
            self._held.append(message)
            if kind == "http.response.body" and message.get("more_body", False):
                await self._release()
            return
        await self._pass_on(message)

    async def _release(self) -> None:
        """Let go of a 500 that was held back."""
        held, self._held = self._held or [], None
        for message in held:
            await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            await self._start(message)
        elif kind in ENDS and not message.get("more_body", False):
            await self._last(message)
            self._finish(self._status, None)
        else:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        context, carrier, carried = self._inbound.context, self._rules.carrier, self._inbound.carried
        headers = [pair for pair in message.get("headers", ()) if pair[0] != REQUEST_ID]
        if carrier is not None and carrier.has_news(carried, context):
            headers = await carrier.give(carried, context, self._scope, headers)
        self._started = True
        if any(name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in headers):
            context.deadline = None  # without an end by its nature; the client's leaving ends it
        headers.append((REQUEST_ID, context.request_id.encode("ascii")))
        if self._rules.cors.enabled:
            headers += self._rules.cors.response(self._inbound.headers.get(b"origin"))
        if self._rules.server_timing:
            headers.append((b"server-timing", self._timing()))
        await self._send({**message, "headers": headers})

    async def _last(self, message: Message) -> None:
        await self._send(message)  # may wait for a client that reads slowly: the deadline still holds
        self._complete = True
        self._inbound.context.deadline = None  # what the application does now, nobody waits for
        if self._timer is not None:
            self._timer.cancel()

    def _timing(self) -> bytes:
        parts = [f"total;dur={(self._rules.clock.monotonic() - self._begun) * 1e3:.2f}"]
        for part, entry in self._inbound.context.ledger.parts.items():
            times = f';desc="n={entry.calls}"' if entry.calls > 1 or part is Part.SQL else ""
            parts.append(f"{part.value};dur={entry.seconds * 1e3:.2f}{times}")
        if self._meter is not None:
            parts.append(f"{Part.CPU.value};dur={self._meter.seconds() * 1e3:.2f}")
        return ", ".join(parts).encode("ascii")

    # -- what ends a handler from outside

    def _arm(self) -> None:
        remaining = self._inbound.context.remaining(self._rules.clock.monotonic())
        delay = WATCH_AFTER if remaining is None else min(WATCH_AFTER, remaining)
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        if self._complete:
            return
        remaining = self._inbound.context.remaining(self._rules.clock.monotonic())
        if remaining is not None and remaining <= 0:
            self._end("slow body" if self._inbox.waiting and not self._started else "deadline")
            return
        if self._watcher is None:
            prefetch = b"expect" not in self._inbound.headers
            self._watcher = loop.create_task(self._inbox.watch(self._gone, prefetch=prefetch))
        if remaining is not None:
            self._timer = loop.call_later(max(remaining, 0.001), self._tick)

    def _gone(self) -> None:
        self._end("gone")

    def _end(self, cause: str) -> None:
        if not self._complete and self._cause is None and self._task is not None:
            self._cause = cause
            self._task.cancel()

    async def _disarm(self) -> None:
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])

    # -- after the handler

    async def _conclude(self, error: BaseException | None) -> None:
        request_id = self._inbound.context.request_id
        timeout = self._inbound.timeout
        remaining = self._inbound.context.remaining(self._rules.clock.monotonic())
        late = remaining is not None and timeout is not None and remaining <= timeout * NEARLY_LATE
        if self._inbox.gone and not self._complete:
            if error is not None and not _is_departure(error, late=late):
                self._log(error, "after the client had left")
            self._finish(CLIENT_GONE, _name(error) or "ClientGone")
        elif self._complete:
            if error is not None:
                self._log(error, "after the answer was sent")
            self._finish(self._status, _name(error))
        elif self._inbox.too_large:
            await self._answer(BodyTooLarge(self._inbox.limit), late=False)
        elif self._cause == "slow body":
            await self._reply(_replies.slow_body_reply(request_id), "slow body")
        elif self._cause is not None:
            if error is not None and not _is_departure(error, late=True):
                self._log(error, "while it was being cancelled at its deadline")
            await self._answer(DeadlineExceeded("the request was being handled"), late=True)
        elif error is not None:
            await self._answer(error, late=late)
        elif self._held is not None:
            await self._release()
            if not self._complete:
                self._finish(self._status, "incomplete")
        else:  # the server closes the connection of an application that stopped half-way
            self._finish(self._status if self._started else 500, "incomplete")

    async def _answer(self, error: BaseException, *, late: bool) -> None:
        if not _replies.expected(error, late=late):
            self._log(error, "")
        if self._started:  # too late for another answer: returning makes the server close the connection
            self._finish(self._status, _name(error))
            return
        request_id = self._inbound.context.request_id
        await self._reply(_replies.reply_for(error, request_id=request_id, late=late), _name(error))

    async def _reply(self, reply: ErrorReply, error: str | None) -> None:
        try:
            body, content_type = self._rules.render_error(reply, self._scope)
        except Exception:
            _log.exception("render_error failed; the default form is sent")
            body, content_type = problem_json(reply, self._scope)
        headers = [
            (b"content-type", content_type.encode("latin-1")),
            (b"content-length", str(len(body)).encode("ascii")),
            *reply.all_headers,
        ]
        closes = reply.status in (400, 408, 413) and not self._inbox.ended
        if closes and self._scope.get("http_version", "1.1").startswith("1"):
            headers.append((b"connection", b"close"))
        self._status = reply.status
        await self._start({"type": "http.response.start", "status": reply.status, "headers": headers})
        if self._scope["method"] == "HEAD":
            body = b""
        if reply.status == 413 and b"expect" not in self._inbound.headers:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            await self._linger()
            body = b""
        await self._last({"type": "http.response.body", "body": body})
        self._finish(reply.status, error)

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                await self._inbox.discard()
        except TimeoutError:
            return  # it had its time; the connection closes now

    def _log(self, error: BaseException, when: str) -> None:
        method, path = self._scope["method"], self._path
        when = f" {when}" if when else ""
        _log.error("%s %s failed%s", method, path, when, exc_info=error, extra={"event": "request_failed"})

    def _finish(self, status: int, error: str | None) -> None:
        if self._counted:
            return
        self._counted = True
        context = self._inbound.context
        if self._meter is not None:
            context.ledger.add(Part.CPU, self._meter.seconds())
        seconds = self._rules.clock.monotonic() - self._begun
        self._complete = True
        self._rules.sink.emit(
            RequestFinished(
                method=self._scope["method"],
                route=self._rules.routes.label(self._scope, self._root_path),
                status=status,
                seconds=seconds,
                request_id=context.request_id,
                ledger=context.ledger,
                trace=context.trace,
                error=error,
                path=self._path,
                client=self._inbound.client,
            )
        )


def _name(error: BaseException | None) -> str | None:
    return type(error).__name__ if error is not None else None


def _is_departure(error: BaseException, *, late: bool) -> bool:
    """Errors that are the natural end of a handler that was told to stop.

    Starlette's ClientDisconnect is known by its name, because Starlette need not be installed.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(_is_departure(part, late=late) for part in error.exceptions)
    names = ("CancelledError", "ClientDisconnect", "BrokenPipeError", "ConnectionResetError")
    return type(error).__name__ in names or _replies.expected(error, late=late)
