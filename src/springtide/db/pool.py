"""The connections of one process to one server, lent to those who need them most.

Who gets a connection: priority class first, then first come first served; `reserved` connections are for
`Priority.CRITICAL` alone. Waiting is bounded in number (`max_waiting`) and in time (`acquire_timeout`, the
request's deadline).

A connection is: opening -> idle <-> lent; lent -> recovering -> idle when its session is dirty or a
statement was abandoned on it; any -> closed. Their sum never exceeds `size`.

Invariants: an idle connection and a waiter who may have it do not coexist. A connection handed to a waiter
who was cancelled in the same tick goes to the next. A caller who is cancelled never waits for the server:
recovery does, for `RECOVERY` seconds at most, then it hangs up and the place is free.
Nothing that may have been executed is executed twice, except reads. Connections are opened beside the
queue, so a waiter takes whichever comes first, a returned or a new one.

One long file, because the invariants hold over lending, returning, losing and opening together; what a
single connection does is in `_link`, `_connecting` and `_recovery`, what a change of the server means in
`_moving`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import asyncpg

from springtide.clock import Clock, SystemClock
from springtide.context import Part, Priority, current
from springtide.db._acquiring import Acquiring, PoolStats
from springtide.db._connecting import Connector
from springtide.db._link import Link, Operation, RawConnection
from springtide.db._moving import Moves, move
from springtide.db._pooled import breather, check_settings
from springtide.db._recovery import RECOVERY, hang_up, recover
from springtide.db._statements import Statements
from springtide.db._waiting import Line, Waiter
from springtide.db.insight import Insight
from springtide.db.transaction import Beginning
from springtide.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    PoolClosed,
    PoolSaturated,
    PoolTimeout,
    RoleChanged,
)
from springtide.lifecycle import Periodic, StartStop
from springtide.signals import ConnectionClosed, ConnectionOpened, NullSink, PoolWaited, Sink, TaskFailed

__all__ = ["Acquiring", "Pool", "PoolStats"]

_log = logging.getLogger(__name__)

Record = asyncpg.Record
T = TypeVar("T")

STOP_GRACE = 5.0
"""Seconds that `stop` waits for connections still lent."""

_NAMES = {priority: priority.name.lower() for priority in Priority}

RETRIES = 5
"""Fresh connections that one statement may try, within its time, before its failure is reported."""


class Pool:
    """See the module. A lifecycle service: `start` connects once (raises `DatabaseUnavailable` if it cannot
    within `acquire_timeout`), `stop` waits a few seconds for connections still lent, then hangs up.

    `size` connections at most, `reserved` of them for critical work; `max_waiting` callers may queue, each
    for `acquire_timeout` seconds or until its deadline. A connection unused for `idle` seconds is closed
    (the last one stays); none lives longer than `max_age` seconds (jittered by 20 %).
    `server_settings` are sent when connecting; `insight` counts the statements. Raises ValueError for options
    that cannot work.

    `primary_only`: a server that says it is a standby counts as one that cannot be reached. While no server
    can be, and somebody watches for another one (`watched`), callers wait for `outage_timeout` seconds (None:
    as always) or until their deadline.
    `pooled`: a transaction pooler (PgBouncer) is in between, so nothing is kept in a session: deadlines of
    single statements are kept by cancelling alone, those of transactions by SET LOCAL, and statements that
    would keep something raise SessionStateRefused. `prepared_statements`: the pooler tracks them (PgBouncer
    1.21 or newer with max_prepared_statements > 0); None means it does not, or that there is no pooler.
    """

    def __init__(
        self,
        dsn: str,
        *,
        cluster: str = "main",
        size: int = 20,
        reserved: int = 2,
        max_waiting: int = 1000,
        acquire_timeout: float = 2.0,
        idle: float = 30.0,
        max_age: float = 1800.0,
        clock: Clock | None = None,
        sink: Sink | None = None,
        server_settings: Mapping[str, str] | None = None,
        insight: Insight | None = None,
        primary_only: bool = False,
        outage_timeout: float | None = None,
        pooled: bool = False,
        prepared_statements: bool | None = None,
    ) -> None:
        if prepared_statements is not None and not pooled:
            raise ValueError(
                f"prepared_statements must be None without pooled=True, got {prepared_statements}"
            )
        if pooled:
            check_settings(server_settings or {})
        if size < 1:
            raise ValueError(f"size must be >= 1, got {size}")
        if not 0 <= reserved < size:
            raise ValueError(f"reserved must be >= 0 and < size, got {reserved} of {size}")
        if max_waiting < 0:
            raise ValueError(f"max_waiting must be >= 0, got {max_waiting}")
        for option, seconds in (("acquire_timeout", acquire_timeout), ("idle", idle), ("max_age", max_age)):
            if not seconds > 0:
                raise ValueError(f"{option} must be > 0 seconds, got {seconds}")
        if outage_timeout is not None and outage_timeout < acquire_timeout:
            raise ValueError(
                f"outage_timeout must be >= acquire_timeout or None, got {outage_timeout} < {acquire_timeout}"
            )
        self.name = f"pool {cluster}"
        self.cluster = cluster
        self._size = size
        self._common_size = size - reserved
        self._max_waiting = max_waiting
        self._acquire_timeout = acquire_timeout
        self._outage_timeout = outage_timeout
        self._idle_seconds = idle
        self._clock = clock or SystemClock()
        self._monotonic = self._clock.monotonic
        self._sink = sink or NullSink()
        self._connector = Connector(
            dsn,
            cluster=cluster,
            max_age=max_age,
            max_pause=acquire_timeout / 4,
            clock=self._clock,
            sink=self._sink,
            server_settings=server_settings or {},
            primary_only=primary_only,
            pooled=pooled,
            prepared_statements=not pooled or bool(prepared_statements),
        )
        self.pooled = pooled
        self.epoch: int | None = None
        """The history that its server, a primary, was last said to be on (`seeing`); None: by nobody."""
        self._moves = Moves()
        self._beside: set[Callable[[], None]] = set()
        self._statements = Statements()
        self._table = insight.table(cluster, self._connector.address) if insight is not None else None
        self._open = False
        self._links: set[Link] = set()
        self._idle: deque[Link] = deque()
        self._line = Line()
        self._common = 0  # lent to callers that are not critical
        self._lent = 0
        self._opening = 0
        self._opened = 0
        self._closed = 0
        self._generation = 0
        self._incident = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._openers: set[asyncio.Task[Any]] = set()
        self._returned = asyncio.Event()
        every = min(1.0, idle / 2, max_age / 2)
        self._tidying = Periodic(f"{self.name}:tidy", self._tidy, every=every, clock=self._clock, sink=sink)
        self._life = StartStop(self.name, self._start, self._stop, sink=sink)

    # -- life ------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def __aenter__(self) -> Pool:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _start(self) -> None:
        self._open = True
        try:
            self._put(await self._wait(Priority.CRITICAL, self._acquire_timeout))
            await self._tidying.start()
        except BaseException:
            await self._stop()
            raise

    async def _stop(self) -> None:
        self._open = False
        await self._tidying.stop()
        while (waiter := self._line.pop()) is not None:
            waiter.future.set_exception(PoolClosed(f"the pool of {self.cluster} is stopping"))
        for opener in self._openers:
            opener.cancel()
        while self._idle:
            self._drop(self._idle.pop(), "shutdown")
        try:
            async with asyncio.timeout(STOP_GRACE):
                while self._lent or self._tasks:
                    self._returned.clear()
                    await self._returned.wait()
        except TimeoutError:
            _log.warning("%s: %d connections were not returned, hanging up", self.name, self._lent)
            links = [link for link in self._links if not link.closed]
            for link in links:
                link.closed = True
            await asyncio.gather(*(hang_up(link) for link in links))
            for link in links:
                self._forget(link, "shutdown")
            self._links.clear()
        if self._tasks:
            _, late = await asyncio.wait(list(self._tasks), timeout=RECOVERY)
            for task in late:  # callbacks of commits that are long done
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=RECOVERY)
        for _ in range(3):
            await asyncio.sleep(0)  # the loop closes the sockets of transports that were aborted

    # -- what callers use ------------------------------------------------------------------------------

    def acquire(self, *, priority: Priority | None = None, timeout: float | None = None) -> Acquiring:
        """`async with pool.acquire() as connection`: one session for several statements.

        Waits at most `timeout` (default `acquire_timeout`) and never past the request's deadline. `priority`
        defaults to the request's. Raises PoolSaturated, PoolTimeout, DatabaseUnavailable, DeadlineExceeded.
        """
        return Acquiring(self, priority, timeout)

    def transaction(
        self,
        *,
        read_only: bool = False,
        isolation: str = "read committed",
        priority: Priority | None = None,
        synchronous_commit: str | None = None,
    ) -> Beginning:
        """`async with pool.transaction() as tx`: COMMIT at the end of the block, ROLLBACK when it raises.

        `synchronous_commit` is PostgreSQL's, for this transaction alone; None: as the session has it.
        Raises CommitUnknown when COMMIT was sent and its outcome cannot be told.
        """
        return Beginning(
            self,
            None,
            priority,
            read_only=read_only,
            isolation=isolation,
            synchronous_commit=synchronous_commit,
        )

    async def fetch(self, sql: str, *args: Any) -> list[Record]:
        """All rows of one statement. A read is repeated on a fresh connection if its own was lost."""
        rows: list[Record] = await self._single(asyncpg.Connection.fetch, sql, args)
        return rows

    async def fetch_one(self, sql: str, *args: Any) -> Record | None:
        """The first row, or None; repeated like `fetch`."""
        row: Record | None = await self._single(asyncpg.Connection.fetchrow, sql, args)
        return row

    async def fetch_value(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, or None; repeated like `fetch`."""
        return await self._single(asyncpg.Connection.fetchval, sql, args)

    async def execute(self, sql: str, *args: Any) -> str:
        """Run one statement and return its tag, `UPDATE 3`. Never repeated once it was sent."""
        tag: str = await self._single(asyncpg.Connection.execute, sql, args)
        return tag

    def retire(self, reason: str) -> None:
        """Replace every connection: idle ones now, lent ones when they return."""
        self._generation += 1
        _log.info("%s: every connection is replaced: %s", self.name, reason)
        while self._idle:
            self._drop(self._idle.pop(), "generation")
        self._want()

    def move(self, dsn: str | None) -> None:
        """Leave the server at once and go on with the one at `dsn`; None: with none until the next move.

        Every connection is broken off, also one whose statement is under way; nothing happens when `dsn` is
        the server's already. Works in any state of the pool.
        """
        move(self, dsn)

    @property
    def dsn(self) -> str | None:
        """Where the server is; None while there is none."""
        return self._connector.dsn

    def watched(self, doubt: Callable[[], None] | None) -> None:
        """Somebody watches the server's role and will `move` this pool: `doubt` is called, in the event loop
        and maybe often, when there is a reason to look at once. It must not raise. None: nobody does."""
        self._moves.watcher = doubt

    def sever(self) -> None:
        """Break off every connection at once, also one whose statement is under way: that is lost."""
        for link in tuple(self._links):  # lent, or being recovered: whoever has it sees it broken
            link.raw.terminate()
        for cut in tuple(self._beside):
            cut()

    def beside(self, cut: Callable[[], None], *, ended: bool = False) -> None:
        """Somebody has connections of his own to the same server: `cut` is called whenever this pool breaks
        off its own, and must neither wait nor raise. `ended`: not any more."""
        if ended:
            self._beside.discard(cut)
        else:
            self._beside.add(cut)

    def admit(self, check: Callable[[RawConnection], Awaitable[None]]) -> None:
        """Show every connection that is opened from now on to `check`, which refuses it by an OSError: that
        counts as a server that cannot be reached."""
        self._connector.check = check

    @property
    def admits(self) -> bool:
        """Whether new connections are shown to somebody."""
        return self._connector.check is not None

    def reads(self, sql: str) -> bool:
        """Whether the text of a statement shows nothing but a read."""
        return self._statements.get(sql).read

    def stats(self) -> PoolStats:
        return PoolStats(
            size=len(self._links),
            idle=len(self._idle),
            busy=len(self._links) - len(self._idle),
            waiting=len(self._line),
            opened=self._opened,
            closed=self._closed,
            generation=self._generation,
        )

    # -- one statement ---------------------------------------------------------------------------------

    async def _single(self, operation: Operation, sql: str, args: tuple[Any, ...]) -> Any:
        statement = self._statements.get(sql)
        give_up: float | None = None
        attempt = 0
        while True:
            context = current()
            priority = Priority.NORMAL if context is None else context.priority
            link = self._take(priority)
            if link is None:
                link = await self._wait(priority, None if give_up is None else give_up - self._monotonic())
            moves = self._moves.count
            refused: RoleChanged | None = None
            try:
                return await link.perform(operation, sql, args, statement)
            except DatabaseUnavailable:
                repeatable = statement.read and operation is not asyncpg.Connection.execute
                attempt += 1
                if (link.sent and not repeatable) or (attempt > RETRIES and not link.unserved):
                    raise
            except RoleChanged as error:
                attempt += 1
                if attempt > RETRIES or ";" in sql.rstrip("; \n"):  # of several, the first may have committed
                    raise
                refused = error
            finally:
                self._put(link)
            if give_up is None:
                give_up = self._monotonic() + self._patience()
            if refused is not None:
                now = self._monotonic()
                left = context.remaining(now) if context is not None else None
                if not await self._moves.after(moves, min(give_up - now, give_up if left is None else left)):
                    raise refused
            elif link.unserved:
                if self._monotonic() >= give_up:
                    raise self._unavailable(link.unserved)
                await self._clock.sleep(breather(attempt, self._monotonic(), give_up))

    async def read(self, operation: Operation, sql: str, args: tuple[Any, ...]) -> Any:
        """One statement on a standby, by an unbound method of asyncpg's connection. It is tried once: who has
        other standbys goes to one. That it writes is the statement's fault there (25006), not a changed role.
        """
        link = await self._obtain(None, None)
        try:
            return await link.perform(operation, sql, args, self._statements.get(sql), read_only=True)
        finally:
            self._put(link)

    async def _begin(
        self,
        priority: Priority | None,
        begin: Callable[[Link], Awaitable[None]],
        timeout: float | None = None,
    ) -> Link:
        """A connection on which `begin` has succeeded; a lost one is exchanged, for nothing has run yet."""
        link = await self._obtain(priority, timeout)
        attempt = 0
        give_up: float | None = None
        while True:
            try:
                await begin(link)
                return link
            except DatabaseUnavailable:
                self._put(link)
                attempt += 1
                if attempt > RETRIES and not link.unserved:
                    raise
                if give_up is None:
                    give_up = self._monotonic() + self._patience()
                if link.unserved and self._monotonic() >= give_up:
                    raise
            except BaseException:
                self._put(link)
                raise
            if link.unserved:
                await self._clock.sleep(breather(attempt, self._monotonic(), give_up))
            link = await self._obtain(priority, give_up - self._monotonic())

    # -- lending ---------------------------------------------------------------------------------------

    async def _obtain(self, priority: Priority | None, timeout: float | None) -> Link:
        if priority is None:
            context = current()
            priority = Priority.NORMAL if context is None else context.priority
        link = self._take(priority)
        return link if link is not None else await self._wait(priority, timeout)

    def _take(self, priority: Priority) -> Link | None:
        """An idle connection, if there is one and the caller may have it."""
        if not self._open:
            raise PoolClosed(f"the pool of {self.cluster} is not running")
        critical = priority is Priority.CRITICAL
        if not critical and self._common >= self._common_size:
            return None
        idle = self._idle
        while idle:
            link = idle.pop()
            if link.looks_dead():
                self._suspect(link)
                continue
            self._lend(link, critical)
            return link
        return None

    def _lend(self, link: Link, critical: bool) -> None:
        link.critical = critical
        self._lent += 1
        if not critical:
            self._common += 1

    async def _wait(self, priority: Priority, timeout: float | None) -> Link:
        if not self._open:
            raise PoolClosed(f"the pool of {self.cluster} is not running")
        begun = self._monotonic()
        context = current()
        patient = timeout is None
        if timeout is None:
            timeout = self._acquire_timeout
        remaining = context.remaining(begun) if context is not None else None
        if remaining is not None and remaining < timeout:
            timeout = remaining
        if len(self._line) >= self._max_waiting:
            self._sink.emit(PoolWaited(self.cluster, _NAMES[priority], 0.0, "saturated"))
            raise PoolSaturated(
                f"{len(self._line)} callers wait for a connection to {self.cluster} already",
                retry_after=self._acquire_timeout,
            )
        loop = asyncio.get_running_loop()
        waiter = Waiter(loop.create_future(), priority)
        waiter.timer = loop.call_later(timeout, self._expire, waiter, timeout, patient, remaining)
        self._line.add(waiter)
        self._want()
        outcome = "acquired"
        try:
            return await waiter.future
        except asyncio.CancelledError:
            outcome = "cancelled"
            future = waiter.future
            if future.done() and not future.cancelled() and future.exception() is None:
                self._put(future.result())  # handed over in the tick of the cancellation
            self._line.remove(waiter)
            raise
        except BaseException:
            outcome = "timeout"
            raise
        finally:
            waiter.timer.cancel()
            seconds = self._monotonic() - begun
            if context is not None:
                context.ledger.add(Part.POOL, seconds)
            self._sink.emit(PoolWaited(self.cluster, _NAMES[priority], seconds, outcome))

    def _patience(self) -> float:
        """Seconds to wait for a server when there is none."""
        if self._moves.watcher is None or self._outage_timeout is None:
            return self._acquire_timeout
        return self._outage_timeout

    def _expire(self, waiter: Waiter, timeout: float, patient: bool, remaining: float | None) -> None:
        """The end of a wait; who is `patient` goes on when there is no server, as long as the pool says."""
        cause = self._connector.error
        if patient and cause is not None and not waiter.future.done():
            in_outage = self._patience() if remaining is None else min(self._patience(), remaining)
            if in_outage > timeout:
                later = asyncio.get_running_loop().call_later
                more = in_outage - timeout
                waiter.timer = later(more, self._expire, waiter, in_outage, False, remaining)
                return
        self._line.remove(waiter)
        if waiter.future.done():
            return
        error: Exception
        if cause is not None:
            error = self._unavailable(cause)
        elif remaining is not None and remaining <= timeout:
            error = DeadlineExceeded(f"waiting for a connection to {self.cluster}")
        else:
            error = PoolTimeout(
                f"no connection to {self.cluster} became free within {timeout:.3g} s",
                retry_after=self._acquire_timeout,
            )
        waiter.future.set_exception(error)

    def _unavailable(self, cause: BaseException) -> DatabaseUnavailable:
        error = DatabaseUnavailable(
            f"no connection to {self.cluster} could be opened: {str(cause) or type(cause).__name__}",
            retry_after=1.0,
        )
        error.__cause__ = cause
        return error

    def _put(self, link: Link) -> None:
        """Take a lent connection back. Never waits."""
        self._lent -= 1
        if not link.critical:
            self._common -= 1
        if not self._open:
            self._returned.set()
        if link.closed:
            return
        if link.broken or link.raw.is_closed():  # broken off (`sever`) after its last answer had come
            self._lose(link)
        elif (
            link.unsettled
            or link.dirt
            or link.incident != self._incident
            or not self._open
            or link.raw.is_in_transaction()
        ):
            self._spawn(self._recover(link), "recover")
        else:
            self._rest(link)
            return
        self._serve()
        self._want()

    def _settle(self, link: Link) -> None:
        """A connection that is new or has been recovered goes where one goes that is given back."""
        if link.raw.is_closed():
            self._lose(link)
            self._serve()
            self._want()
        else:
            self._rest(link)

    def _rest(self, link: Link) -> None:
        """A clean connection goes to the next waiter, or to rest."""
        now = self._monotonic()
        if not self._open:
            self._drop(link, "shutdown")
        elif link.generation != self._generation:
            self._drop(link, "generation")
        elif link.demoted:
            self._drop(link, "generation")
            self.retire("the server no longer accepts writes")
            self._moves.doubt()
        elif now >= link.expires:
            self._drop(link, "aged")
        else:
            link.idle_since = now
            self._idle.append(link)
            if self._line:
                self._serve()
            return
        self._serve()
        self._want()

    def _serve(self) -> None:
        """Hand idle connections to those who wait and may have them."""
        while self._idle and self._line:
            waiter = self._line.pop(critical_only=self._common >= self._common_size)
            if waiter is None:
                return
            link = self._idle.pop()
            self._lend(link, waiter.priority is Priority.CRITICAL)
            waiter.future.set_result(link)

    async def _exchange(self, link: Link) -> Link:
        """Another connection for a lent one that died before it was used."""
        priority = Priority.CRITICAL if link.critical else None
        link.broken = True
        self._put(link)
        return await self._obtain(priority, None)

    # -- connections that are not well -----------------------------------------------------------------

    def _drop(self, link: Link, reason: str) -> None:
        if not link.closed:
            link.close()
            self._forget(link, reason)

    def _forget(self, link: Link, reason: str) -> None:
        self._links.discard(link)
        self._closed += 1
        self._sink.emit(ConnectionClosed(self.cluster, reason, self._monotonic() - link.opened))

    def _suspect(self, link: Link) -> None:
        """An idle connection has something to say that nobody asked for: mostly its end."""
        if link.raw.is_closed():
            self._lose(link)
        else:
            self._spawn(self._recover(link), "recover")

    def _lose(self, link: Link) -> None:
        """A connection is gone. Its siblings of the same server may be too: each is asked before use."""
        self._drop(link, "broken")
        self._moves.doubt()
        if link.incident != self._incident or not self._open:
            return
        self._incident += 1
        siblings, self._idle = list(self._idle), deque()
        for sibling in siblings:
            self._spawn(self._recover(sibling), "recover")

    def _on_end(self, link: Link) -> None:
        if not link.closed and link in self._idle:
            self._idle.remove(link)
            self._lose(link)
            self._want()

    async def _recover(self, link: Link) -> None:
        link.incident = self._incident
        try:
            fault = await recover(link)
        except BaseException:
            self._drop(link, "cancelled")
            self._want()
            raise
        if fault is None:
            self._settle(link)
            return
        if fault == "broken":
            self._lose(link)
        else:
            self._drop(link, fault)
        self._want()

    async def _tidy(self) -> None:
        """Close what is too old or unused for too long; the connection used last stays."""
        now = self._monotonic()
        for link in list(self._idle):
            if now >= link.expires:
                reason = "aged"
            elif now - link.idle_since >= self._idle_seconds and len(self._idle) > 1:
                reason = "idle"
            else:
                continue
            self._idle.remove(link)
            self._drop(link, reason)

    # -- opening ---------------------------------------------------------------------------------------

    def _want(self) -> None:
        """Open as many connections as there are waiters who may have one; one at a time while it fails."""
        if not self._open or not self._line or self._connector.dsn is None:
            return
        critical = self._line.critical
        wanted = critical + min(len(self._line) - critical, max(self._common_size - self._common, 0))
        if self._connector.failures:
            wanted = min(wanted, 1)
        while self._opening < wanted and len(self._links) + self._opening < self._size:
            self._opening += 1
            opener = self._spawn(self._open_link(), "open")
            self._openers.add(opener)
            opener.add_done_callback(self._openers.discard)

    async def _open_link(self) -> None:
        link: Link | None = None
        try:
            link = await self._connect()
        finally:
            self._opening -= 1
            if link is None:
                asyncio.get_running_loop().call_soon(self._want)  # again, as long as somebody waits
        if link is not None:
            self._links.add(link)
            link.raw.add_termination_listener(lambda _, link=link: self._on_end(link))
            self._settle(link)
            self._want()

    async def _connect(self) -> Link | None:
        """One attempt; None after a failure and its pause."""
        begun = self._monotonic()
        connector = self._connector
        link = await connector.attempt(self._generation)
        if link is None:
            self._moves.doubt()
            if connector.hopeless and connector.error is not None:
                while (waiter := self._line.pop()) is not None:
                    waiter.future.set_exception(self._unavailable(connector.error))
            else:
                await self._clock.sleep(connector.pause)
            return None
        link.incident = self._incident
        link.statements = self._table
        self._opened += 1
        self._sink.emit(ConnectionOpened(self.cluster, self._monotonic() - begun))
        return link

    # -- tasks -----------------------------------------------------------------------------------------

    def _spawn(self, body: Coroutine[Any, Any, T], verb: str) -> asyncio.Task[T]:
        """Run `body` beside the callers; bounded because each such task owns a connection or a place."""
        task = asyncio.get_running_loop().create_task(body, name=f"{self.name}:{verb}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not self._open:
            self._returned.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._sink.emit(TaskFailed(task.get_name(), repr(error), None))
            _log.error("%s failed", task.get_name(), exc_info=error)
