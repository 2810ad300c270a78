"""SQLAlchemy sessions over a primary and its replicas, by the same rules as everything else here.

    routing = Routing(servers, pool_size=10)
    Session = routing.sessions(expire_on_commit=False)    # an async_sessionmaker; models stay as they are
    async with Session() as session:
        await session.scalars(select(User))               # a replica that has what this request has seen

One transaction of a session has two places at most. Its first read chooses a server by the session's
consistency, and later reads stay there. The first statement that is not plainly a read (a flush, DML, FOR
UPDATE, a savepoint, text or a function that may write, `session.connection()`) goes to the primary, and from
then on everything does. Each statement has a snapshot of its own, as always in READ COMMITTED; who wants one
for all asks for the isolation level REPEATABLE READ.

    consistency   of the session (`routing.sessions(consistency=...)`, `Session(consistency=...)`) or of one
                  execution (`execution_options={"consistency": EVENTUAL}`). A read that asks for more than
                  what the transaction's replica was chosen by goes to the primary

What was seen is noted in the request's causality token: after COMMIT where the log is, asked on the same
connection; after reads on the primary alone the same before the connection goes back; a doubt where that
does not work. Without a request there is no session to remember, and reads go to the primary.

What was read from a replica may be older than what others have written. A unit of work that reads
in order to write says `with_for_update=True`, or reads with STRONG, as it has to where two writers meet.

A replica that ends midway ends the transaction, as the loss of any server does. A COMMIT whose answer is
lost raises CommitUnknown. SQLAlchemy keeps connections of its own, at most `pool_size + max_overflow` per
server, beside the pools of `servers`; those of a replica are admitted by the same check.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.util import await_only

from springtide.context import CausalityToken, current
from springtide.db._tls import tls
from springtide.db.consistency import Consistency
from springtide.db.pool import Pool
from springtide.db.servers import CAPTURE_TIMEOUT, Choice, Servers
from springtide.errors import CommitUnknown, DatabaseUnavailable

__all__ = ["RoutedSession", "Routing"]

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
COMMITTING = "springtide_committing"
OPTION = "consistency"

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
        self._replicas: WeakKeyDictionary[Pool, AsyncEngine] = WeakKeyDictionary()
        self._primary: AsyncEngine | None = None
        self._primary_dsn: str | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def sessions(self, **options: Any) -> async_sessionmaker[AsyncSession]:
        """Makes routed sessions; `options` are those of AsyncSession, and `consistency`."""
        return async_sessionmaker(
            class_=AsyncSession, sync_session_class=RoutedSession, routing=self, **options
        )

    async def close(self) -> None:
        """Close every connection that is not in use."""
        engines = [*self._replicas.values(), *([self._primary] if self._primary is not None else [])]
        self._replicas.clear()
        self._primary = self._primary_dsn = None
        await asyncio.gather(*(engine.dispose() for engine in engines), *self._closing)

    def primary(self) -> Engine:
        """Of the server that is the primary now. Raises DatabaseUnavailable while there is none."""
        dsn = self.servers.primary.dsn
        if dsn is None:
            raise DatabaseUnavailable(f"{self.servers.cluster} has no primary now", retry_after=1.0)
        if self._primary is None or dsn != self._primary_dsn:
            self._retire(self._primary)
            self._primary, self._primary_dsn = self._engine(self.servers.primary, dsn), dsn
            _map_commits(self._primary.sync_engine)
        return self._primary.sync_engine

    def replica(self, pool: Pool) -> Engine:
        """Of the run of a server that `pool` was made for."""
        engine = self._replicas.get(pool)
        if engine is None:
            there = set(self.servers._watch.pools.values())
            for gone in [known for known in self._replicas if known not in there]:
                self._retire(self._replicas.pop(gone))
            assert pool.dsn is not None
            engine = self._replicas[pool] = self._engine(pool, pool.dsn)
        return engine.sync_engine

    def _engine(self, pool: Pool, dsn: str) -> AsyncEngine:
        async def connect(*_: Any, **settings: Any) -> Any:
            settings.setdefault("timeout", CONNECT_TIMEOUT)
            if "ssl" not in settings:
                settings["ssl"] = await tls(dsn)
            connection = await asyncpg.connect(dsn, **settings)
            try:
                if (check := pool._connector.check) is not None:
                    await check(connection)
            except BaseException:
                connection.terminate()
                raise
            return connection

        return create_async_engine("postgresql+asyncpg://", async_creator=connect, **self._options)

    def _retire(self, engine: AsyncEngine | None) -> None:
        if engine is not None:
            task = asyncio.get_running_loop().create_task(engine.dispose())
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
        self._at_primary = False
        self._token: CausalityToken | None = None
        self._connection: Connection | None = None  # the primary's
        self._covered = False

    # -- choosing --------------------------------------------------------------------------------------

    def get_bind(
        self, mapper: Any = None, *, clause: Any = None, bind: Any = None, consistency: Any = None, **_: Any
    ) -> Engine | Connection:
        """Where a statement goes; called by SQLAlchemy for each of them."""
        if bind is not None:
            own: Engine | Connection = bind  # the caller's own choice
            return own
        servers = self._routing.servers
        if not self._at_primary and servers.replicated and self._is_read(clause):
            wanted = consistency or self._consistency
            if self._on is None:
                self._choose(wanted)
            elif wanted not in (self._chosen_by, Consistency.EVENTUAL):
                return self._to_primary()
            if self._on is not None:
                self._saw()
                return self._routing.replica(self._on.pool)
        return self._to_primary()

    def _is_read(self, clause: Any) -> bool:
        if self._flushing or clause is None or self.in_nested_transaction():
            return False
        return _plainly_reads(clause, self._routing.servers.primary)

    def _choose(self, wanted: Consistency) -> None:
        servers = self._routing.servers
        self._token = await_only(servers._session(wanted))
        choice = servers.choose(wanted, self._token)
        if choice.health is not None:
            servers._begin(choice, self._token)
            self._on, self._chosen_by = choice, wanted

    def _to_primary(self) -> Engine:
        if not self._at_primary:
            self._at_primary = True
            if self._routing.servers.replicated and (context := current()) is not None:
                self._token = context.causality
        return self._routing.primary()

    # -- what was seen ---------------------------------------------------------------------------------

    def _saw(self) -> None:
        if self._on is not None and self._token is not None and self._on.witness is not None:
            self._token.saw(self._routing.servers.cluster, self._on.witness)

    def began(self, connection: Connection) -> None:
        """A connection has begun this transaction."""
        if self._at_primary:
            self._connection = connection

    def committed(self) -> None:
        """COMMIT was answered, and the connection is still ours."""
        self._cover(written=True)

    def ended(self) -> None:
        """The transaction is over, however it ended."""
        if self._on is not None:
            assert self._on.health is not None
            self._on.health.in_flight -= 1
            self._saw()  # a commit of the same request beside it covers no answer that came later
        if self._at_primary and self._token is not None and not self._covered:
            self._token.doubt(self._routing.servers.cluster)
        self._forget()

    def close(self) -> None:
        self._cover(written=False)
        super().close()

    def rollback(self) -> None:
        self._cover(written=False)
        super().rollback()

    def _cover(self, *, written: bool) -> None:
        """Ask the primary where its log is, after everything that this transaction has seen."""
        connection, self._connection = self._connection, None
        if connection is None or self._token is None or connection.invalidated or connection.closed:
            return
        servers = self._routing.servers
        raw = connection.connection.driver_connection
        sights = self._token.sights(servers.cluster)
        try:
            position = await_only(asyncio.wait_for(servers.capture(raw), CAPTURE_TIMEOUT))  # type: ignore[arg-type]
        except Exception as error:
            _log.debug("%s: no position after a transaction: %r", servers.name, error)
            return
        if written:
            self._token.wrote(servers.cluster, position, sights=sights)
        else:
            self._token.cover(servers.cluster, position, sights=sights)
        self._covered = True


@event.listens_for(RoutedSession, "do_orm_execute")
def _take_option(state: ORMExecuteState) -> None:
    if (wanted := state.execution_options.get(OPTION)) is not None:
        state.bind_arguments[OPTION] = wanted


@event.listens_for(RoutedSession, "after_begin")
def _began(session: RoutedSession, _: SessionTransaction, connection: Connection) -> None:
    session.began(connection)


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
        if isinstance(part, TextClause):
            text = part.text if part is whole else f"SELECT {part.text}"
            if not _text_reads(text, pool):
                return False
    return True


def _text_reads(text: str, pool: Pool) -> bool:
    return pool.reads(text) and _LOCKS.search(text) is None


def _map_commits(engine: Engine) -> None:
    """A COMMIT whose answer did not come becomes CommitUnknown."""

    @event.listens_for(engine, "commit")
    def committing(connection: Connection) -> None:
        connection.info[COMMITTING] = True

    @event.listens_for(engine, "begin")
    def beginning(connection: Connection) -> None:
        connection.info.pop(COMMITTING, None)

    @event.listens_for(engine, "handle_error")
    def failed(failure: ExceptionContext) -> None:
        connection = failure.connection
        committing = connection is not None and failure.statement is None and _pop(connection)
        state = getattr(failure.original_exception, "sqlstate", None) or "08"
        if committing and state.startswith(("08", "57P")):  # the connection or the server went away
            raise CommitUnknown("COMMIT was sent and its answer did not come") from failure.original_exception


def _pop(connection: Connection) -> bool:
    try:
        return bool(connection.info.pop(COMMITTING, False))
    except Exception:
        return False
