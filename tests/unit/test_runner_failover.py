"""What is done about a dead primary: decided over every case, and never against an acknowledged commit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.ops.runner.failover import Case, Position, Promote, Restart, Wait, decide

A, B, C = (Position(1, 100), Position(1, 200), Position(2, 50))
LATE = {"down_for": 9.0, "waited_for": 99.0}
QUORUM = Case(held={"r1": A, "r2": B}, quorum=True, voters=("r1", "r2"))
ASYNC = Case(held={"r1": A, "r2": B})


@pytest.mark.parametrize(
    "case, expected",
    [
        (Case(held={}), Restart),
        (ASYNC, Restart),  # it may come back, and loses nothing then
        (replace(ASYNC, down_for=9.0), "r2"),
        (replace(ASYNC, down_for=9.0, auto=False), Restart),
        (replace(ASYNC, down_for=9.0, held={"r1": A, "r2": None}), Wait),
        (replace(ASYNC, **LATE, held={"r1": A, "r2": None}), "r1"),
        (replace(ASYNC, **LATE, held={"r1": None, "r2": None}), Restart),
        (QUORUM, "r2"),  # at once
        (replace(QUORUM, auto=False), Restart),
        (replace(QUORUM, held={"r1": C, "r2": B}), "r1"),  # the later timeline wins, not the greater number
        (replace(QUORUM, held={"r1": A, "r2": None}), Wait),
        (replace(QUORUM, held={"r1": A, "r2": None}, **LATE), Restart),  # r2 may hold a commit that r1 lacks
        (replace(QUORUM, voters=("r1", "gone")), Restart),  # and so may one that was taken away
        (replace(QUORUM, voters=()), Restart),  # nobody has confirmed anything yet
        (replace(QUORUM, voters=("r2",), held={"r1": None, "r2": B}, **LATE), "r2"),
        (replace(QUORUM, wanted="r2"), "r2"),
        (replace(QUORUM, wanted="r1"), Restart),  # r2 has more
        (replace(QUORUM, wanted="r1", forced=True), "r1"),
        (replace(QUORUM, wanted="r2", held={"r1": None, "r2": B}, **LATE), Restart),
        (replace(QUORUM, wanted="r2", held={"r1": None, "r2": B}, forced=True, **LATE), "r2"),
        (replace(QUORUM, wanted="r2", held={"r1": A, "r2": None}, forced=True, **LATE), Restart),
        (replace(ASYNC, auto=False, wanted="r2"), "r2"),  # by hand, also where failover is manual
    ],
)
def test_each_case(case: Case, expected: object) -> None:
    """The table: the node that is promoted, or the kind of the decision."""
    decision = decide(case)
    assert (decision.node if isinstance(decision, Promote) else type(decision)) == expected, decision.why


POSITIONS = st.builds(Position, st.integers(1, 3), st.integers(0, 20))
NODES = st.sampled_from(["r1", "r2", "r3"])


@st.composite
def _histories(draw: st.DrawFn) -> tuple[Case, list[Position]]:
    """A cluster after its primary ended, and its acknowledged commits: each was on a voter's disk."""
    truth = draw(st.dictionaries(NODES, POSITIONS, min_size=1))
    gone = draw(st.dictionaries(st.just("gone"), POSITIONS))
    voters = draw(st.lists(st.sampled_from([*truth, *gone]), min_size=1, unique=True))
    acked = [draw(st.sampled_from(voters)) for _ in range(draw(st.integers(0, 4)))]
    silent = draw(st.sets(NODES))
    case = Case(
        held={node: None if node in silent else at for node, at in truth.items()},
        quorum=True,
        voters=voters,
        auto=draw(st.booleans()),
        down_for=draw(st.floats(0, 100)),
        waited_for=draw(st.floats(0, 100)),
        wanted=draw(st.none() | NODES),
    )
    return case, [{**truth, **gone}[node] for node in acked]


@given(_histories())
def test_no_acknowledged_commit_is_given_up(history: tuple[Case, list[Position]]) -> None:
    """With quorum, whoever is promoted has every commit that was acknowledged, wherever it was confirmed."""
    case, acked = history
    decision = decide(case)
    if isinstance(decision, Promote):
        assert all(decision.at >= position for position in acked)
        assert decision.at == case.held[decision.node]


@given(_histories(), st.booleans(), st.booleans())
def test_what_holds_for_every_decision(
    history: tuple[Case, list[Position]], quorum: bool, forced: bool
) -> None:
    """Waiting ends; nobody unknown is promoted, and whoever is ahead of the chosen one is named."""
    case = replace(history[0], quorum=quorum, forced=forced)
    decision = decide(case)
    assert decision.why
    if isinstance(decision, Wait):
        assert case.waited_for < case.patience
        assert not isinstance(decide(replace(case, waited_for=case.patience)), Wait)
    if isinstance(decision, Promote):
        ahead = {n for n, at in case.held.items() if n != decision.node and (at is None or at > decision.at)}
        assert set(decision.behind) == ahead
        assert case.wanted in (None, decision.node)


def test_positions_are_shown_as_postgresql_does() -> None:
    assert str(Position(3, 0x1_0000_00AB)) == "1/AB on timeline 3"
