"""One cluster as this process sees it: its primary, its replicas, and who of them answers a read.

`primary` serves whatever no replica may; while no replica is known, that is everything, and nothing here
costs a statement more than the pool itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from springtide.clock import Clock, SystemClock
from springtide.context import CausalityToken, Position
from springtide.db.causality import normalise, parse_lsn
from springtide.db.consistency import Consistency
from springtide.db.members import Member, Members
from springtide.db.pool import Pool
from springtide.lifecycle import StartStop
from springtide.signals import NullSink, Sink

__all__ = ["Choice", "ReplicaState", "RoutingSettings", "Servers"]

T = TypeVar("T")

CAPTURE = "SELECT pg_current_wal_insert_lsn()::text, pg_walfile_name(pg_current_wal_insert_lsn())"


class Row(Protocol):
    """What `capture` needs of a connection; asyncpg's has it."""

    async def fetchrow(self, sql: str, /) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSettings:
    """zone: where this process is; replicas of the same zone are asked first.
    settle: seconds from learning of a replica until everybody has learnt of it."""

    zone: str = "local"
    settle: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """What is known of one replica, for people."""

    node: str
    state: str
    position: Position | None
    lag_bytes: int | None
    lag_seconds: float | None
    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Who answers one read. `position` is what it was known to have; `witness` names its run, None: the
    primary. `why` says for the primary's reads what kept the replicas from them."""

    pool: Pool
    node: str
    why: str
    position: Position | None = None
    witness: str | None = None


class Servers:
    def __init__(
        self,
        cluster: str,
        primary: Pool,
        members: Members,
        *,
        replica_pool: Callable[[Member], Pool],
        clock: Clock | None = None,
        sink: Sink | None = None,
        settings: RoutingSettings | None = None,
    ) -> None:
        self.cluster = cluster
        self.name = f"servers of {cluster}"
        self.primary = primary
        self._members = members
        self._replica_pool = replica_pool
        self._clock = clock or SystemClock()
        self._sink = sink or NullSink()
        self._settings = settings or RoutingSettings()
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    @property
    def replicated(self) -> bool:
        """Whether a replica is known: then commits are followed by `capture`."""
        return False

    @property
    def replicas(self) -> Sequence[ReplicaState]:
        return ()

    def choose(self, consistency: Consistency, token: CausalityToken | None) -> Choice:
        """Who answers a read now. Never waits; raises StalenessUnknown when nobody can."""
        return Choice(pool=self.primary, node="primary", why="alone")

    async def run(self, consistency: Consistency, operation: Callable[[Pool], Awaitable[T]]) -> T:
        """`operation` on the pool of who was chosen, and again elsewhere when that one is lost meanwhile."""
        return await operation(self.choose(consistency, None).pool)

    async def capture(self, connection: Row) -> Position:
        """Where the log stands, after COMMIT on the same connection, outside of any transaction."""
        row = await connection.fetchrow(CAPTURE)
        return Position(int(row[1][:8], 16), normalise(parse_lsn(row[0])))

    async def _open(self) -> None:
        return None

    async def _close(self) -> None:
        return None
