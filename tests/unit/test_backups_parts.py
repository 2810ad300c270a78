"""The pure parts of backups: names of the log, what may be removed, which backup reaches a moment."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from springtide.errors import ConfigurationError, RunnerError
from springtide.ops.runner.backups import keeping, wal
from springtide.ops.runner.backups.archiving import Archiving
from springtide.ops.runner.backups.choosing import choose
from springtide.ops.runner.backups.commands import moment
from springtide.ops.runner.backups.schedule import due
from springtide.ops.runner.backups.store import Backup, Store
from springtide.ops.runner.backups.wal import SEGMENT_BYTES, Branch, Segment

NUMBERS = st.integers(min_value=0, max_value=600)  # past 255, where the second part of a name counts on
TIMELINES = st.integers(min_value=1, max_value=3)


def backup(name: str = "b", *, ended: float = 0.0, begin: int = 0, timeline: int = 1) -> Backup:
    return Backup(
        name=name, cluster="main", system="1", major=18, timeline=timeline, begin=begin, end=begin + 100,
        began=ended, ended=ended, size_bytes=1,
    )  # fmt: skip


@given(st.builds(Segment, TIMELINES, st.integers(min_value=0, max_value=2**40 // SEGMENT_BYTES)))
def test_a_segment_is_named_as_postgresql_names_it(segment: Segment) -> None:
    """Name and number belong to each other; what is no complete segment is none."""
    assert Segment.named(segment.name) == segment
    assert Segment.named(f"{segment.name}.partial") is None
    assert Segment.named(f"{segment.name}.00000028.backup") is None
    assert Segment(1, 256).name == "000000010000000100000000" and Segment.named("00000002.history") is None


def test_positions_are_read_as_they_are_printed() -> None:
    for text in ("0/0", "0/3000028", "A/FF0000D8"):
        assert wal.printed(wal.position(text)) == text
    with pytest.raises(ValueError, match="0/3000028"):
        wal.position("3000028")


def test_a_history_file_tells_the_branches() -> None:
    """Each timeline's stretch begins where its parent's ended; the last one goes on."""
    text = "1\t0/5000100\tno recovery target specified\n\n2\t0/7000000\tbefore 2026-01-01 00:00:00+00\n"
    assert wal.history(3, text) == (
        Branch(1, 0, wal.position("0/5000100")),
        Branch(2, wal.position("0/5000100"), wal.position("0/7000000")),
        Branch(3, wal.position("0/7000000"), None),
    )
    assert wal.history(1, None) == (Branch(1, 0, None),)


def test_a_gap_is_named_over_a_change_of_timeline() -> None:
    """The segment in which a timeline branched off is the child's; those of the dead end do not count."""
    path = wal.history(2, "1\t0/3000100\treason\n")
    names = [
        Segment(1, 1).name,
        Segment(1, 2).name,
        Segment(2, 3).name,
        Segment(2, 5).name,
        Segment(1, 4).name,
    ]
    assert wal.gaps(names, path, SEGMENT_BYTES) == [Segment(2, 4).name]
    assert wal.newest(names, path) == Segment(2, 5)
    assert wal.gaps(names[1:], path, SEGMENT_BYTES) == [Segment(1, 1).name, Segment(2, 4).name]
    assert wal.gaps([], path, 0) == []


@dataclass(frozen=True)
class Taken:
    ended: float
    begin: int


TAKEN = st.builds(Taken, st.floats(0, 1e6), NUMBERS.map(lambda number: number * SEGMENT_BYTES + 40))


@given(
    backups=st.lists(TAKEN, max_size=8),
    names=st.sets(st.builds(Segment, TIMELINES, NUMBERS).map(lambda segment: segment.name)),
    number=st.integers(min_value=1, max_value=5),
)  # fmt: skip
@settings(max_examples=300)
def test_nothing_that_is_needed_is_removed(backups: list[Taken], names: set[str], number: int) -> None:
    """Of the newest backups all stays that lies behind where they begin, on every timeline; the rest goes."""
    ends = (".partial", ".unfinished")
    others = {"00000002.history", "unknown", *(Segment(1, 0).name + end for end in ends)}
    kept = keeping.kept(backups, number)
    gone = set(keeping.needless([*names, *others], kept))
    assert kept == sorted(backups, key=lambda taken: taken.ended)[-number:]
    for name in names:
        segment = Segment.named(name)
        assert segment is not None
        needed = any(segment.number >= taken.begin // SEGMENT_BYTES for taken in kept) or not kept
        assert (name not in gone) == needed
    assert not gone & {"00000002.history", "unknown"}
    first_goes = bool(kept) and min(taken.begin for taken in kept) >= SEGMENT_BYTES
    assert all((Segment(1, 0).name + end in gone) == first_goes for end in ends)


def test_keeping_none_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0"):
        keeping.kept([backup()], 0)


def test_the_newest_backup_before_the_moment_is_chosen() -> None:
    """Complete before it, and on the history that was the present then."""
    text = f"1\t{wal.printed(5 * SEGMENT_BYTES)}\treason\n"
    born = {1: 0.0, 2: 50.0}

    def branches(timeline: int) -> tuple[Branch, ...]:
        return wal.history(timeline, text if timeline == 2 else None)

    first, second = backup("1", ended=10, begin=SEGMENT_BYTES), backup("2", ended=20, begin=2 * SEGMENT_BYTES)
    dead = backup("dead", ended=40, begin=8 * SEGMENT_BYTES)  # of what was given up by going back
    later = backup("later", ended=60, begin=6 * SEGMENT_BYTES, timeline=2)
    backups = [first, second, dead, later]

    def chosen(moment: float | None, name: str | None = None) -> tuple[str, int]:
        found = choose(backups, born, branches, moment=moment, now=100, name=name)
        return found.backup.name, found.timeline

    assert chosen(15) == ("1", 1) and chosen(20) == ("2", 1) and chosen(45) == ("dead", 1)
    assert chosen(55) == ("2", 2) and chosen(70) == ("later", 2) and chosen(None) == ("later", 2)
    assert chosen(45, "1") == ("1", 1)
    for when, name, says in (
        (5.0, None, "1970-01-01 00:00:10.*1970-01-01 00:01:40"),
        (101.0, None, "in the future: any moment from 1970-01-01 00:00:10"),
        (12.0, "2", "before backup 2 was complete, at 1970-01-01 00:00:20"),
        (70.0, "dead", "not on the way"),
        (70.0, "x", "there are: 1, 2, dead, later"),
    ):
        with pytest.raises(RunnerError, match=says):
            chosen(when, name)
    with pytest.raises(RunnerError, match="there is no backup: `springtide backup`"):
        choose([], {}, branches, moment=None, now=0)


def stored(tmp_path: Path, *backups: Backup) -> Store:
    """A store with nothing but the notes of `backups`."""
    store = Store(tmp_path, "main")
    for folder in (store.base, store.wal):
        folder.mkdir(parents=True)
    for one in backups:
        (store.base / one.name).mkdir()
        (store.base / one.name / "backup.json").write_text(json.dumps(asdict(one)))
    return store


def test_a_backup_of_what_was_given_up_is_no_backup_of_the_present(tmp_path: Path) -> None:
    """A replica took over that had not all of it, or the database went back: another one is due."""
    before, after = backup("1", ended=1), backup("2", ended=2, begin=8 * SEGMENT_BYTES)
    store = stored(tmp_path, before, after)
    assert store.present() == [before, after]
    (store.wal / "00000002.history").write_text(f"1\t{wal.printed(5 * SEGMENT_BYTES)}\treason\n")
    assert store.present() == [before]
    newer = backup("3", ended=3, begin=6 * SEGMENT_BYTES, timeline=2)
    assert stored(tmp_path / "more", newer).present() == [newer]


def test_two_platforms_do_not_archive_to_one_place(tmp_path: Path) -> None:
    """A copy of a project has the same database in it; it may read, and is told what to do to write."""
    store = stored(tmp_path)
    store.belong(Path("/one/.springtide"))
    store.belong(Path("/one/.springtide"))
    assert store.elsewhere(Path("/one/.springtide")) is None
    assert store.elsewhere(Path("/two/.springtide")) == "/one/.springtide"
    with pytest.raises(RunnerError, match=r"the platform in /one/.springtide .* backups\.folder.*main/home"):
        store.belong(Path("/two/.springtide"))


def test_a_moment_names_its_time_zone() -> None:
    assert moment("1970-01-01T01:00:10+01:00") == moment("1970-01-01 00:00:10Z") == 10.0
    for text in ("1970-01-01T00:00:10", "yesterday"):
        with pytest.raises(ConfigurationError, match="--to"):
            moment(text)


def test_a_backup_is_due() -> None:
    """Without one, when it is old, when the log after it has a gap; after an attempt only later again."""

    def is_due(backups: list[Backup], now: float, *, gap: bool = False, tried: float | None = None) -> bool:
        return due(backups, gap=gap, every=100, now=now, tried=tried, retry=10)

    there = [backup(ended=0), backup(ended=50)]
    assert is_due([], 0) and is_due(there, 150) and is_due(there, 60, gap=True)
    assert not is_due(there, 149)
    assert not is_due([], 9, tried=0) and is_due([], 10, tried=0)


def test_the_archive_command_survives_odd_folders() -> None:
    """Quotes and percent signs of a path are neither the shell's nor PostgreSQL's."""
    text = Archiving(folder=Path("/a b/100%'s"), timeout=0.5).settings()
    assert "/a b/100%%''" in text and text.endswith("archive_timeout = 1")
    with pytest.raises(ValueError, match="timeout must be > 0"):
        Archiving(folder=Path("/a"), timeout=0)
