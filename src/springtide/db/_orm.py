"""Statements of a SQLAlchemy engine, counted like those of a pool.

Listens to the engine's own events, so models and sessions stay as they are. The time is that of the cursor:
from sending to the last row for asyncpg's driver, which reads everything at once.
"""

from __future__ import annotations

from typing import Any

from springtide.clock import Clock
from springtide.context import Part, current
from springtide.db._statements import Statements
from springtide.db.insight import StatementTable

__all__ = ["watch_engine"]

_BEGUN = "springtide_begun"


def watch_engine(engine: Any, table: StatementTable, clock: Clock) -> None:
    from sqlalchemy import event

    core = getattr(engine, "sync_engine", engine)
    statements = Statements()

    def before(connection: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
        connection.info[_BEGUN] = clock.monotonic()

    def after(connection: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
        _count(connection, sql, parameters, max(cursor.rowcount, 0), None, many)

    def failed(failure: Any) -> None:
        if failure.connection is not None and failure.statement is not None:
            error = getattr(failure.original_exception, "sqlstate", None)
            error = error or type(failure.original_exception).__name__
            _count(failure.connection, failure.statement, (), 0, error, False)

    def _count(connection: Any, sql: str, parameters: Any, rows: int, error: str | None, many: bool) -> None:
        begun = connection.info.pop(_BEGUN, None)
        if begun is None:
            return
        seconds = clock.monotonic() - begun
        statement = statements.get(sql)
        request = current()
        entry = request.ledger.add(Part.SQL, seconds, statement.label, rows) if request is not None else None
        args = tuple(parameters) if isinstance(parameters, tuple | list) and not many else ()
        table.note(statement, sql, args, seconds, rows, error, entry)

    event.listen(core, "before_cursor_execute", before)
    event.listen(core, "after_cursor_execute", after)
    event.listen(core, "handle_error", failed)
