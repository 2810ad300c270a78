"""Carts, orders and sales over HTTP: /market."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.market.harness import Api, Person, Recorder
from tests.market.ordering import Shop, buyer, shop
from tests.market.paying import SECRET
from tests.market.test_catalog_api import good, offer, refused, seller, send

from market.application import render_error
from market.provider.webhooks import sign
from springtide.clock import SystemClock


@pytest.fixture
def shards() -> int:
    return 2


@pytest.fixture
async def there(urls: list[str], home: Path, tmp_path: Path) -> AsyncIterator[tuple[Shop, Api]]:
    async with shop(urls, home, tmp_path) as made:
        app = made.platform.wrap(made.world.app, render_error=render_error)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://market") as client:
            yield made, Api(client, made.platform, Recorder())


ADDRESS = {
    "name": "Ada", "street": "1 Harbour Lane", "city": "Hamburg", "postal_code": "20457", "country": "DE",
}  # fmt: skip


async def buy(api: Api, by: Person, key: str | None = None, **order: Any) -> httpx.Response:
    body = {"source": "card_visa", "address": ADDRESS, **order}
    return await send(api, "POST", "/orders", body, by=by, Idempotency_Key=key or secrets.token_hex(8))


async def test_from_the_cart_to_the_parcel(there: tuple[Shop, Api]) -> None:
    _, api = there
    anna, ada = await seller(api), await api.person()
    lamp = await offer(api, anna)
    cart = await good(api, "PUT", f"/cart/{lamp['id']}", {"quantity": 2}, by=ada)
    assert (cart["lines"][0]["change"], cart["total"]["amount"], cart["orderable"]) == ("same", 2500, True)
    response = await buy(api, ada, cart_version=cart["version"])
    assert response.status_code == 201, response.text
    order, path = response.json(), response.headers["location"].removeprefix("/market")
    assert (order["state"], order["total"]["amount"]) == ("confirmed", 2500)
    assert (await good(api, "GET", "/cart", by=ada))["lines"] == []
    assert await refused(api, 404, "GET", path, by=await api.person())
    shipped = await good(api, "POST", f"/sales/{order['id']}/ship", by=anna)
    assert shipped["state"] == "shipped"
    assert (await good(api, "GET", "/sales", by=anna))["items"] == [shipped]
    assert await refused(api, 409, "POST", f"{path}/cancel", by=ada)


async def test_hostile_orders_are_refused_by_field(there: tuple[Shop, Api]) -> None:
    """Each with the name of what is wrong, before anything is reserved or charged."""
    made, api = there
    anna, ada = await seller(api), await api.person()
    lamp = await offer(api, anna)
    line = {"listing_id": lamp["id"], "quantity": 1, "price": lamp["price"]}
    hostile: dict[str, dict[str, Any]] = {
        "lines": {"lines": []},
        "quantity": {"lines": [{**line, "quantity": -1}]},
        "price": {"lines": [{**line, "price": {"amount": -5, "currency": "EUR"}}]},
        "currency": {"lines": [line, {**line, "listing_id": 7, "price": {"amount": 5, "currency": "USD"}}]},
        "source": {"lines": [line], "source": "card\0"},
        "address.name": {"lines": [line], "address": {**ADDRESS, "name": "Ada\nBcc: all@example.com"}},
        "address.country": {"lines": [line], "address": {**ADDRESS, "country": "<b>"}},
        "address.city": {"lines": [line], "address": {**ADDRESS, "city": "x" * 201}},
    }
    for field, order in hostile.items():
        answer = await buy(api, ada, **order)
        assert (answer.status_code, field in answer.json()["errors"]) == (422, True), answer.text
    for wrong in (
        {"lines": [{**line, "quantity": 1.5}]}, {"lines": [{**line, "quantity": 1 << 60}]},
        {"lines": [{**line, "quantity": True}]},
        {"lines": [{**line, "price": {"amount": 1, "currency": "XXX"}}]},
        {"lines": [{**line, "gift": 1}]}, {"lines": "all"}, {"lines": [line], "cart_version": 1}, {},
    ):  # fmt: skip
        assert (await buy(api, ada, **wrong)).status_code == 422, wrong
    body = {"source": "card_visa", "address": ADDRESS, "lines": [line]}
    await refused(api, 400, "POST", "/orders", body, by=ada)
    await refused(api, 401, "POST", "/orders", body)
    for path in ("/cart", "/orders", f"/orders/{lamp['id']}", "/sales"):
        await refused(api, 401, "GET", path)
    for quantity in (-1, 10_001, 1.5, "1", None):
        await refused(api, 422, "PUT", f"/cart/{lamp['id']}", {"quantity": quantity}, by=ada)
    await refused(api, 404, "PUT", "/cart/99", {"quantity": 1}, by=ada)
    await refused(api, 404, "POST", "/orders/x/cancel", by=ada)
    await refused(api, 404, "POST", f"/sales/{lamp['id']}/ship", by=anna)
    assert await made.db.scatter_sum("select count(*) from orders.placed") == 0
    assert (await made.provider.journal())["charges"] == []


async def test_keys_pages_and_etags(there: tuple[Shop, Api]) -> None:
    """The same key is the same order, with another body it is refused; what is known is not sent again."""
    _, api = there
    anna, ada = await seller(api), await api.person()
    lamp = await offer(api, anna)
    lines = [{"listing_id": lamp["id"], "quantity": 1, "price": lamp["price"]}]
    first = await buy(api, ada, "the-first-key", lines=lines)
    again = await buy(api, ada, "the-first-key", lines=lines)
    assert first.json()["id"] == again.json()["id"]
    assert (await buy(api, ada, "the-first-key", lines=[{**lines[0], "quantity": 2}])).status_code == 422
    await buy(api, ada, lines=lines)
    page = await good(api, "GET", "/orders?limit=1", by=ada)
    rest = await good(api, "GET", f"/orders?limit=1&after={page['next']}", by=ada)
    assert [rest["items"][0]["id"], rest["next"]] == [first.json()["id"], None]
    assert await refused(api, 422, "GET", f"/sales?after={page['next']}", by=anna)
    for path in ("/cart", "/orders", f"/orders/{first.json()['id']}"):
        seen = await send(api, "GET", path, by=ada)
        assert seen.headers["cache-control"] == "private, no-cache"
        assert (await send(api, "GET", path, by=ada, If_None_Match=seen.headers["etag"])).status_code == 304
    changed = await send(api, "POST", f"/orders/{first.json()['id']}/cancel", by=ada)
    assert (changed.json()["state"], changed.status_code) == ("cancelled", 200)


async def test_an_order_goes_on_when_the_provider_says_what_became_of_its_charge(
    there: tuple[Shop, Api],
) -> None:
    """At once, not when it would have asked; an event that comes again, or of an order that is nobody's, is
    acknowledged and changes nothing."""
    made, api = there
    await made.open()
    lamp, ada = await made.listing(), buyer()
    await made.provider.behave(down=True)
    order = await made.place(ada, lamp)
    assert order.state == "awaiting_payment"
    hours = "update orders._job set run_at = now() + interval '5 hours' where kind = 'orders.place.charge'"
    for pool in made.db.pools.values():
        await pool.execute(hours)

    async def due() -> list[bool]:
        sql = "select run_at <= clock_timestamp() as due from orders._job where kind = 'orders.place.charge'"
        return [row["due"] for row in await made.db.scatter(sql)]

    async def tell(number: int) -> int:
        charge = {
            "id": f"ch_{number}", "key": f"market-{number}-1", "amount": order.total.amount,
            "currency": "EUR", "status": "declined", "decline_code": "no_funds",
        }  # fmt: skip
        body = json.dumps({"id": f"evt_{number}", "type": "charge.declined", "data": charge}).encode()
        signed = sign(SECRET, body, int(SystemClock().now()))
        path, headers = "/market/payments/webhook", {"Provider-Signature": signed}
        return (await api.client.post(path, content=body, headers=headers)).status_code

    assert await due() == [False]
    assert await tell(order.id) == 204
    assert await due() == [True]
    await made.work()
    ended = await made.orders.order(order.id, ada)
    assert ended.reason is not None
    assert (ended.state, ended.reason.code) == ("failed", "declined")
    assert await tell(order.id) == 204
    alone = order.id + (1_000 << 10)
    await made.payments.charge(alone, order.total, "card_visa")
    assert await tell(alone) == 204
    await made.provider.behave()
    assert await made.left(lamp) == (5, 0)
