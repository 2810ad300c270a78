"""How a command reaches the running supervisor: a unix socket in the home, one JSON object each way.

Only who may enter `<home>/run` (0700) can connect to it (0600). A request is one line of at most 64 KB; the
answer {"done": ...} or {"error": "a sentence"}. The connection is the request's life: a command that is
interrupted or killed closes it, and what it asked for is undone if it is not done yet.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from springtide.errors import ConfigurationError, RunnerError, SpringtideError
from springtide.lifecycle import StartStop
from springtide.ops.runner.pgdata import explain

__all__ = ["Control", "ask"]

_log = logging.getLogger(__name__)

NAME = "control.sock"
MAX_BYTES = 64 * 1024
READ_TIMEOUT = 5.0
MAX_CLIENTS = 16

Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]


class Control:
    """`handle` answers a request; a SpringtideError from it is the sentence that the command shows."""

    def __init__(self, folder: Path, handle: Handler) -> None:
        self._folder = folder
        self._handle = handle
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._life = StartStop("control", self._open, self._close)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def _open(self) -> None:
        try:
            listener = await asyncio.to_thread(_listen, self._folder)
        except OSError as error:
            raise explain(error, "listen for commands in") from error
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=MAX_BYTES)

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        clients = tuple(self._clients)
        for task in clients:
            task.cancel()
        if clients:
            await asyncio.wait(clients)
        await asyncio.to_thread((self._folder / NAME).unlink, missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) > MAX_CLIENTS:
                answer: dict[str, Any] = {"error": "too many commands at once: try again"}
            else:
                answer = await self._answer(reader)
            writer.write(json.dumps(answer).encode() + b"\n")
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(READ_TIMEOUT):
                    await writer.drain()
        except asyncio.CancelledError:
            pass  # the client has gone, or we stop: there is nobody to tell
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> dict[str, Any]:
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                line = await reader.readline()
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("no object")
        except (ValueError, TimeoutError, ConnectionError):
            return {"error": f"a request is one JSON object in a line of at most {MAX_BYTES} bytes"}
        work = asyncio.ensure_future(self._handle(request))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                _log.warning("the command %r was interrupted", request.get("do"))
                work.cancel()
                await asyncio.wait([work])
            return {"done": work.result()}
        except SpringtideError as error:
            return {"error": str(error), "configuration": isinstance(error, ConfigurationError)}
        finally:
            for task in (work, leaving):
                if not task.done():
                    task.cancel()
                    await asyncio.wait([task])


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """The socket's path through a descriptor of its folder: a socket address holds no more than 107 bytes."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{NAME}"
    finally:
        os.close(descriptor)


def _listen(folder: Path) -> socket.socket:
    (folder / NAME).unlink(missing_ok=True)  # of a supervisor that was killed: we hold the home's lock
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(folder) as path:
            before = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(before)
        listener.listen(MAX_CLIENTS)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def ask(folder: Path, request: Mapping[str, Any], *, timeout: float | None = None) -> Any:
    """What the supervisor of `folder` answers; None `timeout` waits as long as it takes.

    Raises RunnerError or ConfigurationError with its sentence, RunnerError when there is nobody to ask.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(timeout)
            with _short(folder) as path:
                connection.connect(path)
            connection.sendall(json.dumps(dict(request)).encode() + b"\n")
            chunks = []
            while chunk := connection.recv(65536):
                chunks.append(chunk)
        except OSError as error:
            raise RunnerError(f"the running supervisor does not answer: {error.strerror or error}") from error
    try:
        answer = json.loads(b"".join(chunks))
    except ValueError:
        raise RunnerError("the running supervisor ended before it answered: see its log") from None
    if "error" in answer:
        kind = ConfigurationError if answer.get("configuration") else RunnerError
        raise kind(str(answer["error"]))
    return answer["done"]
