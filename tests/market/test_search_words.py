"""Words, vectors, questions and snippets: what holds for every text, without a database."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.search.api import TEXT_LENGTH, Document
from market.search.questions import Term, beginning, question
from market.search.snippets import MORE, hits_by_words, hits_in_ascii, snippet
from market.search.vectors import MAX_BYTES, neighbourhood, vectors
from market.search.words import LONGEST, _folded, fold, forms, words

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=200)
NAME = st.text(st.sampled_from("abcdeéß東한"), min_size=4, max_size=12)

QUOTED = re.compile(r"'[^'\\ ]+'(:\*|:\d+[ABD](,\d+[ABD])*)?")
"""A lexeme as PostgreSQL reads one, with nothing in it that would need escaping."""


@given(TEXT)
def test_words_are_where_they_say(text: str) -> None:
    """In order, inside the text, not empty; and folding a form again changes nothing."""
    found = list(words(text))
    assert [word.start for word in found] == sorted(word.start for word in found)
    for word in found:
        assert 0 <= word.start < word.end <= len(text)
        assert 0 < len(word.form) <= LONGEST
        assert fold(word.form) == (word.form,)


@given(TEXT | st.text(st.characters(max_codepoint=127), max_size=200))
def test_forms_are_those_of_the_words(text: str) -> None:
    """The short way to them, by which documents are indexed, and the one by which they are looked for."""
    assert forms(text) == [word.form for word in words(text)]


def test_only_short_texts_are_remembered() -> None:
    """A word may be as long as a text: what is remembered of many of them stays small."""
    _folded.cache_clear()
    assert fold("é" * 250_000) == fold("é" * 200_000) == ("e" * LONGEST,)
    assert _folded.cache_info().currsize == 1


@given(TEXT)
def test_every_lexeme_can_be_read(text: str) -> None:
    """Whatever is written: vectors and questions are lexemes in quotes, and signs between them."""
    document = Document(kind="person", id=1, version=1, title=text, text=text, tags=[text])
    for vector in vectors(document):
        assert QUOTED.sub("", vector).strip() == ""
    asked = question(text, "person")
    texts = [] if asked is None else [asked.by_index, asked.exact, asked.near]
    for made in [*texts, beginning(text, ["person", "listing"]) or ""]:
        assert set(QUOTED.sub("", made)) <= set(" &|!()<->")


@given(TEXT, TEXT)
def test_snippets_are_the_text(text: str, asked: str) -> None:
    """Without the signs of what was left out: one piece of it, unchanged; hits are not empty."""
    made = question(asked, None)
    pieces = snippet(text, frozenset() if made is None else made.terms)
    whole = "".join(piece.text for piece in pieces)
    assert whole.removeprefix(MORE).removesuffix(MORE) in text or whole in text
    assert all(piece.text for piece in pieces)


def test_a_hit_far_below_is_shown_with_what_is_around_it() -> None:
    made = question("needle", None)
    assert made is not None
    pieces = snippet("straw " * 300 + "a Needle, found " + "straw " * 300, made.terms)
    assert [piece.text for piece in pieces if piece.hit] == ["Needle"]
    assert pieces[0].text.startswith(MORE) and pieces[-1].text.endswith(MORE)
    assert pieces[2].text.startswith(", found straw")


@given(NAME, st.data())
def test_a_slip_shares_a_neighbour(name: str, data: st.DataObject) -> None:
    """A character added, left out, changed, or two swapped."""
    at = data.draw(st.integers(0, len(name) - 1))
    other = data.draw(st.sampled_from("abcdxyz"))
    slips = [name[:at] + name[at + 1 :], name[:at] + other + name[at:], name[:at] + other + name[at + 1 :]]
    slips.append(name[:at] + name[at + 1 : at + 2] + name[at] + name[at + 2 :])
    for slip in slips:
        assert set(neighbourhood(slip)) & set(neighbourhood(name)), slip


def test_a_neighbourhood_is_small() -> None:
    assert len(neighbourhood("x" * LONGEST)) == 2
    assert len(neighbourhood("".join(chr(0x100 + n) for n in range(LONGEST)))) == LONGEST + 1
    assert neighbourhood("ab") == []


LIGATURES = ["".join(chr(0xFDF2 + (n >> 3 * at) % 8) for at in range(16)) for n in range(14_000)]
"""Different words of 16 characters that fold to four letters each: the most bytes that a text can become."""


@pytest.mark.parametrize(
    "text",
    ["a" * 250_000, " ".join(f"{n:x}東" for n in range(50_000)), "\ufdfa" * 200_000, " ".join(LIGATURES)],
)
def test_vectors_are_bounded(text: str) -> None:
    """By what PostgreSQL holds: places up to 16,383, a mebibyte of lexemes."""
    made = vectors(Document(kind="article", id=1, version=1, title="T", text=text[:TEXT_LENGTH]))
    assert sum(len(lexeme.encode()) for lexeme in re.findall("'([^']+)'", made.words)) <= MAX_BYTES
    assert max(int(place) for place in re.findall(r"[:,](\d+)[ABD]", made.words)) < 16_384


@pytest.mark.parametrize(
    ("written", "forms"),
    [
        ("Crème BRÛLÉE", ["creme", "brulee"]),
        ("straße ÆØÅ İstanbul", ["strasse", "aeoa", "istanbul"]),
        ("Йод ё ΆΛΦΑ", ["иод", "\u0435", "αλφα"]),
        ("東京 タワー", ["東", "京", "タ", "ワ", "ー"]),
        ("한국어", ["한국어"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("e-mail a_b l'été", ["e", "mail", "a", "b", "l", "ete"]),
        ("½ ① ☕ 👍 \u0301", ["1", "2", "1"]),
    ],
)
def test_forms(written: str, forms: list[str]) -> None:
    """Of many scripts: accents that people leave out are gone, vowel signs that are letters stay."""
    assert [word.form for word in words(written)] == forms


@given(
    st.lists(st.sampled_from(["oak", "oaken", "lamp", "_", "-", " ", "  ", "Oak", "9", "x" * 70, "\0"])),
    st.lists(st.sampled_from(["oak", "lamp", "lam", "x" * 64, "9", "é"]), min_size=1),
    st.booleans(),
)
def test_hits_in_ascii_are_the_hits_by_words(pieces: list[str], forms: list[str], open_end: bool) -> None:
    """The quick way finds what the one for every text finds."""
    text = "".join(pieces)
    terms = frozenset(
        Term(form, beginning=open_end and at == len(forms) - 1) for at, form in enumerate(forms)
    )
    assert hits_in_ascii(text, terms) == hits_by_words(text, terms)


@given(st.text(st.characters(max_codepoint=127)), st.text(st.characters(max_codepoint=127), max_size=20))
def test_hits_in_any_ascii_text_are_the_hits_by_words(text: str, asked: str) -> None:
    made = question(f"{text[:10]} {asked}", None)
    terms = frozenset[Term]() if made is None else made.terms
    assert hits_in_ascii(text, terms) == hits_by_words(text, terms)
