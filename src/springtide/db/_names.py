"""Names that go into SQL text: checked once, so that they need no quoting."""

from __future__ import annotations

import re

__all__ = ["identifier"]

_RESERVED = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate
    collation column concurrently constraint create cross current_catalog current_date current_role
    current_schema current_time current_timestamp current_user default deferrable desc distinct do else end
    except false fetch for foreign freeze from full grant group having ilike in initially inner intersect into
    is isnull join lateral leading left like limit localtime localtimestamp natural not notnull null offset on
    only or order outer overlaps placing primary references returning right select session_user similar some
    symmetric system_user table tablesample then to trailing true union unique user using variadic verbose
    when where window with
    """.split()  # noqa: SIM905 - a hundred words
)
"""Of PostgreSQL up to 18 (its documentation, appendix C); unquoted, they name nothing."""

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def identifier(name: object) -> str:
    """`name`, when PostgreSQL reads it unquoted as it is written; raises ValueError otherwise."""
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
        raise ValueError(
            f"a name in SQL is 1 to 63 lower-case letters, digits and _, not first a digit, got {name!r}"
        )
    if name in _RESERVED:
        raise ValueError(f"a name in SQL must be none of PostgreSQL's reserved words, got {name!r}")
    return name
