"""Search over HTTP, fed by the jobs of those who own what is found: /market/search."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.market.harness import Api, one_platform, uncached
from tests.market.test_catalog_api import good, offer, refused, seller, send
from tests.market.test_search import HOSTILE
from tests.market.working import work

from market.search.api import MAX_SUGGESTIONS, Document, Search

pytestmark = one_platform


async def find(api: Api, q: str, by: Any = None, **params: Any) -> list[dict[str, Any]]:
    """The items, once every job was done."""
    await work(api.platform)
    query = str(httpx.QueryParams({"q": q, **params}))
    page = await good(api, "GET", f"/search?{query}", by=by)
    return list(page["items"])


async def test_each_kind_is_shown_as_its_owner_has_it(api: Api) -> None:
    """An article with its author, a listing with its shop, a person; favourites and follows of who asks."""
    anna = await seller(api)
    jake = await api.person("jake.walnut")
    slug = (await api.article(anna, "Walnut", tagList=["wood"]))["slug"]
    lamp = await offer(api, anna, title="Walnut lamp")
    await api.call("POST", f"/articles/{slug}/favorite", by=anna, expect=200)
    await api.call("POST", "/profiles/jake.walnut/follow", by=anna, expect=200)
    shown = {item["kind"]: item for item in await find(api, "walnut", by=anna)}
    assert shown.keys() == {"article", "listing", "person"}
    assert shown["article"]["author"] == anna.username
    assert (shown["article"]["favorited"], shown["article"]["tags"]) == (True, ["wood"])
    assert (shown["person"]["username"], shown["person"]["following"]) == (jake.username, True)
    live = await good(api, "GET", f"/listings/{lamp['id']}")
    live.pop("description")
    assert shown["listing"]["listing"] == live
    assert not any(item["updating"] for item in shown.values())
    for kind in shown:
        assert [item["kind"] for item in await find(api, "walnut", kind=kind)] == [kind]


async def test_a_person_is_found_under_the_new_name_alone(api: Api) -> None:
    jake = await api.person("jakob")
    assert [item["username"] for item in await find(api, "jakob")] == ["jakob"]
    await api.call(
        "PUT", "/user", {"user": {"username": "willem", "bio": "Carves spoons"}}, by=jake, expect=200
    )
    for q in ("willem", "spoons", "carv"):
        assert [item["username"] for item in await find(api, q)] == ["willem"], q
    assert await find(api, "jakob") == []


async def test_an_article_is_found_by_what_it_says_now(api: Api) -> None:
    """Renamed, changed, deleted; a body of the longest kind is found as well."""
    jake = await api.person()
    slug = (await api.article(jake, "Old boats", body="rigging"))["slug"]
    assert [item["slug"] for item in await find(api, "boats rigging")] == [slug]
    change = {"title": "New kites", "body": "string " * 28_000}
    slug = (await api.call("PUT", f"/articles/{slug}", {"article": change}, by=jake, expect=200))["article"][
        "slug"
    ]
    assert await find(api, "boats") == await find(api, "rigging") == []
    assert [item["slug"] for item in await find(api, "kites string")] == [slug]
    await api.call("DELETE", f"/articles/{slug}", by=jake, expect=204)
    assert await find(api, "kites") == []


async def test_a_listing_is_found_while_everybody_may_see_it(api: Api) -> None:
    """Not as a draft, not when withdrawn; sold out it still is, and on sale again it is again."""
    anna = await seller(api)
    lamp = await offer(api, anna, title="Bentwood chair", status="draft", stock=1)
    path = f"/listings/{lamp['id']}"

    async def change(**fields: Any) -> None:
        await good(api, "PATCH", path, fields, by=anna, if_match="*")

    assert await find(api, "bentwood", by=anna) == []
    await change(status="active")
    assert len(await find(api, "bentwood")) == 1
    await good(api, "POST", f"{path}/stock", {"change": -1}, by=anna)
    assert [item["listing"]["status"] for item in await find(api, "bentwood")] == ["sold_out"]
    await change(status="withdrawn")
    assert await find(api, "bentwood") == []
    assert await api.service(Search).suggest("bentw", 5) == []
    await change(title="Steel chair")
    assert await find(api, "steel") == []
    await change(status="active")
    assert [item["listing"]["title"] for item in await find(api, "steel")] == ["Steel chair"]


async def test_what_the_index_does_not_know_yet_is_not_shown_wrong(api: Api) -> None:
    """Before the jobs ran: withdrawn and deleted things are left out, what has changed says `updating`."""
    anna = await seller(api)
    lamps = [await offer(api, anna, title=f"Walnut lamp {n}") for n in range(3)]
    article = (await api.article(anna, "Walnut"))["slug"]
    gone = (await api.article(anna, "Walnut again"))["slug"]
    assert len(await find(api, "walnut")) == 5
    path = "/listings/{}"
    await good(api, "PATCH", path.format(lamps[0]["id"]), {"status": "withdrawn"}, by=anna, if_match="*")
    await good(api, "PATCH", path.format(lamps[1]["id"]), {"title": "Pine lamp"}, by=anna, if_match="*")
    await api.call("PUT", f"/articles/{article}", {"article": {"body": "b"}}, by=anna, expect=200)
    await api.call("DELETE", f"/articles/{gone}", by=anna, expect=204)
    items = (await good(api, "GET", "/search?q=walnut"))["items"]
    assert sorted((item["kind"], item["updating"]) for item in items) == [
        ("article", True),
        ("listing", False),
        ("listing", True),
    ]
    assert {item["listing"]["title"] for item in items if item["kind"] == "listing"} == {
        "Walnut lamp 2",
        "Pine lamp",
    }
    assert [item["updating"] for item in await find(api, "walnut")] == [False, False]


async def test_sales_and_favourites_update_nothing(api: Api) -> None:
    """They leave versions alone, and tell the index nothing."""
    anna = await seller(api)
    lamp = await offer(api, anna, title="Walnut lamp")
    slug = (await api.article(anna, "Walnut"))["slug"]
    await find(api, "walnut")
    await good(api, "POST", f"/listings/{lamp['id']}/stock", {"change": 5}, by=anna)
    await api.call("POST", f"/articles/{slug}/favorite", by=anna, expect=200)
    items = (await good(api, "GET", "/search?q=walnut"))["items"]
    assert [item["updating"] for item in items] == [False, False]
    assert await work(api.platform, ["content", "catalog"]) == 0


async def test_many_changes_are_one_job(api: Api) -> None:
    """Until it is begun, a job stands for all changes of the thing."""
    jake = await api.person()
    await work(api.platform)
    for number in range(5):
        await api.call("PUT", "/user", {"user": {"bio": f"bio {number}"}}, by=jake, expect=200)
    rows = await api.platform.database("users").scatter(
        "select id from users._job where kind = 'users.changed' and state = 'ready'"
    )
    assert len(rows) == 1


async def test_pages_follow_each_other(api: Api) -> None:
    """What is hidden makes a page shorter, and does not end the walk."""
    anna = await seller(api)
    lamps = [await offer(api, anna, title=f"Walnut lamp {n}") for n in range(9)]
    await find(api, "walnut")
    for lamp in lamps[2:5]:
        await good(api, "PATCH", f"/listings/{lamp['id']}", {"status": "withdrawn"}, by=anna, if_match="*")
    seen: list[int] = []
    after = ""
    while True:
        page = await good(api, "GET", f"/search?q=walnut&limit=2{after}")
        seen += [item["listing"]["id"] for item in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert sorted(seen) == sorted(lamp["id"] for lamp in (*lamps[:2], *lamps[5:]))


async def test_suggestions(api: Api) -> None:
    anna = await seller(api)
    await offer(api, anna, title="Walnut lamp")
    await api.person("walter.berg")
    await api.article(anna, "Walruses")
    await work(api.platform)
    assert (await good(api, "GET", "/search/suggest?q=wal"))["items"] == ["Walnut lamp", "walter.berg"]
    assert (await good(api, "GET", "/search/suggest?q=wal&limit=1"))["items"] == ["Walnut lamp"]
    assert (await good(api, "GET", f"/search/suggest?q=w&limit={MAX_SUGGESTIONS * 9}"))["items"] == []
    assert (await good(api, "GET", "/search/suggest"))["items"] == []


async def test_answers_have_etags(api: Api) -> None:
    """Nothing of one person's answer is kept for another: with a token it is private."""
    jake = await api.person("walnut")
    await find(api, "walnut")
    for path in ("/search?q=walnut", "/search/suggest?q=walnut"):
        first = await send(api, "GET", path)
        again = await send(api, "GET", path, if_none_match=first.headers["etag"])
        assert (again.status_code, again.content) == (304, b"")
    assert "private" in (await send(api, "GET", "/search?q=walnut", by=jake)).headers["cache-control"]
    assert (await send(api, "GET", "/search?q=walnut")).headers["cache-control"] == "no-cache"


async def test_no_question_is_a_fault_of_the_server(api: Api) -> None:
    """Any text is answered or refused; with and without something to be found."""
    jake = await api.person("jake")
    await api.article(jake, "A & B | !C:*", body="'; -- \" \\ ")
    await work(api.platform)
    for text in HOSTILE:
        for path in ("/search", "/search/suggest"):
            response = await api.client.get(f"/market{path}", params={"q": text[:6_000]})
            assert response.status_code == 200, (path, text[:80], response.text)
    for text in ("%00", "%ED%A0%80"):
        response = await api.client.get(f"/market/search?q=a{text}")
        assert response.status_code in (200, 422)
    assert await refused(api, 422, "GET", "/search?q=a%00b") == {
        "q": ["contains characters that cannot be stored"]
    }


@pytest.mark.parametrize("after", ["x", "WzEsIngiLDEsMiwzXQ", "%00", "a" * 3_000, "null", "e30"])
async def test_a_cursor_of_somebody_else_is_refused(api: Api, after: str) -> None:
    assert "after" in await refused(api, 422, "GET", f"/search?q=walnut&after={after}")


async def test_what_cannot_be_asked_is_named(api: Api) -> None:
    assert "kind" in await refused(api, 422, "GET", "/search?q=a&kind=shop")
    assert "limit" in await refused(api, 422, "GET", "/search?q=a&limit=0")
    assert "limit" in await refused(api, 422, "GET", "/search/suggest?q=a&limit=x")
    assert (await send(api, "GET", "/search?q=a", by=None, authorization="Token nonsense")).status_code == 401


async def test_a_hit_of_nothing_is_left_out(api: Api) -> None:
    """Things that were taken away past the modules: the index may know what nobody has."""
    await api.person("walnut")
    await work(api.platform)
    kinds = ("article", "listing", "person")
    ghosts = [Document(kind=kind, id=1 << 40 | 5, version=1, title="Walnut", text="") for kind in kinds]
    await api.service(Search).put(ghosts)
    assert [item["username"] for item in await find(api, "walnut")] == ["walnut"]


@uncached
async def test_statements_do_not_grow_with_hits(api: Api) -> None:
    """Of each kind all are asked for at once."""
    anna = await seller(api)
    for number in range(8):
        await offer(api, anna, title=f"Walnut lamp {number}")
        author = await api.person(f"walnut{number}")
        await api.article(author, f"Walnut {number}")
    await work(api.platform)
    shards = len(api.platform.database("search").shards.shards)  # the index, articles, listings, people

    async def count(limit: int) -> int:
        api.recorder.statements.clear()
        assert len((await good(api, "GET", f"/search?q=walnut&limit={limit}"))["items"]) == limit
        return len(api.recorder.statements)

    await count(1)
    assert await count(24) <= 4 * shards
