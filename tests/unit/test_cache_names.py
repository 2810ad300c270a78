"""What tags are called: the same everywhere, whatever text an application makes them of."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from springtide.cache import Cache
from springtide.cache._names import tag_field, tag_name


class Page(msgspec.Struct, frozen=True):
    words: tuple[str, ...]


@given(st.text(), st.text())
def test_a_tag_has_one_printable_name_of_its_own(one: str, other: str) -> None:
    """Lists of tags are kept apart by control characters: no name has one, and no two tags one name."""
    assert tag_name(one).isprintable() and 0 < len(tag_name(one)) <= 200
    assert (tag_name(one) == tag_name(other)) == (one == other)
    assert len(tag_name(one * 500)) <= 200


def test_a_value_and_its_invalidation_name_a_tag_alike() -> None:
    """A tag with a line break, an empty one and a long one reach what carries them."""

    async def load(_name: str) -> Page | None:
        return None

    pages = Cache("app").define("page:{name}", Page, load=load, tags=lambda page: page.words)
    words = ("plain", "two\nlines", "", "long" * 100, "unit\x1fseparator")
    named = pages.definition.tagger.of(Page(words), ("home",))
    assert [tag_field(tag) for tag in named] == pages.fields((), words)
    assert all(tag.isprintable() and tag for tag in named)
    assert named[0] == "plain"
