"""Journeys that only read: pages and lists of wares and articles, people, tags, feeds, a seller's figures."""

from __future__ import annotations

import random

from market.visiting.site import (
    ARTICLE,
    ARTICLES,
    LISTING,
    LISTINGS,
    Site,
    article,
    depth,
    one,
    reader,
    ware,
)
from springtide.ops.load.journeys import Client, World

__all__ = ["browse", "compare", "feed", "figures", "front", "look", "person", "read", "topic"]


async def front(client: Client, rng: random.Random, world: World) -> None:
    """The front page, then a category."""
    await client.get("/")
    await client.get(f"/browse/{ware(rng, world).category}", route="/browse/{slug}")


async def look(client: Client, rng: random.Random, world: World) -> None:
    """The page of a product, then that of its shop."""
    found = ware(rng, world)
    await client.get(f"/listings/{found.id}", route="/listings/{id}")
    await client.get(f"/shops/{found.shop}", route="/shops/{slug}")


async def compare(client: Client, rng: random.Random, world: World) -> None:
    """A category, a listing of it, and what was bought with that."""
    found = ware(rng, world)
    await client.get(f"{LISTINGS}?category={found.category}&limit=20", route=f"{LISTINGS}?category")
    await client.get(f"{LISTINGS}/{found.id}", route=LISTING)
    await client.get(f"{LISTINGS}/{found.id}/also-bought", route=f"{LISTING}/also-bought")


async def browse(client: Client, rng: random.Random, world: World) -> None:
    await client.get(f"{ARTICLES}?limit=20&offset={20 * depth(rng)}", route=ARTICLES)
    await client.get("/api/tags")


async def read(client: Client, rng: random.Random, world: World) -> None:
    await client.get(f"{ARTICLES}?limit=20&offset=0", route=ARTICLES)
    slug = article(rng, world)
    await client.get(f"{ARTICLES}/{slug}", route=ARTICLE)
    await client.get(f"{ARTICLES}/{slug}/comments", route=f"{ARTICLE}/comments")


async def person(client: Client, rng: random.Random, world: World) -> None:
    username = one(rng, world.get(Site).people)
    await client.get(f"/api/profiles/{username}", route="/api/profiles/{username}")
    await client.get(f"{ARTICLES}?author={username}&limit=20", route=f"{ARTICLES}?author")


async def topic(client: Client, rng: random.Random, world: World) -> None:
    await client.get(f"{ARTICLES}?tag={one(rng, world.get(Site).tags)}&limit=20", route=f"{ARTICLES}?tag")


async def feed(client: Client, rng: random.Random, world: World) -> None:
    """What they follow, whom they may want to follow, and what they were told."""
    token = reader(rng, world).token
    await client.get(f"{ARTICLES}/feed?limit=20", route=f"{ARTICLES}/feed", token=token)
    await client.get("/market/recommendations/authors", token=token)
    await client.get("/market/notifications", token=token)


async def figures(client: Client, rng: random.Random, world: World) -> None:
    """A seller looks at sales and figures."""
    token = rng.choice(world.get(Site).sellers).token
    await client.get("/market/dashboard?days=30", route="/market/dashboard", token=token)
    await client.get("/market/sales?limit=20", route="/market/sales", token=token)
