"""What scores are made of: counts that do not depend on the order, and no preference for best-sellers."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from market.recommendations.scoring import (
    HALF_LIFE,
    MIN_SUPPORT,
    REPEATS,
    Counted,
    Purchase,
    best,
    change,
    merge,
    near,
    rank,
    weigh,
)

AT = datetime(2026, 1, 1, tzinfo=UTC)

PURCHASES = st.lists(
    st.builds(
        Purchase,
        st.integers(1, 60),
        st.integers(0, 400).map(lambda day: weigh(AT + timedelta(days=day))),
        st.lists(st.integers(1, 6), unique=True, max_size=4),
    ),
    max_size=30,
    unique_by=lambda purchase: purchase.order_id,
)


def added(purchases: list[Purchase]) -> dict[int | None, Counted]:
    """The counts after one purchase after the other; None is the listing itself."""
    counts: dict[int | None, Counted] = {None: Counted(0, 0.0)}
    known: list[Purchase] = []
    for purchase in purchases:
        _add(counts, known, [*known, purchase])
        known.append(purchase)
    return counts


def _add(counts: dict[int | None, Counted], before: list[Purchase], after: list[Purchase]) -> None:
    found = change(before, after)
    for key, one in [(None, found.own), *found.pairs.items()]:
        old = counts.get(key, Counted(0, 0.0))
        counts[key] = Counted(old.buyers + one.buyers, old.weight + one.weight)


def same(one: dict[int | None, Counted], other: dict[int | None, Counted]) -> bool:
    return all(
        one.get(key, Counted(0, 0.0)).buyers == other.get(key, Counted(0, 0.0)).buyers
        and math.isclose(
            one.get(key, Counted(0, 0.0)).weight, other.get(key, Counted(0, 0.0)).weight, abs_tol=1e-9
        )
        for key in one.keys() | other.keys()
    )


@given(purchases=PURCHASES, data=st.data())
def test_counts_do_not_depend_on_the_order_and_are_undone_exactly(
    purchases: list[Purchase], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(purchases))
    counts = added(purchases)
    assert same(counts, added(shuffled))
    assert counts[None].buyers == (1 if purchases else 0)
    assert all(0 <= one.buyers <= 1 for one in counts.values())
    known = list(purchases)
    for purchase in shuffled:
        left = [one for one in known if one != purchase]
        _add(counts, known, left)
        known = left
    assert same(counts, {})


def test_of_one_buyer_the_newest_purchases_are_looked_at() -> None:
    """So what is read per purchase is bounded, whoever orders the same every minute."""
    many = [Purchase(number, float(number), [number]) for number in range(1, REPEATS + 10)]
    assert len(change([], many).pairs) == REPEATS
    assert change(many, many[1:]).pairs == {}


def test_what_everybody_buys_is_not_near_to_everything() -> None:
    """Bought by a thousand, ten with this one: less near than what twelve bought, ten with this one."""
    both = Counted(10, 10.0)
    assert near(both, 20.0, 1000.0) < near(both, 20.0, 12.0)


def test_coincidences_are_no_support() -> None:
    assert near(Counted(MIN_SUPPORT - 1, 1.0), 1.0, 1.0) == 0.0
    assert 0 < near(Counted(2, 2.0), 2.0, 2.0) < near(Counted(50, 50.0), 50.0, 50.0) < 1


@given(st.integers(0, 3000))
def test_scores_do_not_depend_on_the_day_they_are_made(days: int) -> None:
    """All weights grow by one factor, which cancels out; a purchase of a half-life ago counts half."""
    then, later = weigh(AT), weigh(AT + timedelta(days=days))
    one = near(Counted(5, 5 * then), 9 * then, 7 * then)
    assert math.isclose(one, near(Counted(5, 5 * later), 9 * later, 7 * later))
    assert math.isclose(weigh(AT + HALF_LIFE), 2 * weigh(AT))


def test_lists_of_a_cart_add_up_without_what_is_in_it() -> None:
    lists = [([1, 2, 3], [0.9, 0.5, 0.1]), ([2, 4], [0.5, 0.3])]
    assert merge(lists, without={1}, limit=10) == [2, 4, 3]
    assert merge(lists, without=set(), limit=2) == [2, 1]
    assert best([(1, 0.0), (2, 0.1), (3, 0.1)], 5) == [(3, 0.1), (2, 0.1)]


def test_who_follows_many_says_little_about_each() -> None:
    between = {1: [10], 2: list(range(11, 111))}
    assert rank(between, without=set(), limit=1) == [10]
    assert rank({1: [10], 2: [10, 11]}, without={11}, limit=5) == [10]
