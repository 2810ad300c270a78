"""Replicas that are added to a running cluster, and taken from it, while it works.

A new one is a member once it streams and has what the primary had; until then no failover chooses it. One
that goes must not have been the only one to confirm a commit: once its process has ended and confirms
nothing any more, another replica must reach where the primary is then. What was begun is undone when it
fails or is cancelled, and by the next runner when this one is killed: who joins is noted until it is listed.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from springtide.clock import Clock
from springtide.errors import RunnerError
from springtide.ops.runner import replication
from springtide.ops.runner.making import to_its_end, uncut
from springtide.ops.runner.records import note_join, read_join
from springtide.ops.runner.standby import slot_name

if TYPE_CHECKING:
    from springtide.ops.runner.clusters import Keeper, Member

__all__ = ["Membership"]

_log = logging.getLogger(__name__)

ASK_AGAIN = 0.1
JOIN = 60.0
"""Seconds in which a replica that was copied must stream, and others must confirm what a leaver did."""


class Membership:
    """One change at a time in the cluster of `keeper`."""

    def __init__(self, keeper: Keeper, *, folder: Path, clock: Clock) -> None:
        self.changing = asyncio.Lock()
        self._keeper = keeper
        self._folder = folder
        self._clock = clock

    async def add(self, node: str) -> None:
        """Copy the primary to a new replica and start it. What was begun is undone when this raises."""
        async with self.changing:
            member = await self._new(node)
            try:
                await uncut(note_join, self._folder, self._keeper.name, node)
                await member.child.start()
                await self._streams(member)
                async with self._keeper.deciding:
                    if not self._keeper.settled or member.server.follows != self._keeper.upstream():
                        raise RunnerError(f"cluster {self._keeper.name} has another primary now: try again")
                    self._keeper.members[node] = member
                    await self._keeper.note(voters=self._keeper.voters_with(self._keeper.replicas))
                    await self._keeper.confirm()
            except BaseException:
                self._keeper.members.pop(node, None)
                await to_its_end(self._undo(member))
                raise
            await self._keeper.start_watch()
            self._keeper.changed()

    async def joined(self) -> None:
        """Who was added is listed. When that cannot be noted the next start finds it listed."""
        try:
            await uncut(note_join, self._folder, self._keeper.name, None)
        except RunnerError as error:
            _log.warning("%s", error)

    async def clear(self) -> None:
        """Of a join that was cut off by the end of its runner only the slot is left; the primary runs now."""
        node = await asyncio.to_thread(read_join, self._folder, self._keeper.name)
        if node is not None and (node in self._keeper.members or await self._drop_slot(node)):
            await self.joined()

    async def _undo(self, member: Member) -> None:
        await self._dispose(member)
        await self._keeper.confirm()

    async def _new(self, node: str) -> Member:
        """A member in all but name: nobody asks it, and no failover chooses it."""
        member = await self._keeper.add_member(node)
        del self._keeper.members[node]
        member.server.follows = self._keeper.upstream()
        member.server.confirming = ()
        return member

    async def _streams(self, member: Member) -> None:
        """Return when the replica streams and has what the primary has now."""
        begun = self._clock.monotonic()
        target: int | None = None
        while True:
            link = (await replication.links(self._keeper.server())).get(slot_name(member.server.name))
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
        async with self.changing:
            async with self._keeper.deciding:  # whoever was being promoted is primary now
                member = self._removable(node)
                del self._keeper.members[node]
                try:
                    await self._keeper.confirm()
                    await self._let_go(member)
                except BaseException:
                    self._keeper.members[node] = member
                    await to_its_end(self._stay(member))
                    raise
            await to_its_end(self._dispose(member))
            self._keeper.changed()

    def _removable(self, node: str) -> Member:
        keeper = self._keeper
        if node == keeper.primary:
            raise RunnerError(f"{node} is the primary of cluster {keeper.name}: promote another one first")
        if node not in keeper.members:
            raise RunnerError(f"{node} is not a replica of cluster {keeper.name}")
        if not keeper.settled:
            raise RunnerError(f"{keeper.primary} is being promoted: try again")
        if keeper.quorum and len(keeper.replicas) == 1:
            raise RunnerError(
                f"{node} has to stay: no other replica of cluster {keeper.name} confirms commits"
            )
        return keeper.members[node]

    async def _stay(self, member: Member) -> None:
        await self._keeper.start_replica(member.server.name)
        await self._keeper.confirm()

    async def _let_go(self, member: Member) -> None:
        """Stop counting on a replica: what it alone may have confirmed must be on another's disk first."""
        node = member.server.name
        if not self._keeper.quorum:
            await self._keeper.note(voters=())
            return
        await self._another_has_all(node)  # or it may not go, and need not be stopped
        await member.child.stop()
        await self._another_has_all(node)
        await self._keeper.note(voters=tuple(v for v in self._keeper.record.voters if v != node))

    async def _another_has_all(self, node: str) -> None:
        """Return when a replica other than `node` has on its disk where the primary was as this began."""
        begun = self._clock.monotonic()
        target: int | None = None
        while True:
            links = await replication.links(self._keeper.server())
            for link in links.values():
                target = target or link.now
                if link.slot != slot_name(node) and link.flushed is not None and link.flushed >= target:
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
            if await self._drop_slot(member.server.name):
                await self.joined()

    async def _drop_slot(self, node: str) -> bool:
        """Whether it is gone. When the primary does not answer it is dropped by who watches the cluster."""
        try:
            await replication.drop_slot(self._keeper.server(), node)
        except RunnerError as error:
            _log.warning("the slot of %s goes when cluster %s answers: %s", node, self._keeper.name, error)
            await self._keeper.start_watch()
            return False
        return True
