"""Shops, listings and stock over HTTP: /market."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest
from tests.market.harness import Api, Person, one_shard

from market.application import MARKET_OPERATIONS
from market.rest.operations import PREFIX

LAMP = {"title": "A lamp", "price": {"amount": 1250, "currency": "EUR"}, "category": "lighting", "stock": 3}


async def send(
    api: Api, method: str, path: str, json: Any = None, *, by: Person | None = None, **headers: str
) -> httpx.Response:
    """A request under /market; every refusal has the shape of RFC 9457."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if by is not None:
        named["Authorization"] = f"Bearer {by.token}"
    content = {} if json is None else {"json": json}
    response = await api.client.request(method, f"/market{path}", headers=named, **content)
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json", response.text
        body = response.json()
        assert body["status"] == response.status_code
        assert {"type", "title", "detail", "request_id"} <= body.keys()
    return response


async def good(api: Api, method: str, path: str, json: Any = None, **rest: Any) -> Any:
    response = await send(api, method, path, json, **rest)
    assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
    return response.json()


async def refused(api: Api, status: int, method: str, path: str, json: Any = None, **rest: Any) -> Any:
    """The errors of a refusal."""
    response = await send(api, method, path, json, **rest)
    assert response.status_code == status, f"{method} {path}: {response.status_code} {response.text}"
    return response.json().get("errors", {})


async def seller(api: Api, name: str = "Lamps & Co", **fields: Any) -> Person:
    person = await api.person()
    await good(api, "POST", "/shops", {"name": name, "currency": "EUR", **fields}, by=person)
    return person


async def offer(api: Api, by: Person, **fields: Any) -> Any:
    return await good(api, "POST", "/listings", {**LAMP, "status": "active", **fields}, by=by)


async def ids(api: Api, path: str, by: Person | None = None) -> list[int]:
    """All ids of a list, read in pages of two."""
    found: list[int] = []
    after = ""
    while True:
        mark = "&" if "?" in path else "?"
        page = await good(api, "GET", f"{path}{mark}limit=2{after}", by=by)
        found += [item["id"] for item in page["items"]]
        if page["next"] is None:
            return found
        assert len(page["items"]) == 2
        after = f"&after={page['next']}"


async def test_one_shop_per_account_and_one_of_each_slug(api: Api) -> None:
    anna, bert = await api.person(), await api.person()
    shop = {"name": "  Größe & Co  ", "currency": "EUR"}
    answers = await asyncio.gather(*(send(api, "POST", "/shops", shop, by=anna) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    created = next(answer for answer in answers if answer.status_code == 201)
    assert created.headers["location"] == "/market/shops/grosse-co"
    shown = await good(api, "GET", "/shops/grosse-co")
    assert (shown["name"], shown["currency"]) == ("Größe & Co", "EUR")
    assert await refused(api, 409, "POST", "/shops", {**shop, "slug": "grosse-co"}, by=bert) == {
        "slug": ["has already been taken"]
    }
    other = await good(api, "POST", "/shops", shop, by=bert)
    assert other["slug"].startswith("grosse-co-")
    await refused(api, 404, "GET", "/shops/nobody")
    await refused(api, 404, "GET", "/shop", by=await api.person())


async def test_a_listing_from_draft_to_withdrawn(api: Api) -> None:
    anna, eve = await seller(api), await seller(api, "Eve")
    response = await send(api, "POST", "/listings", LAMP, by=anna)
    draft, path = response.json(), response.headers["location"].removeprefix("/market")
    assert (draft["status"], draft["available"], draft["version"]) == ("draft", 3, 1)
    await refused(api, 404, "GET", path)
    await refused(api, 404, "GET", path, by=eve)
    await refused(api, 404, "PATCH", path, {"title": "Mine"}, by=eve, If_Match="*")
    assert await refused(api, 409, "PATCH", path, {"status": "withdrawn"}, by=anna, If_Match="*")
    active = await good(api, "PATCH", path, {"status": "active"}, by=anna, If_Match='"1"')
    assert (active["status"], active["version"]) == ("active", 2)
    assert (await good(api, "GET", path))["shop"] == "lamps-co"
    await refused(api, 403, "PATCH", path, {"title": "Mine"}, by=eve, If_Match="*")
    await refused(api, 403, "GET", f"{path}/stock", by=eve)
    withdrawn = await good(api, "PATCH", path, {"status": "withdrawn"}, by=anna, If_Match="*")
    assert withdrawn["status"] == "withdrawn"
    await refused(api, 404, "GET", path)
    assert await ids(api, "/listings") == []
    assert await ids(api, "/shop/listings", by=anna) == [draft["id"]]


async def test_changes_say_which_version_they_are_about(api: Api) -> None:
    """428 without If-Match, 412 when it is another one; the ETag of a GET does, whatever the stock does."""
    anna = await seller(api)
    path = f"/listings/{(await offer(api, anna))['id']}"
    etag = (await send(api, "GET", path)).headers["etag"]
    await refused(api, 428, "PATCH", path, {"title": "B"}, by=anna)
    await good(api, "POST", f"{path}/stock", {"change": 2}, by=anna)
    answers = await asyncio.gather(
        *(send(api, "PATCH", path, {"title": f"T{n}"}, by=anna, If_Match=etag) for n in range(5))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 412, 412, 412, 412]
    for wrong in ('"1"', '"x"', "2", 'W/"2"', '"99999999999999999999"'):
        await refused(api, 412, "PATCH", path, {"title": "B"}, by=anna, If_Match=wrong)
    mine = (await send(api, "GET", "/shop", by=anna)).headers["etag"]
    await good(api, "PATCH", "/shop", {"name": "New"}, by=anna, If_Match=mine)
    await refused(api, 412, "PATCH", "/shop", {"name": "Old"}, by=anna, If_Match=mine)
    assert (await good(api, "GET", path))["shop_name"] == "New"


async def test_what_the_client_has_is_not_sent_again(api: Api) -> None:
    anna = await seller(api)
    path = f"/listings/{(await offer(api, anna))['id']}"
    for read in (
        path,
        "/listings",
        "/categories",
        "/shops/lamps-co",
        "/shop",
        "/shop/listings",
        f"{path}/stock",
    ):
        first = await send(api, "GET", read, by=anna)
        again = await send(api, "GET", read, by=anna, If_None_Match=f'"old", {first.headers["etag"]}')
        assert (again.status_code, again.content) == (304, b""), read
        assert again.headers["etag"] == first.headers["etag"]
        assert "no-cache" in first.headers["cache-control"]
        assert (await send(api, "GET", read, by=anna, If_None_Match='"old"')).status_code == 200
    known = (await send(api, "GET", path)).headers["etag"]
    await good(api, "POST", f"{path}/stock", {"change": -3}, by=anna)
    changed = await send(api, "GET", path, If_None_Match=known)
    assert changed.json()["status"] == "sold_out"


async def test_lists_are_whole_and_in_order(api: Api) -> None:
    anna, bert = await seller(api), await seller(api, "Books")
    lamps = [(await offer(api, anna))["id"] for _ in range(5)]
    books = [(await offer(api, bert, category="fiction"))["id"] for _ in range(3)]
    shades = [(await offer(api, anna, category="textiles"))["id"]]
    gone = (await offer(api, anna, stock=0))["id"]
    newest = [*shades, *books[::-1], *lamps[::-1]]
    assert await ids(api, "/listings") == newest
    assert await ids(api, "/listings?category=lighting") == lamps[::-1]
    assert await ids(api, "/listings?category=home") == [*shades, *lamps[::-1]]
    assert await ids(api, "/listings?shop=books") == books[::-1]
    assert await ids(api, "/listings?shop=lamps-co&category=textiles") == shades
    assert await ids(api, "/listings?shop=nobody") == []
    assert await ids(api, "/shop/listings", by=anna) == [gone, *shades, *lamps[::-1]]
    asked = [books[0], gone, 5, lamps[0], books[0]]
    shown = await good(api, "GET", f"/listings?ids={','.join(map(str, asked))}")
    assert [item["id"] for item in shown["items"]] == [books[0], gone, lamps[0]]
    assert "description" not in shown["items"][0]
    counts = {one["slug"]: one["listings"] for one in (await good(api, "GET", "/categories"))["items"]}
    assert (counts["home"], counts["lighting"], counts["textiles"], counts["books"]) == (6, 5, 1, 3)


async def test_a_draft_is_new_on_the_day_it_is_shown(api: Api) -> None:
    anna = await seller(api)
    draft = await good(api, "POST", "/listings", LAMP, by=anna)
    other = await offer(api, anna)
    await good(api, "PATCH", f"/listings/{draft['id']}", {"status": "active"}, by=anna, If_Match="*")
    assert await ids(api, "/listings") == [draft["id"], other["id"]]


async def test_the_stock_and_its_log(api: Api) -> None:
    anna = await seller(api)
    path = f"/listings/{(await offer(api, anna))['id']}"
    stock = await good(api, "POST", f"{path}/stock", {"change": 4, "note": "more"}, by=anna)
    assert (stock["on_hand"], stock["available"]) == (7, 7)
    assert await refused(api, 409, "POST", f"{path}/stock", {"change": -8}, by=anna)
    for change in (0, 1_000_001, -(10**30), 10**30, 1.5, "1", None, True):
        assert await refused(api, 422, "POST", f"{path}/stock", {"change": change}, by=anna)
    assert await refused(api, 409, "POST", f"{path}/stock", {"change": 1_000_000}, by=anna)
    log = await good(api, "GET", f"{path}/movements", by=anna)
    assert [(one["change"], one["on_hand"], one["note"]) for one in log["items"]] == [
        (4, 7, "more"), (3, 3, "first stock")
    ]  # fmt: skip


async def test_a_request_with_a_key_happens_once(api: Api) -> None:
    """Whatever it does, at once or later; another body under the same key is refused."""
    anna = await api.person()
    shop = {"name": "Lamps", "currency": "EUR"}
    first = await good(api, "POST", "/shops", shop, by=anna, Idempotency_Key="open-shop")
    assert await good(api, "POST", "/shops", shop, by=anna, Idempotency_Key="open-shop") == first
    made = await good(
        api, "POST", "/listings", {**LAMP, "status": "active"}, by=anna, Idempotency_Key="listing-1"
    )
    again = await send(
        api, "POST", "/listings", {**LAMP, "status": "active"}, by=anna, Idempotency_Key="listing-1"
    )
    assert (again.status_code, again.json()) == (201, made)
    assert await ids(api, "/listings") == [made["id"]]
    path = f"/listings/{made['id']}"
    more = {"change": 1}
    answers = await asyncio.gather(
        *(send(api, "POST", f"{path}/stock", more, by=anna, Idempotency_Key="stock-up") for _ in range(5))
    )
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert (await good(api, "POST", f"{path}/stock", more, by=anna, Idempotency_Key="stock-up"))[
        "on_hand"
    ] == 4
    await refused(api, 422, "POST", f"{path}/stock", {"change": 2}, by=anna, Idempotency_Key="stock-up")
    await refused(api, 400, "POST", f"{path}/stock", more, by=anna, Idempotency_Key="short")
    change = {"title": "New"}
    once = await good(api, "PATCH", path, change, by=anna, If_Match='"1"', Idempotency_Key="change-1")
    assert await good(api, "PATCH", path, change, by=anna, If_Match='"1"', Idempotency_Key="change-1") == once
    await refused(api, 409, "POST", f"{path}/stock", {"change": -5}, by=anna, Idempotency_Key="refused-1")
    await good(api, "POST", f"{path}/stock", {"change": 1}, by=anna)
    await good(api, "POST", f"{path}/stock", {"change": -5}, by=anna, Idempotency_Key="refused-1")


@one_shard
async def test_every_wrong_field_is_named_at_once(api: Api) -> None:
    anna = await seller(api)
    listing = {"title": " ", "price": {"amount": 0, "currency": "EUR"}, "category": "home", "stock": -1}
    assert (await refused(api, 422, "POST", "/listings", listing, by=anna)).keys() == listing.keys()
    types = {"title": 5, "price": {"amount": 1.5, "currency": "EUR"}, "colour": "red", "media": [1]}
    found = await refused(api, 422, "POST", "/listings", types, by=anna)
    assert found.keys() == {"title", "price", "colour", "media", "category"}
    for price in (
        {"amount": 1250, "currency": "USD"},
        {"amount": 1250, "currency": "XXX"},
        {"amount": -1, "currency": "EUR"},
        {"amount": 10**11, "currency": "EUR"},
        {"amount": 10**40, "currency": "EUR"},
        {"amount": True, "currency": "EUR"},
        {"amount": 1250},
        1250,
        None,
    ):
        assert "price" in await refused(api, 422, "POST", "/listings", {**LAMP, "price": price}, by=anna), (
            price
        )
    for shop in ({"currency": "XYZ"}, {"currency": "eur"}, {"slug": "A b"}, {"slug": "ab"}, {"slug": "-ab-"}):
        new = {"name": "Shop", "currency": "EUR", **shop}
        assert (await refused(api, 422, "POST", "/shops", new, by=anna)).keys() == shop.keys()


HOSTILE = [
    "<script>alert(1)</script>",
    "'; drop table catalog.listing; --",
    "{{7*7}}",
    "\u202egnp.exe",
    "🦆" * 50,
]


@one_shard
@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_text_is_kept_as_it_is(api: Api, text: str) -> None:
    anna = await seller(api, text, slug="hostile", description=text)
    made = await offer(api, anna, title=text, description=text, media=[text])
    shown = await good(api, "GET", f"/listings/{made['id']}")
    assert (shown["title"], shown["description"], shown["media"], shown["shop_name"]) == (
        text,
        text,
        [text],
        text,
    )
    await good(api, "POST", f"/listings/{made['id']}/stock", {"change": 1, "note": text}, by=anna)


@one_shard
async def test_what_cannot_be_stored_or_read_is_refused(api: Api) -> None:
    anna = await seller(api)
    for title in ("a\0b", "x" * 201):
        assert "title" in await refused(api, 422, "POST", "/listings", {**LAMP, "title": title}, by=anna)
    authorization = {"Authorization": f"Bearer {anna.token}"}
    for body in (b"{", b"[]", b'"x"', b'{"title": "\\ud800"}', b"\xff", b"[" * 100_000, b'{"\\ud800": 1}'):
        response = await api.client.post("/market/listings", content=body, headers=authorization)
        assert response.status_code == 422, body[:20]
        assert response.headers["content-type"] == "application/problem+json"
    form = await api.client.post("/market/listings", data={"title": "x"}, headers=authorization)
    assert form.status_code == 415
    for query in ("limit=0", "limit=-1", "limit=x", "after=x", "category=nope", "category=%00", "shop=%00",
                  "ids=1,x", "ids=" + ",".join(map(str, range(201))), "ids=1&category=home"):  # fmt: skip
        assert await refused(api, 422, "GET", f"/listings?{query}"), query
    for id in ("x", "-1", "1.5", "9" * 16, "9" * 30, "%00"):
        await refused(api, 404, "GET", f"/listings/{id}")
    await refused(api, 404, "GET", "/nothing")
    assert (await send(api, "DELETE", "/listings")).headers["allow"] == "GET, HEAD, POST"


@one_shard
async def test_a_cursor_leads_only_into_its_own_list(api: Api) -> None:
    anna = await seller(api)
    for _ in range(2):
        await offer(api, anna)
    after = (await good(api, "GET", "/listings?limit=1"))["next"]
    assert "after" in await refused(api, 422, "GET", f"/shop/listings?after={after}", by=anna)


@one_shard
async def test_who_must_sign_in(api: Api) -> None:
    for operation in MARKET_OPERATIONS:
        if operation.auth == "required":
            path = re.sub(r"\{\w+\}", "1", operation.path)
            response = await send(api, operation.method, path)
            assert response.status_code == 401, operation.id
            assert response.headers["www-authenticate"].startswith("Bearer")
    nobody = Person(api.platform.tokens.issue(1 << 40, scopes=["api"]), "x", "y")
    await refused(api, 401, "POST", "/shops", {"name": "Shop", "currency": "EUR"}, by=nobody)


@one_shard
async def test_the_document_describes_what_is_routed(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    for operation in MARKET_OPERATIONS:
        described = document["paths"][PREFIX + operation.path][operation.method.lower()]
        assert str(operation.status) in described["responses"]
        path = re.sub(r"\{\w+\}", "1", operation.path)
        response = await send(api, operation.method, path)
        assert str(response.status_code) in described["responses"], operation.id
    for name in re.findall(r"#/components/schemas/(\w+)", repr(document)):
        assert name in document["components"]["schemas"]
    docs = (await api.client.get("/docs")).text
    assert all(f'id="{operation.id}"' in docs for operation in MARKET_OPERATIONS)
