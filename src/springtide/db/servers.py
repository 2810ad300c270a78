"""One cluster as this process sees it: its primary, its replicas, and who of them answers a read.

Every server that may belong to the cluster is looked at about ten times a second over a connection of its
own. From what they say follows who is the primary (`_roles`; its pool moves there by itself) and which
replicas may be read from (`_replicas`). While only one server is known nobody is looked at (but where quorum
is asked for), and a statement costs what its pool costs.

    strong      the primary
    session     the replica that the session read from last, while that has what the session has written; a
                session that has not read beyond a known position: any that reached it; else the primary
    bounded(s)  a replica that proves it; else the primary; StalenessUnknown when that cannot be reached
    eventual    any replica; without one the primary

What a read on the primary has shown cannot be bounded without asking how far its log is. So such a read
leaves a doubt in the token, and the next session read that a replica could take over from is the one that
asks: on the primary, on the same connection, right after it. A commit asks right after itself.

Invariant: a replica answers a session only if its pool's connections belong to the run of the server that
was seen at the session's position (a pool of a replica is made for one run and refuses connections to
another), and only if nothing beyond that position was seen from anybody else.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import asyncpg
from asyncpg import exceptions as pg

from springtide.clock import Clock, SystemClock
from springtide.context import CausalityToken, Position, current
from springtide.db import _replicas, seeing
from springtide.db._looking import CAPTURE
from springtide.db._replicas import Health, RoutingSettings
from springtide.db._watching import Choice, Watch
from springtide.db.causality import position_of
from springtide.db.consistency import Consistency
from springtide.db.members import Member, Members
from springtide.db.pool import Pool
from springtide.db.seeing import Sight
from springtide.errors import (
    CommitUnknown,
    DatabaseUnavailable,
    PoolClosed,
    PoolSaturated,
    PoolTimeout,
    ReplicaConflict,
    StalenessUnknown,
)
from springtide.lifecycle import StartStop
from springtide.signals import NullSink, Sink

if TYPE_CHECKING:
    from springtide.db._link import Link
    from springtide.db.transaction import Transaction

__all__ = ["Choice", "Reads", "ReplicaState", "RoutingSettings", "Servers"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S", bound="Reads")

EPOCH_TIMEOUT = 2.0
"""Seconds that a read waits for a primary that its session has seen already and this process has not."""

CAPTURE_TIMEOUT = 1.0
"""Seconds that a caller waits for the position after its commit; without it, its session is in doubt."""

LOST = (DatabaseUnavailable, PoolClosed, PoolTimeout, PoolSaturated)
"""No answer of this server: others are asked. One that stands still shows itself by a pool that gives no
connection away before anybody has looked in vain."""

CONFLICTS = (pg.SerializationError, pg.DeadlockDetectedError)
"""On a standby, where nothing is written, these come from replay alone."""

REFUSED = (pg.FeatureNotSupportedError,)
"""What a standby cannot do besides writing: read what is not in the log."""


class Row(Protocol):
    """What `capture` needs of a connection; asyncpg's has it."""

    async def fetchrow(self, sql: str, /) -> Any: ...


class Reads(Protocol):
    """What an operation is given: somebody's answers to single statements."""

    async def fetch(self, sql: str, *args: Any) -> list[Any]: ...

    async def fetch_one(self, sql: str, *args: Any) -> Any | None: ...

    async def fetch_value(self, sql: str, *args: Any) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """What is known of one replica, for people: `reason` of its state, how many `reads` it had."""

    node: str
    zone: str
    state: str
    reason: str
    position: Position | None
    lag_bytes: int | None
    lag_seconds: float | None
    in_flight: int
    reads: int


class Servers:
    """See the module. A lifecycle service; `primary` is started and stopped by whoever made it.

    replica_pool: makes the pool of a member that is a replica; it is started and stopped here.
    quorum:       a database on the cluster has durability "quorum": transactions that do not ask for less are
                  refused while the primary waits for no standby.
    primary_url:  where the primary's pool connects when a member is the primary, such as a pooler in front of
                  it; None means the member itself.
    """

    def __init__(
        self,
        cluster: str,
        primary: Pool,
        members: Members,
        *,
        replica_pool: Callable[[Member], Pool],
        primary_url: Callable[[Member], str] | None = None,
        quorum: bool = False,
        clock: Clock | None = None,
        sink: Sink | None = None,
        settings: RoutingSettings | None = None,
    ) -> None:
        self.cluster = cluster
        self.name = f"servers of {cluster}"
        self.primary = primary
        self.settings = settings or RoutingSettings()
        self._clock = clock or SystemClock()
        self._draw = random.Random()  # noqa: S311 - spreads load
        self._random = self._draw.random
        self._reads: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._watch = Watch(
            cluster,
            primary,
            members,
            replica_pool=replica_pool,
            primary_url=primary_url or (lambda member: member.url),
            quorum=quorum,
            settings=self.settings,
            clock=self._clock,
            sink=sink or NullSink(),
        )
        self._life = StartStop(self.name, self._watch.open, self._watch.close, sink=sink)

    # -- life ------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    @property
    def address(self) -> str | None:
        """Where the primary itself answers, for connections beside the pool; None while none is known."""
        return self._watch.address

    @property
    def epoch(self) -> int | None:
        """The history of the primary (see `seeing`), as it was last looked at; None: nobody looks."""
        return self._watch.history

    # -- for people ------------------------------------------------------------------------------------

    @property
    def replicated(self) -> bool:
        """Whether a replica may be read from, by whatever process: then what sessions see is noted, and each
        commit is captured."""
        return self._watch.replicated

    @property
    def replicas(self) -> Sequence[ReplicaState]:
        """Every known server but the primary, in the order of their names."""
        return [
            ReplicaState(
                node=health.node,
                zone=health.zone,
                state=health.state,
                reason=health.reason,
                position=health.position,
                lag_bytes=health.lag_bytes,
                lag_seconds=health.lag_seconds,
                in_flight=health.in_flight,
                reads=self._reads[health.node],
            )
            for health in self._watch.replicas
        ]

    @property
    def primary_reads(self) -> Mapping[str, int]:
        """How many reads the primary had while there were replicas, by why (see `Choice`)."""
        return self._reasons

    @property
    def barred(self) -> Mapping[str, str]:
        """node -> why it is used for nothing: rival, superseded or stranger."""
        return self._watch.barred

    @property
    def unconfirmed(self) -> bool:
        """Whether quorum is asked for and the primary does not wait for a standby."""
        return self._watch.unconfirmed is not None

    async def check(self, node: str) -> None:
        """Raises DatabaseUnavailable when the replica is ejected or not known any more; for health pages."""
        for replica in self.replicas:
            if replica.node == node and replica.state != "ejected":
                return
        raise DatabaseUnavailable(f"replica {node} of {self.cluster} is not read from")

    # -- choosing --------------------------------------------------------------------------------------

    def choose(
        self,
        consistency: Consistency,
        token: CausalityToken | None,
        *,
        without: Collection[str] = (),
        within: float | None = None,
    ) -> Choice:
        """Who answers a read now; `without` are nodes that have just failed it, and whoever is chosen is
        proven to be at most `within` seconds behind (None: as `consistency` says alone). Never waits.

        Whoever reads by hand tells the token afterwards: `saw` of the choice's witness, or, after a read on
        the primary, `cover` of what `capture` answered on the same connection (else `doubt`).
        """
        level = consistency.level
        if level == "session" and token is not None and not without and within is None:
            quick = self._quickly(token)
            if quick is not None:
                return quick
        if level == "strong":
            return self._to_primary("strong")
        if level == "eventual":
            able: Sequence[Health] = _replicas.eventual(self._watch.listening)
            why = "none serves"
        elif level == "session":
            if token is None:
                return self._to_primary("no session")
            witness = token.witnesses.get(self.cluster)
            able, why = _replicas.of_session(self._watch.readable, token.position(self.cluster), witness)
            if witness is None and (lean := token.leaning.get(self.cluster)) is not None:
                able = [one for one in able if one.witness == lean] or able
        else:
            assert consistency.staleness is not None
            able = _replicas.fresh(self._watch.readable, consistency.staleness, self._clock.monotonic())
            why = "unproven" if self._watch.readable else "none serves"
        if within is not None and able:
            able = _replicas.fresh(able, within, self._clock.monotonic())
            why = "" if able else "unproven"
        if without:
            able = [one for one in able if one.node not in without]
        chosen = _replicas.two_choices(able, self.settings.zone, self._draw)
        if chosen is None:
            return self._to_primary(why or "lost")
        return Choice(
            self._watch.pools[chosen.node], chosen.node, "", chosen.position, chosen.witness, chosen
        )

    def _quickly(self, token: CausalityToken) -> Choice | None:
        """The usual case of a session, without a list: whom it read from last, or the less busy of any two
        whose shares are equal. None: it takes a closer look."""
        cluster, watch = self.cluster, self._watch
        witness = token.witnesses.get(cluster) or token.leaning.get(cluster)
        if witness is not None:
            choice = watch.runs.get(witness)
        else:
            near = watch.near
            count = len(near)
            if count > 1:
                place = int(self._random() * count)
                choice = near[place]
                other = near[(place + 1 + int(self._random() * (count - 1))) % count]
                if other[5].in_flight < choice[5].in_flight:  # type: ignore[union-attr]  # replicas have one
                    choice = other
            else:
                choice = near[0] if near else None
        if choice is None:
            return None
        need, have = token.position(cluster), choice[3]
        if need is None or (have is not None and have[0] == need[0] and have[1] >= need[1]):
            return choice
        return None

    def _to_primary(self, why: str) -> Choice:
        return Choice(self.primary, self._watch.primary_node or "primary", why, None, None, None)

    # -- reading ---------------------------------------------------------------------------------------

    async def run(self, consistency: Consistency, operation: Callable[[Reads], Awaitable[T]]) -> T:
        """`operation` on who is chosen; again on another one when that server is lost or its replay got in
        the way. It may run several times, and must only read.

        Notes in the request's token what was seen. Raises StalenessUnknown, and what the pools raise.
        """
        if not self.replicated:
            return await operation(self.primary)
        token = await self._session(consistency)
        without: tuple[str, ...] = ()
        while True:
            choice = self.choose(consistency, token, without=without)
            if choice.health is None:
                return await self._on_primary(consistency, token, choice, operation)
            self._begin(choice, token)
            try:
                answer = await operation(_OnReplica(choice.pool))
            except (*LOST, *CONFLICTS):
                without += (choice.node,)
                self._watch.doubt()
                continue
            except pg.ReadOnlySQLTransactionError:
                return await self._write("refused", operation)
            except REFUSED:
                refused = self._to_primary("refused")
                return await self._on_primary(consistency, token, refused, operation)
            finally:
                choice.health.in_flight -= 1
            if token is not None and choice.witness is not None:
                token.saw(self.cluster, choice.witness)
            return answer

    async def _write(self, why: str, operation: Callable[[Reads], Awaitable[T]]) -> T:
        """One statement that does more than read: whatever was asked for, its session has written."""
        if not self.replicated:
            return await operation(self.primary)
        self._reasons[why] += 1
        context = current()
        if context is None:
            return await operation(self.primary)
        token = context.causality
        await self._newest(token)
        try:
            return await operation(self.primary)
        finally:
            token.doubt(self.cluster)
            token.written = True

    def reading(self, consistency: Consistency) -> Routed:
        """Single statements of this consistency."""
        return Routed(self, consistency)

    def snapshot(self, consistency: Consistency) -> AbstractAsyncContextManager[Transaction]:
        """One read-only REPEATABLE READ transaction on one server.

        Raises ReplicaConflict when a replica has to end it midway; else as `run`.
        """
        return self._pinned(
            consistency, lambda pool: pool.transaction(read_only=True, isolation="repeatable read"), one=True
        )

    def sight(
        self, consistency: Consistency, *, within: float | None = None
    ) -> AbstractAsyncContextManager[Sight]:
        """Statements of their own on one server, and what it had before them; raises as `snapshot`."""
        return self._pinned(
            consistency, lambda pool: seeing.opening(pool, self.cluster), one=False, within=within
        )

    @asynccontextmanager
    async def _pinned(
        self,
        consistency: Consistency,
        opening: Callable[[Pool], AbstractAsyncContextManager[S]],
        *,
        one: bool,
        within: float | None = None,
    ) -> AsyncIterator[S]:
        """A block on one server, chosen for the whole of it. `one`: all of it sees one state, that in which
        it was opened."""
        if not self.replicated:
            async with opening(self.primary) as tx:
                yield tx
            return
        token = await self._session(consistency)
        without: tuple[str, ...] = ()
        while True:
            choice = self.choose(consistency, token, without=without, within=within)
            if choice.health is None:
                async with self._pinned_to_primary(consistency, token, choice, opening, one=one) as tx:
                    yield tx
                return
            block = opening(choice.pool)
            self._begin(choice, token)
            try:
                try:
                    tx = await block.__aenter__()
                except LOST:
                    without += (choice.node,)
                    self._watch.doubt()
                    continue
                if token is not None and choice.witness is not None:
                    token.saw(self.cluster, choice.witness)
                try:
                    try:
                        yield tx
                    except BaseException as error:
                        await block.__aexit__(type(error), error, error.__traceback__)
                        raise
                    await block.__aexit__(None, None, None)
                except CONFLICTS as error:
                    raise ReplicaConflict(
                        f"the snapshot on replica {choice.node} stood in the way of its replay",
                        retry_after=0.0,
                    ) from error
                return
            finally:
                choice.health.in_flight -= 1
                if token is not None and choice.witness is not None:
                    token.saw(
                        self.cluster, choice.witness
                    )  # a commit beside the block covers no later answer

    async def _session(self, consistency: Consistency) -> CausalityToken | None:
        """The token to read by and to note in; None when this read is no session's."""
        context = current()
        if context is None or consistency.level not in ("session", "strong"):
            return None
        if context.recall is not None and consistency.level == "session":
            await context.recall(context)
        return context.causality

    def _begin(self, choice: Choice, token: CausalityToken | None) -> None:
        assert choice.health is not None
        choice.health.in_flight += 1
        self._reads[choice.node] += 1
        if token is not None and choice.witness is not None:
            token.leaning[self.cluster] = choice.witness

    async def _on_primary(
        self,
        consistency: Consistency,
        token: CausalityToken | None,
        choice: Choice,
        operation: Callable[[Reads], Awaitable[T]],
    ) -> T:
        self._reasons[choice.why] += 1
        if consistency.staleness is not None:
            return await self._while_it_answers(consistency, operation)
        if token is None:
            return await operation(self.primary)
        await self._newest(token)
        if not self._worth_asking(consistency, token):
            try:
                return await operation(self.primary)
            finally:
                token.doubt(self.cluster)
        async with self.primary.acquire() as connection:
            try:
                answer = await operation(connection)
            except BaseException:
                token.doubt(self.cluster)
                raise
            await self._cover(token, connection.fetch_one)
            return answer

    async def _while_it_answers(
        self, consistency: Consistency, operation: Callable[[Reads], Awaitable[T]]
    ) -> T:
        """On the primary, without waiting for a new one: whoever says how stale would rather know at once."""
        headless = asyncio.ensure_future(self._watch.headless.wait())
        reading = asyncio.ensure_future(operation(self.primary))
        try:
            await asyncio.wait((reading, headless), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise self._unknown(consistency, None)
            return reading.result()
        except DatabaseUnavailable as error:
            raise self._unknown(consistency, error) from error
        finally:
            headless.cancel()
            if not reading.done():
                reading.cancel()
                await asyncio.wait((reading,))

    @asynccontextmanager
    async def _pinned_to_primary(
        self,
        consistency: Consistency,
        token: CausalityToken | None,
        choice: Choice,
        opening: Callable[[Pool], AbstractAsyncContextManager[S]],
        *,
        one: bool,
    ) -> AsyncIterator[S]:
        self._reasons[choice.why] += 1
        asking = one and token is not None and self._worth_asking(consistency, token)
        if token is not None and not asking:
            token.doubt(self.cluster)
        if consistency.staleness is not None and self._watch.headless.is_set():
            raise self._unknown(consistency, None)
        if token is not None:
            await self._newest(token)
        block = opening(self.primary)
        try:
            tx = await block.__aenter__()
        except DatabaseUnavailable as error:
            if consistency.staleness is None:
                raise
            raise self._unknown(consistency, error) from error
        try:
            if token is not None:
                if asking:
                    await self._cover(token, tx.fetch_one)  # it sees what there is when its snapshot is taken
                token.leaning.pop(self.cluster, None)
            yield tx
        except BaseException as error:
            await block.__aexit__(type(error), error, error.__traceback__)
            raise
        finally:
            if token is not None and not one:
                token.doubt(self.cluster)  # what covered the session meanwhile did not cover the last answer
        await block.__aexit__(None, None, None)

    async def _newest(self, token: CausalityToken) -> None:
        """Return when the primary is on the timeline that the session has seen, or a later one.

        Another process may find a new primary first. What it let its client see, the old one never has.
        """
        need = token.positions.get(self.cluster)
        if need is None or not 0 < self._watch.epoch < need.epoch or not self._watch.watching:
            return
        context = current()
        left = context.remaining(self._clock.monotonic()) if context is not None else None
        limit = EPOCH_TIMEOUT if left is None else min(left, EPOCH_TIMEOUT)
        try:
            async with asyncio.timeout(limit):
                while self._watch.epoch < need.epoch:
                    self._watch.doubt()
                    await self._clock.sleep(self.settings.look_every / 2)
        except TimeoutError:
            raise DatabaseUnavailable(
                f"the session has seen a newer primary of {self.cluster} than can be found", retry_after=1.0
            ) from None

    def _unknown(self, consistency: Consistency, error: DatabaseUnavailable | None) -> StalenessUnknown:
        return StalenessUnknown(
            f"no replica of {self.cluster} is proven to be at most {consistency.staleness:g} s behind,"
            " and its primary does not answer",
            retry_after=1.0 if error is None else error.retry_after,
        )

    def _worth_asking(self, consistency: Consistency, token: CausalityToken) -> bool:
        """Whether a replica would answer this session's reads if what it has seen were bounded."""
        if consistency.level != "session" or self.cluster not in token.witnesses:
            return False
        need = token.positions.get(self.cluster)  # also of one that is pinned: asking covers that as well
        if need is not None and need.epoch < self._watch.epoch:
            need = None  # nobody reaches what was seen of a primary before this one: asking brings that up
        able, _ = _replicas.of_session(self._watch.readable, need, None)
        return bool(able)

    async def _cover(self, token: CausalityToken, fetch_one: Callable[[str], Awaitable[Any]]) -> None:
        """Ask the primary how far it is, after it has answered; leaves a doubt when that does not work."""
        sights = token.sights(self.cluster)
        try:
            row = await fetch_one(CAPTURE)
        except BaseException as error:
            token.doubt(self.cluster)
            if not isinstance(error, Exception):
                raise
            _log.debug("%s: no position after a read: %r", self.name, error)
            return
        token.cover(self.cluster, position_of(row), sights=sights)

    # -- writing ---------------------------------------------------------------------------------------

    async def capture(self, connection: Row) -> Position:
        """Where the primary's log stands: after COMMIT, on the same connection, outside of a transaction."""
        return position_of(await connection.fetchrow(CAPTURE))

    @asynccontextmanager
    async def transaction(self, **options: Any) -> AsyncIterator[Transaction]:
        """`Pool.transaction` on the primary, noted in the request's token: after COMMIT the position of the
        log, on the same connection; a doubt when that could not be learnt, or the block has not committed.

        Whether there are replicas is asked at the end: one may have come and have settled meanwhile.
        Raises DatabaseUnavailable, undone, when the primary does not confirm as durability asks.
        """
        context = current()
        if context is None:
            async with self.primary.transaction(**options) as tx:
                self._refuse_unconfirmed(options)
                yield tx
                self._refuse_unconfirmed(options)
            return
        token, covered = context.causality, False

        async def note(link: Link) -> None:
            nonlocal covered
            if not self.replicated:
                return
            statement = self.primary._statements.get(CAPTURE)
            sights = token.sights(self.cluster)
            async with asyncio.timeout(CAPTURE_TIMEOUT):
                row = await link.perform(asyncpg.Connection.fetchrow, CAPTURE, (), statement, limited=False)
            token.wrote(self.cluster, position_of(row), sights=sights)
            covered = True

        try:
            async with self.primary.transaction(**options) as tx:
                self._refuse_unconfirmed(options)
                tx.note(note)
                yield tx
                self._refuse_unconfirmed(options)
            token.written = token.written or self.replicated  # also when nobody knows where
        except CommitUnknown:
            token.written = token.written or self.replicated
            raise
        finally:
            if not covered and self.replicated:
                token.doubt(self.cluster)

    def _refuse_unconfirmed(self, options: Mapping[str, Any]) -> None:
        """Before its first statement, and before COMMIT: the primary may have become another one since."""
        node = self._watch.unconfirmed
        if node is not None and options.get("synchronous_commit") is None:
            raise DatabaseUnavailable(
                f'{node} of {self.cluster} waits for no standby at COMMIT, and durability is "quorum"',
                retry_after=1.0,
            )


class _OnReplica:
    """Single statements on a replica."""

    __slots__ = ("_pool",)

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        rows: list[Any] = await self._pool.read(asyncpg.Connection.fetch, sql, args)
        return rows

    async def fetch_one(self, sql: str, *args: Any) -> Any | None:
        return await self._pool.read(asyncpg.Connection.fetchrow, sql, args)

    async def fetch_value(self, sql: str, *args: Any) -> Any:
        return await self._pool.read(asyncpg.Connection.fetchval, sql, args)


class Routed:
    """Single statements of one consistency on one cluster, each on whoever is chosen for it.

    A statement whose text says that it does more than read is the primary's, and a write of its session.
    """

    __slots__ = ("_consistency", "_servers")

    def __init__(self, servers: Servers, consistency: Consistency) -> None:
        self._servers = servers
        self._consistency = consistency

    async def _run(self, sql: str, operation: Callable[[Reads], Awaitable[T]]) -> T:
        if self._servers.primary.reads(sql):
            return await self._servers.run(self._consistency, operation)
        return await self._servers._write("writes", operation)

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        return await self._run(sql, lambda server: server.fetch(sql, *args))

    async def fetch_one(self, sql: str, *args: Any) -> Any | None:
        return await self._run(sql, lambda server: server.fetch_one(sql, *args))

    async def fetch_value(self, sql: str, *args: Any) -> Any:
        return await self._run(sql, lambda server: server.fetch_value(sql, *args))
