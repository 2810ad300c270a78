"""Planned send times: in order, in their phase, at the rate, and the same for the same seed."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.ops.load.arrivals import DISTRIBUTIONS, PHASES, Phase, expected, phases, plan

rates = st.floats(min_value=0, max_value=200)
parts = st.builds(
    Phase,
    name=st.just("p"),
    duration=st.floats(min_value=0.01, max_value=5),
    start_rate=rates,
    end_rate=rates,
)
plans = st.lists(parts, min_size=1, max_size=4)
kinds = st.sampled_from(DISTRIBUTIONS)


@given(plans, kinds, st.integers(0, 5))
def test_arrivals_are_in_order_and_inside_their_phase(made: list[Phase], kind: str, seed: int) -> None:
    ends = list(itertools.accumulate(phase.duration for phase in made))
    before = 0.0
    for number, arrival in enumerate(plan(made, seed=seed, distribution=kind)):
        assert arrival.number == number
        assert arrival.at >= before
        assert ends[arrival.phase] - made[arrival.phase].duration - 1e-9 <= arrival.at
        assert arrival.at <= ends[arrival.phase] + 1e-9
        before = arrival.at


@given(plans, kinds, st.integers(0, 5), st.integers(1, 4))
def test_processes_share_one_plan_whatever_their_number(
    made: list[Phase], kind: str, seed: int, count: int
) -> None:
    whole = list(plan(made, seed=seed, distribution=kind))
    shared = [
        arrival
        for part in range(count)
        for arrival in plan(made, seed=seed, distribution=kind, part=part, parts=count)
    ]
    assert sorted(shared) == whole


@given(plans)
def test_uniform_arrivals_are_as_many_as_the_rates_say(made: list[Phase]) -> None:
    assert abs(len(list(plan(made, distribution="uniform"))) - expected(made)) <= 0.5 + 1e-6


@given(st.floats(0.1, 10), rates, rates, st.floats(0, 1))
def test_the_inverse_of_the_cumulative_rate_is_one(duration: float, a: float, b: float, share: float) -> None:
    phase = Phase(name="p", duration=duration, start_rate=a, end_rate=b)
    target = share * phase.expected
    t = phase.when(target)
    assert 0 <= t <= duration
    assert a * t + (b - a) * t * t / (2 * duration) == pytest.approx(target, abs=1e-6 * (1 + a + b))


def test_poisson_counts_and_gaps_have_the_moments_of_a_poisson_process() -> None:
    made = [Phase(name="steady", duration=200, start_rate=100, end_rate=100)]
    times = [arrival.at for arrival in plan(made, seed=3)]
    assert abs(len(times) - 20_000) < 5 * math.sqrt(20_000)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation / mean == pytest.approx(1.0, abs=0.05)  # exponential: deviation equals mean


def test_the_same_seed_gives_the_same_times_and_another_one_others() -> None:
    made = phases(PHASES, rate=50, duration=10)
    assert list(plan(made, seed=7)) == list(plan(made, seed=7))
    assert list(plan(made, seed=7)) != list(plan(made, seed=8))


def test_the_usual_phases_ramp_up_hold_and_peak() -> None:
    ramp, steady, peak = phases(PHASES, rate=50, duration=30, peak=3)
    assert (ramp.start_rate, ramp.end_rate) == (0, 50)
    assert (steady.start_rate, steady.end_rate) == (50, 50)
    assert (peak.start_rate, peak.end_rate) == (150, 150)
    assert ramp.duration + steady.duration + peak.duration == pytest.approx(30)
    assert [phase.duration for phase in phases(["peak"], rate=1, duration=9)] == [9]


def test_a_limit_bounds_the_whole_plan() -> None:
    made = phases(["steady"], rate=100, duration=10)
    shares = [list(plan(made, limit=10, part=part, parts=3)) for part in range(3)]
    assert sum(map(len, shares)) == 10


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["quiet"], {}, "'quiet'"),
        ([], {}, "at least one phase"),
        (["peak", "peak"], {}, "peak,peak"),
        (["ramp"], {"rate": 0}, "got 0"),
        (["ramp"], {"duration": -1}, "got -1"),
        (["ramp"], {"peak": 0.5}, r"got 0\.5"),
    ],
)
def test_impossible_phases_are_refused_with_their_value(
    names: list[str], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        phases(names, **{"rate": 1.0, "duration": 1.0, **options})


def test_impossible_plans_are_refused_with_their_value() -> None:
    with pytest.raises(ValueError, match="'bursty'"):
        plan([], distribution="bursty")
    with pytest.raises(ValueError, match="got 2 of 2"):
        plan([], part=2, parts=2)
    with pytest.raises(ValueError, match="got nan"):
        Phase(name="p", duration=1, start_rate=math.nan, end_rate=1)
