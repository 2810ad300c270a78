"""One transaction: BEGIN ... COMMIT on one connection.

begun -> committing -> committed | unknown        begun -> rolled back
COMMIT runs in a task of the pool: once sent it is never cancelled, whatever happens to the caller, and the
connection belongs to that task until its answer is in. A caller that leaves early (deadline) hears
`CommitUnknown`. So does one whose connection broke, and one whose COMMIT was only confirmed by a warning:
PostgreSQL answers "success" when a wait for a synchronous standby is cancelled.
A transaction that is cancelled midway never waits for the server: the pool's recovery rolls it back. If a
statement or a savepoint in it is cancelled and the block survives that, nobody knows what was executed: it
takes no further statement and does not commit.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING

import asyncpg
from asyncpg import exceptions as pg

from springtide.context import Priority, current
from springtide.db._link import CONNECTION_ERRORS, Link, bucket
from springtide.db._statements import Statement, Statements
from springtide.db.connection import Connection, Queries
from springtide.errors import CommitUnknown, DatabaseUnavailable, DeadlineExceeded
from springtide.signals import TaskFailed

if TYPE_CHECKING:
    from springtide.db.pool import Pool

__all__ = ["Beginning", "Savepoint", "Transaction"]

_log = logging.getLogger(__name__)

ISOLATIONS = ("read committed", "repeatable read", "serializable")
CONFIRMATIONS = ("on", "local", "off", "remote_write", "remote_apply")

ABANDONED_COMMIT = 2.0
"""Seconds a COMMIT may take after its caller has left; then the connection is given up, never the COMMIT."""

ABANDONED = (
    "the transaction can only roll back: a statement or savepoint in it was cancelled or ran out of time"
)

ROLLBACK_TIMEOUT = 1.0
"""Seconds that a caller waits for ROLLBACK to be confirmed; the pool's recovery takes over afterwards."""


class Transaction(Queries):
    """Made by `Pool.transaction()`; the statements of `Connection`, plus `on_commit` and `savepoint`."""

    __slots__ = ("_callbacks", "_noting", "_savepoints", "isolation", "read_only")

    def __init__(self, link: Link, statements: Statements, *, read_only: bool, isolation: str) -> None:
        super().__init__(link, statements, limited=False, read_only=read_only)
        self.read_only = read_only
        self.isolation = isolation
        self._callbacks: list[Callable[[], Awaitable[None] | None]] = []
        self._noting: Callable[[Link], Awaitable[None]] | None = None
        self._savepoints = 0

    async def _ready(self) -> Link:
        link = self._link()
        if link.unsettled:
            raise pg.InFailedSQLTransactionError(ABANDONED)
        return link

    def on_commit(self, callback: Callable[[], Awaitable[None] | None], *, first: bool = False) -> None:
        """Call `callback` once COMMIT is known to have succeeded, also when the caller was cancelled then.

        Callbacks run in order (`first`: before all that are there), after the connection went back; the
        caller waits for them until its deadline.
        One that raises is logged and reported: the transaction is committed and stays so.
        """
        self._link()
        self._callbacks.insert(0 if first else len(self._callbacks), callback)

    def note(self, noting: Callable[[Link], Awaitable[None]]) -> None:
        """Call `noting` with the connection once COMMIT has succeeded on it, before anybody else gets it.

        The caller waits for it until its deadline; that it fails or comes late changes nothing about COMMIT.
        """
        self._noting = noting

    def savepoint(self) -> Savepoint:
        """`async with tx.savepoint():` undoes the block alone when it raises."""
        self._savepoints += 1
        return Savepoint(self, f"springtide_{self._savepoints}")


class Savepoint:
    """When it is cancelled it is not undone alone: the pool's recovery rolls the transaction back."""

    __slots__ = ("_name", "_transaction")

    def __init__(self, transaction: Transaction, name: str) -> None:
        self._transaction = transaction
        self._name = name

    async def __aenter__(self) -> Transaction:
        await self._transaction.execute(f"SAVEPOINT {self._name}")
        return self._transaction

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        link = self._transaction._link()
        end = f"RELEASE SAVEPOINT {self._name}"
        if error is not None:
            end = f"ROLLBACK TO SAVEPOINT {self._name}; {end}"
            if not isinstance(error, Exception):
                link.unsettled = True  # not one await on the server for somebody who has left
            if link.broken or link.unsettled:
                return
        try:
            await self._transaction.execute(end)
        except BaseException as failure:
            link.unsettled = True
            if error is None or not isinstance(failure, DeadlineExceeded):
                raise  # else why the block ended matters more


class Beginning:
    """`async with pool.transaction() as tx`: BEGIN at the top, COMMIT or ROLLBACK at the end."""

    __slots__ = (
        "_calling",
        "_confirmation",
        "_connection",
        "_entered",
        "_isolation",
        "_pool",
        "_priority",
        "_read_only",
        "_transaction",
    )

    def __init__(
        self,
        pool: Pool,
        connection: Connection | None,
        priority: Priority | None,
        *,
        read_only: bool,
        isolation: str,
        synchronous_commit: str | None = None,
    ) -> None:
        if isolation not in ISOLATIONS:
            raise ValueError(f"isolation must be one of {', '.join(ISOLATIONS)}, got {isolation!r}")
        if synchronous_commit is not None and synchronous_commit not in CONFIRMATIONS:
            raise ValueError(
                f"synchronous_commit must be one of {', '.join(CONFIRMATIONS)} or None,"
                f" got {synchronous_commit!r}"
            )
        self._pool = pool
        self._connection = connection
        self._priority = priority
        self._read_only = read_only
        self._isolation = isolation
        self._confirmation = synchronous_commit
        self._transaction: Transaction | None = None
        self._calling: asyncio.Task[None] | None = None
        self._entered = False

    async def __aenter__(self) -> Transaction:
        if self._entered:
            raise RuntimeError("a transaction cannot be entered twice; call transaction() again")
        self._entered = True
        if self._connection is not None:
            link = await self._connection._ready()
            await self._begin(link)
        else:
            link = await self._pool._begin(self._priority, self._begin)
        self._transaction = Transaction(
            link, self._pool._statements, read_only=self._read_only, isolation=self._isolation
        )
        return self._transaction

    async def _begin(self, link: Link) -> None:
        context = current()
        sql = f"BEGIN ISOLATION LEVEL {self._isolation.upper()}{' READ ONLY' if self._read_only else ''}"
        label = sql
        if context is not None and context.deadline is not None:
            limit = bucket(context.deadline - link.monotonic())
            sql += f"; SET LOCAL statement_timeout = {max(round(limit * 1000), 1)}"
        elif link.limit is not None:
            sql += "; SET LOCAL statement_timeout = DEFAULT"
        if self._confirmation is not None:  # with BEGIN in one message: it costs no round trip
            sql += f"; SET LOCAL synchronous_commit = {self._confirmation}"
        await link.perform(
            asyncpg.Connection.execute, sql, (), self._pool._statements.get(label), limited=False
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        transaction = self._transaction
        assert transaction is not None
        link = transaction._link()
        transaction._lent = None
        if error is not None:
            try:
                await self._roll_back(link, error)
            finally:
                self._give_back(link)
        elif self._read_only:
            try:
                if not link.unsettled:
                    await self._end_reading(link)
            finally:
                self._give_back(link)
            await _run_callbacks(self._pool, transaction._callbacks)
        elif link.unsettled:
            self._give_back(link)
            raise pg.InFailedSQLTransactionError(ABANDONED)
        else:
            await self._commit(link, transaction)

    def _give_back(self, link: Link) -> None:
        if self._connection is None:
            self._pool._put(link)

    async def _roll_back(self, link: Link, error: BaseException) -> None:
        if link.broken or link.unsettled:
            return
        context = current()
        remaining = context.remaining(link.monotonic()) if context is not None else None
        timeout = ROLLBACK_TIMEOUT if remaining is None else min(remaining, ROLLBACK_TIMEOUT)
        if not isinstance(error, Exception) or timeout <= 0:
            link.unsettled = True  # not one await on the server for somebody who has left
            return
        try:
            await link.raw.execute("ROLLBACK", timeout=timeout)
        except TimeoutError:
            link.unsettled = True
        except (*CONNECTION_ERRORS, asyncpg.InterfaceError):
            link.broken = True
        except BaseException:
            link.unsettled = True
            raise

    async def _end_reading(self, link: Link) -> None:
        """COMMIT of a transaction that has only read: a connection lost here has lost nothing."""
        try:
            await link.perform(
                asyncpg.Connection.execute, "COMMIT", (), self._pool._statements.get("COMMIT"), limited=False
            )
        except DatabaseUnavailable:
            if self._isolation == "serializable":
                raise  # there the last word on the reads is spoken at COMMIT

    async def _commit(self, link: Link, transaction: Transaction) -> None:
        context = current()
        remaining = context.remaining(link.monotonic()) if context is not None else None
        if remaining is not None and remaining <= 0:
            link.unsettled = True
            self._give_back(link)
            raise DeadlineExceeded("about to COMMIT; the transaction is rolled back")
        if link.raw.is_closed():
            link.broken = True
            self._give_back(link)
            raise DatabaseUnavailable(f"the connection to {link.cluster} was lost before COMMIT")
        if self._connection is not None:
            self._connection._lent = None
        link.committing = True
        committing = self._pool._spawn(self._committing(link, transaction), "commit")
        try:
            done, _ = await asyncio.wait((committing,), timeout=remaining)
        except asyncio.CancelledError:
            self._abandon(link, committing)
            raise
        if not done:
            known = not link.committing  # what is still under way comes after COMMIT
            self._abandon(link, committing)
            if known:
                return
            raise CommitUnknown(f"the deadline passed while {link.cluster} had COMMIT")
        if self._connection is not None:
            self._connection._lent = link
        failure = committing.result()
        if failure is not None:
            raise failure
        if self._calling is not None:
            remaining = context.remaining(link.monotonic()) if context is not None else None
            await asyncio.wait((self._calling,), timeout=remaining)

    def _abandon(self, link: Link, committing: asyncio.Task[Exception | None]) -> None:
        """Nobody listens any more: the link returns to the pool when COMMIT ends, or is given up."""
        on_connection, self._connection = self._connection is not None, None
        if committing.done():
            if on_connection:
                self._pool._put(link)
            return

        def give_up() -> None:
            if link.committing:
                link.raw.terminate()

        timer = asyncio.get_running_loop().call_later(ABANDONED_COMMIT, give_up)

        def ended(task: asyncio.Task[Exception | None]) -> None:
            timer.cancel()
            if not task.cancelled() and task.exception() is None and (failure := task.result()) is not None:
                _log.warning("a COMMIT whose caller had left ended with %r", failure)

        committing.add_done_callback(ended)

    async def _committing(self, link: Link, transaction: Transaction) -> Exception | None:
        """Send COMMIT, judge the answer, return the connection, start the callbacks beside us."""
        try:
            failure = await _send_commit(link, self._pool._statements.get("COMMIT"))
            link.committing = False
            if failure is None and transaction._noting is not None:
                await _note(link, transaction._noting)
        finally:
            link.committing = False
            self._give_back(link)
        if failure is None and transaction._callbacks:
            self._calling = self._pool._spawn(_run_callbacks(self._pool, transaction._callbacks), "on_commit")
        return failure


async def _send_commit(link: Link, statement: Statement) -> Exception | None:
    link.standby_wait_ended = False
    try:
        tag = await link.perform(
            asyncpg.Connection.execute, "COMMIT", (), statement, limited=False, bounded=False
        )
    except DatabaseUnavailable as error:
        if not link.sent:
            never = DatabaseUnavailable(f"the connection to {link.cluster} was lost before COMMIT")
            never.__cause__ = error.__cause__
            return never
        unknown = CommitUnknown(f"the connection to {link.cluster} was lost while it had COMMIT")
        unknown.__cause__ = error.__cause__
        return unknown
    except Exception as error:  # the server's verdict, handed to the caller as it is
        return error
    if link.standby_wait_ended:
        return CommitUnknown(f"{link.cluster} committed, but its synchronous standby did not confirm it")
    if tag == "ROLLBACK":
        return pg.InFailedSQLTransactionError(
            "the transaction was rolled back at COMMIT: one of its statements had failed, "
            "and its error was swallowed"
        )
    return None


async def _note(link: Link, noting: Callable[[Link], Awaitable[None]]) -> None:
    try:
        await noting(link)
    except Exception as error:  # COMMIT has succeeded, and the caller hears of that alone
        _log.debug("nothing was noted after a commit on %s: %r", link.cluster, error)


async def _run_callbacks(pool: Pool, callbacks: list[Callable[[], Awaitable[None] | None]]) -> None:
    for callback in callbacks:
        try:
            result = callback()
            if inspect.isawaitable(result):
                await result
        except Exception as error:  # committed is committed: the others run, the caller sees success
            pool._sink.emit(TaskFailed(f"{pool.name}:on_commit", repr(error), None))
            _log.exception("on_commit callback %r failed", callback)
