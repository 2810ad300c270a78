"""Indexes that are there: unused ones, duplicates and prefixes; foreign keys that lack one. Pure.

An index is called unused only where its use was counted for long enough, on the primary and on every replica,
while its table was used; never one that a constraint, uniqueness, the replica identity or a foreign key
needs, or that is part of a partitioned one. A unique index is a duplicate only of one that lets nobody write
just the same. Dropping is advised with the statement that brings it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from springtide.ops.advise.candidates import MIN_PAGES, MIN_ROWS
from springtide.ops.advise.catalog import Catalog, ForeignKey, Index, Table, quoted
from springtide.ops.advise.findings import Finding
from springtide.ops.advise.indexing import WRITE_SECONDS

__all__ = ["duplicates", "keys_without_index", "unused"]

MIN_BYTES = 128 * 1024
"""A smaller index costs too little to be worth a word."""


def duplicates(catalog: Catalog, *, total: float) -> list[Finding]:
    """Of two indexes that serve the same, the one that is not needed; of a prefix, the shorter one."""
    findings: list[Finding] = []
    for table in catalog.tables.values():
        gone: set[str] = set()
        for index in sorted(table.indexes, key=lambda one: (len(one.keys), bool(one.needed), one.scans)):
            other = next((one for one in table.indexes if _covers(one, index, gone)), None)
            if other is None:
                continue
            gone.add(index.name)
            same = len(other.keys) == len(index.keys) and other.include == index.include
            findings.append(
                _drop(
                    "duplicate_index", table, index, total, checked="catalog",
                    form="duplicate" if same else "prefix",
                    title=f"{index.name} on {table.key} "
                    + (f"is the same as {other.name}" if same else f"is the beginning of {other.name}"),
                    evidence={"other_index": f"{other.name} ({', '.join(other.keys)})"},
                )
            )  # fmt: skip
    return findings


def _covers(other: Index, index: Index, gone: set[str]) -> bool:
    if other.name == index.name or other.name in gone or not other.valid:
        return False
    count = len(index.keys)
    if index.needed and not (
        index.needed == "unique" and other.rule == index.rule and other.keys == index.keys
    ):
        return False
    alike = (
        other.method == index.method
        and other.predicate == index.predicate
        and other.keys[:count] == index.keys
        and other.same[:count] == index.same[:count]
        and set(index.include) <= {*other.include, *other.keys}
    )
    return alike and (index.method == "btree" or len(other.keys) == count)


def unused(
    catalog: Catalog,
    elsewhere: Mapping[str, int],
    *,
    replicas: int,
    min_age: float,
    told: set[str],
    total: float,
) -> tuple[list[Finding], list[str]]:
    """`elsewhere` are scans on replicas by `schema.index`; `told` are indexes with a finding already."""
    if catalog.age < min_age:
        return [], [
            f"use of indexes was counted for {catalog.age / 86400:.1f} days: unused ones are told after "
            f"{min_age / 86400:g} (--unused-after)"
        ]
    findings: list[Finding] = []
    for table in catalog.tables.values():
        keys = {key.columns for key in catalog.foreign_keys if key.table == table.key}
        if not (table.inserted + table.updated + table.deleted + table.read):
            continue  # a table that nobody touches says nothing about its indexes
        for index in table.indexes:
            if index.needed or index.scans or elsewhere.get(f"{table.schema}.{index.name}"):
                continue
            if index.bytes < MIN_BYTES or index.name in told:
                continue
            if any(_begins(index, columns) for columns in keys):
                continue
            findings.append(
                _drop(
                    "unused_index", table, index, total, checked="catalog", form="unused",
                    title=f"nothing has read {index.name} on {table.key} for {catalog.age / 86400:.1f} days",
                    evidence={"replicas_asked": replicas},
                )
            )  # fmt: skip
    return findings, []


def _begins(index: Index, columns: Sequence[str]) -> bool:
    return set(index.keys[: len(columns)]) == {quoted(column) for column in columns} and not index.predicate


def _drop(
    kind: str,
    table: Table,
    index: Index,
    total: float,
    *,
    checked: str,
    form: str,
    title: str,
    evidence: dict[str, Any],
) -> Finding:
    written = table.inserted + table.updated
    return Finding(
        kind=kind,
        form=form,
        title=title,
        share=0.0,
        checked=checked,
        table=table.key,
        columns=index.keys,
        index=index.name,
        sql=(f"DROP INDEX CONCURRENTLY {quoted(table.schema)}.{quoted(index.name)};",),
        evidence={
            **evidence,
            "scans": index.scans,
            "size": f"{index.bytes / 2**20:.1f} MiB",
            "write_cost": f"{written} rows written, about {written * WRITE_SECONDS:.2f} s for this index",
            "to_bring_it_back": index.definition.replace(" INDEX ", " INDEX CONCURRENTLY ", 1) + ";",
        },
    )


def keys_without_index(catalog: Catalog, deleted_from: set[str]) -> list[ForeignKey]:
    """Foreign keys of large tables whose referenced rows are deleted, without an index that begins with them.

    `deleted_from` are tables that an observed statement deletes from; the server's own count is used too.
    """
    found: list[ForeignKey] = []
    for key in catalog.foreign_keys:
        table, target = catalog.tables[key.table], catalog.tables[key.target]
        if table.rows < MIN_ROWS or table.pages < MIN_PAGES:
            continue
        if key.target not in deleted_from and not target.deleted:
            continue
        if not any(_begins(index, key.columns) and index.valid for index in table.indexes):
            found.append(key)
    return found
