"""The pure parts: names, slugs, tags, listings."""

from __future__ import annotations

import asyncio
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.checks import storable
from market.content.api import NewArticle
from market.content.rules import check_new, is_slug, slugs
from market.content.tags import MAX_AGE, SECONDS_PER_ROW, SMALL, Counted, PopularTags
from market.faults import Invalid
from market.moments import iso, moment
from market.settings import Settings
from market.users.rules import fold, is_username
from springtide.errors import ConfigurationError
from springtide.testing import ManualClock

TEXT = st.text(max_size=300)


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("How to train your dragon", "how-to-train-your-dragon"),
        ("  Über “Größe”! ", "uber-grosse"),
        ("C++ & C#: what's new?", "c-c-what-s-new"),
        ("snake_case", "snake-case"),
        ("日本語 タイトル", "日本語-タイトル"),
        ("हिन्दी में", "हिन्दी-में"),
        ("한국어 제목", "한국어-제목"),
    ],
)
def test_slugs_are_readable(title: str, slug: str) -> None:
    assert slugs(title, 77)[0] == slug


@given(TEXT, st.integers(0, 2**53 - 1))
def test_every_title_has_a_slug_that_is_its_own(title: str, id: int) -> None:
    """The last one carries the id; all can be stored and looked up, and are one segment of a path."""
    found = slugs(title, id)
    assert found
    for slug in found:
        assert is_slug(slug)
        assert not set(slug) & set("/?#%.\\ ")
        assert slug not in ("feed", "")
    assert slugs(title, id + 1)[-1] != found[-1]


@given(TEXT)
def test_folding_is_stable(name: str) -> None:
    """Folding twice is folding once; case and width do not matter."""
    assert fold(fold(name)) == fold(name)
    assert fold(name.upper().lower()) == fold(name.upper())


def test_names_that_look_alike_by_width_are_one_name() -> None:
    assert fold("\uff2a\uff41\uff4b\uff45") == fold("jake")


@given(TEXT)
def test_usernames_are_safe_in_addresses(name: str) -> None:
    if is_username(name):
        assert storable(name)
        assert not set(name) & set("/?#%\\@&+\"'<>")
        assert name == name.strip()
        assert name not in (".", "..")
        assert not any(unicodedata.category(character).startswith("C") for character in name)


@given(st.lists(TEXT, max_size=30))
def test_tags_are_kept_in_order_once(tags: list[str]) -> None:
    new = NewArticle(title="t", description="d", body="b", tags=tags)
    try:
        kept = check_new(new).tags
    except Invalid as error:
        assert set(error.errors) == {"tags"}
        return
    assert len(kept) == len(set(kept))
    assert kept == [tag for tag in dict.fromkeys(tag.strip() for tag in tags) if tag]


def test_moments_have_milliseconds_and_z() -> None:
    clock = ManualClock(now=1_700_000_000.98765)
    assert iso(moment(clock)) == "2023-11-14T22:13:20.987Z"


@pytest.mark.parametrize("text", ["", "a day", "0", "-5", "nan", "1e9"])
def test_a_lifetime_that_cannot_be_stops_the_start(text: str) -> None:
    with pytest.raises(ConfigurationError, match="MARKET_TOKEN_LIFETIME"):
        Settings.from_environment({"MARKET_TOKEN_LIFETIME": text})


def test_a_lifetime_is_read() -> None:
    assert Settings.from_environment({"MARKET_TOKEN_LIFETIME": "3600"}).token_lifetime == 3600
    assert Settings.from_environment({}).token_lifetime == 86_400


class Counting:
    """Counts `rows` rows; takes a millisecond of the clock for it."""

    def __init__(self, clock: ManualClock, rows: int) -> None:
        self.clock = clock
        self.rows = rows
        self.calls = 0
        self.uses = {"a": 1}

    async def __call__(self, limit: int) -> Counted:
        self.calls += 1
        uses = dict(self.uses)
        await self.clock.sleep(0.001)
        return Counted(uses, self.rows)


async def ask(tags: PopularTags, clock: ManualClock) -> list[str]:
    task = asyncio.create_task(tags.most_used())
    await asyncio.sleep(0)
    if clock.sleepers:
        await clock.advance(0.001)
    return await task


async def test_small_counts_of_tags_are_never_remembered() -> None:
    """However long they take: a busy machine makes no difference to what is shown."""
    clock = ManualClock()
    count = Counting(clock, SMALL)
    tags = PopularTags(count, clock=clock)
    assert await ask(tags, clock) == ["a"]
    count.uses["b"] = 2
    assert await ask(tags, clock) == ["b", "a"]


@pytest.mark.parametrize("rows", [SMALL + 1, 1_000_000, 100_000_000])
async def test_large_counts_of_tags_are_remembered_for_a_while(rows: int) -> None:
    """As long as counting is worth, at most MAX_AGE."""
    clock = ManualClock()
    count = Counting(clock, rows)
    tags = PopularTags(count, clock=clock)
    await ask(tags, clock)
    age = min(rows * SECONDS_PER_ROW, MAX_AGE)
    await clock.advance(age * 0.9)
    await ask(tags, clock)
    assert count.calls == 1
    await clock.advance(age * 0.2)
    await ask(tags, clock)
    assert count.calls == 2


async def test_callers_share_a_count_that_begins_after_they_came() -> None:
    """Twenty at once cost two counts: the one that ran when they came, and one for all of them."""
    clock = ManualClock()
    count = Counting(clock, 1)
    tags = PopularTags(count, clock=clock)
    first = asyncio.create_task(tags.most_used())
    await clock.until_sleeping()
    await clock.advance(0.0005)
    others = [asyncio.create_task(tags.most_used()) for _ in range(20)]
    count.uses["new"] = 5
    await asyncio.sleep(0)
    await clock.advance(0.0005)
    assert await first == ["a"]
    await clock.until_sleeping()
    await clock.advance(0.001)
    assert await asyncio.gather(*others) == [["new", "a"]] * 20
    assert count.calls == 2
