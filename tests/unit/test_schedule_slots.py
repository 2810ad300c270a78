"""Schedules without a database: where slots lie when clocks change, what is caught up on, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.errors import JobError, ModuleError
from springtide.jobs import Handler, Run, Schedule, job
from springtide.jobs._slots import COUNTED, MOST, Cron, Every, Timing, due
from springtide.services import Module

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")


@job(kind="office.report")
class Report(msgspec.Struct, frozen=True):
    day: str = ""


class Office:
    async def report(self, report: Report, run: Run) -> None:
        """Nobody reads it."""


def local(timing: Cron, begin: str, count: int) -> list[str]:
    """The first slots after `begin`, a local time, as clocks on the wall show them."""
    moment, found = datetime.fromisoformat(begin).replace(tzinfo=timing.zone).astimezone(UTC), []
    for _ in range(count):
        moment = timing.after(moment)
        found.append(f"{moment.astimezone(timing.zone):%d %H:%M %Z}")
    return found


@pytest.mark.parametrize(
    ("zone", "eve", "line", "slots"),
    [
        # 29 March 2026: 01:59 CET, 03:00 CEST
        (BERLIN, "2026-03-28 12:00", "30 2 * * *", ["29 03:00 CEST", "30 02:30 CEST"]),
        (BERLIN, "2026-03-28 12:00", "15,45 2 * * *", ["29 03:00 CEST", "30 02:15 CEST"]),
        (BERLIN, "2026-03-29 00:30", "0 * * * *", ["29 01:00 CET", "29 03:00 CEST", "29 04:00 CEST"]),
        (BERLIN, "2026-03-29 01:20", "*/30 * * * *", ["29 01:30 CET", "29 03:00 CEST", "29 03:30 CEST"]),
        # 25 October 2026: 02:59 CEST, 02:00 CET
        (BERLIN, "2026-10-24 12:00", "30 2 * * *", ["25 02:30 CEST", "26 02:30 CET"]),
        (BERLIN, "2026-10-25 01:30", "0 * * * *", ["25 02:00 CEST", "25 02:00 CET", "25 03:00 CET"]),
        (BERLIN, "2026-10-25 02:10", "*/30 * * * *", ["25 02:30 CEST", "25 02:00 CET", "25 02:30 CET"]),
        # 8 March 2026: 01:59 EST, 03:00 EDT
        (NEW_YORK, "2026-03-07 12:00", "30 2 * * *", ["08 03:00 EDT", "09 02:30 EDT"]),
        (NEW_YORK, "2026-03-08 01:00", "*/30 * * * *", ["08 01:30 EST", "08 03:00 EDT", "08 03:30 EDT"]),
        # 1 November 2026: 01:59 EDT, 01:00 EST
        (NEW_YORK, "2026-10-31 12:00", "30 1 * * *", ["01 01:30 EDT", "02 01:30 EST"]),
        (NEW_YORK, "2026-11-01 00:30", "0 * * * *", ["01 01:00 EDT", "01 01:00 EST", "01 02:00 EST"]),
    ],
)
def test_a_day_on_which_clocks_change(zone: ZoneInfo, eve: str, line: str, slots: list[str]) -> None:
    """A fixed time comes once, whether the day has it twice or not at all; each hour is each real hour."""
    assert local(Cron(line, zone), eve, len(slots)) == slots


def test_the_second_of_two_equal_hours_brings_no_slot_of_the_first_again() -> None:
    second = datetime(2026, 10, 25, 2, 10, tzinfo=BERLIN, fold=1)
    found = Cron("30 2 * * *", BERLIN).after(second.astimezone(UTC))
    assert found == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


TIMINGS = st.one_of(
    st.builds(
        Cron,
        st.sampled_from(["*/7 * * * *", "30 2 * * *", "15,45 1-3 * * *", "0 0 1 * *", "0 */5 * * MON"]),
        st.sampled_from([BERLIN, NEW_YORK, UTC]),
    ),
    st.builds(
        Every,
        st.timedeltas(timedelta(seconds=1), timedelta(days=40)),
        st.timedeltas(timedelta(0), timedelta(days=1)),
    ),
)
MOMENTS = st.builds(
    lambda seconds: datetime(2025, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds),
    st.floats(0, 2 * 366 * 86_400),
)


@given(TIMINGS, MOMENTS, st.timedeltas(timedelta(0), timedelta(days=9)))
def test_slots_follow_each_other_however_they_are_asked_for(
    timing: Timing, moment: datetime, longer: timedelta
) -> None:
    """Asked from any moment between two slots, the next one is the same; so all processes agree."""
    first = timing.after(moment)
    second = timing.after(first)
    assert moment < first < second
    between = first + (second - first) * 0.999
    assert timing.after(max(first, min(between, first + longer))) == second


@given(TIMINGS, MOMENTS, st.timedeltas(timedelta(0), timedelta(days=60)))
def test_what_was_missed_is_what_would_have_come(timing: Timing, moment: datetime, outage: timedelta) -> None:
    """The newest of them, counted: exactly for intervals, up to a bound for cron lines."""
    first = timing.after(moment)
    until, walked, slot = first + outage, 0, first
    tail: list[datetime] = []
    while slot <= until and walked < 3 * COUNTED:
        tail.append(slot)
        walked, slot = walked + 1, timing.after(slot)
    found, count = timing.missed(first, until)
    if slot > until:
        assert found == tail[-MOST:]
        assert count == (walked if isinstance(timing, Every) else min(walked, COUNTED))
    assert len(found) <= MOST and all(a < b for a, b in pairwise(found)) and found[-1] <= until


def test_a_year_of_minutes_is_caught_up_on_at_once() -> None:
    """The newest hundred, without a walk over half a million."""
    until = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
    found, count = Cron("* * * * *", BERLIN).missed(until.replace(year=2025, second=0), until)
    assert (len(found), count) == (MOST, COUNTED)
    assert found[-1] == until.replace(second=0) and found[0] == found[-1] - timedelta(minutes=MOST - 1)


NOW = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
HOURLY = Cron("0 * * * *", UTC)
NOON = NOW.replace(second=0)


@pytest.mark.parametrize(
    ("catch_up", "late", "hours", "run", "skipped"),
    [
        ("one", 0, 0, [0], 0),
        ("one", 40, 5, [0], 5),
        ("none", 0, 0, [0], 0),
        ("none", 0, 5, [0], 5),
        ("none", 40, 0, [], 1),
        ("none", 40, 5, [], 6),
        ("all", 40, 2, [2, 1, 0], 0),
        ("all", 0, 150, [*range(99, -1, -1)], 51),
    ],
)
def test_what_is_caught_up_on(catch_up: str, late: int, hours: int, run: list[int], skipped: int) -> None:
    """Looked at `late` seconds after the minute and `hours` after the first slot missed."""
    now = NOW + timedelta(seconds=late)
    found = due(HOURLY, catch_up, NOON - timedelta(hours=hours), now)
    assert found.run == [NOON - timedelta(hours=back) for back in run]
    assert (found.skipped, found.next) == (skipped, NOON + timedelta(hours=1))


def test_a_slot_of_old_times_is_run_and_new_times_begin_now() -> None:
    odd = NOON - timedelta(minutes=7)
    found = due(HOURLY, "all", odd, NOW, changed=True)
    assert (found.run, found.skipped, found.next) == ([odd], 0, NOON + timedelta(hours=1))


def _of_slot(slot: datetime) -> Report:
    return Report(f"{slot:%Y-%m-%d}")


def _broken(slot: datetime) -> Report:
    raise ValueError("no day")


class Maker:
    def __call__(self, slot: datetime) -> Report:
        return _of_slot(slot)


class NoJob(msgspec.Struct, frozen=True):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule("Nightly", Report(), every=60), "name must be lower-case .* got 'Nightly'"),
        (lambda: Schedule("n", Report()), "either cron or every, got None and None"),
        (lambda: Schedule("n", Report(), cron="* * * * *", every=5), "either cron or every"),
        (lambda: Schedule("n", Report(), every=0.5), "every must be >= 1 second .* got 0.5"),
        (lambda: Schedule("n", Report(), every=float("nan")), "every must be >= 1 second .* got nan"),
        (lambda: Schedule("n", Report(), every=60, tz="Europe/Berlin"), "tz is for cron"),
        (lambda: Schedule("n", Report(), cron="* * * *"), "five fields .* got '[*] [*] [*] [*]'"),
        (lambda: Schedule("n", Report(), cron="0 0 * * * *"), "five fields"),
        (
            lambda: Schedule("n", Report(), cron="61 * * * *"),
            "'61 [*] [*] [*] [*]' cannot be read: Bad minute",
        ),
        (lambda: Schedule("n", Report(), cron="0 0 31 2 *"), "cannot be read: Bad day-of-month"),
        (
            lambda: Schedule("n", Report(), cron="* * * * *", tz="Europe/Berln"),
            "tz must .* got 'Europe/Berln'",
        ),
        (lambda: Schedule("n", Report(), cron="* * * * *", tz="../etc"), "tz must .* got '../etc'"),
        (lambda: Schedule("n", Report(), cron="* * * * *", tz="Europe"), "tz must .* got 'Europe'"),
        (lambda: Schedule("n", Report(), every=60, catch_up="two"), "one of one, none, all, got 'two'"),  # type: ignore[arg-type]
        (lambda: Schedule("n", Report(), every="5"), "'n': every must be >= 1 second .* got '5'"),  # type: ignore[arg-type]
        (lambda: Schedule("n", Report(), cron=5), "'n': cron must be a string, .* got 5"),  # type: ignore[arg-type]
        (lambda: Schedule("n", Report(), cron="* * * * *", tz=5), "'n': tz must .* got 5"),  # type: ignore[arg-type]
        (lambda: Schedule(5, Report(), every=60), "name must be lower-case .* got 5"),  # type: ignore[arg-type]
        (lambda: Schedule("n", NoJob(), every=60), "schedule 'n': NoJob is not declared as a job"),
        (lambda: Schedule("n", Report, every=60), "must be a value, such as Report"),
        (lambda: Schedule("n", partial(_of_slot), every=60), "'n': job must be .* a function with a name"),
        (lambda: Schedule("n", Maker(), every=60), "'n': job must be .* a function with a name"),
        (lambda: Schedule("n", _broken, every=60), "no job could be made of the slot .*no day"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_where_it_is_declared(
    make: Callable[[], Schedule], message: str
) -> None:
    """The message names the schedule or its name, the key, the value and the rule."""
    with pytest.raises(JobError, match=message):
        make()


def test_a_module_lists_schedules_of_its_own_jobs(tmp_path: Path) -> None:
    class Desk(Protocol):
        """Nothing."""

    def desk(schedules: list[Schedule], jobs: list[Handler[Any]]) -> Module:
        return Module(
            "desk", migrations=tmp_path, provides=Desk, factory=lambda _: None, jobs=jobs, schedules=schedules
        )

    takes = [Handler(Report, Office.report)]
    desk([Schedule("a", Report(), every=60), Schedule("b", _of_slot, every=60)], takes)
    with pytest.raises(ModuleError, match="schedule 'a' is declared twice"):
        desk([Schedule("a", Report(), every=60), Schedule("a", _of_slot, every=9)], takes)
    with pytest.raises(ModuleError, match=r"schedule 'a' enqueues office\.report/1, for which"):
        desk([Schedule("a", Report(), every=60)], [])


def test_the_same_declaration_has_the_same_name_in_every_process() -> None:
    """And another one when the times, the job or the policy differ."""
    same = [Schedule("a", Report("x"), cron="0  3 * * *", tz="UTC").spec for _ in range(2)]
    assert same[0] == same[1] == Schedule("a", Report("x"), cron="0 3 * * *").spec
    others = {
        Schedule("a", Report("x"), cron="0 4 * * *").spec,
        Schedule("a", Report("y"), cron="0 3 * * *").spec,
        Schedule("a", _of_slot, cron="0 3 * * *").spec,
        Schedule("a", Report("x"), cron="0 3 * * *", catch_up="all").spec,
        Schedule("a", Report("x"), cron="0 3 * * *", tz="Europe/Berlin").spec,
        Schedule("a", Report("x"), every=60).spec,
    }
    assert len(others | set(same)) == 7


def test_intervals_of_two_schedules_lie_apart() -> None:
    first, second = (Schedule(name, Report(), every=3600).timing("office") for name in ("a", "b"))
    assert first.after(NOW) != second.after(NOW)
    assert first.after(NOW) == Schedule("a", Report("z"), every=3600).timing("office").after(NOW)
