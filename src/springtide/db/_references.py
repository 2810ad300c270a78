"""Which tables, functions and types a statement names, read from its tokens.

A table is named after FROM, JOIN, INTO, UPDATE, USING, TABLE, REFERENCES, TRUNCATE, COPY or LOCK, and after
ON in CREATE INDEX and CREATE TRIGGER; in a list also after each comma. What EXTRACT(... FROM ...) and IS
DISTINCT FROM name is no table, and neither is the name of a WITH query. Functions and types count when they
are qualified by a schema. The text is not parsed further: this is a check against mistakes, not against
malice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from springtide.db._sql import Kind, Token, tokens

__all__ = ["Reference", "references"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A name as written; `schema` is None when the statement leaves it to the search path."""

    schema: str | None
    name: str

    def __str__(self) -> str:
        return self.name if self.schema is None else f"{self.schema}.{self.name}"


class _Next(Enum):
    """What follows a word: a source may be a function or a query, a target is a name in any case."""

    SOURCE = 1
    TARGET = 2


@dataclass(slots=True)
class _Level:
    """One pair of parentheses: whether it holds a query, and what may follow a comma."""

    query: bool = False
    listing: _Next | None = None


_PREFIXES = ("only", "lateral", "if", "not", "exists", "concurrently", "table")
_QUERIES = ("select", "delete", "update", "insert", "merge")
_ENDS_LIST = frozenset(
    [
        "where",
        "group",
        "order",
        "having",
        "limit",
        "offset",
        "fetch",
        "window",
        "union",
        "intersect",
        "except",
        "set",
        "returning",
        "select",
        "values",
        "for",
    ]
)
_DEFINITIONS = ("table", "view", "sequence", "type", "domain", "function", "procedure")
_BEFORE_DEFINITION = frozenset(
    ["create", "alter", "drop", "replace", "unlogged", "materialized", "on", "lock", "truncate"]
)
_NO_COMMAND_BEFORE = frozenset(["for", "key", "on", "do", "or", "then", "before", "after", "instead", "of"])
_NEVER_NAMES = ("select", "values", "with", "rows", "unnest")


def references(sql: str) -> frozenset[Reference]:
    """Every table that `sql` names, and every function and type that it names with a schema."""
    found = list(tokens(sql))
    named = _with_queries(found)
    result: set[Reference] = set()
    levels = [_Level()]
    begin = index = 0
    joined = False
    while index < len(found):
        token, level = found[index], levels[-1]
        after: _Next | None = None
        if token.kind is Kind.SYMBOL:
            if token.text in "([":
                levels.append(_Level())
                after = _Next.SOURCE if joined else None  # FROM (a JOIN b ...)
            elif token.text in ")]" and len(levels) > 1:
                levels.pop()
            elif token.text == ",":
                after = level.listing
            elif token.text == ";":
                levels, begin = [_Level()], index + 1
        elif token.kind is Kind.WORD and not _follows_dot(found, index):
            if token.text in _ENDS_LIST:
                level.listing = None
            if token.text in _QUERIES:
                level.query = True
            after = _introduces(found, begin, index, level)
        reference = None
        joined = after is _Next.SOURCE and index + 1 < len(found) and found[index + 1].text == "("
        if after is not None:
            reference = _table(found, index + 1, after)
            if reference is not None and reference.schema is None and reference.name in named:
                reference = None
        elif token.name:
            reference = _qualified_call_or_type(found, index)
        if reference is not None:
            result.add(reference)
        index += 1
    return frozenset(result)


def _introduces(found: list[Token], begin: int, index: int, level: _Level) -> _Next | None:
    """What follows the word at `index` of the statement that starts at `begin`."""
    word, first = found[index].text, found[begin].text
    before = found[index - 1] if index > begin else None
    if word == "from":
        if before is not None and before.word("distinct") and found[index - 2].word("is", "not"):
            return None
        level.listing = _Next.SOURCE if level.query else None
        return level.listing
    if word == "join":
        return _Next.SOURCE
    if word == "using":
        if level.query and first in ("delete", "merge", "with"):
            level.listing = _Next.SOURCE
            return _Next.SOURCE
        return None
    if word in ("into", "references"):
        return _Next.TARGET
    if word == "update":
        return None if before is not None and before.word(*_NO_COMMAND_BEFORE) else _Next.TARGET
    if word in ("truncate", "lock", "copy") and before is None:
        level.listing = _Next.TARGET if word != "copy" else None
        return _Next.TARGET
    if word in _DEFINITIONS and before is not None and before.word(*_BEFORE_DEFINITION):
        level.listing = _Next.TARGET if first == "drop" else None
        return _Next.TARGET
    if word == "index" and first in ("drop", "alter", "reindex"):
        level.listing = _Next.TARGET if first == "drop" else None
        return _Next.TARGET
    if word == "of":
        return _Next.TARGET if before is not None and before.word("partition") else None
    if word == "on" and first == "create" and _creates(found, begin, "index", "trigger"):
        return _Next.TARGET
    return None


def _creates(found: list[Token], begin: int, *kinds: str) -> bool:
    return any(token.word(*kinds) for token in found[begin + 1 : begin + 5])


def _table(found: list[Token], index: int, expected: _Next) -> Reference | None:
    """The name that begins at `index`; None when a query, a plain function or nothing is there."""
    while index < len(found) and found[index].word(*_PREFIXES):
        index += 1
    if index >= len(found) or not found[index].name or found[index].word(*_NEVER_NAMES):
        return None
    name, schema = found[index].text, None
    if index + 2 < len(found) and found[index + 1].text == "." and found[index + 2].name:
        schema, name, index = name, found[index + 2].text, index + 2
    called = index + 1 < len(found) and found[index + 1].text == "("
    if called and schema is None and expected is _Next.SOURCE:
        return None
    return Reference(schema, name)


def _qualified_call_or_type(found: list[Token], index: int) -> Reference | None:
    """`schema.function(` and `::schema.type`; None for a column of an alias."""
    if index + 2 >= len(found) or found[index + 1].text != "." or not found[index + 2].name:
        return None
    if _follows_dot(found, index):
        return None
    called = index + 3 < len(found) and found[index + 3].text == "("
    cast = index >= 2 and found[index - 1].text == ":" and found[index - 2].text == ":"
    return Reference(found[index].text, found[index + 2].text) if called or cast else None


def _follows_dot(found: list[Token], index: int) -> bool:
    return index > 0 and found[index - 1].text == "."


def _with_queries(found: list[Token]) -> set[str]:
    """Names defined by WITH: `name AS [NOT] [MATERIALIZED] (` or `name (columns) AS (`."""
    names: set[str] = set()
    if not any(token.word("with") for token in found):
        return names
    for index, token in enumerate(found):
        if not token.word("as"):
            continue
        after = index + 1
        while after < len(found) and found[after].word("not", "materialized"):
            after += 1
        if after >= len(found) or found[after].text != "(":
            continue
        before = index - 1
        if before >= 0 and found[before].text == ")":
            before = _opening(found, before) - 1
        if (
            before >= 1
            and found[before].name
            and (found[before - 1].word("with", "recursive") or found[before - 1].text == ",")
        ):
            names.add(found[before].text)
    return names


def _opening(found: list[Token], index: int) -> int:
    """The parenthesis that the one at `index` closes; 0 when there is none."""
    depth = 0
    for at in range(index, 0, -1):
        depth += (found[at].text == ")") - (found[at].text == "(")
        if depth == 0:
            return at
    return 0
