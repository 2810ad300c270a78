"""Look after the replicas of a cluster: slots, those that cannot follow any more, commits that wait."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from springtide.clock import Clock
from springtide.errors import RunnerError
from springtide.ops.runner import replication
from springtide.ops.runner.records import Record
from springtide.ops.runner.replication import Link
from springtide.ops.runner.standby import slot_name

if TYPE_CHECKING:
    from springtide.ops.runner.clusters import Keeper

__all__ = ["Tending"]

_log = logging.getLogger(__name__)

UNLINKED = 12
"""Questions, a minute of them, after which a replica that does not stream is repaired."""


BEGIN = 20
ASK_AGAIN = 0.1
"""How often, and how soon again, a start asks whether a replica has all that was acknowledged."""


class Tending:
    """Of the cluster of `keeper`. A replica is rewound first, then copied, each time after twice as long."""

    def __init__(self, keeper: Keeper, *, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock
        self._past: tuple[Record, int] | None = None  # where the primary was, as that was noted

    async def look(self) -> None:
        keeper = self._keeper
        for node in keeper.replicas:
            if keeper.members[node].child.state().state == "failed":
                keeper.spawn(keeper.start_replica(node))
        if not keeper.members[keeper.primary].child.running or not keeper.settled:
            return
        try:
            links = await replication.links(keeper.server())
            missing = [node for node in keeper.replicas if slot_name(node) not in links]
            await replication.ensure_slots(keeper.server(), missing)
        except RunnerError:
            return  # the primary does not answer, which is noticed elsewhere
        await self._drop_strays(links)
        if keeper.quorum:
            self._tell(links.values())
            await self._count_voters(links.values())
        for node in keeper.replicas:
            await self._look_at(node, links.get(slot_name(node)))

    async def _drop_strays(self, links: Collection[str]) -> None:
        """Drop slots of nobody: the primary did not answer when they should go. A joining node's stays."""
        keeper = self._keeper
        if keeper.changing.locked() or set(links) <= {slot_name(node) for node in keeper.replicas}:
            return
        async with keeper.changing:
            await self.tidy(keeper.primary)

    def _tell(self, links: Collection[Link]) -> None:
        """Commits wait for ever when nobody confirms them: that is promised, and must be seen."""
        if any(link.state == "streaming" for link in links):
            self._keeper.say(None)
        else:
            waiting = max((link.waiting for link in links), default=0)
            self._keeper.say(
                f"writes wait, {waiting} now: no replica of cluster {self._keeper.name} confirms them"
            )

    async def begin(self) -> None:
        """Commits have to be confirmed from now on: count the voters at once, if one is not far behind."""
        for _ in range(BEGIN):
            try:
                await self._count_voters((await replication.links(self._keeper.server())).values())
            except RunnerError:
                return  # the primary does not answer, which is noticed elsewhere
            if self._keeper.record.voters:
                return
            await self._clock.sleep(ASK_AGAIN)

    async def _count_voters(self, links: Collection[Link]) -> None:
        """A replica that went while nothing ran may have confirmed alone, until another has caught up. And
        nobody is a voter before one has what was acknowledged when commits had not to be confirmed."""
        keeper = self._keeper
        present = tuple(n for n in keeper.record.voters if n in keeper.replicas) or keeper.replicas
        if present == keeper.record.voters or not links:
            return
        if self._past is None or self._past[0] is not keeper.record:
            self._past = (keeper.record, max(link.now for link in links))
            return
        record, position = self._past
        names = [slot_name(node) for node in present]
        if any(link.slot in names and (link.flushed or 0) >= position for link in links):
            async with keeper.deciding:
                if keeper.record is record:
                    await keeper.note(voters=present)

    async def _look_at(self, node: str, link: Link | None) -> None:
        keeper, member = self._keeper, self._keeper.members[node]
        if member.child.running and await member.server.repair_wanted() is not None:
            keeper.spawn(keeper.end(node))  # it was noted, and the server went on
            return
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
        keeper, member = self._keeper, self._keeper.members[node]
        member.unlinked = 0
        member.repairs += 1
        _log.error("replica %s is %s: %s", node, "copied anew" if how == "copy" else "rewound", why)
        await member.server.repair(how)
        if how == "copy":
            await replication.drop_slot(keeper.server(), node)
            await member.server.kill()
        else:
            keeper.spawn(keeper.end(node))

    async def tidy(self, node: str) -> None:
        """Slots that nobody uses any more would keep the log until the disk is full."""
        keeper = self._keeper
        keep = list(keeper.replicas) if node == keeper.primary else []
        try:
            await replication.drop_slots(keeper.server(node), keep=keep)
        except RunnerError as error:
            _log.warning("old slots of %s were not dropped: %s", node, error)
