"""Run the jobs of all modules of this process, on all their shards.

A worker is made of a heart (leases), listeners (wake-up), upkeep per line (rescue, parking, retention) and
one dispatcher (claims, slots, drain). They start in that order and stop in reverse, so leases are renewed
while jobs are drained. With a transport there are a relay, which gives it what is due, and a receiver, which
takes what it brings instead of the dispatcher's claims.

Invariants: at most `slots` jobs run at once. A job is in the hands of at most one run that can finish it.
Nothing that was committed is dropped: it is finished, dead and visible, parked and visible, or tried again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from springtide.clock import Clock, SystemClock
from springtide.db import Database
from springtide.errors import JobError
from springtide.jobs._dispatch import Dispatcher
from springtide.jobs._heart import Heart
from springtide.jobs._line import Line
from springtide.jobs._run import Route
from springtide.jobs._store import Store
from springtide.jobs._upkeep import Upkeep
from springtide.jobs.job import Handler
from springtide.lifecycle import Group, Service
from springtide.outbox.kinds import check_counts, check_seconds, is_number
from springtide.outbox.listener import Listener
from springtide.signals import NullSink, Sink

if TYPE_CHECKING:
    from springtide.jobs.transports import Transport

__all__ = ["Queue", "Worker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """One module's jobs: where they are, who takes them, and the implementation given to handlers.

    Raises JobError when two handlers take the same kind and version.
    """

    database: Database
    handlers: Sequence[Handler[Any]]
    implementation: Any

    def __post_init__(self) -> None:
        names = [name for handler in self.handlers for name in handler.names]
        for name in names:
            if names.count(name) > 1:
                raise JobError(f"database {self.database.name!r} has two handlers for {name}")


class Worker:
    """A lifecycle service; `stop` drains. It starts whether its databases answer or not.

    dsns:      address of each shard's server, for the connections that hear the bell and renew leases; asked
               anew for each of them, so that they follow a primary (also from another thread).
    slots:     jobs at once; each may need a connection of the pools, so keep it below their size.
    lease:     seconds after which a job whose worker is gone is run again by another.
    heartbeat: seconds between renewals; at most a third of the lease, so that one may fail.
    stall:     seconds without a tick of the event loop after which nothing is renewed.
    poll:      seconds between looks at a line without work (jittered), whatever the bell says.
    upkeep:    seconds between rescues (jittered); a kill -9 is repaired within lease + upkeep.
    measure:   seconds between measurements of depth and age.
    drain:     seconds that running jobs have when the worker stops.
    park_after: seconds that a job of unknown kind may be due before it is parked.
    keep_done: seconds that finished jobs are kept at least; a day of them goes as a whole. Dead letters are
               kept for good.
    name:      of this worker, for people.
    transport: what brings jobs to this worker, and by its relay to others (springtide.jobs.transports); None:
               it claims them from SQL. All workers of a database have the same.
    """

    def __init__(
        self,
        queues: Sequence[Queue],
        *,
        dsns: Mapping[str, str],
        slots: int = 10,
        lease: float = 30.0,
        heartbeat: float = 10.0,
        stall: float = 5.0,
        poll: float = 1.0,
        upkeep: float = 3.0,
        measure: float = 15.0,
        drain: float = 20.0,
        park_after: float = 10.0,
        keep_done: float = 86_400.0,
        name: str = "worker",
        transport: Transport | None = None,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        check_counts(name, JobError, slots=slots)
        check_seconds(
            name,
            JobError,
            poll=poll,
            upkeep=upkeep,
            measure=measure,
            stall=stall,
            lease=lease,
            heartbeat=heartbeat,
        )
        for option, seconds in (("drain", drain), ("park_after", park_after), ("keep_done", keep_done)):
            if not (is_number(seconds) and seconds >= 0):
                raise JobError(f"{name}: {option} must be >= 0 seconds, got {seconds!r}")
        if heartbeat * 3 > lease:
            raise JobError(f"{name}: heartbeat must be at most a third of lease, got {heartbeat} of {lease}")
        shards = {shard for queue in queues for shard in queue.database.pools}
        if missing := sorted(shards - set(dsns)):
            raise JobError(f"a worker needs the address of each shard, none for {', '.join(missing)}")
        self.name = name
        clock = clock or SystemClock()
        sink = sink or NullSink()
        lines = [
            Line(
                Store(queue.database, shard),
                {
                    name: Route(handler, queue.database, queue.implementation, name=name)
                    for handler in queue.handlers
                    for name in handler.names
                },
            )
            for queue in queues
            for shard in queue.database.pools
        ]
        self._dispatcher = dispatcher = Dispatcher(
            lines, slots=slots, lease=lease, poll=poll, drain=drain, label=name, clock=clock, sink=sink
        )
        heart = Heart(
            dsns,
            lease=lease,
            every=heartbeat,
            stall=stall,
            lost=dispatcher.lose,
            clock=clock,
            sink=sink,
        )
        dispatcher.heart = heart
        listeners = [
            Listener(
                functools.partial(dsns.__getitem__, shard),
                cluster=shard,
                heard=_heard(dispatcher, shard),
                poll=poll,
                clock=clock,
                sink=sink,
            )
            for shard in sorted(shards)
        ]
        keepers = [
            Upkeep(
                line,
                every=upkeep,
                measure_every=measure,
                park_after=park_after,
                keep_done=keep_done,
                ring=dispatcher.ring,
                carried=transport is not None,
                clock=clock,
                sink=sink,
            )
            for line in lines
        ]
        parts: list[Service] = [heart, *listeners, *keepers, dispatcher]
        if transport is not None:
            parts = self._carried(transport, lines, parts, lease=lease, poll=poll, clock=clock, sink=sink)
        self._group = Group(name, parts, sink=sink)

    def _carried(
        self,
        transport: Transport,
        lines: Sequence[Line],
        parts: Sequence[Service],
        *,
        lease: float,
        poll: float,
        clock: Clock,
        sink: Sink,
    ) -> list[Service]:
        """`parts` with what takes jobs to the transport and from it; the receiver stops first."""
        from springtide.jobs._carrier import Carrier
        from springtide.jobs._receive import Receiver
        from springtide.jobs._relay import Relay

        dispatcher = self._dispatcher
        carrier = Carrier(transport, changed=dispatcher.carry, clock=clock, sink=sink)
        relay = Relay(
            lines,
            carrier,
            poll=poll,
            sent=dispatcher.took,
            recalled=dispatcher.ring,
            clock=clock,
            sink=sink,
        )
        receiver = Receiver(lines, carrier, dispatcher, lease=lease, took=relay.took, clock=clock, sink=sink)
        dispatcher.relay = relay.ring
        return [carrier, relay, *parts, receiver]

    @property
    def state(self) -> str:
        return self._group.state

    @property
    def running(self) -> int:
        """How many jobs run now."""
        return self._dispatcher.running

    async def start(self) -> None:
        await self._group.start()

    async def retire(self) -> None:
        """Claim no more, and return when all that ran has ended, however long it took; then `stop`."""
        await self._dispatcher.retire()

    async def stop(self) -> None:
        """Claim no more, let running jobs finish within `drain`, hand the rest back."""
        await self._group.stop()


def _heard(dispatcher: Dispatcher, shard: str) -> Any:
    return lambda schema: dispatcher.ring(shard, schema)
