"""Journeys that leave something behind: accounts, articles, what people say of them, things to sell."""

from __future__ import annotations

import random
from urllib.parse import quote

from market.seeding.people import PASSWORD, address
from market.visiting.site import ARTICLE, ARTICLES, LISTINGS, Site, article, fresh, reader, ware
from springtide.ops.load.journeys import Client, World

__all__ = ["follow", "join", "offer", "react", "write"]


async def react(client: Client, rng: random.Random, world: World) -> None:
    token, slug = reader(rng, world).token, article(rng, world)
    await client.get(f"{ARTICLES}/{slug}", route=ARTICLE, token=token)
    if rng.random() < 0.6:
        await client.post(f"{ARTICLES}/{slug}/favorite", route=f"{ARTICLE}/favorite", token=token)
    else:
        comment = {"comment": {"body": f"Thank you, this helped ({rng.getrandbits(32):08x})."}}
        await client.post(f"{ARTICLES}/{slug}/comments", comment, route=f"{ARTICLE}/comments", token=token)


async def follow(client: Client, rng: random.Random, world: World) -> None:
    somebody, people = reader(rng, world), world.get(Site).people
    other = rng.choice([each for each in people if each != somebody.username] or people)
    path = f"/api/profiles/{quote(other, safe='')}"
    await client.get(path, route="/api/profiles/{username}", token=somebody.token)
    await client.post(f"{path}/follow", route="/api/profiles/{username}/follow", token=somebody.token)


async def write(client: Client, rng: random.Random, world: World) -> None:
    tags = world.get(Site).tags
    written = {
        "title": f"Written under load {fresh()}",
        "description": "One of many.",
        "body": "It was a busy day, and yet there was time to write this down. " * 10,
        "tagList": rng.sample(tags, min(2, len(tags))),
    }
    await client.post(ARTICLES, {"article": written}, token=reader(rng, world).token)


async def offer(client: Client, rng: random.Random, world: World) -> None:
    """A seller puts something on sale."""
    like = ware(rng, world)
    seller = rng.choice(world.get(Site).sellers)
    listing = {
        "title": like.title,
        "description": f"Offered under load {fresh()}.",
        "price": {"amount": like.price.amount, "currency": seller.currency},
        "category": like.category,
        "stock": 5,
        "status": "active",
    }
    await client.post(LISTINGS, listing, token=seller.token, key=fresh())


async def join(client: Client, rng: random.Random, world: World) -> None:
    name = f"visitor-{fresh()}"
    user = {"username": name, "email": address(name), "password": PASSWORD}
    await client.post("/api/users", {"user": user})
