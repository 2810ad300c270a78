"""Keep the servers of one cluster: a primary, its replicas, and a new primary when the old one is gone.

    primary ends -> kill what is left of it -> decide (failover.py)
        restart in place                                  the usual case: it comes back where it was
        promote R: write down (records.py) -> fence the old one -> promote R -> tell everybody ->
                   the other replicas follow R -> the old primary is rewound and follows R

Invariants: at most one server of the cluster may take writes. A decision is on the disk before anything is
done about it, and is carried out again, from its beginning, by a runner that finds it half done. A server
that was replaced can only be opened as a replica. Who has to confirm commits (`voters`) grows before, and
shrinks after, what PostgreSQL is told.

A primary that does not answer for `failover_after` is killed first, whatever holds it up: from then on it is
one that ended. While the runner is not there nothing of this happens; the servers themselves go on.
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
from springtide.ops.runner.failover import Case, Promote, Restart, Wait, decide
from springtide.ops.runner.making import to_its_end
from springtide.ops.runner.membership import Membership
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.records import Record, read_record, write_record
from springtide.ops.runner.standby import Upstream
from springtide.ops.runner.tending import Tending

__all__ = ["Keeper", "Member"]

_log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
LINKS_EVERY = 5
"""Looks between two questions about replication, which cost a process."""

PATIENCE = 10.0
"""Seconds that a decision waits for replicas which do not say how far their log goes."""

ASK_AGAIN = 0.1


@dataclass(slots=True)
class Member:
    """One server and what watches it. `unlinked` counts looks without streaming, `repairs` what was tried."""

    server: EmbeddedPostgres
    child: Child
    unlinked: int = 0
    repairs: int = 0


@dataclass(slots=True)
class _Wanted:
    node: str
    forced: bool
    answer: asyncio.Future[None]


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
        self.deciding = asyncio.Lock()
        self._wanted: _Wanted | None = None
        self._down: float | None = None
        self._answered = 0.0
        self._looks = 0
        self._watch = Periodic(f"watch cluster {name}", self._look, every=LOOK_EVERY)
        self._watching = False
        self._membership = Membership(self, clock=self._clock)
        self._tending = Tending(self)
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
        if self.record.promoting:
            await self._resume()
        else:
            await self.members[self.primary].child.start()
        await self._start_replicas()

    async def _resume(self) -> None:
        """Carry out a promotion that another runner had decided and did not finish."""
        _log.warning("finishing the promotion of %s in cluster %s", self.primary, self.name)
        for node in self.replicas:
            server = self.server(node)
            await server.locate()
            if not await server.is_standby():
                await server.fence()
        chosen = self.members[self.primary]
        await chosen.server.locate()
        if await chosen.server.is_standby():
            chosen.server.follows = Upstream(self.replicas[0], 1)  # nobody: it only has to be promoted
        await chosen.child.start()
        await self._finish()

    async def _start_replicas(self) -> None:
        if not self.replicas:
            return
        self._follow()
        await asyncio.gather(*(self.start_replica(node) for node in self.replicas))
        await self._tending.tidy(self.primary)
        await self.note(voters=self.voters_with(self.replicas))
        await self.confirm()
        await self.start_watch()

    async def start_watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._answered = self._clock.monotonic()
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
            ended=lambda: self._replace(node),
            before=lambda: self._before(node),
        )
        server.replicated = len(self._names) > 1 or self.noted
        if self.noted and self.quorum:
            server.confirming = tuple(name for name in self._names if name != node)
        self.members[node] = Member(server, child)
        return self.members[node]

    # -- restarts and failover -------------------------------------------------------------------------

    async def _replace(self, node: str) -> None:
        """When the primary has ended, at once: pauses are for restarts, not for a failover."""
        if node == self.primary:
            async with self.deciding:
                if node == self.primary and not self.record.promoting:
                    await self._decide()

    async def _before(self, node: str) -> None:
        """Before a server is started again. Replicas must not wait here: a decision needs to hear them."""
        await self._replace(node)
        member = self.members[node]
        if self.record.promoting and node == self.primary:
            if await member.server.is_standby():
                member.server.follows = Upstream(self.replicas[0], 1)
        else:
            member.server.follows = None if node == self.primary else self.upstream()

    async def _decide(self) -> None:
        """The primary has ended: promote another one, or return, which starts it again."""
        if not self.replicas:
            return
        await self.server().kill()  # what outlived the postmaster could still acknowledge a commit
        now = self._clock.monotonic
        self._down = self._down or now()
        begun = now()
        while True:
            case = Case(
                held={},
                quorum=self.quorum,
                voters=self.record.voters,
                auto=self._auto,
                failover_after=self._failover_after,
                down_for=now() - self._down,
                waited_for=now() - begun,
                patience=PATIENCE,
                wanted=self._wanted.node if self._wanted else None,
                forced=self._wanted.forced if self._wanted else False,
            )
            nodes = self.replicas
            if nodes and (self.quorum or self._wanted or case.down_for >= self._failover_after):
                answers = await asyncio.gather(*(replication.held(self.server(node)) for node in nodes))
                case = replace(case, held=dict(zip(nodes, answers, strict=True)))
            else:
                case = replace(case, held=dict.fromkeys(nodes))
                case = replace(case, waited_for=PATIENCE)
            decision = decide(case)
            if not isinstance(decision, Wait):
                break
            await self._clock.sleep(ASK_AGAIN)
        wanted = self._wanted
        if isinstance(decision, Restart):
            self.say(f"primary {self.primary} is started again: {decision.why}")
            _answer(
                wanted, RunnerError(f"{wanted.node} was not promoted: {decision.why}") if wanted else None
            )
            return
        try:
            await self._promote(decision)
        except BaseException:
            _answer(
                wanted, RunnerError("the promotion was decided and did not come to its end yet: see status")
            )
            raise
        _answer(wanted, None)

    async def _promote(self, decision: Promote) -> None:
        old, node = self.primary, decision.node
        _log.warning(
            "cluster %s: %s becomes primary instead of %s, with its log at %s: %s",
            *(self.name, node, old, decision.at, decision.why),
        )
        for other in decision.behind:
            await self.server(other).repair("rewind")
        others = tuple(name for name in self.members if name != node)
        await self.note(
            primary=node,
            epoch=self.epoch + 1,
            promoting=True,
            voters=others if self.quorum else (),
        )
        await self.server(old).fence()
        await self._finish()
        for other in decision.behind:
            await self.server(other).kill()  # its child starts it again, repaired

    async def _finish(self) -> None:
        """The part of a promotion after the old primary is fenced; may be repeated."""
        server = self.server()
        if self.quorum:
            server.confirming = self.replicas
        await server.promote()
        await replication.ensure_slots(server, list(self.replicas))
        await self.note(promoting=False)
        self._down = None
        self._answered = self._clock.monotonic()
        self.say(None)
        self._follow()
        await asyncio.gather(*(self._repoint(node) for node in self.replicas))

    async def _complete(self) -> None:
        """Once more, a promotion that was decided and met an error on its way."""
        async with self.deciding:
            if self.record.promoting:
                for node in self.replicas:
                    if not await self.server(node).is_standby():
                        await self.server(node).fence()
                await self._finish()

    def upstream(self) -> Upstream:
        return Upstream(self.primary, self.server().port)

    def _follow(self) -> None:
        for node in self.replicas:
            self.server(node).follows = self.upstream()

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
                return
            if self.record.promoting:
                await self._complete()
            self._down = None
            self._answered = self._clock.monotonic()
            self.say(None)
            self._follow()
            await asyncio.gather(*(self._repoint(replica) for replica in self.replicas))
        except (RunnerError, OSError) as error:
            _log.warning("after the restart of %s: %s", node, error)
        self.changed()

    def spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def promote(self, node: str, *, forced: bool = False) -> None:
        """Make `node` the primary, by a clean shutdown of the present one if it runs.

        Raises RunnerError when it is not done; the old primary goes on then.
        """
        if node == self.primary:
            raise RunnerError(f"{node} is the primary of cluster {self.name} already")
        if node not in self.members or not self.members[node].child.running:
            raise RunnerError(f"{node} is not a running replica of cluster {self.name}")
        if self._wanted is not None:
            raise RunnerError(f"{self._wanted.node} is being promoted already")
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted = _Wanted(node, forced, answer)
        try:
            if self.members[self.primary].child.running:
                await self.server().shut_down()
            await asyncio.wait_for(answer, 120.0)
        except TimeoutError:
            raise RunnerError(f"{node} was not promoted within 120 s: see `springtide status`") from None
        finally:
            self._wanted = None

    # -- looking after them ----------------------------------------------------------------------------

    async def add(self, node: str) -> None:
        """Copy the primary to a new replica and start it. What was begun is undone when this raises."""
        await self._membership.add(node)

    async def remove(self, node: str) -> None:
        """End a replica, its slot and its data. Raises RunnerError, all being as it was, if it may not go."""
        await self._membership.remove(node)

    async def _look(self) -> None:
        self._looks += 1
        child = self.members[self.primary].child
        if self.record.promoting:
            if child.running and not self.deciding.locked():
                await self._complete()
        elif child.running:
            await self._look_at_primary()
        elif self._down is not None and self._starting_too_long():
            _log.error("primary %s does not come back within %g s", self.primary, self._failover_after)
            await self.server().kill()
        if self._looks % LINKS_EVERY == 0:
            await self._tending.look()

    def _starting_too_long(self) -> bool:
        """Without quorum a primary is replaced although it still recovers; with it, only it may have all."""
        waited = self._clock.monotonic() - (self._down or 0.0)
        able = any(self.members[node].child.running for node in self.replicas)
        return able and self._auto and not self.quorum and waited > self._failover_after

    async def _look_at_primary(self) -> None:
        now = self._clock.monotonic
        if await replication.answers(self.server().port, timeout=max(self._failover_after / 2, 0.5)):
            self._answered = now()
            return
        silent = now() - self._answered
        if self._auto and silent > self._failover_after and self.replicas and self._wanted is None:
            _log.error("primary %s did not answer for %.1f s: it is killed", self.primary, silent)
            await self.server().kill()
            self._answered = now()

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


def _answer(wanted: _Wanted | None, error: Exception | None) -> None:
    if wanted is None or wanted.answer.done():
        return
    if error is None:
        wanted.answer.set_result(None)
    else:
        wanted.answer.set_exception(error)
