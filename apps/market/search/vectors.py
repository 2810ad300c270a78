"""What of a document is indexed: its words with places and weights, as the text of a `tsvector`.

Two vectors: `names` has the words of the title alone, for what should come first and for suggestions;
`words` has all of them, title (weight A), tags (B) and text (D). Both carry the document's kind as a lexeme,
so that a search of one kind is decided inside the index; `names` of a person also carries the neighbourhood
of each word.

A neighbourhood is the word and every form of it that lacks one character (symmetric deletion, Garbe 2012).
Two words that differ in one slip (a character added, left out, changed, or two swapped) share one of them, so
who is looked for under a misspelt name is found by exact look-ups in the same index.

Lexemes of words have letters, digits and marks only, and those of kinds and neighbourhoods a sign in front,
so they never meet and none needs quoting inside quotes. Bounds: PostgreSQL has places up to 16,383, 256 of
them per lexeme, and a mebibyte per vector. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from market.search.api import Document
from market.search.words import forms

__all__ = ["FORM", "SHORTEST_SIMILAR", "Vectors", "kind_lexeme", "neighbourhood", "vectors"]

FORM = 1
"""Raised when documents are indexed in another way than before: those of an older form are put again."""

SHORTEST_SIMILAR = 4
"""Characters of a word that is also looked for with a slip."""

MAX_PLACE = 16_000
MAX_PLACES = 100
MAX_BYTES = 500_000
"""Of a vector: the last place, the places of a lexeme, the bytes of all. Words behind are left out."""

_PLACES = {weight: [f"{place}{weight}" for place in range(MAX_PLACE + 1)] for weight in "ABD"}
"""As they are written; made once, for most words of most documents."""

APART = 10
"""Places between two parts, so that no phrase goes from one into the other."""


class Vectors(NamedTuple):
    names: str
    words: str


def vectors(document: Document) -> Vectors:
    kind = kind_lexeme(document.kind)
    title = forms(document.title)
    names = _Vector(kind)
    names.add(title, "A")
    if document.kind == "person":
        for form in title:
            names.mark(neighbourhood(form))
    everything = _Vector(kind)
    everything.add(title, "A")
    for tag in document.tags:
        everything.add(forms(tag), "B")
    everything.add(forms(document.text), "D")
    return Vectors(names.text(), everything.text())


def kind_lexeme(kind: str) -> str:
    return f"/{kind}"


def neighbourhood(form: str) -> list[str]:
    """The lexemes of which two words share one when they are a slip apart; none for very short words."""
    if len(form) < SHORTEST_SIMILAR - 1:
        return []
    return list(dict.fromkeys([f"~{form}", *(f"~{form[:at]}{form[at + 1 :]}" for at in range(len(form)))]))


class _Vector:
    def __init__(self, *lexemes: str) -> None:
        self._places: dict[str, list[str]] = {}
        self._next = 1
        self._bytes = 0
        self.mark(lexemes)

    def mark(self, lexemes: Iterable[str]) -> None:
        """Lexemes without a place."""
        for lexeme in lexemes:
            if lexeme not in self._places and self._holds(lexeme):
                self._places[lexeme] = []

    def add(self, forms: Sequence[str], weight: str) -> None:
        known = self._places
        for place, form in zip(_PLACES[weight][self._next : self._next + len(forms)], forms, strict=False):
            places = known.get(form)
            if places is not None:
                if len(places) < MAX_PLACES:
                    places.append(place)
            elif self._holds(form):
                known[form] = [place]
            else:
                break
        self._next += len(forms) + APART

    def text(self) -> str:
        return " ".join(
            [
                f"'{lexeme}':{','.join(places)}" if places else f"'{lexeme}'"
                for lexeme, places in self._places.items()
            ]
        )

    def _holds(self, lexeme: str) -> bool:
        """Whether there is room for one more lexeme, which is then taken."""
        self._bytes += len(lexeme) if lexeme.isascii() else len(lexeme.encode())
        return self._bytes <= MAX_BYTES
