"""The place of a text that shows why it was found, in pieces: what was looked for, and what is around it.
Pure.

The pieces are the text as it was written. Nothing in it marks them, so whoever shows them escapes each
piece as any other text. The database's ts_headline is not asked: it would look for folded words in what is
not folded.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from itertools import takewhile

from market.search.api import Fragment
from market.search.questions import Term
from market.search.words import LONGEST, words

__all__ = ["SOURCE_LENGTH", "snippet"]

SOURCE_LENGTH = 5_000
"""Characters from the beginning of a text in which a snippet is looked for."""

LENGTH = 200
LEAD = 60
"""Characters of a snippet, and of those before the first hit."""

MORE = "…"


def snippet(text: str, terms: Set[Term]) -> list[Fragment]:
    """Around the first hit; the beginning of the text when there is none."""
    hits = (hits_in_ascii if text.isascii() else hits_by_words)(text, terms)
    begin = _start(text, hits[0][0]) if hits else 0
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


def hits_by_words(text: str, terms: Set[Term]) -> list[tuple[int, int]]:
    """Where the hits of a snippet are, from and to: word by word, for any text."""
    whole = {term.form for term in terms if not term.beginning}
    begins = tuple(term.form for term in terms if term.beginning)
    limit: int | None = None
    hits: list[tuple[int, int]] = []
    for word in words(text):
        if limit is not None and word.end > limit:
            break
        if word.form in whole or (begins and word.form.startswith(begins)):
            limit = _start(text, word.start) + LENGTH if limit is None else limit
            if hits and hits[-1][1] >= word.start:  # characters of a script without spaces, side by side
                hits[-1] = (hits[-1][0], word.end)
            else:
                hits.append((word.start, word.end))
    return hits


def hits_in_ascii(text: str, terms: Set[Term]) -> list[tuple[int, int]]:
    """The same for an ASCII text, where a form is the lower case of what was written: looked for in place.

    A page of hits is mostly texts of which one or no word was asked for: walking the words of them all is
    the larger part of a search.
    """
    lowered = text.lower().replace("_", " ")
    found = [(term, next(_spans(lowered, term), None)) for term in terms]
    firsts = [span[0] for _, span in found if span is not None]
    if not firsts:
        return []
    limit = _start(text, min(firsts)) + LENGTH
    hits: set[tuple[int, int]] = set()
    for term, span in found:
        if span is not None:
            hits.update(takewhile(lambda one: one[1] <= limit, _spans(lowered, term)))
    return sorted(hits) or [min(span for _, span in found if span is not None)]


def _spans(lowered: str, term: Term) -> Iterator[tuple[int, int]]:
    """From and to of the words of an ASCII text that are `term`, or begin with it, in their order."""
    form = term.form
    open_end = term.beginning or len(form) == LONGEST
    at = lowered.find(form)
    while at >= 0:
        end = at + len(form)
        if at == 0 or not lowered[at - 1].isalnum():
            if open_end:
                while end < len(lowered) and lowered[end].isalnum():
                    end += 1
            if end == len(lowered) or not lowered[end].isalnum():
                yield at, end
        at = lowered.find(form, at + 1)


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
