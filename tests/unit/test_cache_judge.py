"""The judge of bench.cache_faults sees what is too old, and accuses nobody who kept the rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from bench._cache_judge import Judge, Verdict
from bench.cached.journal import Journal, Record, Saw, Wrote, stamp

BUDGET = 2.0
WROTE = [
    Wrote("ann", 1, 1, "x", asked=0.0, acknowledged=1.0, ended=1.1),
    Wrote("bob", 1, 2, "y", asked=2.0, acknowledged=3.0, ended=3.5),
    Wrote("bob", 1, 0, "lost", asked=4.0, acknowledged=4.5, ended=4.5),
]
VALUES = {0: None, 1: "x", 2: "y", 3: "lost"}
PAST = {1: {version: stamp(value) for version, value in VALUES.items() if version}}


def saw(session: str, version: int, at: float, *, app: int = 0) -> Saw:
    return Saw(session, app, 1, version, stamp(VALUES[version]), asked=at, began=at, ended=at + 0.01)


def judge(reads: Iterable[Saw], *, unheard: Sequence[tuple[int, int, float]] = ()) -> Verdict:
    judge = Judge(WROTE, PAST, budget=BUDGET, unheard=unheard)
    judge.judge(reads)
    return judge.verdict


@pytest.mark.parametrize(
    ("reads", "rules"),
    [
        ([saw("eve", 1, 4.99)], []),
        ([saw("eve", 1, 5.01)], ["beyond budget"]),
        ([saw("eve", 0, 2.99)], []),
        ([saw("eve", 0, 3.01)], ["beyond budget"]),
        ([saw("bob", 1, 3.4)], []),
        ([saw("bob", 1, 3.6)], ["own write lost"]),
        ([saw("eve", 2, 9.0)], []),  # version 3 was acknowledged to nobody: it may be seen, and need not
        ([saw("eve", 3, 9.0)], []),
        ([saw("eve", 2, 3.6), saw("eve", 1, 3.7, app=1)], ["backward"]),
        ([saw("eve", 2, 3.6), saw("eve", 1, 3.7)], ["backward", "backward in one process"]),
        ([saw("eve", 2, 3.6), saw("tom", 1, 3.7)], []),
    ],
)
def test_a_read_is_judged_by_what_was_acknowledged_before_it(reads: list[Saw], rules: list[str]) -> None:
    """Too old is: beyond the budget, before the session's own write, before what the session was shown."""
    assert [wrong.rule for wrong in judge(reads).wrong] == rules


def test_a_commit_that_nobody_heard_of_counts_from_its_moment() -> None:
    """A writer that was killed after its COMMIT has written all the same."""
    reads = [saw("eve", 2, 6.4), saw("eve", 2, 6.6)]
    verdict = judge(reads, unheard=[(1, 3, 4.5)])
    assert [(wrong.rule, wrong.read.began) for wrong in verdict.wrong] == [("beyond budget", 6.6)]


def test_a_value_that_its_version_never_had_is_a_phantom() -> None:
    """A version names one value."""
    read = Saw("eve", 0, 1, 2, stamp("z"), asked=3.6, began=3.6, ended=3.7)
    assert [wrong.rule for wrong in judge([read]).wrong] == ["phantom"]


def test_a_journal_gives_back_what_was_seen(tmp_path: Path) -> None:
    """In its order, without what failed as it was told to, which is counted."""
    journal = Journal()
    journal.saw("ann", 2, 1.0, 1.5, iter([(7 << 40, (3, "x", 1.25)), (8, None), (9, (0, None, 1.375))]))
    journal.saw("bob", 0, 2.0, 2.5, iter([(7 << 40, (4, "y", 2.25))]))
    journal.wrote.append(WROTE[0])
    journal.failed.append((1.0, 2.0, "read LoadTimeout"))
    journal.keep(tmp_path / "record")
    record = Record.of(tmp_path / "record")
    assert list(record.reads()) == [
        Saw("ann", 2, 7 << 40, 3, stamp("x"), asked=1.0, began=1.25, ended=1.5),
        Saw("ann", 2, 9, 0, stamp(None), asked=1.0, began=1.375, ended=1.5),
        Saw("bob", 0, 7 << 40, 4, stamp("y"), asked=2.0, began=2.25, ended=2.5),
    ]
    assert (journal.reads, record.told) == (3, 1)
    assert record.wrote == [WROTE[0]]
    assert record.failed == [(1.0, 2.0, "read LoadTimeout")]
