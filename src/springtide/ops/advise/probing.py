"""A statement that the planner can be asked about: its text, and a typical value for each parameter. Pure.

A value is taken from the column's statistics. Equality: an average value (or, where few values share the
column, the one whose rows come closest to what the statement returned). A range: so wide that as many rows
meet it as the statement returned per call. A parameter without a known column has none, and then the whole
statement is planned generically, without values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import sqlglot

from springtide.ops.advise.catalog import Catalog, Column, Table
from springtide.ops.advise.observed import Observed
from springtide.ops.advise.reading import Reading, Slot

__all__ = ["Probe", "probe"]

ANY_VALUES = 10
PAGE = "20"
DEFAULT_SHARE = 0.05
"""Of the rows, those between two bounds, or removed by one statement."""

UNKNOWN_SHARE = 0.75
"""Of the rows, those beyond one bound where nothing says how many: no reason for an index."""

_PARAMETER = re.compile(r"\$(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """`text` has parameters 1 to n without gaps; `values` are SQL, or None to plan generically."""

    text: str
    values: tuple[str, ...] | None
    parameters: int


def probe(observed: Observed, reading: Reading, catalog: Catalog) -> Probe:
    source = _filled(observed, reading, catalog)
    numbers: dict[int, int] = {}
    for match in _PARAMETER.finditer(source):
        numbers.setdefault(int(match[1]), len(numbers) + 1)
    text = _PARAMETER.sub(lambda match: f"${numbers[int(match[1])]}", source)
    values: list[str] = []
    for number in numbers:
        value = _value(reading.slots.get(number), observed, reading, catalog)
        if value is None:
            return Probe(text=text, values=None, parameters=len(numbers))
        values.append(value)
    return Probe(text=text, values=tuple(values), parameters=len(numbers))


def _filled(observed: Observed, reading: Reading, catalog: Catalog) -> str:
    """The text, with a typical value for each side of a range that computes with its parameters."""
    if not reading.opaque or reading.tree is None:
        return observed.text
    values = [_value(slot, observed, reading, catalog) for _, slot in reading.opaque]
    if None in values:
        return observed.text
    for (node, slot), value in zip(reading.opaque, values, strict=True):
        type_ = catalog.tables[slot.table].columns[slot.column].type
        node.replace(sqlglot.parse_one(f"cast({value} as {type_})", dialect="postgres"))
    return reading.tree.sql(dialect="postgres")


def _value(slot: Slot | None, observed: Observed, reading: Reading, catalog: Catalog) -> str | None:
    if slot is None:
        return None
    if slot.how == "limit":
        return PAGE
    if slot.how == "offset":
        return str(observed.deepest_offset or 0)
    table = catalog.tables[slot.table]
    column = table.columns[slot.column]
    per_call = observed.rows / max(observed.calls, 1)
    if slot.how == "equal":
        found = _average(column, None if reading.paged else per_call, table)
        return None if found is None else _literal(found.lower() if slot.lowered else found)
    if slot.how == "any":
        several = [*column.bounds[1:-1], *(value for value, _ in column.common)][:ANY_VALUES]
        return _literal("{" + ",".join(_element(one) for one in several) + "}") if several else None
    return _edge(slot, column, _share(slot, reading, catalog, table, per_call), reading)


def _average(column: Column, wanted: float | None, table: Table) -> str | None:
    if len(column.bounds) > 2:
        return column.bounds[len(column.bounds) // 2]
    if not column.common:
        return None
    if wanted is None:
        return column.common[len(column.common) // 2][0]
    return min(column.common, key=lambda one: abs(one[1] * table.rows - wanted))[0]


def _share(slot: Slot, reading: Reading, catalog: Catalog, table: Table, per_call: float) -> float:
    """Of the rows that meet the statement's other conditions, those within the range."""
    both = {one.how for one in reading.slots.values() if (one.table, one.column) == (slot.table, slot.column)}
    if reading.paged:
        return 0.5
    if reading.kind != "select" or reading.adds_up or not table.rows:
        return DEFAULT_SHARE if {"more", "less"} <= both or reading.kind != "select" else UNKNOWN_SHARE
    rest = table.rows
    for other in reading.slots.values():
        if other.table == slot.table and other.how == "equal":
            rest /= max(table.columns[other.column].distinct, 1.0)
    return min(max(per_call / max(rest, 1.0), 0.0005), 0.9)


def _edge(slot: Slot, column: Column, share: float, reading: Reading) -> str | None:
    bounds: Sequence[str] = column.bounds
    if len(bounds) < 3:
        return None
    both = {one.how for one in reading.slots.values() if (one.table, one.column) == (slot.table, slot.column)}
    if {"more", "less"} <= both:
        at = 0.5 if slot.how == "more" else 0.5 + share / 2
    else:
        at = 1.0 - share if slot.how == "more" else share
    return _literal(bounds[min(max(round(at * (len(bounds) - 1)), 0), len(bounds) - 1)])


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _element(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
