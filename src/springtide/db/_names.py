"""Names that go into SQL text: checked once, so that they need no quoting."""

from __future__ import annotations

import re

__all__ = ["identifier"]

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def identifier(name: str) -> str:
    """`name`, when PostgreSQL reads it unquoted as it is written; raises ValueError otherwise."""
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(
            f"a name in SQL is 1 to 63 lower-case letters, digits and _, not first a digit, got {name!r}"
        )
    return name
