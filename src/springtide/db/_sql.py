"""Reading SQL text as far as routing, migrations and tests need it: tokens, statements, a few questions.

The tokens are PostgreSQL's: strings with '' and E'' escapes, dollar quotes, quoted identifiers, nested
comments, parameters. Nothing here parses a grammar, and nothing here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

__all__ = [
    "Kind",
    "SqlTextError",
    "Statement",
    "Token",
    "statements",
    "tokens",
    "unscatterable",
    "without_terminator",
]


class SqlTextError(ValueError):
    """A string, quote or comment does not end; `position` is where it begins, from 0."""

    def __init__(self, what: str, position: int) -> None:
        self.position = position
        super().__init__(f"{what} does not end")


class Kind(Enum):
    WORD = "word"
    QUOTED = "quoted"
    STRING = "string"
    NUMBER = "number"
    PARAMETER = "parameter"
    SYMBOL = "symbol"


@dataclass(frozen=True, slots=True)
class Token:
    """`text` as PostgreSQL understands it: words folded to lower case, quoted identifiers without quotes."""

    kind: Kind
    text: str
    start: int
    end: int

    @property
    def name(self) -> bool:
        """Whether it can be an identifier."""
        return self.kind in (Kind.WORD, Kind.QUOTED)

    def word(self, *words: str) -> bool:
        return self.kind is Kind.WORD and self.text in words


_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_$\u0080-\U0010ffff]*")
_NUMBER = re.compile(r"(?:0[xX][0-9a-fA-F_]+|\d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)")
_PARAMETER = re.compile(r"\$\d+")
_DOLLAR = re.compile(r"\$(?:[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_\u0080-\U0010ffff]*)?\$")
_STRING = re.compile(r"[eE]'(?:[^'\\]|''|\\.)*'|(?:[bBxXnN]|[uU]&)?'(?:[^']|'')*'", re.DOTALL)
_QUOTED = re.compile(r'(?:[uU]&)?"((?:[^"]|"")*)"')


def tokens(sql: str) -> Iterator[Token]:
    """Every token of `sql`, comments and white space left out. Raises SqlTextError."""
    at, end = 0, len(sql)
    while at < end:
        char = sql[at]
        if match := _SPACE.match(sql, at):
            at = match.end()
            continue
        if sql.startswith("--", at):
            newline = sql.find("\n", at)
            at = end if newline < 0 else newline + 1
            continue
        if sql.startswith("/*", at):
            at = _after_comment(sql, at)
            continue
        match = None
        if char in "'eEbBxXnNuU":
            match = _STRING.match(sql, at)
            if match:
                yield Token(Kind.STRING, match[0], at, match.end())
        if not match and char in '"uU' and (match := _QUOTED.match(sql, at)):
            yield Token(Kind.QUOTED, match[1].replace('""', '"'), at, match.end())
        if not match and char == "$":
            if match := _PARAMETER.match(sql, at):
                yield Token(Kind.PARAMETER, match[0], at, match.end())
            elif match := _DOLLAR.match(sql, at):
                close = sql.find(match[0], match.end())
                if close < 0:
                    raise SqlTextError(f"the string that {match[0]} opens", at)
                yield Token(Kind.STRING, sql[at : close + len(match[0])], at, close + len(match[0]))
                at = close + len(match[0])
                continue
        if not match and (match := _WORD.match(sql, at)):
            yield Token(Kind.WORD, match[0].lower(), at, match.end())
        if not match and (match := _NUMBER.match(sql, at)):
            yield Token(Kind.NUMBER, match[0], at, match.end())
        if match:
            at = match.end()
            continue
        if char in "'\"":
            raise SqlTextError("a string" if char == "'" else "a quoted name", at)
        yield Token(Kind.SYMBOL, char, at, at + 1)
        at += 1


def _after_comment(sql: str, at: int) -> int:
    depth, begin = 0, at
    for match in re.compile(r"/\*|\*/").finditer(sql, at):
        depth += 1 if match[0] == "/*" else -1
        if depth == 0:
            return match.end()
    raise SqlTextError("a comment", begin)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement without its semicolon; `start` is the position of its first token in the file."""

    text: str
    start: int
    tokens: tuple[Token, ...]

    def begins(self, *words: str) -> bool:
        """Whether its first words are these, in any case."""
        return len(self.tokens) >= len(words) and all(
            token.word(word) for token, word in zip(self.tokens, words, strict=False)
        )


def statements(sql: str) -> list[Statement]:
    """The statements of `sql`. A semicolon inside BEGIN ATOMIC ... END of a function ends nothing."""
    found: list[Statement] = []
    pending: list[Token] = []
    block = 0

    def flush() -> None:
        if pending:
            start, end = pending[0].start, pending[-1].end
            found.append(Statement(sql[start:end], start, tuple(pending)))
            pending.clear()

    for token in tokens(sql):
        if token.kind is Kind.SYMBOL and token.text == ";" and block == 0:
            flush()
            continue
        pending.append(token)
        opens = token.word("atomic") and len(pending) > 1 and pending[-2].word("begin")
        if opens or (block and token.word("case")):
            block += 1
        elif block and token.word("end"):
            block -= 1
    flush()
    return found


def without_terminator(sql: str) -> str:
    """`sql` without semicolons at its end, so that it can stand in parentheses."""
    last = None
    for token in tokens(sql):
        if not (token.kind is Kind.SYMBOL and token.text == ";"):
            last = token
    return sql if last is None else sql[: last.end]


_AGGREGATE = re.compile(
    r"(array|json|jsonb|json_object|jsonb_object|range|string|xml)_?agg|avg|bit_(and|or|xor)|bool_(and|or)|count"
    r"|every|max|min|mode|percentile_(cont|disc)|stddev(_pop|_samp)?|sum|var_(pop|samp)|variance"
)


def unscatterable(sql: str) -> str | None:
    """Why rows of `sql` from several shards would not make one answer; None when nothing speaks against it.

    Looks at the outermost level only, where the rows are made.
    """
    depth = 0
    grouped = False
    aggregate: str | None = None
    found = list(tokens(sql))
    for index, token in enumerate(found):
        before = found[index - 1] if index else None
        following = found[index + 1] if index + 1 < len(found) else None
        if token.kind is Kind.SYMBOL and token.text in "([":
            depth += 1
        elif token.kind is Kind.SYMBOL and token.text in ")]":
            depth -= 1
        elif depth or token.kind is not Kind.WORD or (before is not None and before.text == "."):
            continue
        elif token.text in ("limit", "offset", "fetch"):
            return f"{token.text.upper()} would apply to each shard alone: pass limit= and offset= instead"
        elif token.text == "group":
            grouped = True
        elif token.text == "distinct" and before is not None and before.word("select"):
            return "DISTINCT would apply to each shard alone: group by a key that carries the bucket instead"
        elif token.text == "over":
            return "a window function would see the rows of one shard only"
        elif (
            _AGGREGATE.fullmatch(token.text)
            and following is not None
            and following.kind is Kind.SYMBOL
            and following.text == "("
        ):
            aggregate = token.text
    if aggregate is not None and not grouped:
        return f"{aggregate}() would answer for each shard alone: use scatter_sum for counts and sums"
    return None
