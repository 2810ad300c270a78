"""What counts the keys that are asked for most, judges hit rates and writes reports."""

from __future__ import annotations

import os
import random
import stat
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.cache._rates import LEAST_READS, WINDOW, HitRate
from springtide.cache._report import MAX_FILES, ClassReport, Report, merged, read_reports, write_report
from springtide.cache._stats import Stats
from springtide.cache.hot import HALF_LIFE, KEEP, MAX_TEXT, SAMPLES, Sketch, Tally

WEIGHTED = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=400)


def counted(notes: list[tuple[int, int]]) -> Counter[int]:
    true: Counter[int] = Counter()
    for key, weight in notes:
        true[key] += weight
    return true


@given(WEIGHTED, st.integers(1, 12))
def test_a_sketch_is_bounded_and_so_is_its_error(notes: list[tuple[int, int]], keep: int) -> None:
    """Whatever comes in whatever order: at most twice as many keys as it is to keep, no count too large, none
    too small by more than the total's part."""
    sketch = Sketch(keep)
    for key, weight in notes:
        sketch.note(key, weight)
        assert len(sketch) <= 2 * keep
    true = counted(notes)
    assert sketch.total == sum(true.values())
    found = dict(sketch.top(1000))
    for key, count in true.items():
        assert count - sketch.total / keep <= found.get(key, 0) <= count
    assert [count for _, count in sketch.top(5)] == sorted(found.values(), reverse=True)[:5]


def test_a_key_that_comes_back_after_each_pruning_is_not_lost_again_and_again() -> None:
    """What is taken from it is taken from those that stay, too; else the first ones would stay for ever."""
    sketch = Sketch(4)
    for key in "abcd":
        sketch.note(key, 100)
    for turn in range(50):
        sketch.note("x", 99)
        for number in range(8):
            sketch.note((turn, number))
    assert dict(sketch.top(9))["x"] >= 50 * 99 - sketch.total / 4


@given(WEIGHTED, WEIGHTED, st.integers(1, 12))
def test_two_sketches_added_are_as_good_as_one(
    first: list[tuple[int, int]], second: list[tuple[int, int]], keep: int
) -> None:
    """Added, they keep the bound on the error of all that both have seen."""
    sketches = []
    for notes in (first, second):
        sketches.append(Sketch(keep))
        for key, weight in notes:
            sketches[-1].note(key, weight)
    sum_, other = sketches
    sum_.add(other)
    true = counted(first + second)
    assert sum_.total == pytest.approx(sum(true.values()))
    found = dict(sum_.top(1000))
    for key, count in true.items():
        assert count - sum_.total / keep - 1e-6 <= found.get(key, 0) <= count + 1e-6


def test_what_was_asked_for_long_ago_counts_less() -> None:
    """Aged to half twice, a key has a quarter; what is next to nothing is forgotten."""
    sketch = Sketch()
    sketch.note("old", 8)
    sketch.note("rare", 0.02)
    sketch.age(0.5)
    sketch.age(0.25)
    sketch.note("new", 2)
    assert sketch.top(9) == [("new", 2.0), ("old", 1.0)]
    sketch.clear()
    assert (sketch.top(1), sketch.total) == ([], 0.0)


def hits(tally: Tally, keys: list[str], begin: int) -> int:
    """Hits in memory, as the hot path counts them; how many there are now."""
    for key in keys:
        begin += 1
        if begin >= tally.next_at:
            tally.sample(key, begin)
    return begin


def test_the_hot_key_is_found_in_samples_of_its_hits() -> None:
    """Of 200,000 hits a few thousand are looked at, before the first tick too; the key with a twentieth of
    them is found, one with a thousandth is not hot; its estimate is near, and its rhythm does not hide it.
    """
    tally, keys = Tally(), []
    for at in range(200_000):
        keys.append("hot" if at % 20 == 0 else "warm" if at % 1000 == 1 else f"cold{at % 7919}")
    done = hits(tally, keys[:100_000], 0)
    news = dict(tally.tick(done, 5.0, most=9))
    assert 2_500 < news["hot"] < 10_000
    done = hits(tally, keys[100_000:], done)
    assert tally.recent.total == pytest.approx(100_000, rel=0.2)
    news = dict(tally.tick(done, 5.0, most=9))
    assert 2_500 < news["hot"] < 10_000
    assert tally.hot == {"hot"}
    assert 0.02 < tally.shares(1)["hot"] < 0.1


def test_a_storm_costs_its_logarithm() -> None:
    """Before the first tick nothing is known of the traffic: of a million hits few are looked at."""
    tally, looked = Tally(), 0
    for hit in range(1, 1_000_001):
        if hit >= tally.next_at:
            tally.sample("a", hit)
            looked += 1
    assert SAMPLES < looked < 20 * SAMPLES
    assert tally.tick(1_000_000, 5.0, most=1)[0][1] == pytest.approx(1_000_000, rel=0.3)


def test_few_reads_make_nothing_hot_and_a_quiet_hour_cools_down() -> None:
    """A share alone is not enough; and who was hot is not for ever."""
    tally = Tally()
    hits(tally, ["a"] * 40, 0)
    tally.tick(40, 5.0, most=9)
    assert tally.hot == frozenset()
    hits(tally, ["a"] * 400, 40)
    tally.tick(440, 5.0, most=9)
    assert tally.hot == {"a"}
    tally.tick(440, 12 * HALF_LIFE, most=9)
    assert tally.hot == frozenset()


def test_every_hit_is_counted_again_when_the_traffic_has_gone() -> None:
    """A stride that was made for a storm does not outlast it by more than one tick."""
    tally = Tally()
    done = hits(tally, ["a"] * (SAMPLES * 100), 0)
    tally.tick(done, 5.0, most=9)
    done = hits(tally, ["a"] * 300, done)
    tally.tick(done, 5.0, most=9)
    before = tally.recent.total
    done = hits(tally, ["a"] * 300, done)
    tally.tick(done, 0.0, most=9)
    assert tally.recent.total - before >= 295


def test_keys_without_a_bound_are_not_counted() -> None:
    """A text that a user made long enough to fill memory is read like any other, and not remembered."""
    tally = Tally()
    tally.note("x" * (MAX_TEXT + 1))
    tally.note(("de", "x" * (MAX_TEXT + 1)))
    tally.note(("de", 7))
    assert tally.tick(0, 5.0, most=9) == [(("de", 7), 1.0)]
    rng = random.Random(1)
    for _ in range(20 * KEEP):
        tally.note(rng.random())
    tally.tick(0, 5.0, most=9)
    assert len(tally.recent) <= 2 * KEEP
    with pytest.raises(ValueError, match="keep must be >= 1"):
        Sketch(0)


def read(stats: Stats, *, l1: int = 0, misses: int = 0) -> Stats:
    stats.l1_hits += l1
    stats.misses += misses
    return stats


def test_a_hit_rate_is_judged_after_a_window_and_only_where_many_read() -> None:
    """Cold after a start is no alarm; a fall is told once, and so is the recovery; a class that few read says
    nothing."""
    stats, rate = Stats(), HitRate(0.8)
    assert not rate.look(read(stats, misses=1000), 0.0)
    assert not rate.look(read(stats, misses=1000), WINDOW / 2)
    assert (rate.low, rate.rate) == (False, None)
    assert rate.look(read(stats, l1=700, misses=300), WINDOW)
    assert rate.low and rate.rate == pytest.approx(700 / 2000)
    assert not rate.look(read(stats, misses=10), WINDOW + 1)
    assert not rate.look(stats, 3 * WINDOW)  # nobody reads: what was low stays so
    assert rate.low and rate.rate is None
    assert not rate.look(read(stats, l1=LEAST_READS - 1), 4 * WINDOW)
    assert rate.look(read(stats, l1=LEAST_READS), 5 * WINDOW)
    assert (rate.low, rate.rate) == (False, 1.0)
    with pytest.raises(ValueError, match="wanted must be between 0 and 1"):
        HitRate(1.5)


def report(node: str, *, hot: list[tuple[tuple[int | str, ...], float]], written: float = 1.0) -> Report:
    classes = {"user": ClassReport(counts={"l1_hits": 3}, hot=hot)}
    return Report(node=node, pid=1, since=0.0, written=written, classes=classes)


def test_reports_are_their_owner_s_replaced_whole_and_bounded(tmp_path: Path) -> None:
    """Readable by nobody else, one per process, the oldest ones go; what cannot be read is passed over; where
    no platform runs nothing is left."""
    folder = tmp_path / "run" / "cache"
    write_report(folder, report("app-1", hot=[]))
    assert not folder.exists()
    folder.parent.mkdir()
    for number in range(MAX_FILES + 5):
        write_report(folder, report(f"process-{number}", hot=[]))
        os.utime(folder / f"process-{number}.json", (number, number))
    write_report(folder, report("app-1", hot=[((7,), 2.0), (("de", 3), 1.0)]))
    write_report(folder, report("app-1", hot=[((7,), 4.0), (("de", 3), 1.0)]))
    assert stat.S_IMODE((folder / "app-1.json").stat().st_mode) == 0o600
    (folder / "broken.json").write_text("{")
    names = {one.node for one in read_reports(folder)}
    assert "app-1" in names and "process-0" not in names and len(names) == MAX_FILES
    write_report(folder, report("app-2", hot=[((7,), 1.0), ((8,), 9.0)]))
    sums = merged(one for one in read_reports(folder) if one.node.startswith("app"))
    assert sums == {"user": [((8,), 9.0), ((7,), 5.0), (("de", 3), 1.0)]}
