"""Indexes worth a trial for one use of one table. Pure; the judge decides which of them, if any, helps.

The rule of thumb (equality first, then the range or the order), in a few variants: B-tree columns that are
compared for equality narrow the search wherever they stand, so their order is free; of those after them
only one range, or the wanted order, is used. A constant condition that few rows meet makes the index partial.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from springtide.ops.advise.catalog import Table, quoted
from springtide.ops.advise.reading import Use

__all__ = ["Candidate", "candidates", "combined", "condition", "index_name"]

MIN_ROWS = 2_000
MIN_PAGES = 24
"""Smaller tables are read whole about as quickly; their indexes only cost."""

RARE = 0.25
"""A constant that this share of the rows, or less, has makes a partial index worth its special case."""

COMMON = 0.5
"""A constant that more rows have narrows nothing: as the first column of an index it is only in the way."""

MAX_EQUAL = 3
MAX_VARIANTS = 12
_NO_BTREE = ("json", "xml", "point", "box", "polygon", "line", "circle", "path", "lseg", "tsvector", "jsonb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """`keys` as SQL with their direction; `free` of the first ones may stand in any order."""

    table: Table
    keys: tuple[str, ...]
    free: int = 0
    where: str = ""
    include: tuple[str, ...] = ()

    def definition(self, relation: str | None = None) -> str:
        text = f"ON {relation or self.table.sql} ({', '.join(self.keys)})"
        if self.include:
            text += f" INCLUDE ({', '.join(self.include)})"
        return f"{text} WHERE {self.where}" if self.where else text

    def creation(self, name: str) -> tuple[str, ...]:
        """What makes it without locking out a writer for long; of a partitioned table part by part."""
        if not self.table.parts:
            return (f"CREATE INDEX CONCURRENTLY {quoted(name)} {self.definition()};",)
        sql = [f"CREATE INDEX {quoted(name)} {self.definition(f'ONLY {self.table.sql}')};"]
        whole = f"{quoted(self.table.schema)}.{quoted(name)}"
        for number, (schema, part) in enumerate(self.table.parts, 1):
            own = quoted(f"{name[:54]}_{number}")
            sql.append(f"CREATE INDEX CONCURRENTLY {own} {self.definition(part)};")
            sql.append(f"ALTER INDEX {whole} ATTACH PARTITION {schema}.{own};")
        return tuple(sql)

    @property
    def form(self) -> str:
        if self.include:
            return "covering"
        if self.where:
            return "partial"
        if any("(" in key for key in self.keys):
            return "expression"
        return "composite" if len(self.keys) > 1 else "single"

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(key.removesuffix(" DESC") for key in self.keys)


def index_name(candidate: Candidate) -> str:
    parts = [candidate.table.name, *candidate.columns]
    name = "_".join(re.sub(r"\W+|_+", "_", part).strip("_") for part in parts)
    return f"{name[:54]}_{'part' if candidate.where else 'idx'}"


def candidates(use: Use) -> list[Candidate]:
    table = use.table
    if table.rows < MIN_ROWS or table.pages < MIN_PAGES:
        return []
    equal = _most_selective(table, [key for key in use.equal if _indexable(table, key)])
    fixed = [key for key, value in use.constants.items() if value not in ("null", "not null")]
    fixed = [key for key in fixed if _share(table, key, use.constants[key]) <= COMMON]
    fixed = _most_selective(table, [key for key in fixed if _indexable(table, key)])
    joined = _most_selective(table, [key for key in use.joined if _indexable(table, key)])
    order = _order(use)
    ranges = [key for key in use.ranges if _indexable(table, key)]
    tails: list[tuple[str, ...]] = [(), *((key,) for key in ranges)]
    if order:
        tails.append(order)
    rare = [
        condition(key, value) for key, value in use.constants.items() if _share(table, key, value) <= RARE
    ]
    found: list[Candidate] = []

    def add(keys: Iterable[str], tail: tuple[str, ...], where: str = "") -> None:
        head = tuple(dict.fromkeys(keys))
        rest = tuple(key for key in tail if key.removesuffix(" DESC") not in head)
        if head or rest:
            made = Candidate(table=table, keys=head + rest, free=len(head), where=where)
            if made not in found and not _there(made):
                found.append(made)

    for heads in _heads(equal, fixed, joined):
        for tail in tails:
            add(heads, tail)
    for where in rare[:2]:
        for heads in _heads(equal, [], joined):
            for tail in tails:
                add(heads, tail, where)
        if not equal and not joined and not ranges and not order:
            add(_primary(table) or fixed[:1], (), where)
    return found[: 2 * MAX_VARIANTS]


def _there(candidate: Candidate) -> bool:
    """Whether an index begins with these keys already: a planner that leaves it will leave another."""
    free, count = candidate.free, len(candidate.keys)
    return any(
        index.valid
        and index.method == "btree"
        and _bare(index.predicate) == _bare(candidate.where)
        and sorted(map(_bare, index.keys[:free])) == sorted(map(_bare, candidate.keys[:free]))
        and [*map(_bare, index.keys[free:count])] == [*map(_bare, candidate.keys[free:])]
        for index in candidate.table.indexes
    )


def _bare(text: str) -> str:
    """A key or a predicate as it is compared: the server writes casts and parentheses that we do not."""
    return re.sub(r"::[a-z_ ]+|[()\s]", "", text.lower())


def _heads(equal: list[str], fixed: list[str], joined: list[str]) -> list[tuple[str, ...]]:
    both = equal + fixed
    found = [tuple(both[:MAX_EQUAL]), tuple(both[:1]), tuple(equal[:MAX_EQUAL])]
    if joined:
        found += [(joined[0],), (joined[0], *both[: MAX_EQUAL - 1])]
    if not both and not joined:
        found.append(())
    return list(dict.fromkeys(head for head in found if head or not (both or joined)))


def _primary(table: Table) -> list[str]:
    """What to find rows by where the condition is all that is asked."""
    return [key for index in table.indexes if index.needed == "primary key" for key in index.keys][:1]


def _column(table: Table, key: str) -> str:
    """The column that a key is, or is made of."""
    if key.startswith("("):
        names = [strict or bare for strict, bare in re.findall(r'"([^"]+)"|(\w+)', key)]
        return next((name for name in names if name in table.columns), "")
    inner = key[key.index("(") + 1 : -1] if "(" in key else key
    return inner.strip('"')


def _indexable(table: Table, key: str) -> bool:
    column = table.columns.get(_column(table, key))
    if column is None or column.name in table.split_by:
        return False  # partitions are chosen by it already
    if key.startswith("("):
        return True  # a text or a day, whatever it is taken out of
    return not column.type.startswith(_NO_BTREE) and column.width <= 600


def _most_selective(table: Table, keys: list[str]) -> list[str]:
    return sorted(keys, key=lambda key: (-table.columns[_column(table, key)].distinct, key))


def _order(use: Use) -> tuple[str, ...]:
    """The wanted order as keys; an index is read backwards as well, so one direction for all is none."""
    if not use.order or not all(_indexable(use.table, key) for key, _ in use.order):
        return ()
    if not use.limited and not use.equal and not use.constants:
        return ()  # all rows of a table in order: sorting them is as good
    keys = [(key, down) for key, down in use.order if key not in use.equal and key not in use.constants]
    if len({down for _, down in keys}) < 2:
        return tuple(key for key, _ in keys)
    return tuple(f"{key} DESC" if down else key for key, down in keys)


def _share(table: Table, key: str, value: str) -> float:
    """Of the rows, those that meet the constant condition; 1 when the statistics do not say."""
    column = table.columns.get(_column(table, key))
    if column is None or not column.distinct:
        return 1.0
    if "(" in key:
        return 1.0 / column.distinct
    if value == "null":
        return column.null_share
    if value == "not null":
        return 1.0 - column.null_share
    wanted = {"TRUE": "t", "FALSE": "f"}.get(value, value.strip("'"))
    for common, share in column.common:
        if common == wanted:
            return share
    left = max(1.0 - column.null_share - sum(share for _, share in column.common), 0.0)
    return left / max(column.distinct - len(column.common), 1.0)


def condition(key: str, value: str) -> str:
    """A constant condition as SQL, as it stands in a partial index."""
    if value in ("null", "not null"):
        return f"{key} IS {value.upper()}"
    return key if value == "TRUE" else f"NOT {key}" if value == "FALSE" else f"{key} = {value}"


def combined(first: Candidate, second: Candidate) -> Candidate | None:
    """One index that serves what both serve, or None."""
    if first.table.key != second.table.key or first.where != second.where:
        return None
    small, large = sorted((first, second), key=lambda one: len(one.keys))
    if small.keys == large.keys:
        return large if len(large.include) >= len(small.include) else small
    if large.keys[: len(small.keys)] == small.keys:
        return large
    head = small.keys
    if small.free == len(head) and set(head) <= set(large.keys[: large.free]):
        rest = tuple(key for key in large.keys if key not in head)
        return Candidate(
            table=large.table, keys=head + rest, free=len(head), where=large.where, include=large.include
        )
    return None
