"""Journeys that look for something, and that buy it: with a real order and a real charge at the provider."""

from __future__ import annotations

import random
from urllib.parse import quote

import msgspec

from market.visiting.site import LISTING, LISTINGS, Site, User, fresh, reader, ware
from springtide.ops.load.journeys import Client, World

__all__ = ["buy", "find"]

CARD = "card_visa"
ADDRESS = {
    "name": "A Visitor",
    "street": "1 Load Street",
    "city": "Utrecht",
    "postal_code": "3511",
    "country": "NL",
}


class Cart(msgspec.Struct):
    version: int


class Placed(msgspec.Struct):
    id: int


async def find(client: Client, rng: random.Random, world: World) -> None:
    """A few letters, the whole words, then what was found."""
    found = ware(rng, world)
    words = found.title.lower().split()
    text = quote(" ".join(words[:2]), safe="")
    await client.get(
        f"/market/search/suggest?q={quote(words[0][:3], safe='')}&limit=5", route="/market/search/suggest"
    )
    await client.get(f"/market/search?q={text}&kind=listing&limit=20", route="/market/search")
    await client.get(f"{LISTINGS}/{found.id}", route=LISTING)


async def buy(client: Client, rng: random.Random, world: World) -> None:
    """The product's page, into the cart, place, and look at the order.

    Who finds the cart changed (at another device, as it were) looks at it again, and leaves it at that.
    """
    buyer, found = _buyer(rng, world), ware(rng, world)
    token, buying = buyer.token, world.get(Site).buying
    buying.add(buyer.username)
    try:
        await client.get(f"/listings/{found.id}", route="/listings/{id}")
        line = {"quantity": 1}
        answer = await client.request(
            "PUT", f"/market/cart/{found.id}", route="/market/cart/{id}", json=line, token=token
        )
        cart = msgspec.json.decode(answer.body, type=Cart)
        order = {"source": CARD, "address": ADDRESS, "cart_version": cart.version}
        answer = await client.post("/market/orders", order, token=token, key=fresh(), expect=(201, 409, 412))
        if answer.status != 201:
            await client.get("/market/cart", token=token)
            return
        placed = msgspec.json.decode(answer.body, type=Placed)
        await client.get(f"/market/orders/{placed.id}", route="/market/orders/{id}", token=token)
    finally:
        buying.discard(buyer.username)


def _buyer(rng: random.Random, world: World) -> User:
    """Somebody who is not buying just now, if there is anybody."""
    site = world.get(Site)
    free = [user for user in site.readers if user.username not in site.buying]
    return rng.choice(free) if free else reader(rng, world)
