"""The fence's rules as plain functions: snapshots beside marks, and what a relay knows of its rounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.cache._fence import Mark, Rounds, Tombstone, covers, finished
from springtide.db.seeing import Seen

HISTORIES = st.lists(st.tuples(st.booleans(), st.integers(0, 99)), min_size=1, max_size=40)
"""Of each step whether a transaction begins, and else which of those that are open ends."""


def snapshots(history: list[tuple[bool, int]]) -> list[tuple[Seen, frozenset[int]]]:
    """After each step: what the primary shows, and what has ended."""
    going: list[int] = []
    ended: set[int] = set()
    following, shown = 100, []
    for begins, which in history:
        if begins or not going:
            going.append(following)
            following += 1
        else:
            ended.add(going.pop(which % len(going)))
        xmax = max(ended, default=99) + 1
        running = tuple(xid for xid in going if xid < xmax)
        shown.append((Seen("main", 1, False, min((*running, xmax)), xmax, running), frozenset(ended)))
    return shown


@given(HISTORIES)
def test_a_snapshot_covers_a_mark_when_it_has_all_that_had_ended(history: list[tuple[bool, int]]) -> None:
    """On the primary exactly then; on a standby never wrongly."""
    shown = snapshots(history)
    for seen, ended in shown:
        for other, before in shown:
            mark = Mark(1, other.xmax, other.running)
            assert covers(seen, mark) == (before <= ended)
            below = {xid for xid in range(100, mark.xmax) if xid not in mark.running}
            standby = Seen("main", 1, True, seen.xmin, seen.xmax, ())
            assert not covers(standby, mark) or below <= ended


@given(HISTORIES)
def test_finished_is_what_the_snapshot_proves(history: list[tuple[bool, int]]) -> None:
    """On the primary every number that has ended, on a standby only such ones."""
    for seen, ended in snapshots(history):
        standby = Seen("main", 1, True, seen.xmin, seen.xmax, ())
        for xid in range(100, seen.xmax + 3):
            assert finished(seen, xid) == (xid in ended)
            assert not finished(standby, xid) or xid in ended


@given(st.lists(st.integers(100, 130), min_size=1, max_size=30))
def test_a_tombstone_forgets_nobody(xids: list[int]) -> None:
    """Every xid that was merged is listed, or covered by the greatest of a collapsed one, which came no
    earlier; who was merged changes nothing when it comes again at once."""
    tombstone = Tombstone()
    for at, xid in enumerate(xids):
        tombstone = tombstone.merged(xid, at)
        for earlier in xids[: at + 1]:
            assert earlier in tombstone.xids or (tombstone.most is not None and earlier <= tombstone.most)
            assert tombstone.merged(earlier, tombstone.round + 1 if tombstone.most else at) is tombstone
        late = tombstone.merged(xids[0], at + 2)
        assert late is tombstone if tombstone.most is None else late.round == at + 2
    assert len(tombstone.xids) <= 8


def test_a_mark_becomes_the_horizon_when_it_is_old_enough() -> None:
    """At once where there is none; else the first one since the last horizon, `delay` after it was taken."""
    rounds = Rounds(10.0)
    assert rounds.due(0.0) is None
    rounds.answered("life", 1, horizon=False, sent=None)
    rounds.marked(100, (), 0.0)
    first = rounds.due(0.0)
    assert first == Mark(1, 100)
    rounds.answered("life", 2, horizon=True, sent=first)
    assert rounds.due(1000.0) is None
    for number in range(2, 6):
        rounds.marked(100 + number, (100,), float(number))
        assert rounds.newest == Mark(number, 100 + number, (100,))
        rounds.answered("life", number + 1, horizon=True, sent=None)
    assert rounds.due(11.9) is None
    assert rounds.due(12.0) == Mark(2, 102, (100,))
    with pytest.raises(ValueError, match="-1"):
        Rounds(-1.0)


def test_marks_end_with_the_life_that_they_are_for() -> None:
    """Tombstones were lost: nothing that the primary said before counts, old enough or not."""
    rounds = Rounds(10.0)
    rounds.answered("life", 1, horizon=False, sent=None)
    rounds.marked(100, (), 0.0)
    rounds.answered("another", 1, horizon=False, sent=rounds.due(0.0))
    assert rounds.newest is None
    assert rounds.due(1000.0) is None
    rounds.marked(200, (), 1000.0)
    assert rounds.due(1000.0) == Mark(1, 200)
