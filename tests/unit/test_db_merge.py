"""Merging what several shards answered, in the order in which PostgreSQL would have sorted it."""

from __future__ import annotations

import functools
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.db import ASC, DESC
from springtide.db.scatter import Order, compose, merge
from springtide.errors import NotScatterable

NAN = float("nan")
ROW = st.fixed_dictionaries(
    {
        "n": st.none() | st.integers(-3, 3),
        "t": st.none() | st.text("aAzäß\U0001f600", max_size=2),
        "f": st.sampled_from([None, NAN, 0.0, -1.5, float("inf")]),
    }
)
ORDERS = st.lists(
    st.tuples(st.sampled_from(["n", "t", "f"]), st.sampled_from([ASC, DESC])),
    min_size=1,
    unique_by=lambda c: c[0],
)


def compare(order: Order, left: dict[str, Any], right: dict[str, Any]) -> int:
    """PostgreSQL's order, written down once more: NULL behind all, NaN behind numbers, text by bytes."""
    for name, way in order:
        a, b = left[name], right[name]
        ranks = [2 if v is None else 1 if v != v else 0 for v in (a, b)]
        if ranks[0] == ranks[1] == 0 and a != b:
            if isinstance(a, str):
                a, b = a.encode(), b.encode()
            ranks = [0, 1] if a < b else [1, 0]
        if ranks[0] != ranks[1]:
            return (-1 if ranks[0] < ranks[1] else 1) * (1 if way == ASC else -1)
    return 0


@given(
    st.lists(st.lists(ROW, max_size=12), min_size=1, max_size=4),
    ORDERS,
    st.none() | st.integers(0, 9),
    st.integers(0, 9),
)
def test_merging_sorted_shards_is_sorting_everything(
    shards: list[list[dict[str, Any]]], order: Order, limit: int | None, offset: int
) -> None:
    """The page is the one of a single sorted table; equal rows keep the order of the shards."""
    by = functools.cmp_to_key(functools.partial(compare, order))
    everything = sorted((row for shard in shards for row in shard), key=by)
    stop = None if limit is None else offset + limit
    cut = [sorted(shard, key=by)[:stop] for shard in shards]
    found = merge(cut, order=order, limit=limit, offset=offset)
    assert [id(row) for row in found] == [id(row) for row in everything[offset:stop]]


def test_without_an_order_shards_follow_each_other() -> None:
    shards = [[{"n": 2}, {"n": 1}], [{"n": 0}]]
    assert [row["n"] for row in merge(shards, order=[], limit=2, offset=1)] == [1, 0]


def test_a_shard_that_sorts_otherwise_is_noticed() -> None:
    """A collation that puts 'a' before 'B' is not merged into a wrong order."""
    with pytest.raises(NotScatterable, match=r"does not sort column 't' .*at 'B'.*C.UTF-8"):
        merge([[{"t": "a"}, {"t": "B"}], [{"t": "c"}]], order=[("t", ASC)], limit=None, offset=0)


@pytest.mark.parametrize("value", [{"a": 1}, object(), {1}])
def test_values_without_an_order_are_refused(value: Any) -> None:
    with pytest.raises(NotScatterable, match="column 'x'"):
        merge([[{"x": value}], [{"x": value}]], order=[("x", ASC)], limit=None, offset=0)


def test_every_part_of_a_list_is_one_statement() -> None:
    """Limit and offset are arguments behind those of the statement."""
    order = (("id", DESC),)
    sql = compose("select id from n.a; -- all", order=order, arguments=0, limited=True)
    assert sql == "SELECT * FROM (\nselect id from n.a\n) AS scattered\nORDER BY id DESC\nLIMIT $1::bigint"
    sql = compose("select id from n.a where b = $1", order=order, arguments=1, limited=True, skipping=True)
    assert sql.endswith("ORDER BY id DESC\nLIMIT $2::bigint\nOFFSET $3::bigint")


def test_an_argument_that_was_forgotten_is_not_taken_for_the_limit() -> None:
    with pytest.raises(ValueError, match=r"has \$2, got 1 arguments"):
        compose("select id from n.a where b = $1 and c = $2", order=(), arguments=1, limited=True)


@pytest.mark.parametrize("order", [("id", "down"), ("id; drop table x", ASC)])
def test_orders_are_checked(order: Any) -> None:
    with pytest.raises(ValueError):
        compose("select id from n.a", order=(order,), arguments=0)


def test_decimals_are_merged_with_nan_last() -> None:
    shards = [[{"d": Decimal(1)}, {"d": Decimal("NaN")}], [{"d": Decimal(2)}, {"d": None}]]
    found = [row["d"] for row in merge(shards, order=[("d", ASC)], limit=None, offset=0)]
    assert found[:2] == [1, 2]
    assert found[2].is_nan()
    assert found[3] is None
