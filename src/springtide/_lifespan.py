"""Start and stop of a platform by the ASGI lifespan, around the application's own.

    server startup   -> platform.start -> application startup
    server shutdown  -> application shutdown -> platform.stop

An application that knows no lifespan (it raises or returns without an answer, as the ASGI specification
allows) is served all the same, and so is one whose lifespan ends early: the platform runs until the server
says shutdown. Whatever happens, a platform that was started is stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from springtide.lifecycle import Service

__all__ = ["DRAIN", "run"]

_log = logging.getLogger(__name__)

DRAIN = "springtide.drain"
"""Key in the lifespan's state of a function that a server calls before it stops accepting connections: from
then on `/health/ready` says that this process wants no more traffic."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ANSWERS = (
    "lifespan.startup.complete",
    "lifespan.startup.failed",
    "lifespan.shutdown.complete",
    "lifespan.shutdown.failed",
)


class _Inner:
    """The application's side of the conversation: sees the startup again, its last word is held back."""

    def __init__(self, receive: Receive, send: Send, startup: Message) -> None:
        self._receive = receive
        self._send = send
        self._startup: Message | None = startup
        self.answered = False
        self.shut_down = False
        self.last_word: Message | None = None

    async def receive(self) -> Message:
        if self._startup is not None:
            message, self._startup = self._startup, None
            return message
        message = await self._receive()
        self.shut_down = message["type"] == "lifespan.shutdown"
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind not in _ANSWERS:
            raise RuntimeError(f"an application answers a lifespan by {', '.join(_ANSWERS)}, got {kind!r}")
        self.answered = True
        if kind == "lifespan.startup.complete":
            await self._send(message)
        else:  # said once the platform is stopped too
            self.last_word = message


async def run(platform: Service, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """One lifespan. Errors of the application are raised again after the platform was stopped."""
    startup = await receive()
    try:
        await platform.start()
    except BaseException as error:
        await platform.stop()  # a cancelled start may have gone on
        if not isinstance(error, Exception):
            raise
        _log.error("%s cannot start: %s", platform.name, error)
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    inner = _Inner(receive, send, startup)
    problem: Exception | None = None
    try:
        try:
            await app(scope, inner.receive, inner.send)
        except Exception as error:
            if inner.answered:
                problem = error
                _log.exception("the application's lifespan failed")
            else:
                _log.debug("the application takes no part in the lifespan: %r", error)
        if not inner.answered:
            await send({"type": "lifespan.startup.complete"})
        if not inner.shut_down and inner.last_word is None:
            await receive()
    finally:
        fault = await _stop(platform)
    word = inner.last_word or {"type": "lifespan.shutdown.complete"}
    if fault is not None and word["type"] == "lifespan.shutdown.complete":
        word = {"type": "lifespan.shutdown.failed", "message": str(fault)}
    elif problem is not None and inner.last_word is None:
        word = {"type": "lifespan.shutdown.failed", "message": str(problem)}
    await send(word)
    if problem is not None:
        raise problem


async def _stop(platform: Service) -> Exception | None:
    try:
        await platform.stop()
    except Exception as error:  # told to the server by lifespan.shutdown.failed
        _log.exception("%s did not stop cleanly", platform.name)
        return error
    return None
