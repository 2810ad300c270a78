"""Watch the servers of one cluster: who is there, who is the primary, how is each replica.

Everybody who may belong to the cluster is looked at about ten times a second, over a connection of its own,
and at once when something was lost. What is concluded stands in `readable`, `listening` and `pools`, always
whole: between two awaits of a reader nothing in it is half changed.

A replica has a pool as long as it answers, made for one run of the server: it refuses connections to another.
A replica that does not answer is given up with its connections, so whoever waits on it is answered elsewhere.
While one server is known alone, nobody is looked at, unless its writes ask for quorum.

Processes learn at different times that the last replica is gone, and until then they go on reading from it.
So commits are captured, and reads noted, for `settle` longer; and while it is not known who there is at all.

A server that is barred (a rival, an old primary that came back, one of another system: see `_roles`) has no
pool. While there is a rival no replica is read from by its position: both primaries write the same timeline,
so a position may be one of either. `eventual`, which asks for none, goes on.

On a cluster with a quorum database each look at the primary also says whether it waits for a standby; most
of all when it is alone, because the others are gone.

Decisions are `_roles` (the primary) and `_replicas` (the rest); this file is their hands and eyes.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Callable
from typing import NamedTuple

from springtide.clock import Clock
from springtide.context import Position
from springtide.db import _replicas
from springtide.db._link import RawConnection
from springtide.db._looking import BLIND, Eye, Look, run_of
from springtide.db._replicas import Health, PrimaryLog, RoutingSettings
from springtide.db._roles import Seen, Standing, Verdict, judge
from springtide.db.members import Fixed, Member, Members
from springtide.db.pool import Pool
from springtide.db.seeing import history
from springtide.errors import DatabaseUnavailable, MembersUnknown, PoolTimeout
from springtide.lifecycle import Periodic, Supervised
from springtide.signals import PrimaryChanged, QuorumChanged, ReplicaChanged, ServerBarred, Sink

__all__ = ["Choice", "Watch"]

_log = logging.getLogger(__name__)

MEMBERS_EVERY = 1.0
"""Seconds between two looks at who belongs to the cluster."""

WHY = {
    "rival": "it is a second primary on the timeline of the one in use",
    "superseded": "it calls itself primary on a timeline that is over",
    "stranger": "it belongs to another system",
}

LEAST_PAUSE = 0.1
"""Part of the pause between two looks that is kept whatever happens."""


class Choice(NamedTuple):
    """Who answers one read.

    `position` is what it was known to have and `witness` names its run; both are None for the primary.
    `why` says what kept the replicas from a read that the primary gets: strong, alone, "no session", "none
    serves", behind, unsure (what the session has seen is not bounded), unproven, writes, refused.
    """

    pool: Pool
    node: str
    why: str
    position: Position | None
    witness: str | None
    health: Health | None


class _Server:
    """One member: how it is looked at, and what came of it."""

    __slots__ = ("asked", "doubted", "eye", "health", "look", "member", "pool", "watching")

    def __init__(self, member: Member, eye: Eye, health: Health) -> None:
        self.member = member
        self.eye = eye
        self.health = health
        self.asked = False  # whether a look has come to its end, answered or not
        self.look: Look | None = None
        self.pool: Pool | None = None
        self.doubted = asyncio.Event()
        self.watching: Supervised | None = None


class Watch:
    """`open` and `close` are the ends of its owner's life; `primary` is moved to whoever is the primary."""

    def __init__(
        self,
        cluster: str,
        primary: Pool,
        members: Members,
        *,
        replica_pool: Callable[[Member], Pool],
        primary_url: Callable[[Member], str],
        quorum: bool,
        settings: RoutingSettings,
        clock: Clock,
        sink: Sink,
    ) -> None:
        self._cluster = cluster
        self._name = f"servers of {cluster}"
        self._primary = primary
        self._members = members
        self._replica_pool = replica_pool
        self._url = primary_url
        self._quorum = quorum
        self._settings = settings
        self._clock = clock
        self._monotonic = clock.monotonic
        self._sink = sink
        self._draw = random.Random()  # noqa: S311 - spreads load
        self._servers: dict[str, _Server] = {}
        self._standing = Standing()
        self._log = PrimaryLog()
        self._leaving: set[asyncio.Task[None]] = set()
        self._membership: Periodic | None = None
        self._alone_since: float | None = None
        self._database: int | None = None
        self.replicated = False
        """Whether some process of the platform may read from a replica."""
        self.readable: tuple[Health, ...] = ()
        """Replicas that are read from."""
        self.listening: tuple[Health, ...] = ()
        """Replicas that answer, whatever they have."""
        self.pools: dict[str, Pool] = {}
        self.runs: dict[str, Choice] = {}
        """Whom a session may go on reading from, by witness: `readable`."""
        self.near: tuple[Choice, ...] = ()
        """Those of `readable` to draw from when nothing else decides; empty while their shares differ."""
        self.headless = asyncio.Event()
        """Set while there is no primary, or it does not answer."""
        self.barred: dict[str, str] = {}
        """node -> why it is used for nothing: rival, superseded or stranger."""
        self.unconfirmed: str | None = None
        """The primary, while quorum is asked for and it was seen not to wait for a standby at COMMIT."""

    @property
    def watching(self) -> bool:
        """Whether there is more than one server, or one that has to wait for another: then they are looked
        at."""
        return len(self._servers) > (0 if self._quorum else 1)

    @property
    def replicas(self) -> list[Health]:
        """Every known server but the primary, in the order of their names."""
        if not self.watching:
            return []
        known = sorted(self._servers.items())
        return [server.health for name, server in known if name != self._standing.primary]

    @property
    def address(self) -> str | None:
        """Where the primary itself answers; None while none is known. May be asked from another thread."""
        name = self._standing.primary if self.watching else next(iter(tuple(self._servers)), None)
        server = self._servers.get(name) if name is not None else None
        return server.member.url if server is not None else None

    @property
    def primary_node(self) -> str | None:
        return self._standing.primary

    @property
    def epoch(self) -> int:
        """The timeline on which the primary was seen; 0 before it was."""
        return self._log.epoch

    @property
    def history(self) -> int | None:
        """The primary's (`seeing.history`), as it was last seen; None before that, or while it is alone."""
        system, timeline, database = self._standing.system, self._log.epoch, self._database
        if not self.watching or system is None or not timeline or database is None:
            return None
        return history(system, timeline, database)

    async def open(self) -> None:
        try:
            await self._regroup()
            if not isinstance(self._members, Fixed):
                self._membership = Periodic(
                    f"{self._name}:members",
                    self._regroup,
                    every=MEMBERS_EVERY,
                    clock=self._clock,
                    sink=self._sink,
                )
                await self._membership.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._membership is not None:
            await self._membership.stop()
            self._membership = None
        self._primary.watched(None)
        for server in self._servers.values():
            await self._rest(server)
        self._servers.clear()
        self._settle_view()
        if self._leaving:
            await asyncio.wait(list(self._leaving))
        self._standing, self._log = Standing(), PrimaryLog()
        self.replicated, self._alone_since = False, None
        self.barred, self.unconfirmed = {}, None

    async def _regroup(self) -> None:
        """Bring the servers in line with who belongs to the cluster now."""
        try:
            members = await self._members.members()
        except MembersUnknown as error:
            _log.warning("%s: %s", self._name, error)
            self.replicated = self.replicated or not self._servers
            return
        wanted = {member.node: member for member in members}
        for name, server in list(self._servers.items()):
            if wanted.get(name) != server.member:
                await self._rest(server)
                del self._servers[name]
        for name, member in wanted.items():
            if name not in self._servers:
                eye = Eye(member.url, timeout=self._settings.look_timeout)
                health = Health(
                    name,
                    now=self._monotonic(),
                    zone=member.zone,
                    weight=member.weight,
                    settings=self._settings,
                )
                self._servers[name] = _Server(member, eye, health)
        if not self.watching:
            await self._alone(members[0])
            return
        self.replicated, self._alone_since = True, None
        self._conclude(None, 0.0)
        self._primary.watched(self.doubt)
        for server in self._servers.values():
            if server.watching is None:
                server.watching = Supervised(
                    f"{self._name}:{server.member.node}",
                    functools.partial(self._watch, server),
                    clock=self._clock,
                    sink=self._sink,
                )
                await server.watching.start()

    async def _alone(self, member: Member) -> None:
        """One server is known: it is the primary, and nobody needs to look at it."""
        (server,) = self._servers.values()
        await self._rest(server)
        now = self._monotonic()
        if self._alone_since is None:
            self._alone_since = now
        if now - self._alone_since >= self._settings.settle:
            self.replicated = False
        self._primary.watched(None)
        self._primary.move(self._url(member))
        self._conclude(None, 0.0)

    async def _rest(self, server: _Server) -> None:
        watching, server.watching = server.watching, None
        if watching is not None:
            await watching.stop()
        server.eye.close()
        server.look = None
        self._give_up(server)

    async def _watch(self, server: _Server) -> None:
        """Look, again and again; at once when the primary's pool doubts its server or a read was lost."""
        while True:
            await self._look(server)
            pause = self._settings.look_every * self._draw.uniform(0.8, 1.2)
            await self._clock.sleep(pause * LEAST_PAUSE)
            if not server.doubted.is_set():
                sleeping = asyncio.ensure_future(self._clock.sleep(pause * (1 - LEAST_PAUSE)))
                doubting = asyncio.ensure_future(server.doubted.wait())
                try:
                    await asyncio.wait((sleeping, doubting), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    sleeping.cancel()
                    doubting.cancel()
            server.doubted.clear()

    def doubt(self) -> None:
        """Something was lost: look at all servers at once."""
        for server in self._servers.values():
            server.doubted.set()

    async def _look(self, server: _Server) -> None:
        sent = self._monotonic()
        try:
            look = await server.eye.look()
        except BLIND as error:
            if server.health.missing_since is None:
                _log.debug("%s: %s cannot be seen: %r", self._name, server.member.node, error)
            server.asked, server.look = True, None
            server.health.missed(self._monotonic())
            self._conclude(None, sent)
            return
        if server.look is not None and server.look.run != look.run:
            self._give_up(server)
        server.asked, server.look = True, look
        server.health.heard(look, self._monotonic())
        self._conclude(server, sent)
        usable = look.recovering and server.member.node not in self.barred
        if usable and server.pool is None and server.member.weight > 0:
            await self._open_pool(server, look)

    def _conclude(self, looked: _Server | None, sent: float) -> None:
        """Who is the primary, how is each replica, who is read from: after whatever has changed."""
        now = self._monotonic()
        if self.watching:
            self._find_primary()
        if looked is not None and looked.member.node == self._standing.primary:
            assert looked.look is not None
            if looked.look.position is not None and not looked.look.recovering:
                self._log.add(sent, looked.look.position, looked.look.run)
        for server in self._servers.values():
            health = server.health
            changed = health.judge(now, self._log, self._standing.system)
            if changed and health.node != self._standing.primary:
                _log.info("%s: %s is %s: %s", self._name, health.node, health.state, health.reason)
                self._sink.emit(ReplicaChanged(self._cluster, health.node, health.state, health.reason))
            if health.missing_since is not None or not health.standby or health.node in self.barred:
                self._give_up(server)
        leader = self._servers.get(self._standing.primary or "")
        if self.watching and (leader is None or leader.look is None or self._primary.dsn is None):
            self.headless.set()
        else:
            self.headless.clear()
        self._see_whether_it_waits(leader)
        self._settle_view()

    def _settle_view(self) -> None:
        self.pools = {name: server.pool for name, server in self._servers.items() if server.pool is not None}
        self.listening = tuple(server.health for server in self._servers.values() if server.pool is not None)
        recent = self._monotonic() - self._log.seen
        ambiguous = "rival" in self.barred.values()
        self.readable = () if ambiguous else _replicas.readable(self.listening, recent, self._settings)
        choices = [
            Choice(self.pools[one.node], one.node, "", one.position, one.witness, one)
            for one in self.readable
        ]
        self.runs = {one.witness: one for one in choices if one.witness is not None}
        near = _replicas.near(self.readable, self._settings.zone)
        equal = len({one.share for one in near}) == 1
        self.near = tuple(one for one in choices if one.health in near) if equal else ()

    def _find_primary(self) -> None:
        seen = [
            Seen(
                node=name,
                system=look.system,
                started=look.run,
                recovering=look.recovering,
                timeline=look.timeline,
            )
            for name, server in self._servers.items()
            if (look := server.look) is not None
        ]
        before = self._standing
        if before.primary is None and not all(server.asked for server in self._servers.values()):
            return  # the first to answer may be one of two rivals, or a stranger
        verdict = judge(before, seen, members=self._servers)
        self._standing = verdict.standing
        self._bar(verdict)
        if verdict.primary is not None:
            server = self._servers[verdict.primary]
            self._primary.move(self._url(server.member))
            self._database = server.look.database if server.look is not None else self._database
            if verdict.primary != before.primary or verdict.standing.epoch != before.epoch:
                self._sink.emit(PrimaryChanged(self._cluster, verdict.primary, verdict.standing.epoch))
        elif before.primary is not None or any(
            self._url(server.member) == self._primary.dsn and self._is_no_primary(server, verdict)
            for server in self._servers.values()
        ):
            self._primary.move(None)

    def _is_no_primary(self, server: _Server, verdict: Verdict) -> bool:
        return server.member.node in verdict.barred or (server.look is not None and server.look.recovering)

    def _bar(self, verdict: Verdict) -> None:
        """One that does not answer is still what it was."""
        silent = {node for node in self.barred if node in self._servers and self._servers[node].look is None}
        barred = {node: why for node, why in self.barred.items() if node in silent} | verdict.barred
        before, self.barred = self.barred, barred
        for node in sorted(before.keys() | barred.keys()):
            why = barred.get(node)
            if why == before.get(node):
                continue
            if why is not None:
                _log.error("%s: %s is used for nothing: %s", self._name, node, WHY[why])
            else:
                _log.info("%s: %s is no %s any more", self._name, node, before[node])
            self._sink.emit(ServerBarred(self._cluster, node, why))

    def _see_whether_it_waits(self, leader: _Server | None) -> None:
        """What was seen last holds while the primary does not answer."""
        if not self._quorum or leader is None or leader.look is None or leader.look.recovering:
            return
        node, waits = leader.member.node, leader.look.waits
        before, self.unconfirmed = self.unconfirmed, None if waits else node
        if self.unconfirmed == before:
            return
        if waits:
            _log.info("%s: %s waits for a standby: quorum writes go on", self._name, node)
        else:
            _log.error("%s: %s waits for no standby: quorum writes are refused", self._name, node)
        self._sink.emit(QuorumChanged(self._cluster, node, waits))

    async def _open_pool(self, server: _Server, look: Look) -> None:
        """A pool for this run of the server alone."""

        async def admit(raw: RawConnection) -> None:
            if await run_of(raw) != look.run:
                server.doubted.set()
                raise ConnectionRefusedError(f"{server.member.node} was restarted")

        pool = self._replica_pool(server.member)
        pool.admit(admit)
        pool.watched(server.doubted.set)
        try:
            await pool.start()
        except (DatabaseUnavailable, PoolTimeout) as error:
            _log.warning("%s: no connection to %s: %s", self._name, server.member.node, error)
            return
        except BaseException:
            self._leave(pool)  # a start goes on when its caller is cancelled
            raise
        server.pool = pool
        self._settle_view()

    def _give_up(self, server: _Server) -> None:
        """Break off every connection to the replica; whoever waits for an answer asks somebody else."""
        pool, server.pool = server.pool, None
        if pool is None:
            return
        self._settle_view()
        self._leave(pool)

    def _leave(self, pool: Pool) -> None:
        pool.watched(None)
        pool.sever()
        leaving = asyncio.get_running_loop().create_task(pool.stop(), name=f"{pool.name}:give up")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
