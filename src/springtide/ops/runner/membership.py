"""Replicas that are added to a running cluster, and taken from it, while it works.

A new one is a member once it streams and has what the primary had; until then no failover chooses it. One
that goes must not have been the only one to confirm a commit: another replica has its position first. What
was begun is undone when it fails or is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from springtide.clock import Clock
from springtide.errors import RunnerError
from springtide.ops.runner import replication
from springtide.ops.runner.making import to_its_end
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

    def __init__(self, keeper: Keeper, *, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock
        self._changing = asyncio.Lock()

    async def add(self, node: str) -> None:
        """Copy the primary to a new replica and start it. What was begun is undone when this raises."""
        async with self._changing:
            member = await self._new(node)
            try:
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
        async with self._changing:
            async with self._keeper.deciding:  # whoever was being promoted is primary now
                member = self._removable(node)
                del self._keeper.members[node]
                try:
                    await self._keeper.confirm()
                    await self._let_go(node)
                except BaseException:
                    self._keeper.members[node] = member
                    await to_its_end(self._keeper.confirm())
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

    async def _let_go(self, node: str) -> None:
        """Stop counting on `node`: what it alone may have confirmed must be on another's disk first."""
        if not self._keeper.quorum:
            await self._keeper.note(voters=())
            return
        begun = self._clock.monotonic()
        target: int | None = None
        while True:
            links = await replication.links(self._keeper.server())
            for link in links.values():
                target = target or link.now
                if link.slot != slot_name(node) and link.flushed is not None and link.flushed >= target:
                    await self._keeper.note(voters=tuple(v for v in self._keeper.record.voters if v != node))
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
                await replication.drop_slots(self._keeper.server(), keep=list(self._keeper.replicas))
            except RunnerError as error:
                name = member.server.name
                _log.warning(
                    "the slot of %s goes when cluster %s answers: %s", name, self._keeper.name, error
                )
