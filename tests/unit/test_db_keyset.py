"""Pages behind a cursor: every row once, and no cursor breaks a statement."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from springtide.db import ASC, DESC, Keyset, Page, asc, desc
from springtide.errors import InvalidCursor

ORDERS = [
    Keyset(desc("a"), desc("id")),
    Keyset(asc("a"), asc("b", str), asc("id")),
    Keyset(desc("a"), asc("b", str), desc("id")),
    Keyset(asc("id")),
]
ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["", "x", "ä", "Z"]), st.integers(0, 40)),
    unique_by=lambda row: row[2],
)


def walk(
    keyset: Keyset, before: list[tuple[Any, ...]], during: list[tuple[Any, ...]], limit: int
) -> list[int]:
    """Ids seen by paging through the rows `before`, while one of `during` is inserted after each page.

    SQLite evaluates the conditions: it compares rows and text (by bytes) as PostgreSQL does.
    """
    database = sqlite3.connect(":memory:")
    database.row_factory = sqlite3.Row
    database.execute("create table t (a, b, id)")
    database.executemany("insert into t values (?, ?, ?)", before)
    seen: list[int] = []
    cursor = None
    while True:
        step = keyset.step(cursor, limit=limit, first=2)
        sql = f"select * from t where 1 = $1 and {step.where} order by {step.order_by} limit {step.fetch}"
        rows = database.execute(re.sub(r"\$(\d+)", r"?\1", sql), (1, *step.args)).fetchall()
        page = step.page([dict(row) for row in rows])
        assert len(page.items) <= limit
        seen += [row["id"] for row in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return seen
        if during:
            database.execute("insert into t values (?, ?, ?)", during.pop())


@given(st.sampled_from(ORDERS), ROWS, ROWS, st.integers(1, 7))
@settings(max_examples=300, deadline=None)
@example(ORDERS[0], [(1, "", n) for n in range(7)], [], 7)
def test_a_walk_visits_every_row_once(
    keyset: Keyset, before: list[tuple[Any, ...]], during: list[tuple[Any, ...]], limit: int
) -> None:
    """Rows that are there during the whole walk are seen exactly once, in order, whatever is inserted."""
    known = {row[2] for row in before}
    during = [row for row in during if row[2] not in known]
    inserted = {row[2] for row in during}
    seen = walk(keyset, before, during, limit)
    assert len(set(seen)) == len(seen)
    assert set(seen) - inserted == known
    if not inserted:
        assert seen == walk(keyset, before, [], 1000)


def test_a_page_asks_for_one_row_more_than_it_shows() -> None:
    keyset = Keyset(desc("id"))
    step = keyset.step(None, limit=2)
    assert (step.fetch, step.where, step.order_by, step.args) == (3, "true", "id DESC", ())
    assert step.page([{"id": 3}, {"id": 2}]) == Page([{"id": 3}, {"id": 2}], None)
    page = step.page([{"id": 3}, {"id": 2}, {"id": 1}])
    assert page.items == [{"id": 3}, {"id": 2}]
    assert page.next_cursor is not None
    assert keyset.decode(page.next_cursor) == (2,)
    assert page.map(lambda row: row["id"]).items == [3, 2]
    assert step.page([]) == Page([], None)


def test_conditions_and_parameters() -> None:
    """One way: a row comparison, which an index answers; two ways: the same spelt out."""
    keyset = Keyset(desc("at", datetime, expression="n.at"), desc("id", expression="n.id"))
    cursor = keyset.encode({"at": datetime(2026, 1, 2, tzinfo=UTC), "id": 5})
    step = keyset.step(cursor, limit=1, first=3)
    assert step.where == "(n.at, n.id) < ($3, cast($4 as bigint))"
    assert step.args == (datetime(2026, 1, 2, tzinfo=UTC), 5)
    assert step.order_by == "n.at DESC, n.id DESC"
    assert keyset.order == [("at", DESC), ("id", DESC)]
    mixed = Keyset(asc("a"), desc("id"))
    one, two = "cast($1 as bigint)", "cast($2 as bigint)"
    where = mixed.step(mixed.encode({"a": 1, "id": 2}), limit=1).where
    assert where == f"((a > {one}) OR (a = {one} AND id < {two}))"
    assert mixed.order == [("a", ASC), ("id", DESC)]


EVERY = Keyset(
    asc("i"),
    asc("s", str),
    asc("f", float),
    asc("b", bool),
    asc("t", datetime),
    asc("u", UUID),
    asc("d", Decimal),
)


@given(
    st.fixed_dictionaries(
        {
            "i": st.integers(-(2**63), 2**63 - 1),
            "s": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
            "f": st.floats(allow_nan=False, allow_infinity=False),
            "b": st.booleans(),
            "t": st.datetimes(timezones=st.sampled_from([UTC])),
            "u": st.uuids(),
            "d": st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30),
        }
    )
)
def test_cursors_keep_values_exactly(row: dict[str, Any]) -> None:
    assert EVERY.decode(EVERY.encode(row)) == tuple(row[column.name] for column in EVERY.columns)


def forged(*values: Any, keyset: Keyset = EVERY) -> str:
    head = json.loads(base64.urlsafe_b64decode(ORDERED + "=="))[:2] if keyset is EVERY else []
    return base64.urlsafe_b64encode(json.dumps([*head, *values]).encode()).decode().rstrip("=")


GOOD: dict[str, Any] = {
    "i": 1,
    "s": "x",
    "f": 0.5,
    "b": True,
    "t": datetime(2026, 1, 1, tzinfo=UTC),
    "u": UUID(int=1),
    "d": Decimal("1.5"),
}
ORDERED = EVERY.encode(GOOD)
WIRE = [1, "x", 0.5, True, 0, str(UUID(int=1)), "1.5"]


def test_a_well_made_value_passes() -> None:
    assert EVERY.decode(forged(*WIRE))[0] == 1


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, "1"),
        (0, 2**63),
        (0, True),
        (0, None),
        (1, 5),
        (1, "a\0"),
        (1, "\ud800"),
        (2, "x"),
        (2, True),
        (3, 1),
        (4, 2**62),
        (4, "2026"),
        (5, "no uuid"),
        (5, 5),
        (6, "NaN"),
        (6, "1e999999"),
        (6, "x"),
        (6, 1.5),
        (6, []),
    ],
)
def test_a_forged_value_is_an_invalid_cursor(at: int, value: Any) -> None:
    """What a column cannot have never reaches the database."""
    values = list(WIRE)
    values[at] = value
    with pytest.raises(InvalidCursor):
        EVERY.decode(forged(*values))


@given(st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_garbage_is_an_invalid_cursor(text: str) -> None:
    with pytest.raises(InvalidCursor):
        EVERY.decode(text)


@pytest.mark.parametrize("values", [[], {}, None, [1], [1, "x", 2], [2, "fingerprint", 1]])
def test_a_wrong_shape_is_an_invalid_cursor(values: Any) -> None:
    keyset = Keyset(asc("id"))
    text = base64.urlsafe_b64encode(json.dumps(values).encode()).decode()
    with pytest.raises(InvalidCursor):
        keyset.step(text, limit=1)


def test_a_cursor_belongs_to_its_columns() -> None:
    """Another order, direction or type refuses it; so does a text that is far too long."""
    cursor = Keyset(asc("id")).encode({"id": 1})
    for other in (Keyset(desc("id")), Keyset(asc("key")), Keyset(asc("id", float))):
        with pytest.raises(InvalidCursor, match="another list"):
            other.decode(cursor)
    with pytest.raises(InvalidCursor, match="too long"):
        Keyset(asc("id")).decode("a" * 5000)


@pytest.mark.parametrize("row", [{"id": None}, {"id": "1"}, {}, {"id": True}])
def test_a_row_without_the_value_is_a_fault_of_the_statement(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'id'|True"):
        Keyset(asc("id")).encode(row)


def test_times_know_their_zone() -> None:
    keyset = Keyset(asc("at", datetime))
    with pytest.raises(ValueError, match="zone"):
        keyset.encode({"at": datetime(2026, 1, 1)})  # noqa: DTZ001 - the point
    at = datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(microseconds=1)
    assert keyset.decode(keyset.encode({"at": at})) == (at,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Keyset(),
        lambda: Keyset(asc("id"), desc("id")),
        lambda: asc("Id"),
        lambda: asc("id", list),  # type: ignore[arg-type]
        lambda: Keyset(asc("id")).step(None, limit=0),
        lambda: Keyset(asc("id")).step(None, limit=1, first=0),
    ],
)
def test_a_keyset_that_cannot_be_is_refused(make: Any) -> None:
    with pytest.raises(ValueError):
        make()
