"""Articles, comments and favourites: every endpoint, every status."""

from __future__ import annotations

from typing import Any

import pytest
from tests.market.harness import Api, one_platform, one_shard
from tests.market.working import work

pytestmark = one_platform

BLANK = ["can't be blank"]
NEW = {"title": "How to train your dragon", "description": "Ever wonder how?", "body": "You have to believe"}


async def test_creating_answers_the_article(api: Api) -> None:
    """201; tags in the author's order, trimmed, without repetition; times equal at first."""
    jake = await api.person("Jake")
    tags = ["reactjs", " angularjs ", "dragons", "reactjs", ""]
    body = {"article": {**NEW, "tagList": tags}}
    article = (await api.call("POST", "/articles", body, by=jake, expect=201))["article"]
    assert article["slug"] == "how-to-train-your-dragon"
    assert article["tagList"] == ["reactjs", "angularjs", "dragons"]
    assert {name: article[name] for name in NEW} == NEW
    assert (article["favorited"], article["favoritesCount"]) == (False, 0)
    assert article["createdAt"] == article["updatedAt"]
    assert article["author"] == {"username": "Jake", "bio": None, "image": None, "following": False}
    assert (await api.call("GET", "/articles/how-to-train-your-dragon", expect=200))["article"] == article


async def test_an_article_needs_no_tags(api: Api) -> None:
    jake = await api.person()
    assert (await api.article(jake))["tagList"] == []
    assert (await api.article(jake, tagList=[]))["tagList"] == []


async def test_one_author_uses_a_title_once(api: Api) -> None:
    """409, in whatever case; somebody else may use it and gets a slug of their own."""
    jake, anna = await api.person("Jake"), await api.person("Anna")
    first = await api.article(jake, "Same title")
    for title in ("Same title", "same TITLE "):
        body = {"article": {**NEW, "title": title}}
        answer = await api.call("POST", "/articles", body, by=jake, expect=409)
        assert answer["errors"] == {"title": ["has already been taken"]}
    second = await api.article(anna, "Same title")
    assert first["slug"] == "same-title"
    assert second["slug"].startswith("same-title-")
    for article, author in ((first, "Jake"), (second, "Anna")):
        answer = await api.call("GET", f"/articles/{article['slug']}", expect=200)
        assert answer["article"]["author"]["username"] == author


@pytest.mark.parametrize("title", ["feed", "Feed!", "🎉🎉", "日本語のタイトル", "...", "%2e%2e", "a/b?c#d"])
@one_shard
async def test_every_title_gives_an_address_that_works(api: Api, title: str) -> None:
    jake = await api.person()
    article = await api.article(jake, title)
    answer = await api.call("GET", f"/articles/{article['slug']}", expect=200)
    assert answer["article"]["title"] == title


@pytest.mark.parametrize(
    ("changed", "errors"),
    [
        ({"title": ""}, {"title": BLANK}),
        ({"title": " \n"}, {"title": BLANK}),
        ({"title": None}, {"title": BLANK}),
        ({"title": "x" * 256}, {"title": ["is too long (maximum is 255 characters)"]}),
        ({"title": {}}, {"title": ["must be a string"]}),
        ({"description": ""}, {"description": BLANK}),
        ({"description": "a\0"}, {"description": ["contains characters that cannot be stored"]}),
        ({"body": ""}, {"body": BLANK}),
        ({"body": True}, {"body": ["must be a string"]}),
        ({"body": "x" * 200_001}, {"body": ["is too long (maximum is 200000 characters)"]}),
        ({"tagList": "dragons"}, {"tagList": ["must be a list of strings"]}),
        ({"tagList": None}, {"tagList": ["must be a list of strings"]}),
        ({"tagList": [1]}, {"tagList": ["must be a list of strings"]}),
        ({"tagList": ["x" * 65]}, {"tagList": ["is too long (maximum is 64 characters)"]}),
        ({"tagList": [str(n) for n in range(21)]}, {"tagList": ["are too many (maximum is 20)"]}),
        ({"tagList": ["a\0b"]}, {"tagList": ["contains characters that cannot be stored"]}),
        ({"title": "", "description": "", "body": ""}, {"title": BLANK, "description": BLANK, "body": BLANK}),
    ],
)
@one_shard
async def test_an_article_names_every_field_that_is_wrong(
    api: Api, changed: dict[str, Any], errors: dict[str, list[str]]
) -> None:
    """422 for creating and for updating alike, and nothing is written."""
    jake = await api.person()
    slug = (await api.article(jake))["slug"]
    answer = await api.call("POST", "/articles", {"article": {**NEW, **changed}}, by=jake, expect=422)
    assert answer["errors"] == errors
    answer = await api.call("PUT", f"/articles/{slug}", {"article": changed}, by=jake, expect=422)
    assert answer["errors"] == errors
    assert (await api.titles("/articles"))[1] == 1


async def test_missing_fields_are_blank(api: Api) -> None:
    jake = await api.person()
    answer = await api.call("POST", "/articles", {"article": {}}, by=jake, expect=422)
    assert answer["errors"] == {"title": BLANK, "description": BLANK, "body": BLANK}
    assert (await api.call("POST", "/articles", {}, by=jake, expect=422))["errors"] == {"article": BLANK}


async def test_updating_changes_what_is_given_and_nothing_else(api: Api) -> None:
    """A change of the body keeps the address; updatedAt moves on, createdAt does not."""
    jake = await api.person()
    before = await api.article(jake, "A title", tagList=["a", "b"])
    path = f"/articles/{before['slug']}"
    after = (await api.call("PUT", path, {"article": {"body": "New"}}, by=jake, expect=200))["article"]
    assert after == {**before, "body": "New", "updatedAt": after["updatedAt"]}
    assert after["updatedAt"] > before["updatedAt"]
    assert (await api.call("GET", path, expect=200))["article"] == after
    after = (await api.call("PUT", path, {"article": {"description": "D"}}, by=jake, expect=200))["article"]
    assert (after["description"], after["body"]) == ("D", "New")


async def test_tags_can_be_replaced_and_removed(api: Api) -> None:
    """The lists of tags and of articles by tag follow at once."""
    jake = await api.person()
    path = f"/articles/{(await api.article(jake, 'A', tagList=['a', 'b']))['slug']}"
    answer = await api.call("PUT", path, {"article": {"tagList": ["c", "b"]}}, by=jake, expect=200)
    assert answer["article"]["tagList"] == ["c", "b"]
    assert await api.titles("/articles", tag="a") == ([], 0)
    assert await api.titles("/articles", tag="b") == (["A"], 1)
    assert await api.titles("/articles", tag="c") == (["A"], 1)
    assert (await api.call("GET", "/tags", expect=200))["tags"] == ["b", "c"]
    article = (await api.call("PUT", path, {"article": {"tagList": []}}, by=jake, expect=200))["article"]
    assert article["tagList"] == []
    assert (await api.call("GET", "/tags", expect=200))["tags"] == []


async def test_a_new_title_gives_a_new_address_and_the_old_one_still_leads_there(api: Api) -> None:
    jake, anna = await api.person(), await api.person()
    await api.article(jake, "First name")
    renames = {"Second name": "second-name", "First name": "first-name", "First Name!": "first-name"}
    for title, slug in renames.items():
        body = {"article": {"title": title}}
        article = (await api.call("PUT", "/articles/first-name", body, by=jake, expect=200))["article"]
        assert (article["title"], article["slug"]) == (title, slug)
    for slug in ("first-name", "second-name"):
        answer = await api.call("GET", f"/articles/{slug}", expect=200)
        assert answer["article"]["slug"] == "first-name"
    assert (await api.article(anna, "Second name"))["slug"].startswith("second-name-")


async def test_old_addresses_are_let_go_one_day(api: Api) -> None:
    """An article keeps its last ten addresses; the one before them is free again."""
    jake, anna = await api.person(), await api.person()
    slug = (await api.article(jake, "Name 0"))["slug"]
    for number in range(1, 12):
        body = {"article": {"title": f"Name {number}"}}
        slug = (await api.call("PUT", f"/articles/{slug}", body, by=jake, expect=200))["article"]["slug"]
    await api.call("GET", "/articles/name-0", expect=404)
    await api.call("GET", "/articles/name-1", expect=200)
    assert (await api.article(anna, "Name 0"))["slug"] == "name-0"


async def test_an_update_to_a_title_of_ones_own_is_refused(api: Api) -> None:
    """422: the specification has no conflict for updates."""
    jake = await api.person()
    await api.article(jake, "Taken title")
    slug = (await api.article(jake, "Other title"))["slug"]
    body = {"article": {"title": "taken TITLE"}}
    answer = await api.call("PUT", f"/articles/{slug}", body, by=jake, expect=422)
    assert answer["errors"] == {"title": ["has already been taken"]}


@pytest.mark.parametrize("changes", [{}, {"unknown": 1}])
async def test_an_update_of_nothing_is_refused(api: Api, changes: dict[str, Any]) -> None:
    jake = await api.person()
    slug = (await api.article(jake))["slug"]
    answer = await api.call("PUT", f"/articles/{slug}", {"article": changes}, by=jake, expect=422)
    assert answer["errors"] == {"article": ["must have at least one field to change"]}


async def test_deleting_takes_everything_along(api: Api) -> None:
    """Tags, counts and every address, and from every list; comments and favourites are left to a job. The
    title may be used again."""
    jake, anna = await api.person("Jake"), await api.person("Anna")
    slug = (await api.article(jake, "Old", tagList=["dragons"]))["slug"]
    body = {"article": {"title": "New"}}
    slug = (await api.call("PUT", f"/articles/{slug}", body, by=jake, expect=200))["article"]["slug"]
    await api.comment(anna, slug)
    await api.call("POST", f"/articles/{slug}/favorite", by=anna, expect=200)
    await api.call("DELETE", f"/articles/{slug}", by=jake, expect=204)
    for path in ("/articles/old", "/articles/new", "/articles/new/comments"):
        assert (await api.call("GET", path, expect=404))["errors"] == {"article": ["not found"]}
    for params in ({}, {"author": "Jake"}, {"tag": "dragons"}, {"favorited": "Anna"}):
        assert await api.titles("/articles", **params) == ([], 0)
    assert (await api.call("GET", "/tags", expect=200))["tags"] == []
    assert await rows_left(api) == 2
    await work(api.platform, ["content"])
    assert await rows_left(api) == 0
    for title in ("Old", "New"):
        assert (await api.article(anna, title))["slug"] == title.lower()


async def rows_left(api: Api) -> int:
    """Rows of the content module beside counters."""
    db = api.platform.database("content")
    tables = ("article", "article_tag", "favorite", "comment", "former_slug", "_reservation")
    return sum([await db.scatter_sum(f"select count(*) from content.{table}") for table in tables])


async def test_an_article_can_be_deleted_by_an_address_it_had_before(api: Api) -> None:
    jake = await api.person()
    await api.article(jake, "Old")
    await api.call("PUT", "/articles/old", {"article": {"title": "New"}}, by=jake, expect=200)
    await api.call("DELETE", "/articles/old", by=jake, expect=204)
    await api.call("GET", "/articles/new", expect=404)
    assert await rows_left(api) == 0


async def test_only_the_author_changes_an_article(api: Api) -> None:
    """403 for others, 401 for nobody, 404 when there is none; nothing happens."""
    jake, anna = await api.person(), await api.person()
    article = await api.article(jake)
    path, body = f"/articles/{article['slug']}", {"article": {"body": "mine now"}}
    assert (await api.call("PUT", path, body, by=anna, expect=403))["errors"] == {"article": ["forbidden"]}
    assert (await api.call("DELETE", path, by=anna, expect=403))["errors"] == {"article": ["forbidden"]}
    assert (await api.call("PUT", path, body, expect=401))["errors"] == {"token": ["is missing"]}
    assert (await api.call("DELETE", path, expect=401))["errors"] == {"token": ["is missing"]}
    assert (await api.call("POST", "/articles", {"article": NEW}, expect=401))["errors"] == {
        "token": ["is missing"]
    }
    assert (await api.call("GET", path, expect=200))["article"] == article


SLUGS = ["nothing-here", "%00", "x" * 300, "%F0%9F%8E%89", "%ED%A0%80"]


@pytest.mark.parametrize("slug", SLUGS)
@one_shard
async def test_what_is_not_there_is_not_found(api: Api, slug: str) -> None:
    jake = await api.person()
    requests: list[tuple[str, str, Any]] = [
        ("GET", f"/articles/{slug}", None),
        ("PUT", f"/articles/{slug}", {"article": {"body": "x"}}),
        ("DELETE", f"/articles/{slug}", None),
        ("POST", f"/articles/{slug}/favorite", None),
        ("DELETE", f"/articles/{slug}/favorite", None),
        ("GET", f"/articles/{slug}/comments", None),
        ("POST", f"/articles/{slug}/comments", {"comment": {"body": "x"}}),
        ("DELETE", f"/articles/{slug}/comments/1", None),
    ]
    for method, path, body in requests:
        answer = await api.call(method, path, body, by=jake, expect=404)
        assert answer["errors"] == {"article": ["not found"]}


async def test_favourites_count_people(api: Api) -> None:
    """Idempotent both ways; `favorited` is the viewer's, the count everybody's."""
    jake, anna = await api.person("Jake"), await api.person("Anna")
    slug = (await api.article(jake))["slug"]
    path = f"/articles/{slug}/favorite"
    for person, count in ((jake, 1), (anna, 2), (anna, 2)):
        article = (await api.call("POST", path, by=person, expect=200))["article"]
        assert (article["favorited"], article["favoritesCount"]) == (True, count)
    article = (await api.call("GET", f"/articles/{slug}", expect=200))["article"]
    assert (article["favorited"], article["favoritesCount"]) == (False, 2)
    article = (await api.call("GET", f"/articles/{slug}", by=anna, expect=200))["article"]
    assert (article["favorited"], article["favoritesCount"]) == (True, 2)
    for count in (1, 1):
        article = (await api.call("DELETE", path, by=anna, expect=200))["article"]
        assert (article["favorited"], article["favoritesCount"]) == (False, count)
    for method in ("POST", "DELETE"):
        assert (await api.call(method, path, expect=401))["errors"] == {"token": ["is missing"]}


async def test_an_article_shows_whether_its_author_is_followed(api: Api) -> None:
    jake, anna = await api.person("Jake"), await api.person("Anna")
    slug = (await api.article(jake))["slug"]
    await api.comment(jake, slug)
    await api.call("POST", "/profiles/Jake/follow", by=anna, expect=200)
    for viewer, following in ((anna, True), (jake, False), (None, False)):
        article = (await api.call("GET", f"/articles/{slug}", by=viewer, expect=200))["article"]
        assert article["author"]["following"] is following
        answer = await api.call("GET", f"/articles/{slug}/comments", by=viewer, expect=200)
        assert answer["comments"][0]["author"]["following"] is following


async def test_comments_are_answered_newest_first(api: Api) -> None:
    jake, anna = await api.person("Jake"), await api.person("Anna")
    slug = (await api.article(jake))["slug"]
    assert (await api.call("GET", f"/articles/{slug}/comments", expect=200))["comments"] == []
    first = await api.comment(anna, slug, "First")
    second = await api.comment(jake, slug, "Second")
    assert (first["body"], first["author"]["username"]) == ("First", "Anna")
    assert first["createdAt"] == first["updatedAt"]
    answer = await api.call("GET", f"/articles/{slug}/comments", expect=200)
    assert answer["comments"] == [second, first]


async def test_a_comment_is_deleted_by_who_wrote_it(api: Api) -> None:
    """204, then gone; 403 for others (the article's author, too), 404 when there is none, 401 for nobody."""
    jake, anna = await api.person(), await api.person()
    slug, other = (await api.article(jake))["slug"], (await api.article(jake))["slug"]
    comment = await api.comment(anna, slug)
    path = f"/articles/{slug}/comments/{comment['id']}"
    assert (await api.call("DELETE", path, by=jake, expect=403))["errors"] == {"comment": ["forbidden"]}
    assert (await api.call("DELETE", path, expect=401))["errors"] == {"token": ["is missing"]}
    elsewhere = f"/articles/{other}/comments/{comment['id']}"
    assert (await api.call("DELETE", elsewhere, by=anna, expect=404))["errors"] == {"comment": ["not found"]}
    await api.call("DELETE", path, by=anna, expect=204)
    assert (await api.call("DELETE", path, by=anna, expect=404))["errors"] == {"comment": ["not found"]}
    assert (await api.call("GET", f"/articles/{slug}/comments", expect=200))["comments"] == []


@pytest.mark.parametrize(
    ("id", "status"),
    [("0", 404), ("-1", 404), ("9" * 18, 404), ("9" * 30, 422), ("abc", 422), ("1.5", 422), ("%00", 422)],
)
@one_shard
async def test_ids_that_no_comment_can_have(api: Api, id: str, status: int) -> None:
    jake = await api.person()
    slug = (await api.article(jake))["slug"]
    answer = await api.call("DELETE", f"/articles/{slug}/comments/{id}", by=jake, expect=status)
    assert set(answer["errors"]) == {"comment" if status == 404 else "id"}


@pytest.mark.parametrize(
    ("comment", "errors"),
    [
        ({"body": ""}, {"body": BLANK}),
        ({"body": "\t"}, {"body": BLANK}),
        ({"body": None}, {"body": BLANK}),
        ({}, {"body": BLANK}),
        ({"body": 1}, {"body": ["must be a string"]}),
        ({"body": "x" * 20_001}, {"body": ["is too long (maximum is 20000 characters)"]}),
        ({"body": "\0"}, {"body": ["contains characters that cannot be stored"]}),
    ],
)
@one_shard
async def test_a_comment_names_what_is_wrong(
    api: Api, comment: dict[str, Any], errors: dict[str, list[str]]
) -> None:
    jake = await api.person()
    path = f"/articles/{(await api.article(jake))['slug']}/comments"
    assert (await api.call("POST", path, {"comment": comment}, by=jake, expect=422))["errors"] == errors
    assert (await api.call("POST", path, {"comment": {"body": "x"}}, expect=401))["errors"] == {
        "token": ["is missing"]
    }
