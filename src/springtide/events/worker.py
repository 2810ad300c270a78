"""Number the events of all modules of this process, on all their shards, and handle them for groups.

A worker is made of listeners (wake-up), upkeep per log (days, measurements) and one dispatcher (numbering,
lanes, drain). They start in that order and stop in reverse.

Invariants: at most `slots` lanes are in hand at once. A lane of a group is in the hands of at most one turn
that can move it. No event is passed but by a handler that succeeded, as a kind that the group does not want,
or as a dead letter that is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from springtide.clock import Clock, SystemClock
from springtide.db import Database
from springtide.errors import EventError
from springtide.events._dispatch import Dispatcher, Line
from springtide.events._log import Log
from springtide.events._route import Route
from springtide.events._upkeep import Upkeep
from springtide.events.group import Group
from springtide.lifecycle import Group as Services
from springtide.lifecycle import Service
from springtide.outbox.kinds import check_counts, check_seconds, is_number
from springtide.outbox.listener import Listener
from springtide.signals import NullSink, Sink

__all__ = ["EventWorker", "Subscription"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A group at work: whose events, and the implementation given to its handlers.

    log:     the database whose events it reads.
    effects: the database that transactional handlers write to; None means `log`.
    """

    group: Group
    log: Database
    implementation: Any
    effects: Database | None = None


class EventWorker:
    """A lifecycle service; `stop` drains. It starts whether its databases answer or not.

    logs:         databases whose events are numbered, besides those of `subscriptions`.
    dsns:         address of each shard's server, for the connections that hear the bell; asked anew for each
                  of them, so that they follow a primary.
    slots:        lanes at once; each may need a connection of the pools, so keep it below their size.
    poll:         seconds between looks at a log without events (jittered), whatever the bell says.
    keep:         seconds that events are kept at least; a day of them goes as a whole, once all groups have
                  passed it.
    keep_at_most: seconds after which a day goes whether groups have passed it or not; None: never.
    upkeep:       seconds between looks at what else there is to do (jittered).
    measure:      seconds between measurements of lag.
    drain:        seconds that calls under way have when the worker stops.
    name:         of this worker, for people.

    Raises EventError for groups that cannot work together, and options that make no sense.
    """

    def __init__(
        self,
        subscriptions: Sequence[Subscription],
        *,
        dsns: Mapping[str, str],
        logs: Sequence[Database] = (),
        slots: int = 10,
        poll: float = 1.0,
        keep: float = 7 * 86_400.0,
        keep_at_most: float | None = None,
        upkeep: float = 5.0,
        measure: float = 15.0,
        drain: float = 20.0,
        name: str = "events",
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        check_counts(name, EventError, slots=slots)
        check_seconds(name, EventError, poll=poll, upkeep=upkeep, measure=measure)
        for option, seconds in (("drain", drain), ("keep", keep)):
            if not (is_number(seconds) and seconds >= 0):
                raise EventError(f"{name}: {option} must be >= 0 seconds, got {seconds!r}")
        if keep_at_most is not None and not (is_number(keep_at_most) and keep_at_most >= keep):
            raise EventError(
                f"{name}: keep_at_most must be None or seconds >= keep, got {keep_at_most!r} and {keep}"
            )
        databases = list(dict.fromkeys([*logs, *(one.log for one in subscriptions)]))
        shards = {shard for database in databases for shard in database.pools}
        if missing := sorted(shards - set(dsns)):
            raise EventError(f"a worker needs the address of each shard, none for {', '.join(missing)}")
        self.name = name
        clock, sink = clock or SystemClock(), sink or NullSink()
        lines = [
            _line(database, shard, subscriptions, clock) for database in databases for shard in database.pools
        ]
        self._dispatcher = dispatcher = Dispatcher(
            lines, slots=slots, poll=poll, drain=drain, label=name, clock=clock, sink=sink
        )
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
                line.log,
                line.groups,
                keep=keep,
                keep_at_most=keep_at_most,
                every=upkeep,
                measure_every=measure,
                clock=clock,
                sink=sink,
            )
            for line in lines
        ]
        parts: list[Service] = [*listeners, *keepers, dispatcher]
        self._services = Services(name, parts, sink=sink)

    @property
    def state(self) -> str:
        return self._services.state

    @property
    def running(self) -> int:
        """How many lanes are in hand now."""
        return self._dispatcher.running

    async def start(self) -> None:
        await self._services.start()

    async def stop(self) -> None:
        """Claim no more, let calls under way finish within `drain`, leave the lanes to others."""
        await self._services.stop()


def _line(database: Database, shard: str, subscriptions: Sequence[Subscription], clock: Clock) -> Line:
    log, routes = Log(database, shard), dict[str, Route]()
    for one in subscriptions:
        if one.log is not database:
            continue
        name = one.group.name
        if name in routes:
            raise EventError(f"two groups of the log of {database.name!r} have the name {name}")
        routes[name] = Route(one.group, log, one.effects or database, one.implementation, clock=clock)
    return Line(log, routes)


def _heard(dispatcher: Dispatcher, shard: str) -> Callable[[str | None], None]:
    return lambda schema: dispatcher.ring(shard, schema)
