"""Who may answer which read, decided from looks: for any order of looks, crashes, promotions and clocks."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.context import DOUBT, Position
from springtide.db._looking import Look, Run, read_look, witness_of
from springtide.db._replicas import (
    Health,
    PrimaryLog,
    RoutingSettings,
    State,
    eventual,
    fresh,
    of_session,
    reached,
    readable,
    two_choices,
)
from springtide.errors import ConfigurationError

SETTINGS = RoutingSettings(settle=5.0, recover=1.0, max_lag=10.0, max_lag_bytes=1000, slow_start=4.0)
RUN = Run(1, 0)

positions = st.builds(Position, st.integers(1, 3), st.integers(0, 20))


def look(
    lsn: int, *, epoch: int | None = 1, run: Run = RUN, recovering: bool = True, system: int = 7
) -> Look:
    return Look(
        run=run,
        system=system,
        database=5,
        recovering=recovering,
        timeline=epoch or 0,
        position=None if epoch is None else Position(epoch, lsn),
        replayed=lsn,
        received=lsn,
    )


class World:
    """One replica and its primary, at times that the test names."""

    def __init__(self, settings: RoutingSettings = SETTINGS) -> None:
        self.log = PrimaryLog()
        self.replica = Health("r", now=0.0, settings=settings)

    def primary(self, now: float, lsn: int, epoch: int = 1, run: Run | None = None) -> None:
        self.log.add(now, Position(epoch, lsn), run)

    def at(self, now: float, seen: Look | None) -> State:
        if seen is None:
            self.replica.missed(now)
        else:
            self.replica.heard(seen, now)
        self.replica.judge(now, self.log, 7)
        return self.replica.state

    def serve(self) -> float:
        """Bring the replica to serve; the time when it does."""
        self.primary(0.0, 100)
        for now in (0.1, 5.2):
            self.primary(now, 100)
            self.at(now, look(100))
        assert self.replica.state is State.SERVING
        return 5.2


# -- states --------------------------------------------------------------------------------------------


def test_a_replica_serves_when_all_know_it_and_it_has_what_the_primary_had_then() -> None:
    """Not before `settle`, and then not before the position that was seen after it."""
    world = World()
    world.primary(0.0, 100)
    assert world.at(0.1, look(100)) is State.JOINING
    world.primary(4.9, 100)
    assert world.at(4.9, look(100)) is State.JOINING
    world.primary(5.0, 200)
    assert world.at(5.1, look(150)) is State.JOINING
    world.primary(6.0, 300)
    assert world.at(6.2, look(199)) is State.JOINING
    assert world.at(6.3, look(200)) is State.SERVING


def test_an_old_position_is_forgotten_with_its_run() -> None:
    """A replica that was restarted has no position but the new one, and joins anew; without waiting for
    everybody to learn of it, because they have."""
    world = World()
    now = world.serve()
    before = world.replica.witness
    assert world.at(now + 1, look(40, run=Run(2, 0))) is State.JOINING
    assert world.replica.position == Position(1, 40) and world.replica.witness != before
    world.primary(now + 2, 100)
    assert world.at(now + 3, look(99, run=Run(2, 0))) is State.JOINING
    assert world.at(now + 3, look(100, run=Run(2, 0))) is State.SERVING


def test_a_crash_within_one_postmaster_is_another_run() -> None:
    """The start time stays and the memory goes: the statistics' reset tells."""
    world = World()
    now = world.serve()
    assert world.at(now + 1, look(40, run=Run(1, 9))) is State.JOINING
    assert world.replica.position == Position(1, 40)


def test_nobody_waits_for_what_a_crashed_primary_has_lost() -> None:
    """No replica ever gets what it had not flushed: nobody is behind that, who joins need not reach it."""
    for joining in (False, True):
        world = World()
        now = 5.2
        if joining:
            world.primary(0.0, 100)
            world.at(0.1, look(100))
        else:
            now = world.serve()
        world.primary(now, 500)
        world.at(now + 0.1, look(100))
        assert world.replica.lag_bytes == 400
        world.primary(now + 1, 200, run=Run(2, 0))
        world.at(now + 1.1, look(200))
        world.primary(now + 60, 200, run=Run(2, 0))
        assert world.at(now + 60.1, look(200)) is State.SERVING
        assert (world.replica.lag_bytes, world.replica.lag_seconds) == (0, 0.0)


def test_lag_has_hysteresis_and_an_idle_primary_is_none() -> None:
    """Out at the limit, back at half of it for a while; nothing written is nothing missed."""
    world = World()
    now = world.serve()
    for later in range(1, 100):
        world.primary(now + later, 100)
        assert world.at(now + later, look(100)) is State.SERVING
    assert world.replica.lag_seconds == 0.0
    now += 100
    world.primary(now, 200)
    assert world.at(now + 9.0, look(199)) is State.SERVING  # the primary was at 100 a second before `now`
    world.primary(now + 11, 200)
    assert world.at(now + 11, look(199)) is State.LAGGING
    world.primary(now + 12, 1400)
    assert world.at(now + 12, look(800)) is State.LAGGING  # 600 bytes: above half
    assert world.at(now + 12.1, look(1000)) is State.LAGGING
    assert world.at(now + 13.0, look(1000)) is State.LAGGING
    assert world.at(now + 13.2, look(1000)) is State.SERVING


def test_who_does_not_answer_or_is_none_of_ours_is_ejected() -> None:
    """Silence, another system, another timeline, a primary; each is back as soon as it is not so any more."""
    for wrong in (None, look(100, system=8), look(100, epoch=2), look(100, epoch=None, run=Run(2, 0)),
                  look(100, recovering=False)):  # fmt: skip
        world = World()
        now = world.serve()
        assert world.at(now + 1, wrong) is State.EJECTED
        assert world.replica.reason
    world = World()
    now = world.serve()
    world.at(now + 1, None)
    assert world.at(now + 2, look(100)) is State.JOINING
    assert world.at(now + 2.5, look(100)) is State.JOINING
    assert world.at(now + 3.1, look(100)) is State.SERVING


def test_a_new_share_grows() -> None:
    """A replica that begins to serve is not buried in reads at once."""
    world = World()
    now = world.serve()
    assert world.replica.share == pytest.approx(0.1)
    world.at(now + 2, look(100))
    assert world.replica.share == pytest.approx(0.5)
    world.at(now + 9, look(100))
    assert world.replica.share == 1.0


def test_a_minimum_is_read_from_although_it_lags_but_not_when_it_lags_beyond_use() -> None:
    """Else one slow moment would put everything on the primary; what a token forgets must have been seen."""
    one, two = Health("a", now=0.0, settings=SETTINGS), Health("b", now=0.0, settings=SETTINGS)
    for health, lag in ((one, 12.0), (two, 11.0)):
        health.state, health.lag_seconds, health.lag_bytes = State.LAGGING, lag, 1
    assert readable([one, two], 0.0, SETTINGS) == (two,)
    two.lag_seconds = 31.0
    assert readable([one, two], 0.0, SETTINGS) == (one,)
    one.state = State.SERVING
    assert readable([one, two], 0.0, SETTINGS) == (one,)
    assert readable([one, two], 31.0, SETTINGS) == ()  # nobody has seen the primary for so long
    assert readable([one, two], 0.0, replace(SETTINGS, min_serving=0)) == (one,)
    one.weight = 0.0
    assert readable([one, two], 0.0, SETTINGS) == ()


# -- what a position proves ----------------------------------------------------------------------------


@given(positions, positions)
def test_a_position_is_reached_on_its_own_timeline_alone(have: Position, need: Position) -> None:
    """By number another timeline may be further; it is another history."""
    assert reached(have, need) == (have.epoch == need.epoch and have.lsn >= need.lsn)
    assert reached(have, None) and not reached(None, need)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 30)), min_size=1), st.integers(0, 40))
def test_what_is_proven_fresh_has_all_that_was_committed_by_then(
    steps: list[tuple[float, int]], have: int
) -> None:
    """proven(P) = t only if the primary, when last seen at a position <= P, was seen at t: so whoever has P
    has every commit from before t."""
    log, now, lsn = PrimaryLog(), 0.0, 0
    history: list[tuple[float, int]] = []
    for pause, written in steps:
        now, lsn = now + pause, lsn + written
        log.add(now, Position(1, lsn))
        history.append((now, lsn))
    proven = log.proven(Position(1, have))
    within = [moment for moment, position in history if position <= have]
    assert proven == (max(within) if within else None)
    assert log.proven(Position(2, have)) is None and log.proven(None) is None


def test_the_log_is_bounded_and_forgets_the_oldest() -> None:
    log = PrimaryLog()
    for number in range(5000):
        log.add(float(number), Position(1, number))
    assert log.proven(Position(1, 4990)) == 4990.0
    assert log.proven(Position(1, 0)) is None


def test_a_new_timeline_begins_the_log_anew_and_an_old_one_is_nothing() -> None:
    log = PrimaryLog()
    log.add(1.0, Position(1, 100))
    log.add(2.0, Position(2, 50))
    log.add(3.0, Position(1, 900))
    assert log.latest == Position(2, 50)
    assert log.proven(Position(1, 900)) is None and log.proven(Position(2, 60)) == 2.0


# -- choosing ------------------------------------------------------------------------------------------


@st.composite
def healths(draw: st.DrawFn) -> Health:
    made = Health(
        draw(st.sampled_from("abcd")),
        now=0.0,
        zone=draw(st.sampled_from(["local", "far"])),
        settings=SETTINGS,
    )
    made.state = State.SERVING
    made.position = draw(st.none() | positions)
    made.witness = draw(st.sampled_from(["a" * 12, "b" * 12]))
    made.proven_at = draw(st.none() | st.floats(0, 10))
    made.share = draw(st.sampled_from([0.1, 1.0, 3.0]))
    made.in_flight = draw(st.integers(0, 5))
    return made


@given(
    st.lists(healths(), max_size=4),
    st.none() | positions,
    st.sampled_from([None, "a" * 12, "b" * 12, DOUBT]),
)
def test_a_session_is_answered_only_by_who_has_all_it_has_seen(
    replicas: list[Health], need: Position | None, witness: str | None
) -> None:
    """Its position is reached; and what it saw beyond that it saw there."""
    able, why = of_session(replicas, need, witness)
    assert bool(able) == (why == "")
    for one in able:
        assert reached(one.position, need) and witness in (None, one.witness)
    if not able:
        assert not any(reached(one.position, need) and witness in (None, one.witness) for one in replicas)


@given(st.lists(healths(), max_size=4), st.floats(0.1, 10), st.floats(10, 20))
def test_bounded_is_answered_only_by_who_proves_it(
    replicas: list[Health], staleness: float, now: float
) -> None:
    for one in replicas:
        there = one in fresh(replicas, staleness, now)
        assert there == (one.proven_at is not None and now - one.proven_at <= staleness)


@given(st.lists(healths(), max_size=4), st.integers())
def test_the_less_busy_of_two_from_the_own_zone(replicas: list[Health], seed: int) -> None:
    """Somebody whenever there is somebody; of another zone only when there is none of this; never the one
    that is busier for its share than every other."""
    chosen = two_choices(replicas, "local", random.Random(seed))
    assert (chosen is None) == (not replicas)
    if chosen is None:
        return
    near = [one for one in replicas if one.zone == "local"] or replicas
    assert chosen in near
    busy = chosen.in_flight / chosen.share
    assert len(near) == 1 or any(busy <= one.in_flight / one.share for one in near if one is not chosen)


def test_shares_are_kept_while_nobody_is_busy() -> None:
    """Idle replicas are drawn by their shares, not always the larger one."""
    one, two = Health("a", now=0.0, settings=SETTINGS), Health("b", now=0.0, settings=SETTINGS)
    one.share, two.share = 3.0, 1.0
    draw = random.Random(1)
    count = sum(two_choices([one, two], "local", draw) is one for _ in range(4000))
    assert 2800 < count < 3200


def test_eventual_takes_whoever_answers() -> None:
    one, two = Health("a", now=0.0, settings=SETTINGS), Health("b", now=0.0, settings=SETTINGS)
    two.heard(look(5), 1.0)
    assert eventual([one, two]) == [two]
    one.state = State.SERVING
    assert eventual([one, two]) == [one]


# -- looks ---------------------------------------------------------------------------------------------


def row(**changes: object) -> dict[str, object]:
    standby = {
        "recovering": True, "waits": True, "system": 7, "database": 5, "started": 1, "reset": 2,
        "segment": 16 * 2**20, "page": 8192, "timeline": 3, "lsn": "0/5000", "received": "0/6000",
        "kept_timeline": None, "kept": None,
    }  # fmt: skip
    return {**standby, **changes}


def test_the_timeline_of_a_standby_is_the_one_it_receives_or_has_kept() -> None:
    """Without a receiver: what its control file guarantees, and never more than it has replayed."""
    assert read_look(row()).position == Position(3, 0x5000)
    alone = row(timeline=None, kept_timeline=2, kept="0/4000")
    assert read_look(alone).position == Position(2, 0x4000)
    assert read_look({**alone, "kept": "0/9000"}).position == Position(2, 0x5000)
    assert read_look(row(timeline=None)).position is None
    assert read_look(row(timeline=None, kept_timeline=0, kept="0/0")).position is None


def test_a_primarys_position_is_one_that_replay_reaches() -> None:
    """Behind the header of an empty page, and of an empty segment, whatever the size of a segment."""
    assert read_look(row(recovering=False, lsn="0/6018")).position == Position(3, 0x6000)
    small = read_look(row(recovering=False, lsn="0/100028", segment=2**20))
    assert small.position == Position(3, 0x100000)


def test_a_witness_names_one_run_of_one_server() -> None:
    names = {witness_of(node, run) for node in "ab" for run in (Run(1, 0), Run(2, 0), Run(1, 1))}
    assert len(names) == 6 and all(len(name) == 12 for name in names)


@pytest.mark.parametrize(
    ("name", "value"),
    [("look_every", 0), ("look_timeout", -1), ("max_lag", 0), ("settle", -1), ("min_serving", -1)],
)
def test_settings_that_cannot_work_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=name):
        RoutingSettings(**{name: value})  # type: ignore[arg-type]  # one of them is an int
