"""A connection to a transaction pooler (PgBouncer), whose session is shared: it changes hands at each COMMIT.

Nothing may be kept in a session: no `statement_timeout` between two statements, no settings, locks, listeners
or temporary tables, no prepared statements of the application; what would keep one is refused before it is
sent. A transaction sets its time limit by SET LOCAL. A single statement has none on the server: its caller's
deadline ends it by a cancel request, which the pooler passes on.

What the pooler says itself is told apart from what the server says: an *unserved* statement waited for a
server that the pooler did not have, so it was certainly not executed and may be sent again, whatever it is.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from asyncpg import exceptions as pg

from springtide.context import RequestContext, current
from springtide.db._link import Link, Operation
from springtide.db._statements import Dirt, Statement
from springtide.errors import DatabaseUnavailable, SessionStateRefused

__all__ = ["PooledLink", "breather", "check_settings", "never_lets_in"]

CARRIED = ("application_name", "client_encoding", "datestyle", "standard_conforming_strings", "timezone")
"""Settings that PgBouncer keeps per client; any other in the first packet makes it hang up."""

_INSTEAD = {
    "SET": "use SET LOCAL in a transaction",
    "RESET": "use SET LOCAL in a transaction",
    "set_config": "use set_config(..., true) in a transaction",
    "TEMP": "create it ON COMMIT DROP in a transaction",
    "WITH HOLD": "use a cursor WITHOUT HOLD in a transaction",
    "PREPARE": "leave preparing to the pool",
    "pg_advisory_lock": "use pg_advisory_xact_lock in a transaction",
    "pg_advisory_lock_shared": "use pg_advisory_xact_lock_shared in a transaction",
    "pg_try_advisory_lock": "use pg_try_advisory_xact_lock in a transaction",
    "pg_try_advisory_lock_shared": "use pg_try_advisory_xact_lock_shared in a transaction",
}

_UNSERVED = (
    "query_wait_timeout",
    "server login has been failing",
    "server login failed",
    "pgbouncer cannot connect to server",
    "no more connections allowed",
    "database is disabled",
    "the database system is",
)
"""Said to a client that waits for a server, in PgBouncer 1.18 and newer: its statement reached none."""

_NEVER = ("unsupported startup parameter", "no such database", "no such user", "authentication failed")

BREATH = 0.05
LONGEST_BREATH = 0.5


class PooledLink(Link):
    pooled = True

    __slots__ = ()

    async def perform(
        self,
        operation: Operation,
        sql: str,
        args: tuple[Any, ...],
        statement: Statement,
        **options: Any,
    ) -> Any:
        """As a direct link does. Raises SessionStateRefused, with nothing sent."""
        if statement.session:
            raise SessionStateRefused(statement.session, _INSTEAD.get(statement.session, ""))
        if statement.dirt:  # a block or a text too long to look at: the session is not ours to reset
            statement = statement._replace(dirt=Dirt.NONE)
        return await super().perform(operation, sql, args, statement, **options)

    @property
    def standby(self) -> bool:
        """The pooler repeats what one of its servers said when it connected; that is not asked for."""
        return False

    def fits(self, timeout: float | None) -> bool:
        return True

    async def greet(self) -> None:
        """Nothing is set for the session's next user: it has no session."""

    def _translate(
        self, failure: BaseException, statement: Statement, context: RequestContext | None, read_only: bool
    ) -> BaseException:
        translated = super()._translate(failure, statement, context, read_only)
        if isinstance(translated, DatabaseUnavailable) and _is_said(failure, _UNSERVED):
            self.sent = False
            self.unserved = failure
        return translated


def check_settings(settings: Mapping[str, str]) -> None:
    """Raise ValueError for a setting that a pooler would not carry to the server."""
    for name, value in settings.items():
        if name.lower() not in CARRIED:
            raise ValueError(
                f"server_settings.{name} must be one of {', '.join(CARRIED)} behind a pooler, got {value!r}: "
                "give it to the role or the database (ALTER ROLE ... SET)"
            )


def never_lets_in(error: BaseException) -> bool:
    """Whether the pooler will say the same next time: wrong name, password, database or first packet."""
    return _is_said(error, _NEVER)


def breather(attempt: int, now: float, give_up: float) -> float:
    """Seconds to wait before attempt + 1 after the pooler had no server: min(BREATH * 2**(attempt - 1),
    LONGEST_BREATH) times a uniform factor in [0.5, 1], never past `give_up` or the request's deadline."""
    context = current()
    if context is not None and context.deadline is not None:
        give_up = min(give_up, context.deadline)
    pause = min(BREATH * 2.0 ** min(attempt - 1, 10), LONGEST_BREATH) * random.uniform(0.5, 1.0)  # noqa: S311
    return max(min(pause, give_up - now), 0.0)


def _is_said(error: BaseException, texts: tuple[str, ...]) -> bool:
    """PgBouncer 1.18 has one SQLSTATE (08P01) for all it says, newer ones differ: the text decides."""
    last_words = error.__cause__  # of a connection that asyncpg found closed
    for said in (error, last_words):
        if isinstance(said, pg.PostgresError) and getattr(said, "severity", None) == "FATAL":
            return any(text in str(said) for text in texts)
    return False
