"""What a query text asks for: conditions for the index and for the snippet. Pure; every text is a question.

    lamp oak        both words, the last one also as a beginning ("oaken")
    "oak table"     one after the other; so is what is written without a space between: e-mail, anna.berg
    -glass          not this word, not this phrase
    desk OR table   one or the other; what stands side by side belongs together first

Signs are nothing, brackets group nothing, an open quotation ends with the text. Only the first MAX_CHARACTERS
and MAX_WORDS count: what somebody pastes shall not make the database work for minutes.

Each condition is the text of a `tsquery`. `by_index` is what the index decides by itself, from words alone:
phrases are there as their words, and nothing is excluded. `exact` is the whole question; it is asked of the
rows that were found so. `near` finds people under a misspelt name; empty, it finds nobody.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from market.search.api import Kind
from market.search.vectors import SHORTEST_SIMILAR, kind_lexeme, neighbourhood
from market.search.words import is_unspaced, words

__all__ = ["Question", "Term", "beginning", "question"]

MAX_CHARACTERS = 1_000
MAX_WORDS = 16
SHORTEST_BEGINNING = 3
SHORTEST_SUGGESTING = 2
"""Characters from which on a word is taken as the beginning of others: in a search, and for suggestions."""

MAX_SIMILAR_WORDS = 4

_PIECE = re.compile(r'(?P<out>-?)"(?P<phrase>[^"]*)"?|(?P<word>[^\s"]+)')


class Term(NamedTuple):
    """A word to highlight."""

    form: str
    beginning: bool


class Question(NamedTuple):
    by_index: str
    exact: str
    near: str
    terms: frozenset[Term]


class _Part(NamedTuple):
    """Words one after the other. `negated`: must not be there."""

    forms: tuple[str, ...]
    negated: bool
    quoted: bool


def question(text: str, kind: Kind | None) -> Question | None:
    """None when there is nothing to look for."""
    groups = [group for group in _groups(text) if any(not part.negated for part in group)]
    if not groups:
        return None
    last = groups[-1][-1]
    open_end = not last.quoted and not last.negated and _may_begin(last.forms[-1], SHORTEST_BEGINNING)

    def exact(part: _Part) -> str:
        return " <-> ".join(_lexeme(form, open_end and part is last and at == len(part.forms) - 1)
                            for at, form in enumerate(part.forms))  # fmt: skip

    def loose(part: _Part) -> str:
        return exact(part).replace(" <-> ", " & ")

    wanted = [[part for part in group if not part.negated] for group in groups]
    found = _either([_all([loose(part) for part in group]) for group in wanted])
    of_kind = found if kind is None else f"'{kind_lexeme(kind)}' & ({found})"
    whole = _either(
        [_all([f"!({exact(part)})" if part.negated else f"({exact(part)})" for part in g]) for g in groups]
    )
    terms = frozenset(
        Term(form, open_end and part is last and at == len(part.forms) - 1)
        for group in wanted
        for part in group
        for at, form in enumerate(part.forms)
    )
    return Question(of_kind, whole, _near(groups, kind), terms)


def beginning(text: str, kinds: Sequence[Kind]) -> str | None:
    """The condition for titles of `kinds` that have all words of `text`, the last one as a beginning."""
    forms = [word.form for word in words(text[:MAX_CHARACTERS])][:MAX_WORDS]
    if not forms:
        return None
    *whole, last = forms
    asked = [_lexeme(form) for form in whole] + [_lexeme(last, _may_begin(last, SHORTEST_SUGGESTING))]
    return _all([_either([f"'{kind_lexeme(kind)}'" for kind in kinds]), *asked])


def _groups(text: str) -> list[list[_Part]]:
    """The parts of the question: one list for each side of an OR."""
    groups: list[list[_Part]] = [[]]
    left = MAX_WORDS
    for piece in _PIECE.finditer(text[:MAX_CHARACTERS]):
        if piece["word"] == "OR":
            groups.append([])
            continue
        written = piece["phrase"] if piece["word"] is None else piece["word"]
        negated = bool(piece["out"]) or (piece["word"] or "").startswith("-")
        forms = tuple(word.form for word in words(written))[:left]
        left -= len(forms)
        if forms:
            groups[-1].append(_Part(forms, negated, quoted=piece["word"] is None))
    return [group for group in groups if group]


def _near(groups: Sequence[Sequence[_Part]], kind: Kind | None) -> str:
    """Only for a few plain words: of a name, nobody quotes or excludes a part."""
    if (
        kind not in (None, "person")
        or len(groups) > 1
        or any(part.negated or part.quoted for part in groups[0])
    ):
        return ""
    forms = [form for part in groups[0] for form in part.forms]
    if len(forms) > MAX_SIMILAR_WORDS:
        return ""
    if all(len(form) < SHORTEST_SIMILAR for form in forms):
        return ""
    person = f"'{kind_lexeme('person')}'"
    return _all([person, *(
        _either([f"'{lexeme}'" for lexeme in neighbourhood(form)])
        if len(form) >= SHORTEST_SIMILAR else _lexeme(form)
        for form in forms
    )])  # fmt: skip


def _may_begin(form: str, shortest: int) -> bool:
    return len(form) >= shortest and not is_unspaced(form)


def _lexeme(form: str, begins: bool = False) -> str:
    return f"'{form}':*" if begins else f"'{form}'"


def _all(conditions: Sequence[str]) -> str:
    return " & ".join(conditions)


def _either(conditions: Sequence[str]) -> str:
    return conditions[0] if len(conditions) == 1 else f"({' | '.join(f'({one})' for one in conditions)})"
