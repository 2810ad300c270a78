"""The words of a text, in the form in which they are compared: for any language, and without a database.

A word is a run of letters, digits and marks of any script. Its form: NFKC, case-folded, and without the
accents that people leave out when they type (Latin, Greek, Cyrillic; Arabic and Hebrew vowel points); vowel
signs of other scripts are letters and stay. Scripts that are written without spaces (Han, kana, Thai, Lao,
Khmer, Burmese) give one word per character, and a run of them is looked for as a phrase.

There is no stemming and there are no stop words, because nobody says in which language a text is: a stemmer
of the wrong one joins words that have nothing to do with each other. The database's own parser is not asked:
what it takes for a letter depends on the server's locale, and folding accents there needs an extension that
is not everywhere. Both sides of the comparison are folded here, by the same lines.
Pure.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

__all__ = ["LONGEST", "Word", "fold", "forms", "is_unspaced", "words"]

LONGEST = 64
"""Characters of a word that count."""

_NOT_DECOMPOSED = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "\u0131": "i", "ħ": "h"}
)
_ACCENTS = re.compile("[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u065f\u0670]+")
_UNSPACED = (
    "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u309f\u30a0-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)


def _marks() -> str:
    """The marks of all scripts as ranges of a character class: `\\w` has letters and digits only."""
    found: list[list[int]] = []
    for code in range(0x300, sys.maxunicode + 1 if sys.maxunicode < 0x1F000 else 0x1F000):
        if unicodedata.category(chr(code))[0] == "M":
            if found and found[-1][1] == code - 1:
                found[-1][1] = code
            else:
                found.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in found)


_MARKS = _marks()
_RUN = re.compile(f"[\\w{_MARKS}]+")
_PART = re.compile(f"[{_UNSPACED}][{_MARKS}]*|[^{_UNSPACED}]+")
_SPACELESS = re.compile(f"[{_UNSPACED}]")
_PLAIN = re.compile("[0-9a-z]+")


class Word(NamedTuple):
    """`form` is what is compared; it was written from `start` to `end`."""

    form: str
    start: int
    end: int


def words(text: str) -> Iterator[Word]:
    """The words of `text` in their order; one that is folded to several keeps its place for each of them."""
    for run in _RUN.finditer(text.replace("_", " ")):
        written = run[0]
        if written.isascii():  # one part, one form
            yield Word(written.lower()[:LONGEST], run.start(), run.end())
            continue
        for part in _PART.finditer(written):
            start = run.start() + part.start()
            for form in fold(part[0]):
                yield Word(form, start, start + len(part[0]))


def forms(text: str) -> list[str]:
    """The forms of `words(text)`, for whoever needs no places: several times as fast."""
    if text.isascii():
        return [run[:LONGEST] for run in _PLAIN.findall(text.lower())]
    found: list[str] = []
    for run in _RUN.findall(text.replace("_", " ")):
        if run.isascii():
            found.append(run.lower()[:LONGEST])
        else:
            for part in _PART.findall(run):
                found += fold(part)
    return found


def fold(written: str) -> tuple[str, ...]:
    """The forms of what was written as one word: mostly one; none for a mark that stands alone."""
    if written.isascii():
        return (written[:LONGEST].lower(),)
    return _folded(written[: 4 * LONGEST])


@lru_cache(maxsize=20_000)
def _folded(written: str) -> tuple[str, ...]:
    """Of a short text: what is remembered here is bounded by that as well."""
    form = unicodedata.normalize("NFKC", written).casefold().translate(_NOT_DECOMPOSED)
    form = _ACCENTS.sub("", unicodedata.normalize("NFKD", form))
    form = unicodedata.normalize("NFC", form).replace("_", " ")
    runs = (part for run in _RUN.findall(form) for part in _PART.findall(run))
    return tuple(run[:LONGEST] for run in runs if any(character.isalnum() for character in run))


def is_unspaced(form: str) -> bool:
    """Whether it is a character of a script that is written without spaces."""
    return _SPACELESS.match(form) is not None
