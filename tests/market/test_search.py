"""Search as other modules meet it: what is found, in which order, whatever is put, removed and asked."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from tests.market.harness import Api, one_platform

from market.faults import Invalid
from market.search.api import (
    MAX_DOCUMENTS,
    MAX_IDS,
    Document,
    Kind,
    Search,
    SearchQuery,
    Versioned,
)

pytestmark = one_platform

FIRST, LAST = 5, 1000
"""Two buckets: on two shards where there are two."""


@pytest.fixture
def search(api: Api) -> Search:
    return api.service(Search)


def document(
    number: int,
    title: str,
    text: str = "",
    *,
    kind: Kind = "article",
    version: int = 1,
    tags: Sequence[str] = (),
) -> Document:
    """Number n is in the first bucket or the last, by turns."""
    id = number << 10 | (FIRST if number % 2 else LAST)
    return Document(kind=kind, id=id, version=version, title=title, text=text, tags=list(tags))


async def found(search: Search, text: str, kind: Kind | None = None) -> list[str]:
    page = await search.find(SearchQuery(text=text, kind=kind, limit=100))
    return [hit.title for hit in page.items]


async def test_all_words_must_be_there(search: Search) -> None:
    """In title, tags or text; whatever their case, accents and form are."""
    await search.put(
        [
            document(1, "Crème brûlée", "A dessert"),
            document(2, "Oak table", "Made by hand, with STRASSE in it", tags=["home-living"]),
            document(3, "Glass table", "Heavy"),
            document(4, "東京タワーの写真", "A tower"),
        ]
    )
    for text, titles in {
        "creme BRULEE": ["Crème brûlée"],
        "\uff23\uff52\uff45\uff4d\uff45": ["Crème brûlée"],
        "straße": ["Oak table"],
        "living": ["Oak table"],
        "home-living": ["Oak table"],
        "table": ["Oak table", "Glass table"],
        "table heavy": ["Glass table"],
        "table dessert": [],
        "東京": ["東京タワーの写真"],
        "京東": [],
        "des": ["Crème brûlée"],
        "des made": [],
        "ta": [],
    }.items():
        assert sorted(await found(search, text)) == sorted(titles), text


async def test_signs_of_a_question(search: Search) -> None:
    """Phrases, what must not be there, one or the other."""
    await search.put(
        [document(1, "Oak table"), document(2, "Table of oak"), document(3, "Glass desk", "no wood at all")]
    )
    for text, titles in {
        '"oak table"': ["Oak table"],
        "oak-table": ["Oak table"],
        "table -of": ["Oak table"],
        'oak -"oak table"': ["Table of oak"],
        "desk OR of": ["Glass desk", "Table of oak"],
        "oak table OR glass wood": ["Oak table", "Table of oak", "Glass desk"],
        '"tab"': [],
        "-glass": [],
        "OR": [],
        '"oak table': ["Oak table"],
    }.items():
        assert sorted(await found(search, text)) == sorted(titles), text


async def test_a_title_counts_more_than_a_tag_and_a_tag_more_than_text(search: Search) -> None:
    await search.put(
        [
            document(1, "Something", "a lamp is in it"),
            document(2, "Another", "nothing", tags=["lamp"]),
            document(3, "Lamp", "nothing"),
        ]
    )
    assert await found(search, "lamp") == ["Lamp", "Another", "Something"]


async def test_a_kind_finds_nothing_of_another(search: Search) -> None:
    """Also when they have one id: ids are unique within a kind."""
    kinds: list[Kind] = ["article", "listing", "person"]
    await search.put([document(1, f"Lamp {kind}", kind=kind) for kind in kinds])
    assert sorted(await found(search, "lamp")) == ["Lamp article", "Lamp listing", "Lamp person"]
    for kind in kinds:
        assert await found(search, "lamp", kind) == [f"Lamp {kind}"]


@pytest.mark.parametrize(
    "slip", ["tanka", "tanakka", "tamaka", "tnaaka", "Tànaka", "mina tanka", "mian.tanaka"]
)
async def test_people_are_found_under_a_misspelt_name(search: Search, slip: str) -> None:
    """One character left out, added, changed or swapped in a word; only people, and after all others."""
    await search.put(
        [
            document(1, "mina.tanaka", kind="person"),
            document(2, "otto.weber", kind="person"),
            document(3, "About tanaka"),
        ]
    )
    assert await found(search, slip, "person") == ["mina.tanaka"]
    assert "otto.weber" not in await found(search, slip)
    assert await found(search, slip, "listing") == []


async def test_similar_names_come_last(search: Search) -> None:
    await search.put([document(9, "anna.bergh", kind="person"), document(1, "anna.berg", kind="person")])
    assert await found(search, "anna berg") == [
        "anna.bergh",
        "anna.berg",
    ]  # the beginning of both: the youngest
    await search.put([document(11, "anna.borg", kind="person")])
    assert await found(search, "anna berg") == ["anna.bergh", "anna.berg", "anna.borg"]


async def test_suggestions_begin_with_what_was_typed(search: Search) -> None:
    """People and listings, no articles; those that begin so come first, the short ones before the long."""
    await search.put(
        [
            document(1, "anna.berg", kind="person"),
            document(2, "Old annals", kind="listing"),
            document(3, "Annals of oak", kind="listing"),
            document(4, "Anna's article"),
            document(6, "Anna", kind="person"),
        ]
    )
    assert await search.suggest("ann", 20) == ["Anna", "anna.berg", "Annals of oak", "Old annals"]
    assert await search.suggest("ann", 2) == ["Anna", "anna.berg"]
    assert await search.suggest("old ann", 5) == ["Old annals"]
    assert await search.suggest("", 5) == []


async def test_a_snippet_shows_where_it_was_found(search: Search) -> None:
    """The pieces are the text as written, hits as written; hostile text is text."""
    text = "x " * 500 + "before <b>Brûlée</b> & after " + "y " * 500
    await search.put([document(1, "Title", text)])
    (hit,) = (await search.find(SearchQuery(text="brulee"))).items
    assert [piece.text for piece in hit.snippet if piece.hit] == ["Brûlée"]
    shown = "".join(piece.text for piece in hit.snippet)
    assert "before <b>Brûlée</b> & after" in shown and len(shown) < 300


async def test_pages_show_each_hit_once_in_one_order(search: Search) -> None:
    """Over two shards as over one, many of equal rank, and while others are put."""
    documents = [document(n, f"Lamp {n}", "lamp " * (n % 3)) for n in range(1, 42)]
    random.Random(3).shuffle(documents)
    await search.put(documents)
    whole = [hit.id for hit in (await search.find(SearchQuery(text="lamp", limit=100))).items]
    assert sorted(whole) == sorted(one.id for one in documents)
    walked, after = [], None
    while True:
        page = await search.find(SearchQuery(text="lamp", limit=7, after=after))
        walked += [hit.id for hit in page.items]
        if page.next is None:
            break
        after = page.next
        await search.put([document(100 + len(walked), "A lamp among many other words here", "x " * 50)])
    assert [id for id in walked if id in whole] == whole


async def test_what_is_too_much_is_refused(search: Search) -> None:
    """What cannot be stored, cursors that are none, more than the interface allows."""
    for wrong in (
        SearchQuery(text="a", limit=0),
        SearchQuery(text="a", limit=101),
        SearchQuery(text="a\0b"),
        SearchQuery(text="lamp", after="nonsense"),
        SearchQuery(text="lamp", after="WzEsIngiLDEsMiwzXQ"),
    ):
        with pytest.raises(Invalid):
            await search.find(wrong)
    for limit in (0, 21):
        with pytest.raises(Invalid):
            await search.suggest("a", limit)
    for bad in (
        document(1, ""),
        document(1, "x" * 301),
        document(1, "x", "\0"),
        document(1, "x", tags=["t"] * 21),
        document(1, "x", version=0),
        document(1 << 50, "x"),
    ):
        with pytest.raises(Invalid):
            await search.put([bad])
    with pytest.raises(Invalid):
        await search.put([document(n, "x") for n in range(MAX_DOCUMENTS + 1)])
    with pytest.raises(Invalid):
        await search.lacking("article", [Versioned(id=n, version=1) for n in range(MAX_IDS + 1)])


HOSTILE = [
    "", " ", '"', '""', '"""', "-", "--", '-"', "OR", "OR OR", "a OR", "OR a", "'", "''", "\\", "a\\'b",
    ":*", "a:*b", "a & b | !c <-> d", "(((", "a\u0301", "\u0301", "👍", "👨\u200d👩\u200d👧", "½", "ﷺ",
    "\u202e", "%s $1 {}", "x" * 10_000, "ab " * 4_000, '"' * 10_000, "-a " * 3_000, "東" * 5_000,
    "\U0010ffff", "İ", "ß" * 500, "the", "'; drop table search.document; --", "/article", "~abc",
    "a\tb\nc\r", "\ufeffa", "1e5 -5 3.14",
]  # fmt: skip


async def test_every_text_is_a_question(search: Search) -> None:
    """None fails, whatever the kind is; and every one can be put as a title, as text and as a tag."""
    usable = [text for text in HOSTILE if text.strip()]
    for text in HOSTILE:
        for kind in (None, "person"):
            await search.find(SearchQuery(text=text, kind=kind))
        await search.suggest(text, 5)
    await search.put(
        [
            document(number, text[:300], text, kind="person", tags=[text[:64]])
            for number, text in enumerate(usable)
        ]
    )
    for text in HOSTILE:
        await search.find(SearchQuery(text=text))


async def test_a_text_of_nothing_but_different_words_fits(search: Search) -> None:
    """The longest there may be, in the widest characters: beyond what a vector of the database holds."""
    wide = "".join(chr(0x1_0400 + n % 40) + (" " if n % 7 == 0 else "") for n in range(60_000))
    mixed = " ".join(f"{n:x}\U0001d7d8{chr(0x4E00 + n)}" for n in range(20_000))
    ligatures = "\ufdfa" * 200_000
    for number, text in enumerate((wide, mixed, ligatures, "é" * 200_000)):
        await search.put([document(number, "A title", text)])
    assert len(await found(search, "title")) == 4


async def test_an_older_version_changes_nothing(search: Search) -> None:
    await search.put([document(1, "New", version=3)])
    await search.put([document(1, "Old", version=2), document(2, "Other")])
    await search.put([document(1, "Same", version=3)])
    assert await found(search, "new") == ["New"]
    assert await found(search, "old") == await found(search, "same") == []
    (hit,) = (await search.find(SearchQuery(text="new"))).items
    assert hit.version == 3


async def test_what_was_removed_stays_removed(search: Search) -> None:
    """A late put of that version or an older one brings nothing back; a newer one does."""
    one = document(1, "Lamp", version=4)
    await search.remove("article", one.id, 4)
    await search.put([one])
    assert await found(search, "lamp") == []
    await search.put([document(1, "Lamp", version=5)])
    assert await found(search, "lamp") == ["Lamp"]
    await search.remove("article", one.id, 4)
    assert await found(search, "lamp") == ["Lamp"]


async def test_what_lacks_is_named(search: Search) -> None:
    """Unknown or older here; not what was removed in that version."""
    await search.put([document(1, "a", version=2), document(2, "b", version=2)])
    gone = document(3, "c")
    await search.remove("article", gone.id, 2)
    ids = [document(n, "x").id for n in range(1, 5)]
    things = [Versioned(id=id, version=version) for id, version in zip(ids, (2, 3, 2, 1), strict=True)]
    assert await search.lacking("article", things) == [ids[1], ids[3]]
    assert await search.lacking("listing", things) == ids
    assert await search.lacking("article", []) == []
