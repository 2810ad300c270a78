"""Lists of articles, the feed and the tags: filters, order, parts, counts."""

from __future__ import annotations

from typing import Any

import pytest
from tests.market.harness import Api, Person, one_platform, one_shard

pytestmark = one_platform


async def library(api: Api) -> tuple[Person, Person, Person]:
    """Jake wrote A (x y), C (x); Anna wrote B (y), D; Ben favourites A and B, Anna A."""
    jake, anna, ben = [await api.person(name) for name in ("Jake", "Anna", "Ben")]
    await api.article(jake, "A", tagList=["x", "y"])
    await api.article(anna, "B", tagList=["y"])
    await api.article(jake, "C", tagList=["x"])
    await api.article(anna, "D")
    for fan, slug in ((ben, "a"), (ben, "b"), (anna, "a")):
        await api.call("POST", f"/articles/{slug}/favorite", by=fan, expect=200)
    return jake, anna, ben


@pytest.mark.parametrize(
    ("params", "titles"),
    [
        ({}, ["D", "C", "B", "A"]),
        ({"author": "Jake"}, ["C", "A"]),
        ({"author": "jAKE"}, ["C", "A"]),
        ({"author": "Ben"}, []),
        ({"author": "Nobody"}, []),
        ({"author": "\0"}, []),
        ({"author": ""}, ["D", "C", "B", "A"]),
        ({"tag": "x"}, ["C", "A"]),
        ({"tag": "y"}, ["B", "A"]),
        ({"tag": "X"}, []),
        ({"tag": "z"}, []),
        ({"tag": "\0"}, []),
        ({"tag": "t" * 5000}, []),
        ({"favorited": "Ben"}, ["B", "A"]),
        ({"favorited": "Anna"}, ["A"]),
        ({"favorited": "Nobody"}, []),
        ({"favorited": "Ben", "author": "Jake"}, ["A"]),
        ({"favorited": "Ben", "tag": "y"}, ["B", "A"]),
        ({"favorited": "Anna", "tag": "y", "author": "Jake"}, ["A"]),
        ({"favorited": "Anna", "tag": "y", "author": "Anna"}, []),
        ({"author": "Jake", "tag": "y"}, ["A"]),
        ({"unknown": "parameter"}, ["D", "C", "B", "A"]),
    ],
)
async def test_every_filter_that_is_given_holds(api: Api, params: dict[str, str], titles: list[str]) -> None:
    """Newest first; articlesCount is the length of the whole list, whatever part is asked for."""
    _, _, ben = await library(api)
    assert await api.titles("/articles", **params) == (titles, len(titles))
    assert await api.titles("/articles", by=ben, **params) == (titles, len(titles))
    for offset in range(len(titles) + 2):
        part = titles[offset : offset + 1]
        assert await api.titles("/articles", limit=1, offset=offset, **params) == (part, len(titles))


async def test_lists_show_the_viewers_favourites_and_follows(api: Api) -> None:
    """And never a body (the harness holds every list against the specification)."""
    _, _, ben = await library(api)
    await api.call("POST", "/profiles/Jake/follow", by=ben, expect=200)
    answer = await api.call("GET", "/articles", by=ben, expect=200)
    shown = {
        a["title"]: (a["favorited"], a["favoritesCount"], a["author"]["following"])
        for a in answer["articles"]
    }
    assert shown == {
        "D": (False, 0, False), "C": (False, 0, True), "B": (True, 1, False), "A": (True, 2, True),
    }  # fmt: skip
    answer = await api.call("GET", "/articles", expect=200)
    assert not any(a["favorited"] or a["author"]["following"] for a in answer["articles"])


async def test_the_feed_is_of_those_one_follows(api: Api) -> None:
    _, _, ben = await library(api)
    assert await api.titles("/articles/feed", by=ben) == ([], 0)
    await api.call("POST", "/profiles/Jake/follow", by=ben, expect=200)
    assert await api.titles("/articles/feed", by=ben) == (["C", "A"], 2)
    await api.call("POST", "/profiles/Anna/follow", by=ben, expect=200)
    assert await api.titles("/articles/feed", by=ben) == (["D", "C", "B", "A"], 4)
    assert await api.titles("/articles/feed", by=ben, limit=2, offset=1) == (["C", "B"], 4)
    assert await api.titles("/articles/feed", by=ben, offset=4) == ([], 4)
    answer = await api.call("GET", "/articles/feed", by=ben, expect=200)
    assert all(article["author"]["following"] for article in answer["articles"])
    await api.call("DELETE", "/profiles/Jake/follow", by=ben, expect=200)
    assert await api.titles("/articles/feed", by=ben) == (["D", "B"], 2)


async def test_the_feed_needs_a_token(api: Api) -> None:
    assert (await api.call("GET", "/articles/feed", expect=401))["errors"] == {"token": ["is missing"]}


async def test_a_part_is_20_articles_and_at_most_100(api: Api) -> None:
    """A larger limit is taken as 100: a client that asks for everything gets the first part of it."""
    jake, ben = await api.person("Jake"), await api.person()
    await api.call("POST", "/profiles/Jake/follow", by=ben, expect=200)
    for number in range(102):
        await api.article(jake, f"Number {number}")
    expected = [f"Number {number}" for number in reversed(range(102))]
    for path in ("/articles", "/articles/feed"):
        assert await api.titles(path, by=ben) == (expected[:20], 102)
        assert await api.titles(path, by=ben, limit=1000) == (expected[:100], 102)
        assert await api.titles(path, by=ben, limit=10**17, offset=95) == (expected[95:], 102)


@pytest.mark.parametrize(
    ("params", "fields"),
    [
        ({"limit": "0"}, {"limit"}),
        ({"limit": "-1"}, {"limit"}),
        ({"limit": "ten"}, {"limit"}),
        ({"limit": "1.5"}, {"limit"}),
        ({"limit": ""}, {"limit"}),
        ({"limit": "9" * 5000}, {"limit"}),
        ({"offset": "-1"}, {"offset"}),
        ({"offset": "1e3"}, {"offset"}),
        ({"offset": "\u0661"}, {"offset"}),
        ({"limit": "0", "offset": "x"}, {"limit", "offset"}),
    ],
)
@one_shard
async def test_a_part_that_cannot_be_is_refused(api: Api, params: dict[str, str], fields: set[str]) -> None:
    jake = await api.person()
    for path in ("/articles", "/articles/feed"):
        answer = await api.call("GET", path, by=jake, expect=422, params=params)
        assert set(answer["errors"]) == fields


async def test_past_the_end_a_list_is_empty(api: Api) -> None:
    await library(api)
    assert await api.titles("/articles", offset=10**15) == ([], 4)


async def test_lists_are_not_read_deeper_than_the_bound(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """422 instead of walking past thousands of articles to answer twenty."""
    await library(api)
    monkeypatch.setattr("market.content.service.MAX_OFFSET", 2)
    assert (await api.titles("/articles", offset=2))[0] == ["B", "A"]
    assert set((await api.call("GET", "/articles?offset=3", expect=422))["errors"]) == {"offset"}


async def test_tags_are_answered_by_use(api: Api) -> None:
    """A tag shows as soon as it is used and goes with its last article."""
    jake, anna = await api.person(), await api.person()
    assert (await api.call("GET", "/tags", expect=200))["tags"] == []
    await api.article(jake, "A", tagList=["rare", "often"])
    await api.article(anna, "B", tagList=["often", "also"])
    assert (await api.call("GET", "/tags", expect=200))["tags"] == ["often", "also", "rare"]
    await api.call("DELETE", "/articles/a", by=jake, expect=204)
    assert (await api.call("GET", "/tags", expect=200))["tags"] == ["also", "often"]


async def test_at_most_100_tags_are_answered(api: Api) -> None:
    jake = await api.person()
    for number in range(6):
        await api.article(jake, tagList=[f"tag {number} {index:02}" for index in range(20)])
    tags = (await api.call("GET", "/tags", expect=200))["tags"]
    assert len(tags) == len(set(tags)) == 100


async def test_many_authors_over_shards_keep_one_order(api: Api) -> None:
    """The merged list is in order of creation, whichever shard an article is on."""
    people = [await api.person() for _ in range(8)]
    expected: list[Any] = []
    for number in range(24):
        expected.insert(0, (await api.article(people[number % 8]))["title"])
    assert await api.titles("/articles", limit=24) == (expected, 24)
    assert await api.titles("/articles", limit=7, offset=9) == (expected[9:16], 24)
