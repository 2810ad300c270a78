"""Webhooks over HTTP (/market/webhooks), and what of the shop they hear."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest_asyncio
from tests.market.catalog import ANNA, BERT
from tests.market.harness import Api, Person, one_platform, one_shard, settled
from tests.market.ordering import Shop, buyer, shop
from tests.market.test_catalog_api import good, offer, refused, seller, send
from tests.market.working import work

from market.webhooks import rules, signing
from market.webhooks.api import EVENT_TYPES, MAX_ENDPOINTS, EventType, NewEndpoint, Webhooks

pytestmark = one_platform

HOOK: dict[str, Any] = {"url": "https://hooks.example.com/a", "events": ["order.confirmed"]}


async def registered(api: Api, by: Person, **fields: Any) -> Any:
    return await good(api, "POST", "/webhooks", {**HOOK, **fields}, by=by)


async def deleted(api: Api, by: Person, path: str) -> None:
    """So that what a test has left calls nobody."""
    assert (await send(api, "DELETE", path, by=by)).status_code == 204


async def test_a_secret_is_shown_once_and_replaced(api: Api) -> None:
    """In the answer that made it, to whoever repeats that request, and nowhere else."""
    anna = await api.person()
    answers = [
        await send(api, "POST", "/webhooks", HOOK, by=anna, Idempotency_Key="register-1") for _ in range(2)
    ]
    assert [one.status_code for one in answers] == [201, 201]
    made = answers[0].json()
    assert answers[1].json() == made
    assert answers[0].headers["cache-control"] == "no-store"
    path = f"/webhooks/{made['endpoint']['id']}"
    assert answers[0].headers["location"] == f"/market{path}"
    assert made["secret"].startswith("whsec_")
    page = await good(api, "GET", "/webhooks", by=anna)
    assert page == {"items": [made["endpoint"]], "next": None}
    shown = await send(api, "GET", path, by=anna)
    assert shown.json() == made["endpoint"] and "secret" not in shown.text
    rotated = await send(api, "POST", f"{path}/secret", by=anna)
    assert rotated.json()["secret"] != made["secret"]
    assert rotated.headers["cache-control"] == "no-store"
    again = await send(api, "GET", path, by=anna, If_None_Match=shown.headers["etag"])
    assert again.status_code == 200  # another version


async def test_a_webhook_is_changed_by_version_and_deleted(api: Api) -> None:
    anna = await api.person()
    made = (await registered(api, anna))["endpoint"]
    path = f"/webhooks/{made['id']}"
    etag = (await send(api, "GET", path, by=anna)).headers["etag"]
    await refused(api, 428, "PATCH", path, {"enabled": False}, by=anna)
    changed = await send(api, "PATCH", path, {"enabled": False}, by=anna, If_Match=etag)
    assert (changed.json()["enabled"], changed.json()["version"]) == (False, 2)
    await refused(api, 412, "PATCH", path, {"enabled": True}, by=anna, If_Match=etag)
    more = {"url": "https://hooks.example.com/b", "events": list(EVENT_TYPES)}
    wanted = await good(api, "PATCH", path, more, by=anna, If_Match=changed.headers["etag"])
    assert {name: wanted[name] for name in more} == more
    assert not wanted["enabled"]
    assert await refused(api, 409, "POST", f"{path}/test", by=anna) == {
        "webhook": ["is disabled: enable it first"]
    }
    assert await refused(api, 422, "PATCH", path, {}, by=anna, If_Match="*")
    deleted = await send(api, "DELETE", path, by=anna)
    assert (deleted.status_code, deleted.content) == (204, b"")
    await refused(api, 404, "DELETE", path, by=anna)
    await refused(api, 404, "GET", path, by=anna)


async def test_messages_are_listed_in_pages_and_sent_again(api: Api) -> None:
    """What was sent and when it is tried next; a test is one. Of the answer only its status is kept."""
    anna = await api.person()
    path = f"/webhooks/{(await registered(api, anna))['endpoint']['id']}"
    made = [await good(api, "POST", f"{path}/test", by=anna) for _ in range(3)]
    again = [await good(api, "POST", f"{path}/test", by=anna, Idempotency_Key="test-once") for _ in range(2)]
    assert again[0] == again[1]
    page = await good(api, "GET", f"{path}/messages?limit=2", by=anna)
    rest = await good(api, "GET", f"{path}/messages?limit=2&after={page['next']}", by=anna)
    found = page["items"] + rest["items"]
    assert [one["id"] for one in found] == [one["id"] for one in [again[0], *reversed(made)]]
    assert found[-1]["next_at"] is not None
    assert {one["state"] for one in found} == {"queued"}
    newest = f"/webhooks/messages/{found[0]['id']}/again"
    assert await refused(api, 409, "POST", newest, by=anna) == {"message": ["is queued already"]}
    for pool in api.platform.database("webhooks").pools.values():
        await pool.execute("delete from webhooks._job")  # as an operator discards them
    await settled(api.platform)
    page = await good(api, "GET", f"{path}/messages", by=anna)
    assert {one["state"] for one in page["items"]} == {"failed"}
    queued = await good(api, "POST", newest, by=anna)
    assert (queued["state"], queued["id"]) == ("queued", found[0]["id"])
    await deleted(api, anna, path)


@one_shard
async def test_every_wrong_field_is_named_at_once(api: Api) -> None:
    anna = await api.person()
    for url in (
        "http://hooks.example.com/", "https://127.0.0.1/", "https://localhost/", "https://10.1.2.3/",
        "https://[::1]/", "https://u@hooks.example.com/", "https://hooks.example.com:22/", "https://printer/",
        "https://2130706433/", "ftp://hooks.example.com/", "x" * 3000, "", "https://a.example.com/\0",
    ):  # fmt: skip
        wrong = {"url": url, "events": ["order.confirmed"] * 2}
        assert list(await refused(api, 422, "POST", "/webhooks", wrong, by=anna)) == ["url", "events"], url
    for events in ([], ["weather"], ["test"], "order.confirmed", None):
        wrong = {**HOOK, "events": events}
        assert list(await refused(api, 422, "POST", "/webhooks", wrong, by=anna)) == ["events"]
    assert list(await refused(api, 422, "POST", "/webhooks", {**HOOK, "secret": "x"}, by=anna)) == ["secret"]
    assert list(await refused(api, 422, "GET", "/webhooks?after=x", by=anna)) == ["after"]
    path = f"/webhooks/{(await registered(api, anna))['endpoint']['id']}"
    assert list(await refused(api, 422, "GET", f"{path}/messages?after=x", by=anna)) == ["after"]
    for _ in range(MAX_ENDPOINTS - 1):
        await registered(api, anna)
    assert list(await refused(api, 409, "POST", "/webhooks", HOOK, by=anna)) == ["webhooks"]


@one_shard
async def test_the_document_says_what_is_sent(api: Api) -> None:
    """Each type, with the shape of its data and the headers that sign it."""
    document = (await api.client.get("/openapi.json")).json()
    docs = (await api.client.get("/docs")).text
    assert list(document["webhooks"]) == list(EVENT_TYPES)
    for type, methods in document["webhooks"].items():
        message = methods["post"]
        assert [one["name"] for one in message["parameters"]] == list(signing.headers("msg_1", 0, b"", []))
        said = message["requestBody"]["content"]["application/json"]["schema"]
        assert said["properties"].keys() == json.loads(rules.body(type, datetime.now(UTC), None)).keys()
        name = said["properties"]["data"]["$ref"].rpartition("/")[2]
        kind = document["components"]["schemas"][name]["properties"]["object"]["enum"]
        assert kind == [type.split(".")[0]]
        assert f'id="{message["operationId"]}"' in docs


@one_shard
async def test_they_are_their_sellers_alone(api: Api) -> None:
    anna, bert = await api.person(), await api.person()
    path = f"/webhooks/{(await registered(api, anna))['endpoint']['id']}"
    message = (await good(api, "POST", f"{path}/test", by=anna))["id"]
    for method, at, body in (
        ("GET", path, None), ("PATCH", path, {"enabled": False}), ("DELETE", path, None),
        ("POST", f"{path}/secret", None), ("POST", f"{path}/test", None), ("GET", f"{path}/messages", None),
        ("POST", f"/webhooks/messages/{message}/again", None), ("GET", "/webhooks/x", None),
    ):  # fmt: skip
        await refused(api, 404, method, at, body, by=bert, If_Match="*")
        await refused(api, 401, method, at, body, If_Match="*")
    await refused(api, 401, "POST", "/webhooks", HOOK)
    await refused(api, 401, "GET", "/webhooks")
    assert (await good(api, "GET", "/webhooks", by=bert))["items"] == []
    await deleted(api, anna, path)


async def test_a_stock_that_ends_and_comes_back_is_told_by_turns(api: Api) -> None:
    """Once each, numbered; of two turns before a worker comes the later one alone. Not what a seller does."""
    anna = await seller(api)
    made = await registered(api, anna, events=["listing.sold_out", "listing.available"])
    lamp = await offer(api, anna, stock=3)
    path, messages = f"/listings/{lamp['id']}", f"/webhooks/{made['endpoint']['id']}/messages"

    async def heard() -> list[str]:
        await work(api.platform, {"catalog"})
        page = await good(api, "GET", messages, by=anna)
        assert {one["subject"] for one in page["items"]} <= {f"listing {lamp['id']}"}
        return [one["type"] for one in reversed(page["items"])]

    await good(api, "POST", f"{path}/stock", {"change": -2}, by=anna)
    assert await heard() == []
    await good(api, "POST", f"{path}/stock", {"change": -1}, by=anna)
    assert await heard() == ["listing.sold_out"]
    await good(api, "POST", f"{path}/stock", {"change": 1}, by=anna)
    await good(api, "PATCH", path, {"title": "Another lamp"}, by=anna, If_Match="*")
    assert await heard() == ["listing.sold_out", "listing.available"]
    await good(api, "POST", f"{path}/stock", {"change": -1}, by=anna)
    await good(api, "POST", f"{path}/stock", {"change": 1}, by=anna)
    assert await heard() == ["listing.sold_out", "listing.available", "listing.available"]
    await good(api, "PATCH", path, {"status": "withdrawn"}, by=anna, If_Match="*")
    await good(api, "POST", f"{path}/stock", {"change": -1}, by=anna)
    assert len(await heard()) == 3
    await deleted(api, anna, f"/webhooks/{made['endpoint']['id']}")


@pytest_asyncio.fixture(loop_scope="module")
async def there(urls: list[str], home: Path, tmp_path: Path) -> AsyncIterator[Shop]:
    async with shop(urls, home, tmp_path) as made:
        await made.open()
        yield made


async def test_programs_hear_what_became_of_a_sale_in_its_order(there: Shop) -> None:
    """Each seller of the own part, once, however often it is told; nothing of what was never sold."""
    webhooks = there.platform.service(Webhooks)
    events: list[EventType] = ["order.confirmed", "order.shipped", "order.cancelled"]
    hooks = {
        who: await webhooks.register(who, NewEndpoint(url="https://hooks.example.com/", events=events))
        for who in (ANNA, BERT)
    }
    lamp, book = await there.listing(), await there.listing(BERT)
    ada, eve = buyer(), buyer()
    kept, undone = await there.place(ada, lamp, book), await there.place(ada, lamp)
    await there.place(eve, lamp, source="card_declined")
    await there.work()
    early = await there.place(ada, book)
    await there.orders.cancel(early.id, ada)  # before anybody was told that it was confirmed
    await asyncio.gather(there.orders.cancel(undone.id, ada), there.orders.ship(kept.id, BERT))
    for _ in range(2):
        await there.tell()
        await there.work()
    heard = {}
    for who, hook in hooks.items():
        page = await webhooks.messages(who, hook.endpoint.id, 100, None)
        heard[who] = [(one.subject, one.type) for one in reversed(page.items)]

    def of(order: int, who: int) -> list[str]:
        return [type for subject, type in heard[who] if subject == f"order {order}"]

    assert of(kept.id, ANNA) == ["order.confirmed"]
    assert of(kept.id, BERT) == ["order.confirmed", "order.shipped"]
    assert of(undone.id, ANNA) == ["order.confirmed", "order.cancelled"]
    assert of(early.id, BERT) == ["order.confirmed", "order.cancelled"]
    assert len(heard[ANNA]) == 3 and len(heard[BERT]) == 4
    database = there.platform.database("webhooks")
    bodies = await database.scatter("select body from webhooks.delivery", limit=10)
    assert all(str(ada) not in row["body"] and "Adler" not in row["body"] for row in bodies)
