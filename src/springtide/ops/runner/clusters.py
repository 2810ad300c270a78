"""Keep the servers of one cluster: a primary, its replicas, and a new primary when the old one is gone.

The keeper starts and stops them, looks every second whether the primary answers, and leaves the rest to
promoting.py (who is primary), membership.py (who belongs to the cluster), tending.py (replicas that follow).

Invariants: at most one server of the cluster may take writes. A decision is on the disk before anything is
done about it, and is carried out again, from its beginning, by a runner that finds it half done. A server
that was replaced can only be opened as a replica. Who has to confirm commits (`voters`) grows before, and
shrinks after, what PostgreSQL is told.

A primary that does not answer for `failover_after` is killed first, whatever holds it up: from then on it is
one that ended. One that still recovers is left alone until a replica is there to be promoted. While the
runner is not there nothing of this happens; the servers themselves go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from springtide.clock import Clock, SystemClock
from springtide.errors import RunnerError
from springtide.lifecycle import Periodic
from springtide.ops.runner import replication
from springtide.ops.runner.children import Child
from springtide.ops.runner.making import to_its_end
from springtide.ops.runner.membership import Membership
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.promoting import Promoting
from springtide.ops.runner.records import Record, read_record, write_record
from springtide.ops.runner.standby import Upstream
from springtide.ops.runner.tending import Tending

__all__ = ["Keeper", "Member"]

_log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
LINKS_EVERY = 5
"""Looks between two questions about replication, which cost a process."""


@dataclass(slots=True)
class Member:
    """One server and what watches it. `unlinked` counts looks without streaming, `repairs` what was tried."""

    server: EmbeddedPostgres
    child: Child
    unlinked: int = 0
    repairs: int = 0


class Keeper:
    """`name` is the cluster's; `primary` and `replicas` are nodes, as the topology has them.

    make:    makes the server of a node (not started).
    changed: called after each change of state, role or address.
    Started once, by `start`; `stop` ends every server, replicas first.
    """

    def __init__(
        self,
        name: str,
        *,
        primary: str,
        replicas: tuple[str, ...] = (),
        folder: Path,
        make: Callable[[str], Awaitable[EmbeddedPostgres]],
        changed: Callable[[], None],
        quorum: bool = False,
        auto: bool = True,
        failover_after: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self.members: dict[str, Member] = {}
        self.notice: str | None = None
        self._names = (primary, *replicas)
        self._folder = folder
        self._make = make
        self.changed = changed
        self.quorum = quorum
        self._auto = auto
        self._failover_after = failover_after
        self._clock = clock or SystemClock()
        self.record = Record(primary=primary)
        self.noted = False  # whether the record is on the disk: it is when there was ever a replica
        self._answered = 0.0
        self._looks = 0
        self._watch = Periodic(f"watch cluster {name}", self._look, every=LOOK_EVERY)
        self._watching = False
        self._membership = Membership(self, folder=folder, clock=self._clock)
        self._tending = Tending(self, clock=self._clock)
        self._promoting = Promoting(self, auto=auto, failover_after=failover_after, clock=self._clock)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- what others see -------------------------------------------------------------------------------

    @property
    def primary(self) -> str:
        return self.record.primary

    @property
    def epoch(self) -> int:
        return self.record.epoch

    @property
    def settled(self) -> bool:
        """False while a promotion is under way: nobody should be told of it yet."""
        return not self.record.promoting

    @property
    def deciding(self) -> asyncio.Lock:
        """Held by whoever changes who is primary, or who may become it."""
        return self._promoting.deciding

    @property
    def changing(self) -> asyncio.Lock:
        """Held while a replica is added or removed."""
        return self._membership.changing

    @property
    def replicas(self) -> tuple[str, ...]:
        return tuple(node for node in self.members if node != self.primary)

    @property
    def children(self) -> list[Child]:
        return [member.child for member in self.members.values()]

    def role(self, node: str) -> str | None:
        """None in a cluster of one server, where there is nothing to tell apart."""
        if len(self.members) < 2 or node not in self.members:
            return None
        return "primary" if node == self.primary else "replica"

    def server(self, node: str | None = None) -> EmbeddedPostgres:
        return self.members[node or self.primary].server

    # -- start and stop --------------------------------------------------------------------------------

    async def start(self) -> None:
        """The primary first, then its replicas; one of these that cannot be started stops nobody."""
        found = await asyncio.to_thread(read_record, self._folder, self.name)
        if found is not None:
            if found.primary not in self._names:
                raise RunnerError(
                    f"node {found.primary} is the primary of cluster {self.name}, and the topology does not "
                    f"list it any more: add it to clusters.{self.name}, or restore {self._folder}"
                )
            if found.primary != self._names[0]:
                _log.info("%s is primary of cluster %s since a failover", found.primary, self.name)
            self.record, self.noted = found, True
        for node in self._names:
            await self.add_member(node)
        voters = self.voters_with(self.replicas)
        if self.record.voters not in ((), voters):  # before PostgreSQL is told whom it may ask
            await self.note(voters=voters)
        if self.record.promoting:
            await self._promoting.resume()
        else:
            await self._start_primary()
        await self._membership.clear()
        await self._start_replicas()

    async def _start_primary(self) -> None:
        """One that cannot be started, or whose data are gone, is replaced where that loses nothing."""
        gone = bool(self.replicas) and await self._gone()
        try:
            if gone:
                raise RunnerError(f"the data of node {self.primary} in {self.server().data} are gone")
            await self.members[self.primary].child.start()
        except (RunnerError, OSError) as error:
            if not self.replicas:
                raise
            _log.error("primary %s cannot be started: %s", self.primary, error)
            await asyncio.gather(*(self._start_copy(node) for node in self.replicas))
            await self._promoting.instead(error)

    async def _gone(self) -> bool:
        """A new, empty database in place of one that has replicas would have them copied from it."""
        if await self.server().locate():
            return False
        for node in self.replicas:
            await self.server(node).locate()
        return any([await self.server(node).is_standby() for node in self.replicas])

    async def _start_copy(self, node: str) -> None:
        """Start a replica that needs nothing of its primary for it."""
        server = self.server(node)
        await server.locate()
        if await server.is_standby() and await server.repair_wanted() is None:
            server.follows = self.upstream()
            await self.start_replica(node)

    async def _start_replicas(self) -> None:
        if not self.replicas:
            if self.noted:  # it had some
                await self._tending.tidy(self.primary)
            return
        for node in self.replicas:
            self.server(node).follows = self.upstream()
        await asyncio.gather(*(self.start_replica(node) for node in self.replicas))
        await self._tending.tidy(self.primary)
        await self.note(voters=self.voters_with(self.replicas) if self.record.voters else ())
        await self.confirm()
        if self.quorum and not self.record.voters:
            await self._tending.begin()
        await self.start_watch()

    async def start_watch(self) -> None:
        if not self._watching:
            self._watching = True
            self.heard()
            await self._watch.start()

    async def start_replica(self, node: str) -> None:
        try:
            await self.members[node].child.start()
            await self._tending.tidy(node)
        except (RunnerError, OSError) as error:
            _log.error("replica %s could not be started, and will be tried again: %s", node, error)

    async def stop(self) -> None:
        await self._watch.stop()
        for task in tuple(self._tasks):
            task.cancel()
        replicas = [self.members[node].child.stop() for node in self.replicas]
        results = await asyncio.gather(*replicas, return_exceptions=True)
        if self.primary in self.members:
            await self.members[self.primary].child.stop()
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def add_member(self, node: str) -> Member:
        server = await self._make(node)
        child = Child(
            server,
            "postgres",
            changed=self.changed,
            restarted=lambda: self._restarted(node),
            ended=lambda: self._promoting.ended(node),
            before=lambda: self._promoting.before(node),
        )
        server.replicated = len(self._names) > 1 or self.noted
        if self.noted and self.quorum:
            server.confirming = tuple(name for name in self._names if name != node)
        self.members[node] = Member(server, child)
        return self.members[node]

    # -- what the parts share and do ------------------------------------------------------------------

    def upstream(self) -> Upstream:
        server = self.server()
        return Upstream(self.primary, server.port if server.known else 1)

    async def follow(self) -> None:
        """Every replica follows who is primary now, at once or when it starts again."""
        for node in self.replicas:
            self.server(node).follows = self.upstream()
        await asyncio.gather(*(self._repoint(node) for node in self.replicas))

    async def _repoint(self, node: str) -> None:
        member = self.members[node]
        if member.child.running:
            try:
                await member.server.reload()
            except (RunnerError, OSError) as error:
                _log.warning("replica %s hears of its new primary when it starts again: %s", node, error)

    def _restarted(self, node: str) -> None:
        self.spawn(self._after_restart(node))

    async def _after_restart(self, node: str) -> None:
        try:
            if node != self.primary:
                await self._repoint(node)
                await self._tending.tidy(node)
            elif self.settled:
                await self._promoting.there()
            else:
                await self._promoting.complete()
        except (RunnerError, OSError) as error:
            _log.warning("after the restart of %s: %s", node, error)
        self.changed()

    def spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self, node: str) -> None:
        """Let a server end, in order if it can; its child starts it again, repaired if that is noted."""
        try:
            if node in self.members:
                await self.server(node).shut_down()
        except RunnerError as error:
            _log.error("%s has to end, and goes on: %s", node, error)

    async def promote(self, node: str, *, forced: bool = False) -> None:
        """Make `node` the primary. Raises RunnerError when it is not done; the old primary goes on then."""
        await self._promoting.ask(node, forced=forced)

    # -- looking after them ----------------------------------------------------------------------------

    async def add(self, node: str) -> None:
        """Copy the primary to a new replica and start it. What was begun is undone when this raises."""
        await self._membership.add(node)

    async def joined(self) -> None:
        """The topology lists the replica that was added: from now on it is kept."""
        await self._membership.joined()

    async def remove(self, node: str) -> None:
        """End a replica, its slot and its data. Raises RunnerError, all being as it was, if it may not go."""
        await self._membership.remove(node)

    async def _look(self) -> None:
        self._looks += 1
        child = self.members[self.primary].child
        if self.record.promoting:
            if child.running and not self.deciding.locked():
                await self._promoting.complete()
        elif child.running:
            await self._look_at_primary()
        elif await self._starting_too_long():
            _log.error("primary %s does not come back within %g s", self.primary, self._failover_after)
            await self.server().kill()
        if self._looks % LINKS_EVERY == 0:
            await self._tending.look()

    async def _starting_too_long(self) -> bool:
        """Without quorum a primary is replaced although it still recovers; with it, only it may have all. Not
        before another can be promoted: killed for nothing, it would have to begin its recovery again."""
        waited, server = self._promoting.down_for, self.server()
        if self.quorum or waited is None or waited <= self._failover_after or self.deciding.locked():
            return False
        return (
            server.state == "starting"
            and await self._promoting.replaceable()
            and server.state == "starting"  # still
        )

    async def _look_at_primary(self) -> None:
        now = self._clock.monotonic
        if await replication.answers(self.server().port, timeout=max(self._failover_after / 2, 0.5)):
            self.heard()
            return
        silent = now() - self._answered
        if self._auto and silent > self._failover_after and self.replicas and not self._promoting.asked:
            _log.error("primary %s did not answer for %.1f s: it is killed", self.primary, silent)
            await self.server().kill()
            self.heard()

    def heard(self) -> None:
        """The primary has answered just now."""
        self._answered = self._clock.monotonic()

    async def confirm(self) -> None:
        """Tell every server who has to confirm commits, now or when it becomes primary."""
        for node, member in self.members.items():
            others = tuple(name for name in self.members if name != node)
            member.server.confirming = others if self.quorum else ()
            member.server.replicated = True
            if member.child.running:
                await member.server.reload()

    def voters_with(self, more: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.record.voters, *more))) if self.quorum else ()

    async def note(self, **changes: object) -> None:
        """Change the record; on the disk when this returns."""
        record = replace(self.record, **changes)  # type: ignore[arg-type]  # the callers' names are its own
        await to_its_end(asyncio.to_thread(write_record, self._folder, self.name, record))
        self.record, self.noted = record, True
        self.changed()

    def say(self, notice: str | None) -> None:
        if notice != self.notice:
            self.notice = notice
            if notice is not None:
                _log.warning("%s", notice)
            self.changed()
