"""A pattern such as `user:{id}` and the keys that arguments make of it.

An argument is a whole number of 64 bits or a text. Two argument tuples never make the same key: letters,
digits and `_ . @ + -` stand for themselves, everything else of a text is percent-encoded, and so is the first
character of a text that reads as a number, so that 7 and "7" stay apart. A text longer than `MAX_TEXT` bytes
is named by its BLAKE2b hash of 32 bytes behind `%~`, which no encoded text begins with: a key has a bound,
whatever a user types.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, TypeAlias
from urllib.parse import quote

__all__ = ["MAX_TEXT", "Argument", "Pattern"]

Argument: TypeAlias = int | str

MAX_TEXT = 96
"""Bytes of a text argument, encoded, that a key spells out."""

MAX_PATTERN = 120

_ARGUMENT = re.compile(r"\{([a-z][a-z0-9_]*)(?::(int|str))?\}")
_LITERAL = re.compile(r"[a-z0-9_.:-]*")
_NUMBER = re.compile(r"-?[0-9]+")

_LIMIT = 1 << 63


class Pattern:
    """`text` parsed. Raises ValueError that says which rule it breaks.

    literals: what stands between the arguments, one more than those.
    arguments: their names; `kinds` are the types that each may have.
    """

    __slots__ = ("_single", "arguments", "kinds", "literals", "text")

    def __init__(self, text: str) -> None:
        given: Any = text
        if not isinstance(given, str) or not 0 < len(text) <= MAX_PATTERN:
            raise ValueError(f"must be a text of 1 to {MAX_PATTERN} characters")
        self.text = text
        parts = _ARGUMENT.split(text)
        self.literals = tuple(parts[0::3])
        self.arguments = tuple(parts[1::3])
        self.kinds: tuple[tuple[type[Argument], ...], ...] = tuple(
            {"int": (int,), "str": (str,)}.get(kind, (int, str)) for kind in parts[2::3]
        )
        if not self.literals[0].strip(":"):
            raise ValueError("must begin with a word, such as `user` in `user:{id}`")
        if not all(_LITERAL.fullmatch(literal) for literal in self.literals):
            raise ValueError(
                "must be lower-case letters, digits and _ . : -"
                " with arguments such as {id}, {id:int} or {name:str}"
            )
        if not all(":" in literal for literal in self.literals[1:-1]):
            raise ValueError("must have a colon between two arguments, or two pairs could make one key")
        if len(set(self.arguments)) != len(self.arguments):
            raise ValueError("must name each argument once")
        self._single = len(self.arguments) == 1

    @property
    def name(self) -> str:
        """The literal parts as one word: `user:{id}:posts` is `user.posts`."""
        return re.sub("[:.]+", ".", ".".join(self.literals)).strip(".")

    def key(self, arguments: Sequence[Argument]) -> str:
        """The key that `arguments` make. Raises TypeError when they are not what the pattern takes."""
        if len(arguments) != len(self.arguments):
            raise TypeError(f"{self.text} takes {self._takes()}, got {tuple(arguments)!r}")
        literals = self.literals
        key = literals[0]
        for place, argument in enumerate(arguments):
            key += self._spelled(place, argument) + literals[place + 1]
        return key

    def _takes(self) -> str:
        return ", ".join(self.arguments) if self.arguments else "no argument"

    def _spelled(self, place: int, argument: Argument) -> str:
        kinds = self.kinds[place]
        if isinstance(argument, int) and int in kinds and not isinstance(argument, bool):
            if -_LIMIT <= argument < _LIMIT:
                return int.__repr__(argument)
            raise ValueError(f"{self.text}: {self.arguments[place]} must have 64 bits, got {argument!r}")
        if isinstance(argument, str) and str in kinds:
            return spelled(argument)
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{self.text}: {self.arguments[place]} must be {wanted}, got {argument!r}")


def spelled(text: str) -> str:
    """`text` as a part of a key; see the module."""
    encoded = quote(text, safe="@+", errors="surrogatepass").replace("~", "%7E")
    if len(encoded) > MAX_TEXT:
        return "%~" + blake2b(text.encode(errors="surrogatepass"), digest_size=32).hexdigest()
    if _NUMBER.fullmatch(encoded):
        return f"%{ord(encoded[0]):02X}{encoded[1:]}"
    return encoded
