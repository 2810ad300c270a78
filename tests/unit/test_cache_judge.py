"""The judge of bench.cache_faults sees what is too old, and accuses nobody who kept the rules."""

from __future__ import annotations

import pytest
from bench._cache_judge import judge
from bench._cache_sessions import Saw, Wrote

BUDGET = 2.0
WROTE = [
    Wrote("ann", 1, 1, "x", asked=0.0, acknowledged=1.0, ended=1.1),
    Wrote("bob", 1, 2, "y", asked=2.0, acknowledged=3.0, ended=3.5),
    Wrote("bob", 1, 0, "lost", asked=4.0, acknowledged=4.5, ended=4.5),
]
PAST = {1: {1: "x", 2: "y", 3: "lost"}}
VALUES = {0: None, 1: "x", 2: "y", 3: "lost"}


def saw(session: str, version: int, at: float, *, app: int = 0) -> Saw:
    return Saw(session, app, 1, version, VALUES[version], asked=at, began=at, ended=at + 0.01)


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
    assert [wrong.rule for wrong in judge(reads, WROTE, PAST, budget=BUDGET).wrong] == rules


def test_a_commit_that_nobody_heard_of_counts_from_its_moment() -> None:
    """A writer that was killed after its COMMIT has written all the same."""
    reads = [saw("eve", 2, 6.4), saw("eve", 2, 6.6)]
    verdict = judge(reads, WROTE, PAST, budget=BUDGET, unheard=[(1, 3, 4.5)])
    assert [(wrong.rule, wrong.read.began) for wrong in verdict.wrong] == [("beyond budget", 6.6)]


def test_a_value_that_its_version_never_had_is_a_phantom() -> None:
    """A version names one value."""
    read = Saw("eve", 0, 1, 2, "z", asked=3.6, began=3.6, ended=3.7)
    assert [wrong.rule for wrong in judge([read], WROTE, PAST, budget=BUDGET).wrong] == ["phantom"]
