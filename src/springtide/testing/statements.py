"""Holds every statement of a module to its own schema.

    with StatementGuard() as guard:
        ...                       # use the application: every statement of every pool is seen
    assert guard.faults() == []

A statement that runs through a module's `Database` may name tables of that database's schema alone. One that
runs past it, on a pool, may not join two schemas. Tables are always written with their schema. The text is
read by tokens (see `springtide.db`'s reader of references): what a function does inside is not seen.
The guard patches the database layer's classes while it is open, so that one test at a time may use it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from springtide.db import Database, Reader, Snapshot, WriteTransaction
from springtide.db._references import references
from springtide.db._statements import Statements

__all__ = ["Executed", "StatementGuard", "schemas_of"]

SYSTEM = frozenset({"pg_catalog", "information_schema"})


@dataclass(frozen=True, slots=True)
class Executed:
    """One statement; `schema` is that of the `Database` it ran through, None for a pool used directly."""

    schema: str | None
    sql: str


def schemas_of(sql: str) -> frozenset[str | None]:
    """The schemas whose tables, functions and types `sql` names; None stands for a name without one."""
    return frozenset(reference.schema for reference in references(sql))


class StatementGuard:
    """`foreign` are schemas that every module may read, such as one that all share on purpose."""

    def __init__(self, *, foreign: Iterable[str] = ()) -> None:
        self._allowed = SYSTEM | frozenset(foreign)
        self._seen: dict[Executed, None] = {}
        self._patches: ExitStack | None = None

    @property
    def statements(self) -> list[Executed]:
        """Every different statement, in the order in which it came first."""
        return list(self._seen)

    def faults(self) -> list[str]:
        """One sentence per statement that breaks the rule; empty when all keep it."""
        return [fault for executed in self._seen for fault in self._judge(executed)]

    def _judge(self, executed: Executed) -> Iterable[str]:
        text = " ".join(executed.sql.split())
        named = references(executed.sql)
        for reference in sorted(named, key=str):
            if reference.schema is None:
                yield f"{reference} is written without its schema: {text}"
            elif executed.schema not in (None, reference.schema) and reference.schema not in self._allowed:
                yield f"{executed.schema!r} reaches into {reference}: {text}"
        schemas = {reference.schema for reference in named} - self._allowed - {None}
        if executed.schema is None and len(schemas) > 1:
            yield f"{' and '.join(sorted(map(str, schemas)))} in one statement: {text}"

    def __enter__(self) -> StatementGuard:
        if self._patches is not None:
            raise RuntimeError("this guard is open already")
        with ExitStack() as patches:
            for owner in (Reader, Snapshot, WriteTransaction):
                for method in ("fetch", "fetch_one", "fetch_value", "execute", "execute_many"):
                    if hasattr(owner, method):
                        self._patch(patches, owner, method, lambda self: self.database.schema)
            for method in ("scatter", "scatter_sum", "fetch_many"):
                self._patch(patches, Database, method, lambda self: self.schema)
            self._patch_copy(patches)
            self._patch(patches, Statements, "get", lambda self: None)
            self._patches = patches.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        patches, self._patches = self._patches, None
        if patches is not None:
            patches.close()

    def _patch_copy(self, patches: ExitStack) -> None:
        original = WriteTransaction.copy_in

        @functools.wraps(original)
        async def seen(
            instance: WriteTransaction, table: str, columns: Any, records: Any, *, schema: str | None = None
        ) -> int:
            name = table if schema is None else f"{schema}.{table}"
            self._seen.setdefault(Executed(instance.database.schema, f"COPY {name} FROM STDIN"))
            return await original(instance, table, columns, records, schema=schema)

        patches.callback(setattr, WriteTransaction, "copy_in", original)
        WriteTransaction.copy_in = seen  # type: ignore[method-assign,assignment]  # a patch, taken back on exit

    def _patch(
        self, patches: ExitStack, owner: type, method: str, schema_of: Callable[[Any], str | None]
    ) -> None:
        original = getattr(owner, method)

        @functools.wraps(original)
        def seen(instance: Any, sql: str, *args: Any, **options: Any) -> Any:
            self._seen.setdefault(Executed(schema_of(instance), sql))
            return original(instance, sql, *args, **options)

        setattr(owner, method, seen)
        patches.callback(setattr, owner, method, original)
