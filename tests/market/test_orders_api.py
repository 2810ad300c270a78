"""Carts, orders and sales over HTTP: /market."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.market.harness import Api, Person, Recorder
from tests.market.ordering import Shop, shop
from tests.market.test_catalog_api import good, offer, refused, seller, send


@pytest.fixture
def shards() -> int:
    return 2


@pytest.fixture
async def there(urls: list[str], home: Path, tmp_path: Path) -> AsyncIterator[tuple[Shop, Api]]:
    async with shop(urls, home, tmp_path) as made:
        transport = httpx.ASGITransport(app=made.world.app, raise_app_exceptions=False)
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
