"""Decide which replica may answer a read, from what the servers of its cluster said.

    joining ──▶ serving ◀──▶ lagging          any ──▶ ejected ──▶ joining

    joining    it answers; it serves once every process has learnt of it (`settle`) and it has replayed what
               the primary had *then*: until then some process let sessions write without noting positions
    serving    it is read from, with a share that grows over `slow_start` seconds
    lagging    `max_lag` seconds or `max_lag_bytes` behind; back at half of both, for `recover` seconds
    ejected    it does not answer, is on another timeline than the primary, or no replica of ours at all

Lag in time: how long ago the primary was last seen at a position that the replica has. An idle primary is
seen there again with every look, so nothing that is missing is no lag. `bounded` is proven in the same way:
who has what the primary had at t0 is at most now - t0 behind.

A position is reached only on the same timeline, and holds only for the run that reported it. What a session
has seen beyond its position (its witness) only that very run is sure to have.

Two choices: of two replicas drawn by their shares, the one with fewer reads in flight for its share
(Mitzenmacher, "The power of two choices in randomized load balancing", 1996).

Pure: looks arrive as values, time as a number; nothing here does I/O.
"""

from __future__ import annotations

import enum
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from springtide.context import DOUBT, Position
from springtide.db._looking import Look, Run, witness_of
from springtide.errors import ConfigurationError

__all__ = [
    "Health",
    "PrimaryLog",
    "RoutingSettings",
    "State",
    "eventual",
    "fresh",
    "of_session",
    "two_choices",
]

LEAST_SHARE = 0.1
"""Of its weight, what a replica that has just begun to serve gets."""

LAST_RESORT = 3.0
"""Times `max_lag`: what lags more is not read from, however few the others are."""

LOOKS_KEPT = 1024
"""Positions of the primary that are remembered; a replica behind all of them has a lag that nobody knows."""


class State(enum.StrEnum):
    JOINING = "joining"
    SERVING = "serving"
    LAGGING = "lagging"
    EJECTED = "ejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSettings:
    """How replicas are watched and chosen; times in seconds.

    zone:         where this process is: replicas of the same zone are read first, others when there is none.
    settle:       from learning of a replica until every process of the platform has learnt of it.
    look_every:   pause between two looks at a server, jittered.
    look_timeout: a server that does not answer a look for so long is ejected.
    max_lag, max_lag_bytes: a replica further behind is left alone until it is back at half of them.
    recover:      how long it has to be well again before it serves.
    min_serving:  while fewer replicas serve, the least lagging ones are read from all the same.
    slow_start:   until a replica that begins to serve has its whole share.

    Raises ConfigurationError for what cannot work.
    """

    zone: str = "local"
    settle: float = 5.0
    look_every: float = 0.1
    look_timeout: float = 2.0
    max_lag: float = 10.0
    max_lag_bytes: int = 256 * 2**20
    recover: float = 1.0
    min_serving: int = 1
    slow_start: float = 5.0

    def __post_init__(self) -> None:
        for name in ("look_every", "look_timeout", "max_lag", "max_lag_bytes"):
            if not (value := getattr(self, name)) > 0:
                raise ConfigurationError(f"{name} must be > 0, got {value}")
        for name in ("settle", "recover", "min_serving", "slow_start"):
            if not (value := getattr(self, name)) >= 0:
                raise ConfigurationError(f"{name} must be >= 0, got {value}")

    @property
    def longest_lag(self) -> float:
        """Seconds behind at which nobody reads by position from a replica any more, however few there are."""
        return LAST_RESORT * self.max_lag


class PrimaryLog:
    """Where the primary was seen, and when: `latest` and, per position, the last moment it was there.

    A moment is when the look was *sent*: all that was committed before it lies before the position.
    """

    __slots__ = ("_lsns", "_moments", "_run", "epoch", "latest", "seen")

    def __init__(self) -> None:
        self._lsns: list[int] = []
        self._moments: list[float] = []
        self._run: Run | None = None
        self.epoch = 0
        self.latest: Position | None = None
        self.seen = -math.inf

    def add(self, sent: float, position: Position, run: Run | None = None) -> None:
        """Looks come in the order in which they were sent; one on an older timeline is nothing.

        Another `run` of the primary has lost what the last one had not flushed; no replica ever had that.
        """
        if position.epoch < self.epoch:
            return
        if position.epoch > self.epoch:
            self._lsns, self._moments = [], []
            self.epoch = position.epoch
        elif run != self._run:
            kept = bisect_right(self._lsns, position.lsn)
            del self._lsns[kept:], self._moments[kept:]
        self._run = run
        if self._lsns and position.lsn <= self._lsns[-1]:
            self._moments[-1] = sent  # nothing new
            position = Position(self.epoch, self._lsns[-1])
        else:
            self._lsns.append(position.lsn)
            self._moments.append(sent)
            if len(self._lsns) > LOOKS_KEPT:
                del self._lsns[: LOOKS_KEPT // 4], self._moments[: LOOKS_KEPT // 4]
        self.latest = position
        self.seen = sent

    def proven(self, position: Position | None) -> float | None:
        """The last moment of which `position` has all; None: nobody knows."""
        if position is None or position.epoch != self.epoch:
            return None
        place = bisect_right(self._lsns, position.lsn)
        return self._moments[place - 1] if place else None


def reached(position: Position | None, need: Position | None) -> bool:
    """Whether who is at `position` has all up to `need`. Another timeline is never reached, nor unknown."""
    if need is None:
        return True
    return position is not None and position[0] == need[0] and position[1] >= need[1]


class Health:
    """What is known of one replica: `heard` and `missed` take what a look brought, `judge` concludes."""

    __slots__ = (
        "_fine_since",
        "_heard_at",
        "_settings",
        "_well_at",
        "goal",
        "in_flight",
        "known_since",
        "lag_bytes",
        "lag_seconds",
        "missing_since",
        "node",
        "position",
        "proven_at",
        "reason",
        "run",
        "run_since",
        "share",
        "since",
        "standby",
        "state",
        "system",
        "weight",
        "witness",
        "zone",
    )

    def __init__(
        self, node: str, *, now: float, zone: str = "local", weight: float = 1.0, settings: RoutingSettings
    ) -> None:
        self.node = node
        self.zone = zone
        self.weight = weight
        self._settings = settings
        self.state = State.EJECTED
        self.reason = "not looked at yet"
        self.since = now
        self.known_since = now
        self.run: Run | None = None
        self.run_since = now
        self.witness = ""
        self.standby = False
        self.system: int | None = None
        self.position: Position | None = None
        self.goal: Position | None = None
        self.proven_at: float | None = None
        self.lag_bytes: int | None = None
        self.lag_seconds: float | None = None
        self.missing_since: float | None = now
        self._fine_since: float | None = None
        self.share = 0.0
        self.in_flight = 0

    @property
    def answers(self) -> bool:
        """Whether the last look was answered, by a standby."""
        return self.missing_since is None and self.standby

    def heard(self, look: Look, now: float) -> None:
        """`look` was answered; `now` is when."""
        if look.run != self.run:
            self.run = look.run
            self.run_since = now
            self.witness = witness_of(self.node, look.run)
            self.position = None
            self.goal = None
            if self.state is not State.EJECTED:
                self._enter(State.EJECTED, "it was restarted", now)
        self.missing_since = None
        self.standby = look.recovering
        self.system = look.system
        known, seen = self.position, look.position
        if seen is not None and (known is None or seen > known):
            self.position = seen

    def missed(self, now: float) -> None:
        """A look was not answered."""
        if self.missing_since is None:
            self.missing_since = now

    def judge(self, now: float, log: PrimaryLog, system: int | None) -> bool:
        """Bring state, lag and share up to date; whether the state changed."""
        before = self.state
        self._measure(now, log)
        unfit = self._unfit(log, system)
        if unfit is not None:
            if self.state is not State.EJECTED:
                self._enter(State.EJECTED, unfit, now)
            self.reason = unfit
        elif self.state is State.EJECTED:
            self._enter(State.JOINING, "it answers", now)
        if self.state is State.JOINING:
            self._join(now, log)
        elif self.state is State.SERVING and self._behind(1.0):
            self._enter(State.LAGGING, "it is too far behind", now)
        elif self.state is State.LAGGING:
            self._catch_up(now)
        ramp = self._settings.slow_start
        grown = 1.0 if not ramp else min(max((now - self.since) / ramp, LEAST_SHARE), 1.0)
        self.share = self.weight * (grown if self.state is State.SERVING else LEAST_SHARE)
        return self.state is not before

    def _measure(self, now: float, log: PrimaryLog) -> None:
        self.proven_at = log.proven(self.position)
        self.lag_bytes = self.lag_seconds = None
        if log.latest is None or self.position is None or self.position.epoch != log.epoch:
            return
        self.lag_bytes = max(log.latest.lsn - self.position.lsn, 0)
        if not self.lag_bytes:
            self.lag_seconds = 0.0
        elif self.proven_at is not None:
            self.lag_seconds = max(now - self.proven_at, 0.0)

    def _unfit(self, log: PrimaryLog, system: int | None) -> str | None:
        if self.missing_since is not None:
            return "it does not answer"
        if system is not None and self.system != system:
            return "it belongs to another cluster"
        if not self.standby:
            return "it is no standby"
        if log.epoch and (self.position is None or self.position.epoch != log.epoch):
            return "it is not on the primary's timeline"
        return None

    def _join(self, now: float, log: PrimaryLog) -> None:
        settled = max(self.known_since + self._settings.settle, self.run_since)
        lost = self.goal is not None and log.latest is not None and self.goal > log.latest
        if self.goal is None or self.goal.epoch != log.epoch or lost:
            self.goal = log.latest if log.latest is not None and log.seen >= settled else None
        if self.goal is None or not reached(self.position, self.goal):
            self.reason = "it has not replayed what the primary had when everybody had learnt of it"
        elif self._behind(0.5):
            self.reason = "it is too far behind"
        elif now - self.since >= self._settings.recover:
            self._enter(State.SERVING, "it has caught up", now)

    def _catch_up(self, now: float) -> None:
        if self._behind(0.5):
            self._fine_since = None
        elif self._fine_since is None:
            self._fine_since = now
        elif now - self._fine_since >= self._settings.recover:
            self._enter(State.SERVING, "it has caught up", now)

    def _behind(self, part: float) -> bool:
        """More than this part of the limits; a lag that nobody knows is more than any."""
        if self.lag_bytes is None or self.lag_seconds is None:
            return True
        limits = self._settings
        return self.lag_seconds > part * limits.max_lag or self.lag_bytes > part * limits.max_lag_bytes

    def _enter(self, state: State, reason: str, now: float) -> None:
        self.state, self.reason, self.since = state, reason, now
        self._fine_since = None


def readable(replicas: Sequence[Health], unseen: float, settings: RoutingSettings) -> tuple[Health, ...]:
    """Those that are read from: who serves, filled up with the least lagging to the minimum.

    `unseen` is how long ago the primary was seen; after too long, nobody knows how far they lag.
    """
    limit = settings.longest_lag
    if unseen > limit:
        return ()
    chosen = [one for one in replicas if one.state is State.SERVING and one.weight > 0]
    if len(chosen) < settings.min_serving:
        late = [
            one
            for one in replicas
            if one.state is State.LAGGING
            and one.weight > 0
            and one.lag_seconds is not None
            and one.lag_seconds <= limit
        ]
        late.sort(key=lambda one: (one.lag_seconds, one.lag_bytes))
        chosen += late[: settings.min_serving - len(chosen)]
    return tuple(chosen)


def near(candidates: Sequence[Health], zone: str) -> Sequence[Health]:
    """Those of this zone if there is one, else all."""
    return [one for one in candidates if one.zone == zone] or candidates


def two_choices(candidates: Sequence[Health], zone: str, draw: random.Random) -> Health | None:
    """One of `candidates`, of this zone if one is; None when there is none."""
    closest = near(candidates, zone)
    if len(closest) < 2:
        return closest[0] if closest else None
    shares = [one.share for one in closest]
    first, second = draw.choices(closest, shares, k=2) if sum(shares) else draw.choices(closest, k=2)
    if first is second:
        others = [one for one in closest if one is not first]
        second = draw.choice(others) if len(others) > 1 else others[0]
    busy, other = first.in_flight * second.share, second.in_flight * first.share
    return second if other < busy else first


def of_session(
    candidates: Sequence[Health], need: Position | None, witness: str | None
) -> tuple[list[Health], str]:
    """Those that have all a session has seen; and why there is none."""
    if not candidates:
        return [], "none serves"
    able = [one for one in candidates if reached(one.position, need)]
    if not able:
        return [], "behind"
    if witness is None:
        return able, ""
    if witness == DOUBT:
        return [], "unsure"
    able = [one for one in able if one.witness == witness]
    return able, "" if able else "unsure"


def fresh(candidates: Sequence[Health], staleness: float, now: float) -> list[Health]:
    """Those that are proven to be at most so many seconds behind."""
    return [one for one in candidates if one.proven_at is not None and now - one.proven_at <= staleness]


def eventual(replicas: Sequence[Health]) -> list[Health]:
    """Those that serve; else those that at least answer, whatever they have."""
    serving = [one for one in replicas if one.state is State.SERVING and one.weight > 0]
    return serving or [one for one in replicas if one.answers and one.weight > 0]
