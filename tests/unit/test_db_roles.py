"""Which server is the primary: for any order of deaths, promotions and returns."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.db._roles import Seen, Standing, Verdict, judge

NODES = ("a", "b", "c")


def server(
    node: str, timeline: int = 1, *, standby: bool = False, system: int = 7, started: object = None
) -> Seen:
    return Seen(node=node, system=system, started=started or node, recovering=standby, timeline=timeline)


def after(*looks: Sequence[Seen], members: Sequence[str] = NODES) -> Verdict:
    verdict = Verdict(standing=Standing(), primary=None)
    for look in looks:
        verdict = judge(verdict.standing, look, members=members)
    return verdict


BEGUN = (server("a"), server("b", standby=True), server("c", standby=True))


def test_the_one_that_is_not_in_recovery() -> None:
    """Whatever the order of the members; standbys alone are no primary."""
    assert after(BEGUN).primary == "a"
    assert after(BEGUN[::-1]).primary == "a"
    assert after(BEGUN[1:]).primary is None
    assert after(()).primary is None


def test_a_promoted_standby_takes_over() -> None:
    """Also when the old primary does not answer, and when it still calls itself one."""
    promoted = (server("b", 2), server("c", standby=True))
    assert after(BEGUN, promoted).primary == "b"
    both = after(BEGUN, (server("a"), *promoted))
    assert (both.primary, both.superseded) == ("b", {"a"})


def test_an_old_primary_that_comes_back_is_used_for_nothing() -> None:
    """Even alone, even when the one that replaced it is gone: its timeline is over."""
    verdict = after(BEGUN, (server("b", 2),), (server("a"),))
    assert (verdict.primary, verdict.superseded) == ("b", {"a"})
    assert after(BEGUN, (server("b", 2),), (server("a", 2, standby=True), server("b", 2))).superseded == set()


def test_a_standby_on_a_new_timeline_ends_the_old_one() -> None:
    """It proves a promotion whose primary we cannot reach: writes wait, they do not go to the old primary."""
    verdict = after(BEGUN, (server("a"), server("c", 2, standby=True)))
    assert (verdict.primary, verdict.superseded) == (None, {"a"})
    assert after(BEGUN, (server("c", 2, standby=True),)).primary is None
    assert after(BEGUN, (server("c", 2, standby=True),), (server("b", 2),)).primary == "b"


def test_a_silent_primary_is_kept_and_a_demoted_one_is_not() -> None:
    """Not answering once is no reason; being a standby is."""
    assert after(BEGUN, BEGUN[1:]).primary == "a"
    assert after(BEGUN, ()).primary == "a"
    assert after(BEGUN, (server("a", standby=True), *BEGUN[1:])).primary is None
    assert after(BEGUN, BEGUN[1:], members=("b", "c")).primary is None


def test_two_primaries_of_one_timeline() -> None:
    """The one in use stays and the other is reported; without one in use nobody is chosen."""
    twice = (server("b", 2), server("c", 2))
    assert after(BEGUN, twice[:1], twice) == after(BEGUN, twice[:1], twice[::-1])
    assert (after(BEGUN, twice[:1], twice).primary, after(BEGUN, twice[:1], twice).rivals) == ("b", {"c"})
    assert (after(BEGUN, twice).primary, after(BEGUN, twice).rivals) == (None, {"b", "c"})
    assert (after(BEGUN, twice[:1], twice[1:]).primary, after(BEGUN, twice[:1], twice[1:]).rivals) == (
        "b",
        {"c"},
    )
    assert after(BEGUN, twice, (server("b", 2), server("c", 2, standby=True))).primary == "b"


def test_a_primary_may_get_another_name() -> None:
    """One that is a member no more leaves its timeline to whoever has it; one server at two addresses
    counts once."""
    verdict = after(BEGUN)
    assert judge(verdict.standing, (server("d"),), members=("b", "c", "d")).primary == "d"
    twice = (server("a", started=5), server("d", started=5))
    assert after(twice, members=("a", "d")).primary == "a"
    assert judge(verdict.standing, twice[::-1], members=("a", "d")).primary == "a"
    assert judge(verdict.standing, twice[::-1], members=("a", "d")).rivals == set()


def test_a_server_of_another_system_counts_nothing() -> None:
    """Whatever its timeline says; it is reported."""
    verdict = after(BEGUN, (server("a"), server("b", 9, system=8)))
    assert (verdict.primary, verdict.standing.timeline, verdict.strangers) == ("a", 1, {"b"})
    assert after(BEGUN, (server("a", system=8),)).primary is None


@st.composite
def histories(draw: st.DrawFn) -> list[list[Seen]]:
    looks = []
    for _ in range(draw(st.integers(1, 8))):
        nodes = draw(st.lists(st.sampled_from(NODES), unique=True))
        looks.append(
            [
                server(
                    node,
                    draw(st.integers(1, 4)),
                    standby=draw(st.booleans()),
                    system=draw(st.sampled_from((7, 7, 7, 8))),
                )
                for node in nodes
            ]
        )
    return looks


@given(histories())
def test_for_any_history(looks: list[list[Seen]]) -> None:
    """The chosen one said it was primary, of our system, on the highest timeline ever seen; timelines never
    go back; whoever is superseded is not chosen; the order of the answers is no matter."""
    verdict = Verdict(standing=Standing(system=7), primary=None)
    highest, used = 0, 0
    for look in looks:
        before = verdict
        verdict = judge(before.standing, look, members=NODES)
        assert judge(before.standing, look[::-1], members=NODES) == verdict
        highest = max([highest, *(seen.timeline for seen in look if seen.system == 7)])
        assert verdict.standing.timeline == highest
        assert verdict.standing.epoch >= before.standing.epoch
        said = {seen.node: seen for seen in look}
        if verdict.primary is not None:
            assert verdict.primary not in verdict.superseded | verdict.strangers | verdict.rivals
            answer = said.get(verdict.primary)
            if answer is None:
                assert verdict.primary == before.standing.primary
                assert verdict.standing.epoch == highest
            else:
                assert (answer.recovering, answer.system, answer.timeline) == (False, 7, highest)
            assert verdict.standing.epoch >= used
            used = verdict.standing.epoch


@given(histories(), st.permutations([0, 1, 2]))
def test_a_lone_candidate_is_found(looks: list[list[Seen]], order: list[int]) -> None:
    """After any history, one primary on a new timeline with its standbys is taken at once."""
    verdict = Verdict(standing=Standing(system=7), primary=None)
    for look in looks:
        verdict = judge(verdict.standing, look, members=NODES)
    new = verdict.standing.timeline + 1
    final = [server(NODES[at], new, standby=NODES[at] != "b") for at in order]
    assert judge(verdict.standing, final, members=NODES).primary == "b"


@pytest.mark.parametrize("node", NODES)
def test_judging_twice_changes_nothing(node: str) -> None:
    """The same look again gives the same verdict."""
    look = (server(node, 3), *(server(other, 2, standby=True) for other in NODES if other != node))
    assert after(look) == after(look, look)
