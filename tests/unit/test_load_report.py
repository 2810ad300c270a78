"""What the report says, and what it warns about; results of processes add up."""

from __future__ import annotations

import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.errors import ConfigurationError
from springtide.ops.load.commands import check_target
from springtide.ops.load.journeys import Client, Journey, Mix, World
from springtide.ops.load.progress import ProgressBar
from springtide.ops.load.report import summary, table, warnings
from springtide.ops.load.results import (
    MAX_ROUTES,
    OTHER,
    JourneyResult,
    PhaseResult,
    Results,
    parse_timing,
)


async def nothing(client: Client, rng: object, world: World) -> None:
    return None


def made(ok: int = 100, *, late: int = 0, unsent: int = 0, cpu: float = 0.1) -> Results:
    results = Results(url="http://127.0.0.1:1", seed=1, seconds=2.0, cpu=cpu)
    results.phases = [PhaseResult(name="steady", duration=2.0, rate=50.0, planned=ok, ok=ok, sent=ok)]
    results.journeys = {"read": JourneyResult(planned=ok + unsent, completed=ok, unsent=unsent, requests=ok)}
    route = results.route("GET /x")
    route.ok, route.late = ok, late
    for number in range(ok):
        route.latency.record(0.001 * (number + 1))
    route.timed, route.parts = ok, {"sql": 0.2, "cpu": 0.1}
    return results


def test_a_quiet_run_warns_of_nothing() -> None:
    assert warnings(made()) == []


@pytest.mark.parametrize(
    ("results", "word"),
    [
        (made(cpu=0.97), "97%"),
        (made(late=50), "begun late"),
        (made(unsent=3), "3 of 103"),
    ],
)
def test_what_makes_figures_doubtful_is_said(results: Results, word: str) -> None:
    (warning,) = warnings(results)
    assert word in warning
    assert warning in table(results)
    assert summary(results)["warnings"] == [warning]


def test_a_journey_that_declares_the_wrong_number_of_steps_is_named() -> None:
    results = made()
    results.journeys["read"].requests = 300
    (warning,) = warnings(results)
    assert "read declares 1" in warning and "3.00" in warning


def test_table_and_json_agree_and_name_where_the_time_went() -> None:
    results = made()
    text, values = table(results), summary(results)
    assert "GET /x" in text and "50.0" in text and "2.00 ms per request" in text
    assert values["server_ms_per_request"] == {"sql": 2.0, "cpu": 1.0}
    assert values["rate_ok"] == 50.0
    latency = values["latency_ms"]
    assert isinstance(latency, dict)
    assert latency["p50"] == pytest.approx(50, rel=0.005)
    msgspec.json.encode(values)


def test_results_of_processes_add_up() -> None:
    one, other = made(10, late=1), made(20, unsent=2)
    whole = Results.merged(
        [msgspec.json.decode(msgspec.json.encode(each), type=Results) for each in (one, other)]
    )
    assert (whole.ok, whole.late, whole.unsent, whole.processes) == (30, 1, 2, 2)
    assert whole.latency.count == 30
    assert whole.phases[0].ok == 30
    assert whole.routes["GET /x"].parts["sql"] == pytest.approx(0.4)


def test_routes_are_bounded_even_when_a_journey_forgets_the_template() -> None:
    results = Results(url="u", seed=1)
    for number in range(MAX_ROUTES + 50):
        results.route(f"GET /{number}").ok += 1
    assert len(results.routes) == MAX_ROUTES + 1
    assert results.routes[OTHER].ok == 50


def test_server_timing_is_read_as_the_standard_writes_it() -> None:
    assert parse_timing('sql;dur=3.5;desc="a query", cpu;desc=x;dur="2"') == [("sql", 0.0035), ("cpu", 0.002)]
    assert parse_timing("miss, total;dur=x, ;dur=1, ok;dur=1") == [("", 0.001), ("ok", 0.001)]


@given(st.text(max_size=40))
def test_no_server_timing_header_breaks_the_generator(header: str) -> None:
    parse_timing(header)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:80", "http://[::1]:8", "http://localhost", "http://127.9.9.9"]
)
def test_this_machine_needs_no_permission(url: str) -> None:
    check_target(url, allowed=False)


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1", "http://example.com", "http://localhost.example.com", "http://127.0.0.1@evil.test"],
)
def test_another_machine_is_refused_without_consent(url: str) -> None:
    with pytest.raises(ConfigurationError, match="--i-may-load-this-host"):
        check_target(url, allowed=False)
    check_target(url, allowed=True)


def test_journeys_are_chosen_by_weight() -> None:
    import random

    mix = Mix([Journey("often", 9, nothing, steps=2), Journey("rarely", 1, nothing, steps=12)])
    assert mix.steps == pytest.approx(3)
    rng = random.Random(1)
    often = sum(mix.choose(rng).name == "often" for _ in range(10_000))
    assert 8_800 < often < 9_200


def test_impossible_journeys_are_refused() -> None:
    for wrong in ({"weight": 0}, {"steps": 0}, {"name": ""}):
        with pytest.raises(ValueError, match=r"got 0|needs a name"):
            Journey(**{"name": "x", "weight": 1, "run": nothing, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="different names"):
        Mix([Journey("x", 1, nothing), Journey("x", 1, nothing)])
    with pytest.raises(ValueError, match="at least one"):
        Mix([])


def test_the_world_says_what_is_missing() -> None:
    world = World(seed=1)
    with pytest.raises(LookupError, match="int"):
        world.get(int)
    world.put(5)
    assert world.get(int) == 5


def test_progress_shows_rate_and_time_left() -> None:
    now = [0.0]
    stream = io.StringIO()
    bar = ProgressBar(stream, total=1000, interval=1.0, now=lambda: now[0])
    now[0] = 0.5
    bar.advance("users", 100)
    assert stream.getvalue() == ""
    now[0] = 1.5
    bar.advance("users", 100)
    line = stream.getvalue()
    assert "20.0%" in line and "200 of about 1,000 rows" in line and "100/s" in line and "8 s left" in line


def test_the_time_before_the_first_rows_does_not_count_as_slow() -> None:
    """Connecting and planning take their time once; what has no rate yet has no time left either."""
    now = [0.0]
    stream = io.StringIO()
    bar = ProgressBar(stream, total=1000, interval=1.0, now=lambda: now[0])
    now[0] = 60.0
    bar.advance("users", 100)
    assert "100 of about 1,000 rows" in stream.getvalue() and "left" not in stream.getvalue()
    now[0] = 62.0
    bar.advance("users", 100)
    assert "50/s  16 s left" in stream.getvalue()
