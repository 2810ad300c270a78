"""Statements that ask in a costly way: in a loop, past many rows, for all columns. Pure.

Each comes with the statement to send instead. A loop is told where processes saw one request repeat a
statement from one place; pages that follow each other by a cursor, workers that claim their next job, and
many keys that are asked for by a hundred at a time repeat by nature. OFFSET is told when it is deep, SELECT *
when the table is wide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from springtide.ops.advise.catalog import Catalog, Table, quoted
from springtide.ops.advise.findings import Finding
from springtide.ops.advise.indexing import Asked
from springtide.ops.advise.reading import Reading

__all__ = ["deep_offsets", "loops", "stars"]

DEEP = 1_000
"""Rows skipped from which a cursor is worth its code."""

BLOCKS_PER_ROW = 20
WIDE_COLUMNS = 8
WIDE_BYTES = 256
ROUND_TRIP = 0.7
"""Share of a repeated statement's time that one statement for all of them saves, at least."""

_EQUALS = re.compile(
    r'((?:"?\w+"?\.)?"?(\w+)"?)\s*(?:=\s*|\b(?P<list>in\s*\(\s*))(?P<value>\$\d+)(?:::\w+)?(?(list)\s*\))',
    re.IGNORECASE,
)

_STAR = re.compile(r"(\bselect\s+(?:distinct\s+)?|,\s*)(\w+\.)?\*(?=\s*,|\s+from\b)", re.IGNORECASE)


def loops(asked: Sequence[Asked], *, total: float) -> list[Finding]:
    findings: list[Finding] = []
    for one in asked:
        observed, reading = one.observed, one.reading
        if not observed.repeated_requests or not observed.sites:
            continue
        cursor = reading.paged and bool(reading.order) and any(use.ranges for use in reading.uses)
        hows = {slot.how for slot in reading.slots.values()}
        if reading.claims or cursor or ("any" in hows and "equal" not in hows):
            continue
        per_request = observed.repeated_calls / observed.repeated_requests
        repeated = observed.seconds * min(observed.repeated_calls / max(observed.calls, 1), 1.0)
        sql, how = _batch(one)
        findings.append(
            Finding(
                kind="repeated_statement",
                form=reading.kind,
                title=f"one statement {per_request:.0f} times in one request: {how}",
                share=ROUND_TRIP * repeated / total if total else 0.0,
                checked="requests",
                table=_about(reading),
                sql=(sql,),
                evidence={
                    "statements": [observed.shown()],
                    "called_from": observed.sites,
                    "requests": observed.repeated_requests,
                    "most_in_one_request": observed.repeated_most,
                },
            )
        )
    return findings


def _about(reading: Reading) -> str:
    table = reading.target or (reading.uses[0].table if reading.uses else None)
    return table.key if table is not None else ""


def _batch(one: Asked) -> tuple[str, str]:
    """The statement for all of them at once, and how it is called."""
    text, reading = one.observed.text, one.reading
    if reading.kind == "insert":
        return text, "send the rows with execute_many, one round trip for all"
    slots = [
        match
        for match in _EQUALS.finditer(text)
        if (slot := reading.slots.get(int(match["value"][1:]))) is not None and slot.how == "equal"
    ]
    if not slots:
        return text, "ask once for all of them"
    chosen = slots[-1] if len(slots) == 1 else max(slots, key=lambda match: _distinct(one, match))
    value = chosen["value"]
    slot = reading.slots[int(value[1:])]
    type_ = next(
        (use.table.columns[slot.column].type for use in reading.uses if use.table.key == slot.table), "bigint"
    )
    if reading.kind == "select" and (reading.paged or reading.adds_up):
        inner = re.sub(rf"\{value}(?:::\w+)?(?!\d)", "k.key", text)
        return (
            f"select k.key, each.* from unnest({value}::{type_}[]) as k (key)"  # noqa: S608 - is told
            f" cross join lateral ({inner}) as each",
            "ask for all keys with one statement, the rows of each with its key",
        )
    batch = f"{text[: chosen.start()]}{chosen[1]} = any({value}::{type_}[]){text[chosen.end() :]}"
    if reading.kind != "select":
        return batch, "write all rows with one statement, or send them with execute_many"
    selected = text[: text.lower().find(" from ")].lower()
    if "*" not in selected and not re.search(rf"\b{re.escape(slot.column.lower())}\b", selected):
        batch = re.sub(r"^\s*select\s+", f"select {chosen[1]}, ", batch, count=1, flags=re.IGNORECASE)
    return batch, "ask for all keys with one statement (fetch, or fetch_many of a sharded database)"


def _distinct(one: Asked, match: re.Match[str]) -> float:
    slot = one.reading.slots[int(match["value"][1:])]
    found = [use.table.columns[slot.column] for use in one.reading.uses if use.table.key == slot.table]
    return found[0].distinct if found else 0.0


def deep_offsets(asked: Sequence[Asked], *, total: float) -> list[Finding]:
    findings: list[Finding] = []
    for one in asked:
        observed, reading = one.observed, one.reading
        if reading.kind != "select" or not reading.skips:
            continue
        if observed.deepest_offset is not None:
            deep = observed.deepest_offset >= DEEP
            evidence: dict[str, Any] = {"deepest_offset": observed.deepest_offset}
        else:
            per_row = (observed.blocks or 0) / max(observed.rows, 1)
            deep = per_row >= BLOCKS_PER_ROW and observed.slowest > 2 * observed.seconds / max(
                observed.calls, 1
            )
            evidence = {"blocks_read_per_row": round(per_row, 1)}
        if not deep:
            continue
        findings.append(
            Finding(
                kind="deep_offset",
                form="offset",
                title="pages by OFFSET read and throw away every row before the page",
                share=0.5 * observed.seconds / total if total else 0.0,
                checked="requests" if observed.deepest_offset is not None else "server",
                table=reading.uses[0].table.key if reading.uses else "",
                sql=(_after_cursor(one),),
                evidence={"statements": [observed.shown()], **evidence},
            )
        )
    return findings


def _after_cursor(one: Asked) -> str:
    """The same page behind the last row of the one before it (springtide.db.Keyset writes this)."""
    text = re.sub(r"\s+offset\s+(\$\d+|\d+)(\s+rows?)?", "", one.observed.text, flags=re.IGNORECASE)
    order = list(one.reading.order)
    if not order:
        return text + " -- needs an ORDER BY that ends with a unique column before it can be paged"
    table = next((use.table for use in one.reading.uses if use.order), None)
    unique = _unique_key(table) if table is not None else None
    known = {key for key, _ in order}
    if unique is not None and unique not in known:
        direction = " desc" if order[-1][1] else ""
        text = re.sub(
            r"(\border\s+by\b.*?)(\s+limit\b|\s*$)",
            lambda match: f"{match[1]}, {unique}{direction}{match[2]}",
            text, count=1, flags=re.IGNORECASE | re.DOTALL,
        )  # fmt: skip
        order.append((unique, order[-1][1]))
    condition = _behind(order)
    if re.search(r"\bor\b", text, re.IGNORECASE) and not re.search(r"\bgroup\s+by\b", text, re.IGNORECASE):
        text = re.sub(
            r"(\bwhere\s+)(.*?)(\s+order\s+by\b)", r"\1(\2)\3", text, count=1, flags=re.IGNORECASE | re.DOTALL
        )
    if re.search(r"\bwhere\b", text, re.IGNORECASE):
        return re.sub(r"\bwhere\b", f"where {condition} and", text, count=1, flags=re.IGNORECASE)
    return re.sub(r"\border\s+by\b", f"where {condition} order by", text, count=1, flags=re.IGNORECASE)


def _behind(order: Sequence[tuple[str, bool]]) -> str:
    """The rows behind the last one; a row comparison knows one direction alone."""
    last = [f":last_{key.strip(chr(34))}" for key, _ in order]
    signs = ["<" if down else ">" for _, down in order]
    if len(set(signs)) == 1:
        return f"({', '.join(key for key, _ in order)}) {signs[0]} ({', '.join(last)})"
    (key, _), *rest = order
    return f"({key} {signs[0]} {last[0]} or ({key} = {last[0]} and {_behind(rest)}))"


def _unique_key(table: Table) -> str | None:
    primary = next((index for index in table.indexes if index.needed == "primary key"), None)
    return primary.keys[-1] if primary is not None else None


def stars(asked: Sequence[Asked], catalog: Catalog, *, total: float) -> list[Finding]:
    findings: list[Finding] = []
    for one in asked:
        wide = [table for table in one.reading.star if _wide(table)]
        if not wide or one.reading.kind != "select":
            continue
        table = wide[0]
        width = sum(column.width for column in table.columns.values())
        findings.append(
            Finding(
                kind="select_star",
                form="star",
                title=f"SELECT * reads {len(table.columns)} columns of {table.key}",
                share=0.1 * one.observed.seconds / total if total else 0.0,
                checked="catalog",
                table=table.key,
                sql=(
                    _STAR.sub(lambda match: _columns(match, table), one.observed.text, count=1)  # noqa: B023
                    + "  -- keep those that are used",
                ),
                evidence={
                    "statements": [one.observed.shown()],
                    "average_row": f"{width} bytes",
                    "widest": ", ".join(
                        f"{column.name} ({column.width})"
                        for column in sorted(table.columns.values(), key=lambda one: -one.width)[:3]
                    ),
                },
            )
        )
    return findings


def _columns(star: re.Match[str], table: Table) -> str:
    """What a star stands for, of the table that it is told of."""
    return star[1] + ", ".join(f"{star[2] or ''}{quoted(name)}" for name in table.columns)


def _wide(table: Table) -> bool:
    return (
        len(table.columns) >= WIDE_COLUMNS
        or sum(column.width for column in table.columns.values()) >= WIDE_BYTES
    )
