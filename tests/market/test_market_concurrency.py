"""Many at once: one name, one counter, one article that is being deleted."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from tests.market.harness import PASSWORD, Api, one_platform
from tests.market.working import work

pytestmark = one_platform


async def counters(api: Api) -> dict[str, tuple[int, int]]:
    """What the counters say and what there is, over all shards."""
    db = api.platform.database("content")

    async def both(counted: str, there: str) -> tuple[int, int]:
        return await db.scatter_sum(counted), await db.scatter_sum(there)

    return {
        "favorites": await both(
            "select coalesce(sum(favorites), 0)::bigint from content.article",
            "select count(*) from content.favorite",
        ),
        "articles": await both(
            "select coalesce(sum(articles), 0)::bigint from content.article_count",
            "select count(*) from content.article",
        ),
        "authors": await both(
            "select coalesce(sum(articles), 0)::bigint from content.author_count",
            "select count(*) from content.article",
        ),
        "tags": await both(
            "select coalesce(sum(articles), 0)::bigint from content.tag_use",
            "select count(*) from content.article_tag",
        ),
        "orphans": (
            await db.scatter_sum(
                "select (select count(*) from content.comment c where not exists"
                " (select 1 from content.article a where a.bucket = c.bucket and a.id = c.article_id))"
                " + (select count(*) from content.favorite f where not exists"
                " (select 1 from content.article a where a.bucket = f.bucket and a.id = f.article_id))"
            ),
            0,
        ),
    }


async def consistent(api: Api) -> bool:
    found = await counters(api)
    assert all(counted == there for counted, there in found.values()), found
    return True


async def test_one_of_many_registrations_of_a_name_wins(api: Api) -> None:
    """The others get 409, and what they claimed beside the name is free again."""

    async def register(number: int) -> int:
        user = {"username": "Jake", "email": f"jake{number}@example.com", "password": PASSWORD}
        return (await api.send("POST", "/users", {"user": user})).status_code

    statuses = Counter(await asyncio.gather(*(register(number) for number in range(6))))
    assert statuses == {201: 1, 409: 5}
    free = 0
    for number in range(6):
        user = {"username": f"Other{number}", "email": f"jake{number}@example.com", "password": PASSWORD}
        free += (await api.send("POST", "/users", {"user": user})).status_code == 201
    assert free == 5


async def test_one_of_many_renames_to_a_name_wins(api: Api) -> None:
    people = [await api.person() for _ in range(4)]

    async def rename(index: int) -> int:
        body = {"user": {"username": "Wanted"}}
        return (await api.send("PUT", "/user", body, by=people[index])).status_code

    assert Counter(await asyncio.gather(*map(rename, range(4)))) == {200: 1, 422: 3}


async def test_renames_of_one_account_leave_no_name_behind(api: Api) -> None:
    """After many at once the account has one name, and every other name is free."""
    jake = await api.person("Jake")
    names = [f"Name{number}" for number in range(4)]

    async def rename(name: str) -> int:
        return (await api.send("PUT", "/user", {"user": {"username": name}}, by=jake)).status_code

    assert 200 in set(await asyncio.gather(*map(rename, names)))
    mine = (await api.call("GET", "/user", by=jake, expect=200))["user"]["username"]
    for number, name in enumerate({*names, "Jake"} - {mine}):
        user = {"username": name, "email": f"other{number}@example.com", "password": PASSWORD}
        await api.call("POST", "/users", {"user": user}, expect=201)


async def test_one_of_many_articles_of_a_title_wins(api: Api) -> None:
    jake = await api.person()
    article = {"title": "Same", "description": "d", "body": "b", "tagList": ["t"]}

    async def create() -> int:
        return (await api.send("POST", "/articles", {"article": article}, by=jake)).status_code

    assert Counter(await asyncio.gather(*(create() for _ in range(8)))) == {201: 1, 409: 7}
    assert await consistent(api)


async def test_authors_of_one_title_get_addresses_of_their_own(api: Api) -> None:
    people = [await api.person() for _ in range(5)]
    articles = await asyncio.gather(*(api.article(person, "Same") for person in people))
    assert len({article["slug"] for article in articles}) == 5


async def test_an_article_renamed_by_many_has_the_address_of_its_title(api: Api) -> None:
    """Whoever was last: slug and title belong together, and every address it had leads to it."""
    jake = await api.person()
    for turn in range(4):
        slug = (await api.article(jake, f"Title {turn}"))["slug"]
        titles = [f"Title {turn}", *(f"Name {turn} {number}" for number in range(4))]

        async def rename(title: str, slug: str = slug) -> str:
            body = {"article": {"title": title}}
            answer = await api.call("PUT", f"/articles/{slug}", body, by=jake, expect=200)
            return str(answer["article"]["slug"])

        addresses = await asyncio.gather(*map(rename, titles))
        for address in addresses:
            article = (await api.call("GET", f"/articles/{address}", expect=200))["article"]
            assert article["slug"] == article["title"].lower().replace(" ", "-")
    assert await consistent(api)


async def test_the_favourites_counter_equals_the_rows(api: Api) -> None:
    """50 toggles at once by 5 people; each person's last answer does not matter, the sum does."""
    people = [await api.person() for _ in range(5)]
    slug = (await api.article(people[0]))["slug"]
    chance = random.Random(5)

    async def toggle(number: int) -> None:
        method = chance.choice(["POST", "DELETE"])
        await api.call(method, f"/articles/{slug}/favorite", by=people[number % 5], expect=200)

    await asyncio.gather(*map(toggle, range(50)))
    assert await consistent(api)


async def test_nothing_hangs_on_a_deleted_article(api: Api) -> None:
    """Comments, favourites and updates that race with the deletion come before it or get 404."""
    people = [await api.person() for _ in range(4)]
    for _ in range(4):
        slug = (await api.article(people[0], tagList=["a", "b"]))["slug"]

        def requests(slug: str = slug) -> list[tuple[str, str, Any, int]]:
            return [
                ("POST", f"/articles/{slug}/comments", {"comment": {"body": "x"}}, 1),
                ("POST", f"/articles/{slug}/favorite", None, 2),
                ("PUT", f"/articles/{slug}", {"article": {"tagList": ["b", "c"]}}, 0),
                ("DELETE", f"/articles/{slug}", None, 0),
                ("POST", f"/articles/{slug}/comments", {"comment": {"body": "y"}}, 3),
                ("DELETE", f"/articles/{slug}/favorite", None, 2),
                ("DELETE", f"/articles/{slug}", None, 0),
            ]

        async def one(method: str, path: str, body: Any, person: int) -> int:
            return (await api.send(method, path, body, by=people[person])).status_code

        statuses = await asyncio.gather(*(one(*request) for request in requests()))
        assert set(statuses) <= {200, 201, 204, 404}
        assert statuses.count(204) == 1
        await api.call("GET", f"/articles/{slug}", expect=404)
    await work(api.platform, ["content"])
    assert await consistent(api)


async def test_tags_of_many_articles_change_without_deadlock(api: Api) -> None:
    """Articles of one bucket count the same tags, in one order, whichever way they change."""
    jake = await api.person()
    sets = [[f"a{number:02}" for number in range(20)], [f"b{number:02}" for number in range(20)]]
    slugs = [(await api.article(jake, tagList=sets[index % 2]))["slug"] for index in range(8)]

    async def change(index: int, turn: int) -> None:
        body = {"article": {"tagList": sets[(index + turn) % 2]}}
        await api.call("PUT", f"/articles/{slugs[index]}", body, by=jake, expect=200)

    for turn in range(1, 6):
        await asyncio.gather(*(change(index, turn) for index in range(8)))
    assert await consistent(api)
    assert (await api.call("GET", "/tags", expect=200))["tags"] == sorted(sets[0] + sets[1])
