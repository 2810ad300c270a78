"""How many workers the jobs need: bounded, monotone, and enough when the load is what was measured."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.errors import JobError
from springtide.jobs._loads import Spent, Tally
from springtide.jobs.scaling import ASSUMED, Bounds, Load, wanted

COUNTS = st.integers(0, 200_000)
RATES = st.floats(0, 1e5)
LOADS = st.builds(
    Load,
    st.just("deeds"),
    st.just("main"),
    st.sampled_from("abc"),
    COUNTS,
    st.integers(0, 500),
    RATES,
    st.none() | st.floats(0, 1e4),
)
BOUNDS = st.builds(
    lambda slots, least, more, drain: Bounds(slots, least=least, most=least + more, time_to_drain=drain),
    st.integers(1, 50), st.integers(1, 20), st.integers(0, 100), st.floats(0.1, 3600),
)  # fmt: skip


def load(**values: Any) -> Load:
    return replace(Load("deeds", "main", "deed.do", 0, 0, 0.0, 0.5), **values)


@given(st.lists(LOADS, max_size=5), BOUNDS)
def test_it_stays_within_the_bounds(loads: list[Load], bounds: Bounds) -> None:
    """Whatever was measured."""
    assert bounds.least <= wanted(loads, bounds).workers <= bounds.most


@given(st.lists(LOADS, max_size=5), BOUNDS, LOADS, COUNTS, st.floats(0, 1e4), st.floats(1, 10))
def test_more_work_never_asks_for_fewer(
    others: list[Load], bounds: Bounds, one: Load, waiting: int, arrival: float, slower: float
) -> None:
    """More that waits, more that comes, slower jobs, another kind, less time: as many workers or more."""
    before = wanted([*others, one], bounds).workers
    service = ASSUMED if one.service is None else one.service
    for more in (
        replace(one, waiting=one.waiting + waiting),
        replace(one, arrival=one.arrival + arrival),
        replace(one, running=one.running + waiting),
        replace(one, service=service * slower),
    ):
        assert wanted([*others, more], bounds).workers >= before
    assert wanted([*others, one, one], bounds).workers >= before
    hurried = replace(bounds, time_to_drain=bounds.time_to_drain / slower)
    assert wanted([*others, one], hurried).workers >= before


@given(st.lists(LOADS, max_size=5), BOUNDS)
def test_what_runs_keeps_its_room(loads: list[Load], bounds: Bounds) -> None:
    """Fewer workers than have room for the running jobs are wanted at the most allowed only."""
    found = wanted(loads, bounds)
    assert found.workers == bounds.most or found.workers * bounds.slots >= sum(one.running for one in loads)


def test_the_formula() -> None:
    """service * (arrival + waiting / time_to_drain), over the slots of a worker; a whole number of workers
    that just suffices is not one too few."""
    bounds = Bounds(10, most=100, time_to_drain=60.0)
    assert wanted([load(arrival=40.0)], bounds).workers == 2
    assert wanted([load(arrival=40.5)], bounds).workers == 3
    assert wanted([load(waiting=1200)], bounds).workers == 1
    assert wanted([load(waiting=6000)], bounds).workers == 5
    assert wanted([load(arrival=40.0, waiting=6000)], bounds).workers == 7
    assert wanted([], bounds).workers == 1


def test_a_kind_that_nobody_knows_is_taken_for_a_second() -> None:
    bounds = Bounds(1, most=100, time_to_drain=10.0)
    assert wanted([load(waiting=50, service=None)], bounds).slots == 50 * ASSUMED / 10.0


@pytest.mark.parametrize(
    "options, says",
    [
        ({"slots": 0}, "slots must be >= 1, got 0"),
        ({"slots": 1, "least": 0}, "least must be >= 1 and <= most, got 0 and 10"),
        ({"slots": 1, "least": 3, "most": 2}, "got 3 and 2"),
        ({"slots": 1, "time_to_drain": 0.0}, "time_to_drain must be > 0 seconds, got 0"),
    ],
)
def test_bounds_that_cannot_be_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError, match=says):
        Bounds(**options)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.sampled_from("rtd")), max_size=30))
def test_a_tally_tells_everything_once(runs: list[tuple[float, float, str]]) -> None:
    """Runs (r), runs that do not count (d), told in between (t): the sum of what was told is what was run."""
    tally, told, ran = Tally(), Spent(0, 0.0, None), Spent(0, 0.0, None)
    for begun, lasted, what in runs:
        if what == "t" and (spent := tally.spent(200.0)) is not None:
            tally.begin(begun)
            tally.end(begun, begun + lasted)  # between the reading and the answer
            ran = ran.also(Spent(1, lasted, None))
            tally.told(spent)
            told = told.also(spent)
        else:
            tally.begin(begun)
            tally.end(begun, begun + lasted, counts=what != "d")
            ran = ran.also(Spent(int(what != "d"), lasted * (what != "d"), None))
    if (spent := tally.spent(200.0)) is not None:
        told = told.also(spent)
    assert told.runs == ran.runs
    assert math.isclose(told.seconds, ran.seconds, abs_tol=1e-6)


def test_until_one_has_ended_those_that_run_tell() -> None:
    """How long they have had their slots, on average; once one has ended, only ends do."""
    tally = Tally()
    assert tally.spent(0.0) is None
    tally.begin(0.0)
    tally.begin(10.0)
    assert tally.spent(20.0) == Spent(0, 0.0, 15.0)
    tally.end(0.0, 30.0)
    spent = tally.spent(30.0)
    assert spent == Spent(1, 30.0, None)
    tally.told(spent)
    assert tally.spent(40.0) is None
