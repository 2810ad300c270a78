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
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from springtide.clock import Clock, SystemClock
from springtide.errors import RunnerError
from springtide.lifecycle import Periodic
from springtide.ops.runner import replication
from springtide.ops.runner.children import Child
from springtide.ops.runner.failover import Case, Promote, Restart, Wait, decide
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.records import Record, read_record, write_record
from springtide.ops.runner.replication import Link
from springtide.ops.runner.standby import Upstream, slot_name

__all__ = ["Keeper", "Member"]

_log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
LINKS_EVERY = 5
"""Looks between two questions about replication, which cost a process."""

PATIENCE = 10.0
"""Seconds that a decision waits for replicas which do not say how far their log goes."""

ASK_AGAIN = 0.1
JOIN = 60.0
"""Seconds in which a replica that was copied must stream, and others must confirm what a leaver did."""

UNLINKED = 12
"""Questions about replication, a minute of them, after which a replica that does not stream is repaired."""


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
        self.links: Mapping[str, Link] = {}
        self.notice: str | None = None
        self._names = (primary, *replicas)
        self._folder = folder
        self._make = make
        self._changed = changed
        self._quorum = quorum
        self._auto = auto
        self._failover_after = failover_after
        self._clock = clock or SystemClock()
        self._record = Record(primary=primary)
        self._noted = False  # whether the record is on the disk: it is when there was ever a replica
        self._deciding = asyncio.Lock()
        self._changing = asyncio.Lock()
        self._wanted: _Wanted | None = None
        self._down: float | None = None
        self._answered = 0.0
        self._looks = 0
        self._watch = Periodic(f"watch cluster {name}", self._look, every=LOOK_EVERY)
        self._watching = False
        self._tasks: set[asyncio.Task[None]] = set()

    # -- what others see -------------------------------------------------------------------------------

    @property
    def primary(self) -> str:
        return self._record.primary

    @property
    def epoch(self) -> int:
        return self._record.epoch

    @property
    def settled(self) -> bool:
        """False while a promotion is under way: nobody should be told of it yet."""
        return not self._record.promoting

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
            self._record, self._noted = found, True
        for node in self._names:
            await self._add_member(node)
        if self._record.promoting:
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
        await asyncio.gather(*(self._start_replica(node) for node in self.replicas))
        await self._tidy(self.primary)
        await self._note(voters=self._voters_with(self.replicas))
        await self._confirm()
        await self._start_watch()

    async def _start_watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._answered = self._clock.monotonic()
            await self._watch.start()

    async def _start_replica(self, node: str) -> None:
        try:
            await self.members[node].child.start()
            await self._tidy(node)
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

    async def _add_member(self, node: str) -> Member:
        server = await self._make(node)
        child = Child(
            server,
            "postgres",
            changed=self._changed,
            restarted=lambda: self._restarted(node),
            before=lambda: self._before(node),
        )
        server.replicated = len(self._names) > 1 or self._noted
        if self._noted and self._quorum:
            server.confirming = tuple(name for name in self._names if name != node)
        self.members[node] = Member(server, child)
        return self.members[node]

    # -- restarts and failover -------------------------------------------------------------------------

    async def _before(self, node: str) -> None:
        """Before a server is started again. Replicas must not wait here: a decision needs to hear them."""
        if node == self.primary:
            async with self._deciding:
                if node == self.primary and not self._record.promoting:
                    await self._decide()
        member = self.members[node]
        if self._record.promoting and node == self.primary:
            if await member.server.is_standby():
                member.server.follows = Upstream(self.replicas[0], 1)
        else:
            member.server.follows = None if node == self.primary else self._upstream()

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
                quorum=self._quorum,
                voters=self._record.voters,
                auto=self._auto,
                failover_after=self._failover_after,
                down_for=now() - self._down,
                waited_for=now() - begun,
                patience=PATIENCE,
                wanted=self._wanted.node if self._wanted else None,
                forced=self._wanted.forced if self._wanted else False,
            )
            nodes = self.replicas
            if nodes and (self._quorum or self._wanted or case.down_for >= self._failover_after):
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
            self._say(f"primary {self.primary} is started again: {decision.why}")
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
        await self._note(
            primary=node,
            epoch=self.epoch + 1,
            promoting=True,
            voters=others if self._quorum else (),
        )
        await self.server(old).fence()
        await self._finish()
        for other in decision.behind:
            await self.server(other).kill()  # its child starts it again, repaired

    async def _finish(self) -> None:
        """The part of a promotion after the old primary is fenced; may be repeated."""
        server = self.server()
        if self._quorum:
            server.confirming = self.replicas
        await server.promote()
        await replication.ensure_slots(server, list(self.replicas))
        await self._note(promoting=False)
        self._down = None
        self._answered = self._clock.monotonic()
        self._say(None)
        self._follow()
        await asyncio.gather(*(self._repoint(node) for node in self.replicas))

    async def _complete(self) -> None:
        """Once more, a promotion that was decided and met an error on its way."""
        async with self._deciding:
            if self._record.promoting:
                for node in self.replicas:
                    if not await self.server(node).is_standby():
                        await self.server(node).fence()
                await self._finish()

    def _upstream(self) -> Upstream:
        return Upstream(self.primary, self.server().port)

    def _follow(self) -> None:
        for node in self.replicas:
            self.server(node).follows = self._upstream()

    async def _repoint(self, node: str) -> None:
        member = self.members[node]
        if member.child.running:
            try:
                await member.server.reload()
            except (RunnerError, OSError) as error:
                _log.warning("replica %s hears of its new primary when it starts again: %s", node, error)

    def _restarted(self, node: str) -> None:
        self._spawn(self._after_restart(node))

    async def _after_restart(self, node: str) -> None:
        try:
            if node != self.primary:
                await self._repoint(node)
                await self._tidy(node)
                return
            if self._record.promoting:
                await self._complete()
            self._down = None
            self._answered = self._clock.monotonic()
            self._say(None)
            self._follow()
            await asyncio.gather(*(self._repoint(replica) for replica in self.replicas))
        except (RunnerError, OSError) as error:
            _log.warning("after the restart of %s: %s", node, error)
        self._changed()

    def _spawn(self, work: Awaitable[None]) -> None:
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

    # -- members come and go ---------------------------------------------------------------------------

    async def add(self, node: str) -> None:
        """Copy the primary to a new replica and start it. What was begun is undone when this raises."""
        async with self._changing:
            member = await self._new(node)
            try:
                await member.child.start()
                await self._streams(member)
                async with self._deciding:
                    self.members[node] = member
                    await self._note(voters=self._voters_with((node,)))
                    await self._confirm()
            except BaseException:
                self.members.pop(node, None)
                await _uncut(self._dispose(member))
                raise
            await self._start_watch()
            self._changed()

    async def _new(self, node: str) -> Member:
        """A member in all but name: nobody asks it, and no failover chooses it."""
        member = await self._add_member(node)
        del self.members[node]
        member.server.follows = self._upstream()
        member.server.confirming = ()
        return member

    async def _streams(self, member: Member) -> None:
        """Return when the replica streams and has what the primary has now."""
        begun = self._clock.monotonic()
        target: int | None = None
        while True:
            link = (await replication.links(self.server())).get(slot_name(member.server.name))
            if link is not None and link.state == "streaming" and link.flushed is not None:
                target = target or link.now
                if link.flushed >= target:
                    return
            if self._clock.monotonic() - begun > JOIN:
                raise RunnerError(
                    f"replica {member.server.name} does not stream within {JOIN:g} s: see its log"
                )
            await self._clock.sleep(ASK_AGAIN)

    async def remove(self, node: str) -> None:
        """End a replica, its slot and its data. Raises RunnerError, all being as it was, if it may not go."""
        async with self._changing:
            if node == self.primary:
                raise RunnerError(f"{node} is the primary of cluster {self.name}: promote another one first")
            member = self.members.get(node)
            if member is None:
                raise RunnerError(f"{node} is not a replica of cluster {self.name}")
            async with self._deciding:
                del self.members[node]
                try:
                    await self._confirm()
                    await self._let_go(node)
                except BaseException:
                    self.members[node] = member
                    await _uncut(self._confirm())
                    raise
            await _uncut(self._dispose(member))
            self._changed()

    async def _let_go(self, node: str) -> None:
        """Stop counting on `node`: what it alone may have confirmed must be on another's disk first."""
        if not self._quorum:
            await self._note(voters=())
            return
        begun = self._clock.monotonic()
        target: int | None = None
        while True:
            links = await replication.links(self.server())
            for link in links.values():
                target = target or link.now
                if link.slot != slot_name(node) and link.flushed is not None and link.flushed >= target:
                    await self._note(voters=tuple(v for v in self._record.voters if v != node))
                    return
            if self._clock.monotonic() - begun > JOIN:
                raise RunnerError(f"no other replica confirms what {node} may have confirmed: it has to stay")
            await self._clock.sleep(ASK_AGAIN)

    async def _dispose(self, member: Member) -> None:
        """Nothing of a replica stays: process, slot, data, password."""
        try:
            await member.child.stop()
        finally:
            await member.server.discard()
            try:
                await replication.drop_slots(self.server(), keep=list(self.replicas))
            except RunnerError as error:
                _log.warning(
                    "the slot of %s goes when cluster %s answers: %s", member.server.name, self.name, error
                )

    # -- looking after them ----------------------------------------------------------------------------

    async def _look(self) -> None:
        self._looks += 1
        child = self.members[self.primary].child
        if self._record.promoting:
            if child.running and not self._deciding.locked():
                await self._complete()
        elif child.running:
            await self._look_at_primary()
        elif self._down is not None and self._starting_too_long():
            _log.error("primary %s does not come back within %g s", self.primary, self._failover_after)
            await self.server().kill()
        if self._looks % LINKS_EVERY == 0:
            await self._look_at_links()

    def _starting_too_long(self) -> bool:
        """Without quorum a primary is replaced although it still recovers; with it, only it may have all."""
        waited = self._clock.monotonic() - (self._down or 0.0)
        able = any(self.members[node].child.running for node in self.replicas)
        return able and self._auto and not self._quorum and waited > self._failover_after

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

    async def _look_at_links(self) -> None:
        for node in self.replicas:
            member = self.members[node]
            if member.child.state().state == "failed":
                self._spawn(self._start_replica(node))
        if not self.members[self.primary].child.running or self._record.promoting:
            return
        try:
            self.links = await replication.links(self.server())
            await replication.ensure_slots(
                self.server(), [node for node in self.replicas if slot_name(node) not in self.links]
            )
        except RunnerError:
            return  # the primary does not answer: that is the other look's
        waiting = max((link.waiting for link in self.links.values()), default=0)
        confirmers = [link for link in self.links.values() if link.state == "streaming"]
        if self._quorum and not confirmers:
            self._say(f"writes wait, {waiting} now: no replica of cluster {self.name} confirms them")
        else:
            self._say(None)
        for node in self.replicas:
            await self._look_at_link(node, self.links.get(slot_name(node)))

    async def _look_at_link(self, node: str, link: Link | None) -> None:
        member = self.members[node]
        if link is not None and link.state is not None and not link.lost:
            member.unlinked = member.repairs = 0
            return
        if not member.child.running:
            return
        member.unlinked += 1
        if link is not None and link.lost:
            await self._repair(node, "copy", "the primary no longer has the log that it needs")
        elif member.unlinked >= UNLINKED * 2 ** min(member.repairs, 6):
            await self._repair(node, "rewind" if member.repairs == 0 else "copy", "it does not stream")

    async def _repair(self, node: str, how: str, why: str) -> None:
        member = self.members[node]
        member.unlinked = 0
        member.repairs += 1
        _log.error("replica %s is %s: %s", node, "copied anew" if how == "copy" else "rewound", why)
        await member.server.repair(how)
        if how == "copy":
            await replication.drop_slots(self.server(), keep=[n for n in self.replicas if n != node])
        await member.server.kill()

    async def _tidy(self, node: str) -> None:
        """Slots that nobody uses any more would keep the log until the disk is full."""
        keep = list(self.replicas) if node == self.primary else []
        try:
            await replication.drop_slots(self.server(node), keep=keep)
        except RunnerError as error:
            _log.warning("old slots of %s were not dropped: %s", node, error)

    async def _confirm(self) -> None:
        """Tell every server who has to confirm commits, now or when it becomes primary."""
        for node, member in self.members.items():
            others = tuple(name for name in self.members if name != node)
            member.server.confirming = others if self._quorum else ()
            member.server.replicated = True
            if member.child.running:
                await member.server.reload()

    def _voters_with(self, more: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._record.voters, *more))) if self._quorum else ()

    async def _note(self, **changes: object) -> None:
        """Change the record; on the disk when this returns."""
        record = replace(self._record, **changes)  # type: ignore[arg-type]  # the callers' names are its own
        await _uncut(asyncio.to_thread(write_record, self._folder, self.name, record))
        self._record, self._noted = record, True
        self._changed()

    def _say(self, notice: str | None) -> None:
        if notice != self.notice:
            self.notice = notice
            if notice is not None:
                _log.warning("%s", notice)
            self._changed()


def _answer(wanted: _Wanted | None, error: Exception | None) -> None:
    if wanted is None or wanted.answer.done():
        return
    if error is None:
        wanted.answer.set_result(None)
    else:
        wanted.answer.set_exception(error)


async def _uncut(work: Awaitable[None]) -> None:
    """Await `work` to its end although this task is cancelled meanwhile; that is raised after it."""
    running = asyncio.ensure_future(work)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
