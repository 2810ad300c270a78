"""A TCP proxy that a test puts between a client and a server, to cut, stall and slow what passes.

    async with FaultProxy(target=5432) as proxy:
        ...connect to 127.0.0.1:proxy.port...
        cut = proxy.on(b"COMMIT", "cut")    # passed on to the server, but no answer comes back
        ...
        await cut

Bytes pass unchanged and in order until a fault is set. Faults hold for open and for new connections.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

__all__ = ["FaultProxy"]

_CHUNK = 65_536


class FaultProxy:
    """Forwards 127.0.0.1:`port` (chosen when the proxy starts) to `host`:`target`.

    `cut` breaks connections off. `stall` stops passing bytes on, with the connections open. `slow` delays
    each piece. `half_open` takes the server away without telling the client. `refuse` closes new connections
    at once. `resume` ends them all.
    """

    def __init__(self, *, target: int, host: str = "127.0.0.1") -> None:
        self._host = host
        self._target = target
        self._server: asyncio.Server | None = None
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._handlers: set[asyncio.Task[Any]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._delay = 0.0
        self._refusing = False
        self._orphans: set[asyncio.StreamWriter] = set()
        self._watches: list[tuple[bytes, str, str, asyncio.Future[None]]] = []
        self.accepted = 0

    @property
    def port(self) -> int:
        assert self._server is not None, "the proxy was not started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.resume()
        self.refuse()
        for _ in range(5):
            await asyncio.sleep(0)  # connections that were just accepted get their handlers, which end them
        self.cut()
        for task in self._tasks:
            task.cancel()
        while self._handlers:
            await asyncio.wait(self._handlers)
        await self._server.wait_closed()
        for _ in range(3):
            await asyncio.sleep(0)  # the loop closes the sockets of transports that were aborted

    def cut(self, oldest: int | None = None) -> None:
        """Break open connections off, on both sides: all of them, or the `oldest` so many."""
        for pair in self._pairs[:oldest]:
            for writer in pair:
                writer.transport.abort()

    def stall(self) -> None:
        """Keep the connections and pass nothing on."""
        self._flowing.clear()

    def slow(self, seconds: float) -> None:
        """Delay each piece of bytes by `seconds`, in both directions."""
        self._delay = seconds

    def half_open(self) -> None:
        """The server loses every open connection, and their clients hear nothing of it.

        What they send is taken and lost, as if the server's machine had restarted and its network were not
        back yet. `resume` hangs up on them. New connections pass as before.
        """
        for near, far in self._pairs:
            self._orphans.add(near)
            far.transport.abort()

    def refuse(self) -> None:
        """Close new connections as soon as they are made."""
        self._refusing = True

    def resume(self) -> None:
        self._delay = 0.0
        self._refusing = False
        self._flowing.set()
        for near in self._orphans:
            near.transport.abort()

    def on(self, pattern: bytes, action: str, *, side: str = "client") -> asyncio.Future[None]:
        """Once, when a piece of bytes from `side` ("client" or "server") contains `pattern`:

        "cut" passes it on and cuts the connections, "drop" cuts them without passing it on, "stall"
        holds it and everything after it, "pass" only tells. The future is done when it has happened.
        """
        if action not in ("cut", "drop", "stall", "pass") or side not in ("client", "server"):
            raise ValueError(
                f"action is cut, drop, stall or pass, and side client or server, got {action!r} and {side!r}"
            )
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watches.append((pattern, action, side, done))
        return done

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)
        if self._refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, far_writer)
        self._pairs.append(pair)
        both = [
            asyncio.create_task(self._pump(reader, far_writer, "client", near=writer)),
            asyncio.create_task(self._pump(far_reader, writer, "server", near=writer)),
        ]
        self._tasks.update(both)
        try:
            await asyncio.wait(both)
        finally:
            self._tasks.difference_update(both)
            self._pairs.remove(pair)
            if writer in self._orphans:  # nobody else closes it when its client has left first
                self._orphans.discard(writer)
                writer.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        side: str,
        *,
        near: asyncio.StreamWriter,
    ) -> None:
        try:
            while piece := await reader.read(_CHUNK):
                if near in self._orphans:
                    continue
                if self._delay:
                    await asyncio.sleep(self._delay)
                action = self._watched(piece, side)
                if action == "drop":
                    self.cut()
                    return
                await self._flowing.wait()
                writer.write(piece)
                await writer.drain()
                if action == "cut":
                    self.cut()
                    return
            if near not in self._orphans:
                writer.close()
        except (ConnectionError, TimeoutError):
            if near not in self._orphans:
                writer.transport.abort()

    def _watched(self, piece: bytes, side: str) -> str | None:
        for watch in self._watches:
            pattern, action, wanted, done = watch
            if side == wanted and pattern in piece:
                self._watches.remove(watch)
                if action == "stall":
                    self.stall()
                if not done.done():
                    done.set_result(None)
                return action
        return None
