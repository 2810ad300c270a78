"""One server connection of the pool, and what is known about its session.

A link runs statements with the time the request has left, keeps the accounts and translates failures:
errors of a statement stay asyncpg's, errors of the connection become `DatabaseUnavailable`.

settled: the session waits for a statement.   unsettled: a statement was abandoned, only the pool's
recovery may touch it.   broken: the connection is gone.   It never waits for the server when its caller is
cancelled.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec
from asyncpg import exceptions as pg

from springtide.clock import Clock
from springtide.context import Part, RequestContext, current
from springtide.db._statements import Dirt, Statement
from springtide.db._tls import tls
from springtide.errors import DatabaseUnavailable, DeadlineExceeded, RoleChanged
from springtide.signals import Sink, StatementFinished

if TYPE_CHECKING:
    from springtide.db.insight import StatementTable

    RawConnection = asyncpg.Connection[asyncpg.Record]
else:
    RawConnection = asyncpg.Connection

__all__ = [
    "ASYNCPG_ERRORS",
    "CONNECTION_ERRORS",
    "Link",
    "Operation",
    "RawConnection",
    "Wire",
    "bucket",
    "ends_standby_wait",
    "open_link",
]

Operation = Callable[..., Coroutine[Any, Any, Any]]

CONNECTION_ERRORS = (
    pg.PostgresConnectionError,
    pg.AdminShutdownError,
    pg.CrashShutdownError,
    pg.CannotConnectNowError,
    pg.IdleInTransactionSessionTimeoutError,
    OSError,
)
"""The connection failed, whatever the statement was. (`TimeoutError` is an OSError: look at it first.)"""

ASYNCPG_ERRORS = (pg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""All that asyncpg raises itself; they have no root of their own."""

STATEMENTS = 256
"""Prepared statements kept per connection: one pool serves every module of the process."""

_STEP = math.log(1.25)
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)


def bucket(seconds: float) -> float:
    """The `statement_timeout` for this much time: the next power of 1.25 upwards, at least 10 ms."""
    return max(math.exp(math.ceil(math.log(max(seconds, 0.001)) / _STEP - 1e-9) * _STEP), 0.01)


class Wire(RawConnection):
    """asyncpg's connection, whose socket can be asked whether the other side has closed it."""

    __slots__ = ("poller",)

    def __init__(self, protocol: Any, transport: Any, *args: Any, **options: Any) -> None:
        super().__init__(protocol, transport, *args, **options)
        self.poller: select.poll | None = None
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(select, "poll"):
            self.poller = select.poll()
            self.poller.register(sock.fileno(), select.POLLIN | _GONE)

    def never_switch_jit(self) -> None:
        self._server_caps = self._server_caps._replace(jit=False)  # type: ignore[has-type]  # asyncpg's own


_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode


def _encode_jsonb(value: object) -> bytes:
    return b"\x01" + _encode_json(value)


def _decode_jsonb(data: bytes) -> Any:
    return _decode_json(memoryview(data)[1:])


async def open_link(
    dsn: str,
    *,
    cluster: str,
    timeout: float,
    clock: Clock,
    sink: Sink | None,
    server_settings: Mapping[str, str],
    generation: int,
    max_age: float,
    kind: type[Link],
    statements: int = STATEMENTS,
) -> Link:
    """Connect. `statements` are kept prepared on the server; 0: each is parsed anew, under no name.

    Raises what asyncpg raises, and TimeoutError after `timeout` seconds."""
    begun = clock.monotonic()
    raw = await asyncpg.connect(
        dsn,
        timeout=timeout,
        connection_class=Wire,
        server_settings=dict(server_settings),
        statement_cache_size=statements,
        ssl=await tls(dsn),
    )
    try:
        if kind.pooled:  # looking up a type, asyncpg would switch `jit` in a session that others have next
            raw.never_switch_jit()
        # both types are known to asyncpg, so this asks the server nothing
        await raw.set_type_codec(
            "jsonb", schema="pg_catalog", format="binary", encoder=_encode_jsonb, decoder=_decode_jsonb
        )
        await raw.set_type_codec(
            "json", schema="pg_catalog", format="binary", encoder=_encode_json, decoder=_decode_json
        )
    except BaseException:
        raw.terminate()
        raise
    return kind(raw, cluster, clock, sink, generation, begun, begun + max_age)


def ends_standby_wait(notice: object) -> bool:
    """Whether a notice says that COMMIT was answered without its synchronous standby."""
    source = getattr(notice, "server_source_function", None)
    return source == "SyncRepWaitForLSN" or str(notice).startswith(
        "canceling wait for synchronous replication"
    )


class Link:
    pooled = False
    """True when the server's session is somebody else's after each transaction (see `_pooled`)."""

    __slots__ = (
        "broken",
        "closed",
        "cluster",
        "committing",
        "critical",
        "demoted",
        "dirt",
        "expires",
        "generation",
        "idle_since",
        "incident",
        "limit",
        "monotonic",
        "opened",
        "raw",
        "sent",
        "sink",
        "standby_wait_ended",
        "statements",
        "unserved",
        "unsettled",
    )

    def __init__(
        self,
        raw: Wire,
        cluster: str,
        clock: Clock,
        sink: Sink | None,
        generation: int,
        opened: float,
        expires: float,
    ) -> None:
        self.raw = raw
        self.cluster = cluster
        self.monotonic = clock.monotonic
        self.sink = sink
        self.generation = generation
        self.opened = opened
        self.expires = expires
        self.idle_since = opened
        self.incident = 0
        self.limit: float | None = None
        self.dirt = Dirt.NONE
        self.critical = False
        self.broken = False
        self.closed = False
        self.unsettled = False
        self.demoted = False
        self.committing = False
        self.sent = False
        self.unserved: BaseException | None = None
        self.standby_wait_ended = False
        self.statements: StatementTable | None = None
        raw.add_log_listener(self._on_notice)

    def _on_notice(self, _: Any, message: Any) -> None:
        if ends_standby_wait(message):
            self.standby_wait_ended = True

    @property
    def pid(self) -> int:
        return self.raw.get_server_pid()

    @property
    def standby(self) -> bool:
        """True when the server has said that it is one; a pooler in between may not pass that on."""
        return getattr(self.raw.get_settings(), "in_hot_standby", None) == "on"

    def looks_dead(self) -> bool:
        """True when the connection is known to be gone; asks the kernel, not the server."""
        if self.raw.is_closed():
            return True
        poller = self.raw.poller
        return poller is not None and bool(poller.poll(0))

    def close(self) -> None:
        """Hang up at once, without waiting for anybody."""
        self.closed = True
        self.raw.terminate()

    async def perform(
        self,
        operation: Operation,
        sql: str,
        args: tuple[Any, ...],
        statement: Statement,
        *,
        limited: bool = True,
        bounded: bool = True,
        read_only: bool = False,
        **options: Any,
    ) -> Any:
        """Run one statement by `operation`, an unbound method of asyncpg's connection.

        `limited` lets the link set `statement_timeout` first; a transaction has set its own. `bounded`
        ends the wait at the request's deadline.
        """
        context = current()
        begun = self.monotonic()
        timeout: float | None = None
        self.sent = False
        if bounded and context is not None and context.deadline is not None:
            timeout = context.deadline - begun
            if timeout <= 0:
                raise DeadlineExceeded(f"about to run {statement.label}")
        error: str | None = None
        rows = 0
        try:
            if limited and not self.fits(timeout):
                await self._set_limit(timeout)
            if statement.dirt > self.dirt:
                self.dirt = statement.dirt
            if self.raw.is_closed():
                raise pg.ConnectionDoesNotExistError("the connection is closed")
            self.sent = True
            result = await operation(self.raw, sql, *args, timeout=timeout, **options)
            rows = _rows(operation, result)
            return result
        except BaseException as failure:
            error = getattr(failure, "sqlstate", None) or type(failure).__name__
            translated = self._translate(failure, statement, context, read_only)
            if translated is failure:
                raise
            raise translated from failure
        finally:
            seconds = self.monotonic() - begun
            entry = None
            if context is not None:
                entry = context.ledger.add(Part.SQL, seconds, statement.label, rows)
            if self.statements is not None:
                self.statements.note(statement, sql, args, seconds, rows, error, entry)
            if self.sink is not None:
                self.sink.emit(StatementFinished(self.cluster, statement.label, seconds, rows, error))

    def fits(self, timeout: float | None) -> bool:
        """True when the session's `statement_timeout` will do for so much time (None: unbounded)."""
        limit = self.limit
        if timeout is None or limit is None:
            return limit is timeout
        return timeout <= limit <= 2 * timeout

    async def greet(self) -> None:
        """Give the session the time limit of its new user, whose first step may be one we do not see."""
        context = current()
        timeout = context.remaining(self.monotonic()) if context is not None else None
        if not self.fits(timeout):
            await self.perform(_nothing, "", (), _GREETING)

    async def _set_limit(self, timeout: float | None) -> None:
        limit = None if timeout is None else bucket(timeout)
        value = "DEFAULT" if limit is None else str(max(round(limit * 1000), 1))
        self.limit = -1.0  # unknown, should this be abandoned
        await self.raw.execute(f"SET statement_timeout = {value}", timeout=timeout)
        self.limit = limit

    def _translate(
        self,
        failure: BaseException,
        statement: Statement,
        context: RequestContext | None,
        read_only: bool,
    ) -> BaseException:
        deadline = context.deadline if context is not None else None
        if not isinstance(failure, Exception):  # cancelled, or the process is ending
            self.unsettled = True
            return failure
        if isinstance(failure, TimeoutError) and not self.raw.is_closed():
            self.unsettled = True
            if deadline is None or self.monotonic() < deadline - 0.002:
                return failure  # raised by the caller's own source of COPY data
            return DeadlineExceeded(f"running {statement.label}")
        if isinstance(failure, CONNECTION_ERRORS) or self.raw.is_closed():
            self.broken = True
            if isinstance(failure, asyncpg.InternalClientError) and "switch to state" in str(failure):
                self.sent = False  # the server's farewell had been read before: nothing was written
            return DatabaseUnavailable(
                f"the connection to {self.cluster} was lost while running {statement.label}"
            )
        if isinstance(failure, pg.QueryCanceledError):
            if deadline is not None and self.monotonic() >= deadline - 0.002:
                return DeadlineExceeded(f"running {statement.label}")
        elif isinstance(failure, pg.ReadOnlySQLTransactionError) and not read_only:
            self.demoted = True
            return RoleChanged(f"the server of {self.cluster} no longer accepts writes")
        return failure


async def _nothing(raw: RawConnection, sql: str, *, timeout: float | None) -> None:
    """An operation without a statement: what `perform` does around one is wanted alone."""


_GREETING = Statement("SET statement_timeout = ?", True, Dirt.NONE)


def _rows(operation: Operation, result: Any) -> int:
    if type(result) is list:
        return len(result)
    if operation is asyncpg.Connection.fetchrow:
        return 0 if result is None else 1
    if operation is asyncpg.Connection.fetchval:
        return 1
    if type(result) is str:
        tail = result.rpartition(" ")[2]
        return int(tail) if tail.isdigit() else 0
    return 0
