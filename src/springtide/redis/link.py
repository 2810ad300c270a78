"""One connection to one run of a Redis server: commands go out together, answers come back in order.

A command is packed at once and written at the end of the loop's turn, with all others of that turn, in one
write. What is awaited is a future; Redis answers in the order of the commands, so the n-th answer belongs to
the n-th command, and that is all there is to match.

Invariant: every command that was queued has its place in `_pending` until its answer was read, whatever
became of its caller. Cancelled and late callers leave a future that is done; the answer finds it and is
dropped. So nobody ever gets the answer of somebody else. Answers that cannot be matched end the link.

Lateness is judged by one timer per link, not one per command: every quarter of the time-out it notes how many
commands were queued by then, and whoever is unanswered a full time-out after such a note is late, so between
`timeout` and 1.25 times that. A loop that stood still is pardoned once: the answers may be waiting unread.

    open -> tripped     three commands in a row were late; the keeper asks whether it answers again
    any  -> lost        the connection broke, the server said that it is no primary, it answered nothing for
                        `silence`, or somebody closed it; every command in flight fails

A lost link never comes back: another connection is another link, to what may be another run of the server.
The link sends nothing again: whoever builds keys from `run_id` builds them anew for another link.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final, cast

try:
    import hiredis
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "links to Redis need the parser hiredis: pip install 'springtide[redis]'", name="hiredis"
    ) from error

from springtide.errors import RedisError, RedisUnavailable
from springtide.redis.script import Script

__all__ = ["Link"]

MAX_IN_FLIGHT = 10_000
"""Commands without an answer that a link holds; beyond that it refuses."""

MAX_UNWRITTEN_BYTES = 16 * 2**20
"""Bytes that the server did not take yet; beyond that the link refuses."""

TRIPS_AFTER = 3
"""Commands late in a row, with nobody answered in time between them."""

SILENCES = 4
"""Time-outs without a single byte after which a link with commands in flight is given up."""

ELSEWHERE = {
    "MOVED": "the slot is served by another node",
    "ASK": "the slot is moving to another node",
    "TRYAGAIN": "the slot is moving to another node",
    "CLUSTERDOWN": "the cluster does not serve the slot",
}
"""What a cluster says when its slots are not where this process thinks."""

NOT_NOW = {
    "LOADING": "the server is loading its data",
    "BUSY": "the server is busy with a script",
    "MASTERDOWN": "the server is a replica without its primary",
}

Word = bytes | str | int | float
"""What a command is made of."""

_INCOMPLETE: Final = object()

# its stub names a tuple of one item, and means any number
_pack: Callable[[tuple[Word, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


class _Reply(Exception):
    """An error reply, as the parser hands it over."""


class _Call(asyncio.Future[Any]):
    """The answer of a script by digest; `script` is for a server that does not have it, None when it was sent
    the text."""

    __slots__ = ("command", "script")

    command: tuple[Word, ...]
    script: Script | None


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    """Fail `future` unless it is done; nobody is told of it when nobody waits."""
    if not future.done():
        future.set_exception(error)
        future.exception()  # seen: a caller may leave it alone


class Link(asyncio.Protocol):
    """See the module. `run_id` names the run of the server and its replication history (`_connecting`), in a
    cluster its ownership of slots too.

    Made by `connect`; `address`, `run_id`, `version` and `node` are known once it is handed out.
    """

    def __init__(self, address: str, *, timeout: float, block: float = 0.0) -> None:
        self.address = address
        self.run_id = ""
        self.version: tuple[int, ...] = ()
        self.alive = False
        self.tripped = False
        self.why = "never connected"
        self.on_trouble: Callable[[Link], None] | None = None
        self.on_moved: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._create_future = self._loop.create_future
        self._timeout = timeout + block
        self._step = self._timeout / 4
        self._silence = block + SILENCES * timeout
        self._transport: asyncio.Transport | None = None
        reader = hiredis.Reader(replyError=_Reply, notEnoughData=_INCOMPLETE)
        self._feed, self._gets = reader.feed, reader.gets
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._out: list[bytes] = []
        self._full = False
        self._answered = 0
        self._judged = 0
        self._late = 0
        self._quiet = 0
        self._marks: deque[tuple[float, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._pardoned = False

    def __repr__(self) -> str:
        state = ("tripped" if self.tripped else "alive") if self.alive else f"lost: {self.why}"
        return f"<Link {self.address} run {self.run_id[:8]} {state}>"

    # -- commands --------------------------------------------------------------------------------------

    def send(self, *command: Word) -> asyncio.Future[Any]:
        """Queue a command; the future has its answer (bytes, int, None or a list of these).

        It fails with RedisUnavailable when the link is lost or full or the answer is late, with RedisError
        when the answer is an error. Cancelling it has no effect on anybody else, and it may be left alone.
        """
        future = self._create_future()
        self._queue(command, future)
        return future

    def call(
        self, script: Script, keys: Sequence[bytes | str], args: Iterable[Word] = ()
    ) -> asyncio.Future[Any]:
        """Run `script` by its digest; a server that does not know it is sent the text, once."""
        future = _Call(loop=self._loop)
        future.script = script
        future.command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        self._queue(future.command, future)
        return future

    def _queue(self, command: tuple[Word, ...], future: asyncio.Future[Any]) -> None:
        packed = _pack(command)
        pending = self._pending
        if self._full or len(pending) >= MAX_IN_FLIGHT or not self.alive:
            self._refuse(future)
            return
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        out.append(packed)
        pending.append(future)

    def _refuse(self, future: asyncio.Future[Any]) -> None:
        if not self.alive:
            what = self.why
        elif self._full:
            what = f"it has not taken {MAX_UNWRITTEN_BYTES} bytes that were sent before"
        else:
            what = f"{MAX_IN_FLIGHT} commands wait for their answers already"
        _fail(future, RedisUnavailable(self.address, what))

    def _flush(self) -> None:
        out = self._out
        if not out or self._transport is None:
            return  # lost meanwhile
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._transport.write(data)
        if self._timer is None and self.alive:
            now = self._loop.time()
            self._marks.append((now, self._answered + len(self._pending)))
            self._quiet = 0
            self._arm(now)

    def close(self, why: str = "it was closed here") -> None:
        """Give the link up; what is in flight fails."""
        self._lose(why)

    # -- what arrives (called by the loop) -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is of another class
        self._transport.set_write_buffer_limits(high=MAX_UNWRITTEN_BYTES)
        self.alive = True

    def data_received(self, data: bytes) -> None:
        if not self.alive:
            return
        self._quiet = 0
        gets, popleft = self._gets, self._pending.popleft
        answered = 0
        in_time = False
        try:
            self._feed(data)
            while (answer := gets()) is not _INCOMPLETE:
                future = popleft()
                answered += 1
                if answer.__class__ is _Reply:
                    self._error(future, str(answer))
                elif not future.done():
                    future.set_result(answer)
                    in_time = True
        except (hiredis.ProtocolError, IndexError) as error:
            reason = "it answered what nobody asked" if isinstance(error, IndexError) else str(error)
            self._lose(f"it does not speak the protocol: {reason}")
            return
        self._answered += answered
        if in_time:
            self._late = 0

    def _error(self, future: asyncio.Future[Any], reply: str) -> None:
        code = reply.partition(" ")[0]
        if code == "NOSCRIPT" and isinstance(future, _Call) and future.script is not None:
            script, future.script = future.script, None
            if not future.done():
                self._queue(("EVAL", script.text, *future.command[2:]), future)
        elif code in ELSEWHERE:
            _fail(future, RedisUnavailable(self.address, f"{ELSEWHERE[code]} ({reply})"))
            if self.on_moved is not None:
                self.on_moved()
        elif code in NOT_NOW:
            _fail(future, RedisUnavailable(self.address, f"{NOT_NOW[code]} ({reply})"))
        elif "READONLY " in reply:  # before 7.0 a script wraps the error of its call in one of its own
            _fail(future, RedisUnavailable(self.address, f"it is no primary any more ({reply})"))
            self._loop.call_soon(self._lose, "it is no primary any more")  # the other answers are good
        else:
            _fail(future, RedisError(self.address, reply))

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False

    def eof_received(self) -> None:
        self._lose("it closed the connection")

    def connection_lost(self, error: Exception | None) -> None:
        self._lose(f"the connection broke: {error}" if error is not None else "it closed the connection")

    # -- judging ---------------------------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        self._due = now + self._step
        self._timer = self._loop.call_at(self._due, self._judge)

    def _judge(self) -> None:
        pending = self._pending
        if not pending:  # the next command arms it again
            self._timer = None
            self._marks.clear()
            return
        now = self._loop.time()
        if now - self._due > self._step and not self._pardoned:
            self._pardoned = True
            self._arm(now)
            return
        self._pardoned = False
        self._quiet += 1
        bound = self._judged
        marks = self._marks
        marks.append((now, self._answered + len(pending)))
        while marks and marks[0][0] <= now - self._timeout:
            bound = marks.popleft()[1]
        first, last = max(self._judged - self._answered, 0), bound - self._answered
        if last > first:
            self._judged = bound
            for future in islice(pending, first, last):
                if not future.done():
                    self._late += 1
                    what = f"no answer within {self._timeout:g} s"
                    _fail(future, RedisUnavailable(self.address, what))
        if self._quiet * self._step >= self._silence:
            self._lose(f"it answered nothing for {self._silence:g} s")
            return
        self._arm(now)
        if self._late >= TRIPS_AFTER:
            self.trip()

    def trip(self) -> None:
        """Say that the link is not to be used until `untrip`; the keeper asks meanwhile."""
        if self.alive and not self.tripped:
            self.tripped = True
            if self.on_trouble is not None:
                self.on_trouble(self)

    def untrip(self) -> None:
        self.tripped = False
        self._late = 0

    def _lose(self, why: str) -> None:
        if not self.alive:
            return
        self.alive, self.why = False, why
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        self._out.clear()
        pending = self._pending
        while pending:
            _fail(pending.popleft(), RedisUnavailable(self.address, why))
        if self.on_trouble is not None:
            self.on_trouble(self)
