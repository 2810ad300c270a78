"""SQLAlchemy sessions over a primary and its replicas, by the same rules as everything else here.

    routing = Routing(servers, pool_size=10)
    Session = routing.sessions(expire_on_commit=False)    # an async_sessionmaker; models stay as they are
    async with Session() as session:
        await session.scalars(select(User))               # a replica that has what this request has seen

One transaction of a session has two places at most. Its first read chooses a server by the session's
consistency, and later reads stay there. The first statement that is not plainly a read (a flush, DML, FOR
UPDATE, a savepoint, text or a function that may write, `session.connection()`) goes to the primary, and from
then on everything does. So does a later read that the replica is not known to be good enough for any more:
because the request has seen more meanwhile, by another session, or because a bound cannot be proven. Each
statement has a snapshot of its own, as always in READ COMMITTED; who wants one for all asks for the isolation
level REPEATABLE READ.

    consistency   of the session (`routing.sessions(consistency=...)`, `Session(consistency=...)`) or of one
                  execution (`execution_options={"consistency": EVENTUAL}`). A read that asks for more than
                  what the transaction's replica was chosen by goes to the primary

A read whose replica was lost, or whose replay got in the way, is sent again: the first of a transaction to
whoever is chosen then, a later one to the primary, like what a replica refuses because it writes. Rows of a
stream that were handed out already end with SQLAlchemy's error, as everything does that is lost on the
primary: a transaction that had begun there is over. COMMIT is the primary's alone, see `_engines`.

What was seen is noted in the request's causality token: after COMMIT where the log is, asked on the same
connection; after reads on the primary alone the same before the connection goes back; a doubt where that
does not work. Without a request there is no session to remember, and reads go to the primary.

What was read from a replica may be older than what others have written. A unit of work that reads
in order to write says `with_for_update=True`, or reads with STRONG, as it has to where two writers meet.

Where `servers` ask for quorum and the primary waits for no standby, what is not plainly a read is refused,
and so is the COMMIT of what was written before: DatabaseUnavailable. SQLAlchemy keeps connections of its own,
at most `pool_size + max_overflow` per server, beside the pools of `servers` and with their fate.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.util import await_only

from springtide.context import CausalityToken, Position, current
from springtide.db import _replicas
from springtide.db._engines import ServerEngine, is_lost
from springtide.db.consistency import Consistency
from springtide.db.pool import Pool
from springtide.db.servers import CAPTURE_TIMEOUT, Choice, Servers
from springtide.errors import DatabaseUnavailable

__all__ = ["RoutedSession", "Routing"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

OPTION = "consistency"

CONFLICTS = ("40001", "40P01")
"""SQLSTATEs that come from replay alone on a standby."""

REFUSED = ("25006", "0A000")
"""What a standby does not do: write, and read what is not in the log."""

_LOCKS = re.compile(r"\bFOR\s+(KEY\s+)?SHARE\b", re.IGNORECASE)
"""The other locks of rows say UPDATE."""


class Routing:
    """The engines of one cluster, one per server, made when a server is first needed.

    consistency: of sessions that do not say; `options` are those of `create_async_engine`.
    Nothing connects before the first statement. `close` gives every connection back; `servers` is started and
    stopped by whoever made it.
    """

    def __init__(
        self, servers: Servers, *, consistency: Consistency = Consistency.SESSION, **options: Any
    ) -> None:
        for name in ("async_creator", "creator", "url"):
            if name in options:
                raise ValueError(f"the servers say where to connect: leave {name} out")
        self.servers = servers
        self.consistency = consistency
        self._options = options
        self._engines: dict[Pool, ServerEngine] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def sessions(self, **options: Any) -> async_sessionmaker[AsyncSession]:
        """Makes routed sessions; `options` are those of AsyncSession, and `consistency`."""
        return async_sessionmaker(
            class_=AsyncSession, sync_session_class=RoutedSession, routing=self, **options
        )

    async def close(self) -> None:
        """Close every connection that is not in use."""
        engines = list(self._engines.values())
        self._engines.clear()
        await asyncio.gather(*(engine.close() for engine in engines), *self._closing)

    def engine(self, pool: Pool) -> Engine:
        """That of the primary, or of the run of a replica that `pool` was made for."""
        found = self._engines.get(pool)
        if found is None:
            primary = pool is self.servers.primary
            gone = partial(self._gone, None if primary else pool)
            found = self._engines[pool] = ServerEngine(pool, self._options, primary=primary, gone=gone)
        return found.engine

    def _gone(self, pool: Pool | None) -> None:
        """A replica was given up. (The primary's engine goes on with the next one.)"""
        if pool is not None and (engine := self._engines.pop(pool, None)) is not None:
            task = asyncio.get_running_loop().create_task(engine.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


class RoutedSession(Session):
    """The synchronous half of the sessions that `Routing.sessions` makes."""

    def __init__(self, *args: Any, routing: Routing, consistency: Consistency | None = None, **options: Any):
        super().__init__(*args, **options)
        self._routing = routing
        self._consistency = consistency or routing.consistency
        self._forget()

    def _forget(self) -> None:
        self._on: Choice | None = None  # the replica of this transaction
        self._chosen_by: Consistency | None = None
        self._without: tuple[str, ...] = ()  # replicas that were lost
        self._asks_replica = False  # the statement that is under way
        self._answered = False  # by the replica
        self._reader: Connection | None = None  # the replica's
        self._at_primary = False
        self._connection: Connection | None = None  # the primary's
        self._token: CausalityToken | None = None
        self._wrote = False
        self._committing = False
        self._covered = False

    # -- choosing --------------------------------------------------------------------------------------

    def get_bind(
        self, mapper: Any = None, *, clause: Any = None, bind: Any = None, consistency: Any = None, **_: Any
    ) -> Engine | Connection:
        """Where a statement goes; called by SQLAlchemy for each of them."""
        if bind is not None:
            own: Engine | Connection = bind  # the caller's own choice
            return own
        servers, self._asks_replica = self._routing.servers, False
        reads = not self._flushing and clause is not None and _plainly_reads(clause, servers.primary)
        if not reads:
            servers._refuse_unconfirmed({})
            self._wrote = True
        elif not self._at_primary and servers.replicated and not self.in_nested_transaction():
            wanted = consistency or self._consistency
            if self._on is None:
                self._choose(wanted)
            if self._on is not None and self._is_good_for(wanted):
                self._asks_replica = True
                return self._routing.engine(self._on.pool)
            if wanted.staleness is not None and servers._watch.headless.is_set():
                raise servers._unknown(wanted, None)
        return self._to_primary()

    def _choose(self, wanted: Consistency) -> None:
        servers = self._routing.servers
        self._token = await_only(servers._session(wanted))
        choice = servers.choose(wanted, self._token, without=self._without)
        if choice.health is not None:
            servers._begin(choice, self._token)
            self._on, self._chosen_by = choice, wanted

    def _is_good_for(self, wanted: Consistency) -> bool:
        """Whether the replica of this transaction may answer one more read."""
        servers, on = self._routing.servers, self._on
        assert on is not None and on.health is not None
        if wanted == Consistency.EVENTUAL:
            return True
        if wanted != self._chosen_by:
            return False
        if wanted.staleness is not None:
            return bool(_replicas.fresh([on.health], wanted.staleness, servers._clock.monotonic()))
        if self._token is None or not self._answered:
            return True
        return servers.choose(wanted, self._token).pool is on.pool

    def _to_primary(self) -> Engine:
        self._at_primary = True
        if self._connection is None and (context := current()) is not None:
            self._token = context.causality
            await_only(self._routing.servers._newest(self._token))
        return self._routing.engine(self._routing.servers.primary)

    # -- executing -------------------------------------------------------------------------------------

    def execute(self, *args: Any, **options: Any) -> Any:
        return self._asking(super().execute, *args, **options)

    def scalar(self, *args: Any, **options: Any) -> Any:
        return self._asking(super().scalar, *args, **options)

    def scalars(self, *args: Any, **options: Any) -> Any:
        return self._asking(super().scalars, *args, **options)

    def _asking(self, ask: Callable[..., T], *args: Any, **options: Any) -> T:
        """Ask again when a replica was asked and could not answer."""
        while True:
            try:
                answer = ask(*args, **options)
            except (DBAPIError, DatabaseUnavailable) as error:
                if not self._asks_replica or not self._leave(error):
                    raise
                continue
            if self._asks_replica:
                self._answered = True
                self._saw()
            return answer

    def _leave(self, error: DBAPIError | DatabaseUnavailable) -> bool:
        """Leave the replica that answered like this; False when it was right to."""
        state = getattr(getattr(error, "orig", None), "sqlstate", None)
        lost = isinstance(error, DatabaseUnavailable) or is_lost(error)
        if not lost and state not in (*CONFLICTS, *REFUSED):
            return False
        on, self._on = self._on, None
        assert on is not None and on.health is not None
        on.health.in_flight -= 1
        if lost and self._reader is not None:
            self._reader.invalidate()
        self._drop_reader()
        self._without += (on.node,)
        if lost:
            self._routing.servers._watch.doubt()
        if state in REFUSED or self._answered:
            if state in REFUSED[:1]:
                self._routing.servers._refuse_unconfirmed({})
                self._wrote = True
            self._at_primary = True
        return True

    def _drop_reader(self) -> None:
        """The replica's connection takes no part in what this transaction ends with."""
        connection, self._reader = self._reader, None
        transaction = self.get_transaction()
        if connection is None or transaction is None:
            return
        for key in (connection, connection.engine):
            transaction._connections.pop(key, None)
        try:
            connection.close()
        except DBAPIError as error:  # lost since its last answer
            _log.debug("%s: a connection was lost: %r", self._routing.servers.name, error)

    # -- what was seen ---------------------------------------------------------------------------------

    def _saw(self) -> None:
        if self._on is not None and self._token is not None and self._on.witness is not None:
            self._token.saw(self._routing.servers.cluster, self._on.witness)

    def began(self, connection: Connection) -> None:
        """A connection has begun this transaction."""
        if self._at_primary:
            self._connection = connection
        elif self._on is not None:
            self._reader = connection

    def committing(self) -> None:
        """COMMIT comes next, or a last flush before it."""
        self._drop_reader()
        if self._wrote:
            self._routing.servers._refuse_unconfirmed({})
        self._committing = True

    def committed(self) -> None:
        """COMMIT was answered, and the connection is still ours."""
        self._cover(written=True)

    def ended(self) -> None:
        """The transaction is over, however it ended."""
        servers = self._routing.servers
        if self._on is not None:
            assert self._on.health is not None
            self._on.health.in_flight -= 1
            if self._answered:
                self._saw()  # a commit of the same request beside it covers no answer that came later
        if self._at_primary and self._token is not None and servers.replicated and not self._covered:
            self._token.doubt(servers.cluster)
            self._token.written = self._token.written or self._committing
        self._forget()

    def close(self) -> None:
        self._drop_reader()
        self._cover(written=False)
        super().close()

    def rollback(self) -> None:
        self._drop_reader()
        self._cover(written=False)
        super().rollback()

    def _cover(self, *, written: bool) -> None:
        """Ask the primary where its log is, after everything that this transaction has seen."""
        connection, self._connection = self._connection, None
        servers = self._routing.servers
        if connection is None or self._token is None or not servers.replicated:
            return
        if connection.invalidated or connection.closed:
            return
        raw = connection.connection.driver_connection
        if raw is None or raw.is_closed():
            return
        sights = self._token.sights(servers.cluster)
        try:
            position = await_only(_captured(servers, raw))
        except Exception as error:
            _log.debug("%s: no position after a transaction: %r", servers.name, error)
            if isinstance(error, TimeoutError):
                raw.terminate()  # it stands still: so would ROLLBACK
            return
        if written:
            self._token.wrote(servers.cluster, position, sights=sights)
        else:
            self._token.cover(servers.cluster, position, sights=sights)
        self._covered = True


async def _captured(servers: Servers, connection: Any) -> Position:
    async with asyncio.timeout(CAPTURE_TIMEOUT):
        return await servers.capture(connection)


@event.listens_for(RoutedSession, "do_orm_execute")
def _take_option(state: ORMExecuteState) -> None:
    if (wanted := state.execution_options.get(OPTION)) is not None:
        state.bind_arguments[OPTION] = wanted


@event.listens_for(RoutedSession, "after_begin")
def _began(session: RoutedSession, _: SessionTransaction, connection: Connection) -> None:
    session.began(connection)


@event.listens_for(RoutedSession, "before_commit")
def _commit_comes(session: RoutedSession) -> None:
    if not session.in_nested_transaction():
        session.committing()


@event.listens_for(RoutedSession, "after_commit")
def _committed(session: RoutedSession) -> None:
    if not session.in_nested_transaction():
        session.committed()


@event.listens_for(RoutedSession, "after_transaction_end")
def _ended(session: RoutedSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.ended()


def _plainly_reads(clause: Any, pool: Pool) -> bool:
    """Whether nothing in the statement shows that it does more than read; what is not known does more."""
    if isinstance(clause, TextClause):
        return _text_reads(clause.text, pool)
    if not getattr(clause, "is_select", False):
        return False
    whole = getattr(clause, "element", None)  # of select(...).from_statement(text(...))
    for part in visitors.iterate(clause):
        if getattr(part, "is_dml", False) or getattr(part, "_for_update_arg", None) is not None:
            return False
        if isinstance(part, FunctionElement) and not pool.reads(f"SELECT {getattr(part, 'name', '?')}()"):
            return False
        if getattr(part, "is_literal", False) and not _text_reads(
            f"SELECT {getattr(part, 'name', '')}", pool
        ):
            return False
        if isinstance(part, TextClause):
            text = part.text if part is whole else f"SELECT {part.text}"
            if not _text_reads(text, pool):
                return False
    return True


def _text_reads(text: str, pool: Pool) -> bool:
    return pool.reads(text) and _LOCKS.search(text) is None
