"""Find the line of every key of a TOML document, which the parser of the standard library does not give.

    locate(text) -> {("nodes", "db", "port"): 12, ("nodes", "db"): 10, ("nodes",): 10, ...}

A path holds the parts of the dotted key; an element of an array (of tables or of values) adds its index.
The document must be valid TOML (tomllib has read it): under that condition every key is found; of a document
that is not, the result has no meaning. Pure.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right

__all__ = ["Path", "locate"]

Path = tuple[str | int, ...]


def locate(text: str) -> dict[Path, int]:
    """The 1-based line of every table, key and array element of a valid TOML document."""
    return _Scanner(text).document()


class _Scanner:
    """A cursor over the text; each method leaves it behind what it has read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line_starts = [0, *(i + 1 for i, char in enumerate(text) if char == "\n")]
        self._found: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}  # arrays of tables: the index of the newest element

    def document(self) -> dict[Path, int]:
        table: Path = ()
        while True:
            self._skip_blank()
            if self._at >= len(self._text):
                return self._found
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _line(self) -> int:
        return bisect_right(self._line_starts, self._at)

    def _header(self) -> Path:
        line = self._line()
        array = self._text.startswith("[[", self._at)
        self._at += 2 if array else 1
        path: Path = ()
        parts = self._key()
        for number, part in enumerate(parts, start=1):
            path += (part,)
            self._found.setdefault(path, line)
            if array and number == len(parts):
                self._arrays[path] = self._arrays.get(path, -1) + 1
            if path in self._arrays:
                path += (self._arrays[path],)
                self._found.setdefault(path, line)
        self._at += 2 if array else 1
        return path

    def _pair(self, table: Path) -> None:
        line = self._line()
        path = table
        for part in self._key():
            path += (part,)
            self._found.setdefault(path, line)
        self._at += 1  # the =
        self._skip_space()
        self._value(path)

    def _key(self) -> list[str]:
        """The parts of a dotted key; the cursor stops at what follows: `=` or `]`."""
        parts = []
        while True:
            self._skip_space()
            start = self._at
            quote = self._text[start]
            if quote in "\"'":
                self._string()
                parts.append(str(tomllib.loads(f"k = {self._text[start : self._at]}")["k"]))
            else:
                while self._text[self._at] not in " \t.=]":
                    self._at += 1
                parts.append(self._text[start : self._at])
            self._skip_space()
            if self._text[self._at] != ".":
                return parts
            self._at += 1

    def _value(self, path: Path) -> None:
        first = self._text[self._at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            while self._at < len(self._text) and self._text[self._at] not in ",]}#\n":
                self._at += 1

    def _array(self, path: Path) -> None:
        self._at += 1
        index = 0
        while True:
            self._skip_blank(also=",")
            if self._text[self._at] == "]":
                self._at += 1
                return
            element = (*path, index)
            self._found.setdefault(element, self._line())
            self._value(element)
            index += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while True:
            self._skip_blank(also=",")
            if self._text[self._at] == "}":
                self._at += 1
                return
            self._pair(path)

    def _string(self) -> None:
        quote = self._text[self._at]
        if self._text.startswith(quote * 3, self._at):
            self._at += 3
            while not self._text.startswith(quote * 3, self._at):
                self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
            self._at += 3
            for _ in range(2):  # up to two quotes may stand right before the closing three
                if self._text.startswith(quote, self._at):
                    self._at += 1
            return
        self._at += 1
        while self._text[self._at] != quote:
            self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
        self._at += 1

    def _skip_space(self) -> None:
        while self._at < len(self._text) and self._text[self._at] in " \t":
            self._at += 1

    def _skip_blank(self, *, also: str = "") -> None:
        """Over white space, line ends, comments and the characters of `also`."""
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif char in " \t\r\n" or char in also:
                self._at += 1
            else:
                return
