"""One SQLAlchemy engine beside one pool: connections of its own to the same server, with the same promises.

    demoted         a write that is refused (25006) replaces them all
    dead ones       are replaced when they are taken out: the kernel is asked, not the server
    the primary     connects to whoever is it now, and waits for it as the pool's callers do
    a replica       is the run of a server that its pool was made for; it connects once, or not at all
    left            broken off with the pool's own (a move, a replica that is given up)

COMMIT is judged as the pool judges it. Once sent it is never cancelled: its caller waits for the answer to
its deadline, or for ABANDONED_COMMIT after it was cancelled itself, and then the connection is given up.
CommitUnknown is what has no answer, what a warning answers for a synchronous standby that did not, and what
comes from a server that has been left. A COMMIT that is answered by ROLLBACK is an error.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import asyncpg
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError, PendingRollbackError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only, greenlet_spawn

from springtide.context import current
from springtide.db._connecting import CONNECT_TIMEOUT, HOPELESS, MAX_BACKOFF
from springtide.db._link import ASYNCPG_ERRORS, Wire, ends_standby_wait
from springtide.db._tls import tls
from springtide.db.pool import Pool
from springtide.db.transaction import ABANDONED_COMMIT
from springtide.errors import CommitUnknown, DatabaseUnavailable, DeadlineExceeded

__all__ = ["ServerEngine", "is_lost"]

FAILED = (TimeoutError, *ASYNCPG_ERRORS, OSError, ValueError)
"""What an attempt to connect may end with."""


class _Seat(Wire):
    """A connection that remembers what SQLAlchemy does not ask: the tag of its last command, whether its
    standby was waited for, whether its server has been left."""

    __slots__ = ("left", "tag", "unconfirmed")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tag = ""
        self.left = False
        self.unconfirmed = False
        self.add_log_listener(self._heard)

    def _heard(self, _: Any, notice: Any) -> None:
        self.unconfirmed = self.unconfirmed or ends_standby_wait(notice)

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        self.tag = ""
        self.tag = await super().execute(query, *args, timeout=timeout)
        return self.tag

    def looks_dead(self) -> bool:
        return self.is_closed() or (self.poller is not None and bool(self.poller.poll(0)))


class ServerEngine:
    """`primary`: of whoever is the primary, as `pool` knows it. `gone` is called when the server is left."""

    def __init__(
        self, pool: Pool, options: dict[str, Any], *, primary: bool, gone: Callable[[], None]
    ) -> None:
        self._pool = pool
        self._primary = primary
        self._gone = gone
        self._seats: WeakSet[_Seat] = WeakSet()
        self._settings = {**_through_a_pooler(pool), **options.get("connect_args", {})}
        others = {name: value for name, value in options.items() if name != "connect_args"}
        self._async = create_async_engine("postgresql+asyncpg://", creator=self._create, **others)
        self.engine: Engine = self._async.sync_engine
        self._send_commit = self.engine.dialect.do_commit
        self.engine.dialect.do_commit = self._commit  # type: ignore[assignment,method-assign]
        event.listen(self.engine, "checkout", _take_out)
        if primary:
            event.listen(self.engine, "handle_error", self._refused)
        pool.beside(self._leave)

    async def close(self) -> None:
        """Close every connection that is not in use."""
        self._pool.beside(self._leave, ended=True)
        await self._async.dispose()

    def _leave(self) -> None:
        for seat in tuple(self._seats):
            seat.left = True
            seat.terminate()
        self._gone()

    # -- connecting ------------------------------------------------------------------------------------

    def _create(self) -> Any:
        """What `async_creator` does, which takes no `connect_args`."""
        return self.engine.dialect.loaded_dbapi.connect(async_creator_fn=self._connect, **self._settings)

    async def _connect(self, *_: Any, **settings: Any) -> _Seat:
        pool, clock = self._pool, self._pool._clock
        give_up: float | None = None
        while True:
            moves, cause = pool._moves.count, None
            try:
                if pool.dsn is not None:
                    seat = await self._open(pool.dsn, settings)
                    if moves == pool._moves.count:
                        return seat
                    seat.terminate()
                    continue
            except FAILED as error:
                cause = error
                pool._moves.doubt()
            now = clock.monotonic()
            if give_up is None:
                context = current()
                left = context.remaining(now) if context is not None else None
                give_up = now + (pool._patience() if left is None else min(pool._patience(), left))
            if not self._primary or isinstance(cause, HOPELESS) or now >= give_up:
                why = f": {str(cause) or type(cause).__name__}" if cause is not None else ": it has no server"
                text = f"no connection to {pool.cluster} could be opened{why}"
                raise DatabaseUnavailable(text, retry_after=1.0) from cause
            pause = min(MAX_BACKOFF * random.uniform(0.5, 1.0), give_up - now)  # noqa: S311 - spreads load
            if pool._moves.watcher is None:
                await clock.sleep(pause)
            else:
                await pool._moves.after(moves, pause)

    async def _open(self, dsn: str, settings: dict[str, Any]) -> _Seat:
        settings = {"timeout": CONNECT_TIMEOUT, "connection_class": _Seat, **settings}
        if "ssl" not in settings:
            settings["ssl"] = await tls(dsn)
        seat: _Seat = await asyncpg.connect(dsn, **settings)
        try:
            if self._pool._connector.via is not None:
                seat.never_switch_jit()
            elif self._primary and getattr(seat.get_settings(), "in_hot_standby", None) == "on":
                raise ConnectionRefusedError(f"the server of {self._pool.cluster} is a standby")
            if (check := self._pool._connector.check) is not None:
                await check(seat)
        except BaseException:
            seat.terminate()
            raise
        self._seats.add(seat)
        return seat

    def _refused(self, failure: ExceptionContext) -> None:
        """A server that takes no writes any more is no primary: every connection to it is replaced."""
        if getattr(failure.original_exception, "sqlstate", None) == "25006":
            failure.is_disconnect = True
            self._pool._moves.doubt()

    # -- committing ------------------------------------------------------------------------------------

    def _commit(self, connection: Any) -> None:
        seat: _Seat = connection.driver_connection
        if seat.is_closed():
            raise DatabaseUnavailable(f"the connection to {self._pool.cluster} was lost before COMMIT")
        try:
            await_only(self._committing(seat, functools.partial(self._send_commit, connection)))
        except BaseException as error:
            if seat.is_closed():
                connection.invalidate(error)
            raise

    async def _committing(self, seat: _Seat, send: Callable[[], None]) -> None:
        cluster, context = self._pool.cluster, current()
        remaining = context.remaining(self._pool._monotonic()) if context is not None else None
        if remaining is not None and remaining <= 0:
            raise DeadlineExceeded("about to COMMIT; the transaction is rolled back")
        sending = asyncio.ensure_future(greenlet_spawn(send))
        try:
            await asyncio.wait((sending,), timeout=remaining)
        except asyncio.CancelledError:
            await _end(sending, seat, ABANDONED_COMMIT)
            raise
        if not sending.done():
            await _end(sending, seat, 0.0)
            raise CommitUnknown(f"the deadline passed while {cluster} had COMMIT")
        if (error := sending.exception()) is not None:
            if is_lost(error):
                raise CommitUnknown("COMMIT was sent and its answer did not come") from error
            raise error
        if seat.left:
            raise CommitUnknown(f"{cluster} committed on a server that had been left")
        if seat.unconfirmed:
            seat.unconfirmed = False
            raise CommitUnknown(f"{cluster} committed, but its synchronous standby did not confirm it")
        if seat.tag == "ROLLBACK":
            raise PendingRollbackError(
                "the transaction was rolled back at COMMIT: one of its statements had failed, "
                "and its error was swallowed"
            )


async def _end(sending: asyncio.Future[None], seat: _Seat, seconds: float) -> None:
    """Wait for COMMIT a little longer, then hang up without cancelling it."""
    try:
        if seconds:
            await asyncio.wait((sending,), timeout=seconds)
    finally:
        if not sending.done():
            seat.terminate()
        sending.add_done_callback(lambda done: done.cancelled() or done.exception())


def is_lost(error: BaseException) -> bool:
    """Whether an error of SQLAlchemy or its driver says that the connection or its server went away."""
    own = getattr(error, "orig", error)
    if getattr(error, "connection_invalidated", False):
        return True
    state = getattr(own, "sqlstate", None)
    return state.startswith(("08", "57P")) if state else isinstance(own, _driver_errors())


@functools.cache
def _driver_errors() -> tuple[type[BaseException], ...]:
    """Of the driver itself, not of a server: they have no SQLSTATE."""
    from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi as dbapi

    return (dbapi.InterfaceError, dbapi.InternalClientError, OSError)


def _through_a_pooler(pool: Pool) -> dict[str, Any]:
    """Nothing prepared is kept where the next transaction may meet another session."""
    if pool._connector.via is None or pool._connector._statements:
        return {}
    return {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: "",
    }


def _take_out(connection: Any, *_: Any) -> None:
    seat = connection.driver_connection
    if seat.looks_dead():
        raise DisconnectionError("the connection was lost while nobody used it")
    seat.unconfirmed = False
