"""The normalised text of a statement, and which of its literals belong to the program.

Literals become parameters after the statement's own ($1, $2 stay), comments go, lists of IN and rows of
VALUES are one. A literal that was the same in every text seen with this fingerprint is a *constant*: it is
the program's (`status = 'new'`), and a partial index may name it. One that differs is somebody's data: it is
forgotten for good. Nothing that is long, or that has other signs than a word has, is ever kept.
Pure; runs once per new text, never per statement.
"""

from __future__ import annotations

import re

from springtide.db._statements import MAX_LOOKED_AT, TOKENS

__all__ = ["Normalised", "mask", "normalise", "offset_argument", "same", "tellable"]

MAX_TEXT = 8_192
MAX_CONSTANT = 40

_SPACE = re.compile(r"\s+")
_LISTS = re.compile(r"\b(in\s*)\(\s*(\$\d+)(?:\s*,\s*\$\d+)*\s*\)", re.IGNORECASE)
_ROWS = re.compile(r"\b(values\s*\([^()]*\))(?:\s*,\s*\([^()]*\))+", re.IGNORECASE)
_WORD = re.compile(rf"-?\d{{1,18}}(?:\.\d{{1,6}})?|'[\w .:%-]{{0,{MAX_CONSTANT}}}'")
_SECRET = re.compile(r"passw|secret|token|api_?key|authorization|cookie", re.IGNORECASE)
_OFFSET = re.compile(r"\boffset\s+\$(\d+)", re.IGNORECASE)

Normalised = tuple[str, dict[int, str]]
"""The text, and its literals by the number of the parameter that stands for each."""


def normalise(sql: str) -> Normalised:
    looked_at = sql[:MAX_LOOKED_AT]
    own = [int(match["argument"][1:]) for match in TOKENS.finditer(looked_at) if match["argument"]]
    highest = max(own, default=0)
    literals: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match["comment"] is not None:
            return " "
        if match["name"] is not None or match["argument"] is not None:
            return match[0]
        literals.append(match[0])
        return f"${highest + len(literals)}"

    several: set[int] = set()

    def shorten(match: re.Match[str]) -> str:
        if "," in match[0]:
            several.add(int(match[2][1:]))
        return f"{match[1]}({match[2]})"

    text = _SPACE.sub(" ", TOKENS.sub(replace, looked_at)).strip().rstrip("; ")
    text = _ROWS.sub(r"\1", _LISTS.sub(shorten, text))[:MAX_TEXT]
    numbered = {highest + number: literal for number, literal in enumerate(literals, 1)}
    return text, {number: literal for number, literal in numbered.items() if number not in several}


def same(literals: dict[int, str], others: dict[int, str]) -> dict[int, str]:
    """What of `literals` is still a constant after a text with `others`."""
    return {number: literal for number, literal in literals.items() if others.get(number) == literal}


def tellable(text: str, literals: dict[int, str]) -> dict[str, str]:
    """The constants that may leave the process: words and numbers, in statements that know no secrets."""
    if _SECRET.search(text):
        return {str(number): literal for number, literal in literals.items() if literal.isdigit()}
    return {str(number): literal for number, literal in literals.items() if _WORD.fullmatch(literal)}


def mask(text: str) -> str:
    """`text` of a condition or an error with every literal as `?`."""
    return TOKENS.sub(lambda match: match[0] if match["name"] or match["argument"] else "?", text)


def offset_argument(text: str) -> int | None:
    """Which argument says how many rows to skip, counted from 0; None when none does."""
    match = _OFFSET.search(text)
    return int(match[1]) - 1 if match is not None else None
