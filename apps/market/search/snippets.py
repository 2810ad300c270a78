"""The place of a text that shows why it was found, in pieces: what was looked for, and what is around it.
Pure.

The pieces are the text as it was written. Nothing in it marks them, so whoever shows them escapes each
piece as any other text. The database's ts_headline is not asked: it would look for folded words in what is
not folded.
"""

from __future__ import annotations

from collections.abc import Set

from market.search.api import Fragment
from market.search.questions import Term
from market.search.words import words

__all__ = ["SOURCE_LENGTH", "snippet"]

SOURCE_LENGTH = 5_000
"""Characters from the beginning of a text in which a snippet is looked for."""

LENGTH = 200
LEAD = 60
"""Characters of a snippet, and of those before the first hit."""

MORE = "…"


def snippet(text: str, terms: Set[Term]) -> list[Fragment]:
    """Around the first hit; the beginning of the text when there is none."""
    whole = {term.form for term in terms if not term.beginning}
    begins = tuple(term.form for term in terms if term.beginning)
    first: int | None = None
    hits: list[tuple[int, int]] = []
    for word in words(text):
        if first is not None and word.end > _start(text, first) + LENGTH:
            break
        if word.form in whole or (begins and word.form.startswith(begins)):
            first = word.start if first is None else first
            if hits and hits[-1][1] >= word.start:  # characters of a script without spaces, side by side
                hits[-1] = (hits[-1][0], word.end)
            else:
                hits.append((word.start, word.end))
    begin = 0 if first is None else _start(text, first)
    end = _end(text, begin)
    pieces: list[tuple[str, bool]] = [(MORE, False)] if begin else []
    at = begin
    for start, stop in hits:
        pieces += [(text[at:start], False), (text[start:stop], True)]
        at = stop
    pieces.append((text[at : max(end, at)], False))
    if max(end, at) < len(text):
        pieces.append((MORE, False))
    return _joined(pieces)


def _start(text: str, first: int) -> int:
    """Where a snippet begins whose first hit is at `first`: with a word, if one begins there."""
    if first <= LEAD:
        return 0
    space = text.find(" ", first - LEAD, first)
    return first - LEAD if space < 0 else space + 1


def _end(text: str, begin: int) -> int:
    end = begin + LENGTH
    if end >= len(text):
        return len(text)
    space = text.rfind(" ", begin + LENGTH // 2, end)
    return end if space < 0 else space


def _joined(pieces: list[tuple[str, bool]]) -> list[Fragment]:
    """Without empty pieces, and with one where two of a kind meet."""
    joined: list[tuple[str, bool]] = []
    for text, hit in pieces:
        if joined and joined[-1][1] == hit:
            joined[-1] = (joined[-1][0] + text, hit)
        elif text:
            joined.append((text, hit))
    return [Fragment(text=text, hit=hit) for text, hit in joined]
