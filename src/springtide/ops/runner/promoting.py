"""What follows when the primary of a cluster has ended: it is started again, or another one takes over.

    end what is left of it -> hear the replicas -> decide (failover.py)
        start it again                                    the usual case: it comes back where it was
        promote R: write down -> fence the old one -> promote R -> make slots -> write down ->
                   the others follow R -> those that may have more than R are repaired

Each of these is a step with a bound (steps.py). What is written down is carried out from its beginning when a
step fails, by the next look, or by the next runner; until it is done nobody is rewound, for there is nothing
yet to be rewound to.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from springtide.clock import Clock
from springtide.errors import RunnerError
from springtide.ops.runner import replication
from springtide.ops.runner.failover import Case, Decision, Position, Promote, Restart, Wait, decide
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.standby import Upstream
from springtide.ops.runner.steps import Steps

if TYPE_CHECKING:
    from springtide.ops.runner.clusters import Keeper

__all__ = ["Promoting"]

_log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a decision waits for replicas which do not say how far their log goes."""

ASK_AGAIN = 0.1

KILL = 15.0
NOTE = 30.0
PROMOTE = 60.0
ASKED = 120.0
"""Bounds in seconds: to end processes, to write to the disk, to replay what is left, to wait for it all."""


@dataclass(slots=True)
class _Wanted:
    node: str
    forced: bool
    answer: asyncio.Future[None]


class Promoting:
    """Of the cluster of `keeper`. Who holds `deciding` may change who is primary, or who may become it."""

    def __init__(self, keeper: Keeper, *, auto: bool, failover_after: float, clock: Clock) -> None:
        self.deciding = asyncio.Lock()
        self._keeper = keeper
        self._auto = auto
        self._failover_after = failover_after
        self._clock = clock
        self._steps = Steps(keeper.name, say=keeper.say)
        self._wanted: _Wanted | None = None
        self._down: float | None = None

    @property
    def asked(self) -> bool:
        """Whether somebody asked for another primary and waits for it."""
        return self._wanted is not None

    @property
    def down_for(self) -> float | None:
        """Seconds since the primary ended; None while it is there."""
        return None if self._down is None else self._clock.monotonic() - self._down

    async def ended(self, node: str) -> None:
        """When the primary has ended, at once: pauses are for restarts, not for a failover."""
        keeper = self._keeper
        if node == keeper.primary:
            async with self.deciding:
                if node == keeper.primary and keeper.settled:
                    await self._decide()

    async def replaceable(self) -> bool:
        """Whether another would be promoted now, had the primary ended, without waiting for anybody."""
        return isinstance(decide(await self._case(PATIENCE)), Promote)

    async def instead(self, error: Exception) -> None:
        """The primary cannot be started at all: promote another one, if that loses nothing for certain.

        Else raises `error`, with what somebody can do who knows what may be lost.
        """
        keeper, old = self._keeper, self._keeper.primary
        if not any(keeper.members[node].child.running for node in keeper.replicas):
            raise RunnerError(f"{error}\nno replica of cluster {keeper.name} can be started") from error
        async with self.deciding:
            self._down = self._clock.monotonic() - self._failover_after
            async with self._steps(f"end what is left of {old}", KILL):
                await keeper.server().kill()
            async with self._steps("hear the replicas", PATIENCE + 3 * replication.TIMEOUT):
                decision = await self._decision(auto=True)
            if isinstance(decision, Promote) and keeper.quorum and self._auto:
                await self._promote(decision)
                return
        advice = f"and no replica of cluster {keeper.name} can take over: {decision.why}"
        if isinstance(decision, Promote):
            advice = (
                f"mend it; or, if it is lost for good, let {decision.node} take over, whose log ends at "
                f"{decision.at}: `springtide replicas promote {decision.node} --force`, then `springtide up`"
            )
        raise RunnerError(f"{error}\nprimary {old} cannot be started: {advice}") from error

    async def before(self, node: str) -> None:
        """Before a server is started again. Replicas must not wait here: a decision needs to hear them."""
        await self.ended(node)
        keeper = self._keeper
        if node not in keeper.members:
            return  # it is being added, or removed: it follows whom it was made for
        server = keeper.server(node)
        if keeper.settled:
            server.follows = None if node == keeper.primary else keeper.upstream()
        elif node == keeper.primary:
            await self._as_it_is(node)
        elif await server.repair_wanted() is not None:
            raise RunnerError(f"PostgreSQL {node} waits until {keeper.primary} is promoted")
        else:
            server.follows = keeper.upstream()

    async def _as_it_is(self, node: str) -> None:
        """The chosen one is opened as what its folder is: it follows nobody, and only has to be promoted."""
        server = self._keeper.server(node)
        if await server.is_standby():
            server.follows = Upstream(node, 1)

    async def _decide(self) -> None:
        """The primary has ended: promote another one, or return, which starts it again."""
        keeper = self._keeper
        if not keeper.replicas:
            return
        self._down = self._down or self._clock.monotonic()
        wanted = self._wanted
        try:
            # What outlived the postmaster could still acknowledge a commit.
            async with self._steps(f"end what is left of {keeper.primary}", KILL):
                await keeper.server().kill()
            async with self._steps("hear the replicas", PATIENCE + 3 * replication.TIMEOUT):
                decision = await self._decision()
            if isinstance(decision, Promote):
                await self._promote(decision)
        except BaseException:
            _answer(wanted, RunnerError("the promotion did not come to its end yet: see status"))
            raise
        if isinstance(decision, Restart):
            keeper.say(f"primary {keeper.primary} is started again: {decision.why}")
            if wanted is not None:
                _answer(wanted, RunnerError(f"{wanted.node} was not promoted: {decision.why}"))
        _answer(wanted, None)

    async def _decision(self, *, auto: bool | None = None) -> Decision:
        """`auto`: as if failover were so."""
        begun = self._clock.monotonic()
        while True:
            case = await self._case(self._clock.monotonic() - begun)
            decision = decide(case if auto is None else replace(case, auto=auto))
            if not isinstance(decision, Wait):
                return decision
            await self._clock.sleep(ASK_AGAIN)

    async def _case(self, waited_for: float) -> Case:
        """What is known now; the replicas are asked where that can make a difference."""
        case = Case(
            held={},
            quorum=self._keeper.quorum,
            voters=self._keeper.record.voters,
            auto=self._auto,
            failover_after=self._failover_after,
            down_for=self.down_for or 0.0,
            waited_for=waited_for,
            patience=PATIENCE,
            wanted=self._wanted.node if self._wanted else None,
            forced=self._wanted.forced if self._wanted else False,
        )
        nodes = self._keeper.replicas
        if case.quorum or self._wanted or case.down_for >= self._failover_after:
            servers = [self._keeper.server(node) for node in nodes]
            answers = await asyncio.gather(*(_held(server) for server in servers))
            return replace(case, held=dict(zip(nodes, answers, strict=True)))
        return replace(case, held=dict.fromkeys(nodes), waited_for=PATIENCE)

    async def _promote(self, decision: Promote) -> None:
        keeper, old, node = self._keeper, self._keeper.primary, decision.node
        _log.warning(
            "cluster %s: %s becomes primary instead of %s, with its log at %s: %s",
            *(keeper.name, node, old, decision.at, decision.why),
        )
        others = tuple(name for name in keeper.members if name != node)
        async with self._steps(f"write down that {node} is promoted", NOTE):
            for other in decision.behind:
                await keeper.server(other).repair("rewind")
            await keeper.note(
                primary=node,
                epoch=keeper.epoch + 1,
                promoting=True,
                voters=others if keeper.quorum else (),
            )
        await self._carry_out()

    async def _carry_out(self) -> None:
        """What was written down, from its beginning; may be repeated."""
        keeper, node = self._keeper, self._keeper.primary
        for other in keeper.replicas:
            if not await keeper.server(other).is_standby():
                async with self._steps(f"fence {other}", KILL + NOTE):
                    await keeper.server(other).fence()
        server = keeper.server()
        if keeper.quorum:
            server.confirming = keeper.replicas
        async with self._steps(f"promote {node}", PROMOTE + 10.0):
            await server.promote(timeout=PROMOTE)
        async with self._steps(f"make slots on {node}", 10.0 + replication.TIMEOUT * len(keeper.replicas)):
            await replication.ensure_slots(server, list(keeper.replicas))
        async with self._steps(f"write down that {node} is primary", NOTE):
            await keeper.note(promoting=False)
        async with self._steps(f"let the others follow {node}", NOTE):
            await self.there()
        for other in keeper.replicas:
            if keeper.members[other].child.running and await keeper.server(other).repair_wanted() is not None:
                _log.warning(
                    "cluster %s: %s may have more than %s, and is repaired", keeper.name, other, node
                )
                keeper.spawn(keeper.end(other))

    async def there(self) -> None:
        """The primary takes writes, as what it was or newly: everybody follows it."""
        self._down = None
        self._keeper.heard()
        self._keeper.say(None)
        await self._keeper.follow()

    async def complete(self) -> None:
        """Once more, a promotion that was decided and met an error on its way."""
        async with self.deciding:
            if not self._keeper.settled:
                await self._carry_out()

    async def resume(self) -> None:
        """Carry out a promotion that another runner had decided and did not finish; nothing runs yet."""
        keeper = self._keeper
        _log.warning("finishing the promotion of %s in cluster %s", keeper.primary, keeper.name)
        for node in keeper.members:
            await keeper.server(node).locate()
        for node in keeper.replicas:  # before the chosen one runs: it must not come too late
            if not await keeper.server(node).is_standby():
                await keeper.server(node).fence()
        await self._as_it_is(keeper.primary)
        await keeper.members[keeper.primary].child.start()
        await self._carry_out()

    async def ask(self, node: str, *, forced: bool) -> None:
        """Make `node` the primary, by a clean shutdown of the present one if it runs.

        Raises RunnerError when it is not done; the old primary goes on then.
        """
        keeper = self._keeper
        if node == keeper.primary:
            raise RunnerError(f"{node} is the primary of cluster {keeper.name} already")
        if node not in keeper.members or not keeper.members[node].child.running:
            raise RunnerError(f"{node} is not a running replica of cluster {keeper.name}")
        if self._wanted is not None or not keeper.settled:
            other = keeper.primary if self._wanted is None else self._wanted.node
            raise RunnerError(f"{other} is being promoted already")
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted = _Wanted(node, forced, answer)
        try:
            if keeper.members[keeper.primary].child.running:
                await keeper.server().shut_down()
            async with asyncio.timeout(ASKED):
                await answer
        except TimeoutError:
            raise RunnerError(
                f"{node} was not promoted within {ASKED:g} s: see `springtide status`"
            ) from None
        finally:
            self._wanted = None


async def _held(server: EmbeddedPostgres) -> Position | None:
    """How far a replica's log goes. One that is to be repaired may hold what is no log of this cluster."""
    return None if await server.repair_wanted() is not None else await replication.held(server)


def _answer(wanted: _Wanted | None, error: Exception | None) -> None:
    if wanted is None or wanted.answer.done():
        return
    if error is None:
        wanted.answer.set_result(None)
    else:
        wanted.answer.set_exception(error)
