"""What journeys know of the site, learned from the site itself: so they fit any number of seeded people.

People who sign in are a pool of POOL seeded ones, signed in before the clock starts: a password check costs
20 ms of CPU by design, and the mix would otherwise measure little else.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from market.money import Money
from market.seeding.people import PASSWORD, address
from springtide.errors import LoadError
from springtide.ops.load.client import Answer
from springtide.ops.load.journeys import Client, World
from springtide.ops.load.zipf import Zipf

__all__ = [
    "ARTICLE",
    "ARTICLES",
    "LISTING",
    "LISTINGS",
    "Seller",
    "Site",
    "User",
    "Ware",
    "article",
    "depth",
    "fresh",
    "one",
    "prepare",
    "reader",
    "ware",
]

POOL = 8
SELLERS = 2
PAGES = 5
ARTICLES = "/api/articles"
ARTICLE = "/api/articles/{slug}"
LISTINGS = "/market/listings"
LISTING = "/market/listings/{id}"


class Author(msgspec.Struct):
    username: str


class Article(msgspec.Struct):
    slug: str
    author: Author


class Articles(msgspec.Struct):
    articles: list[Article]


class Tags(msgspec.Struct):
    tags: list[str]


class Ware(msgspec.Struct):
    """A listing."""

    id: int
    shop: str
    title: str
    category: str
    price: Money


class Wares(msgspec.Struct):
    items: list[Ware]
    next: str | None


class User(msgspec.Struct):
    username: str
    token: str


class Shop(msgspec.Struct):
    currency: str


class Seller(NamedTuple):
    """`currency` is that of the shop."""

    token: str
    currency: str


class Login(msgspec.Struct):
    user: User


class Site(msgspec.Struct):
    """Some of its articles, people, tags and wares (all in one currency); who is signed in, who sells.

    `buying`: those who are in the middle of it; a person buys one thing at a time.
    """

    slugs: list[str]
    people: list[str]
    tags: list[str]
    wares: list[Ware]
    readers: list[User]
    sellers: list[Seller]
    articles_by_rank: Zipf
    wares_by_rank: Zipf
    buying: set[str] = msgspec.field(default_factory=set)


async def prepare(client: Client, world: World) -> None:
    """Look around and sign the pool in."""
    slugs: dict[str, None] = {}
    people: dict[str, None] = {}
    for page in range(PAGES):
        found = _articles(await client.get(f"{ARTICLES}?limit=100&offset={page * 100}"))
        slugs |= dict.fromkeys(article.slug for article in found)
        people |= dict.fromkeys(article.author.username for article in found)
        if len(found) < 100:
            break
    tags = msgspec.json.decode((await client.get("/api/tags")).body, type=Tags).tags
    wares = await _wares(client)
    if not slugs or not tags or not wares:
        raise LoadError("the site has no articles or nothing to sell: run `springtide seed` first")
    rng = random.Random(f"{world.seed}:journeys")  # noqa: S311 - chooses invented people
    readers = [await _signed_in(client, name) for name in rng.sample(list(people), min(POOL, len(people)))]
    sellers = [await _with_shop(client, user) for user in readers[:SELLERS]]
    order = list(slugs)
    rng.shuffle(order)  # what is popular is not what is new
    rng.shuffle(wares)
    ranks = Zipf(len(order), s=0.9), Zipf(len(wares), s=0.9)
    world.put(Site(order, list(people), tags, wares, readers, sellers, *ranks))


async def _wares(client: Client) -> list[Ware]:
    found: list[Ware] = []
    after = ""
    for _ in range(PAGES):
        page = msgspec.json.decode((await client.get(f"{LISTINGS}?limit=100{after}")).body, type=Wares)
        found += page.items
        if page.next is None:
            break
        after = f"&after={quote(page.next, safe='')}"
    currencies = Counter(ware.price.currency for ware in found).most_common(1)
    return [ware for ware in found if ware.price.currency == currencies[0][0]]


async def _signed_in(client: Client, username: str) -> User:
    credentials = {"user": {"email": address(username), "password": PASSWORD}}
    answer = await client.post("/api/users/login", credentials)
    return msgspec.json.decode(answer.body, type=Login).user


async def _with_shop(client: Client, user: User) -> Seller:
    """Who has no shop opens one; another process may have opened it just now."""
    answer = await client.get("/market/shop", token=user.token, expect=(200, 404))
    if answer.status == 404:
        shop = {"name": f"Stall {fresh()}", "currency": "EUR"}
        await client.post("/market/shops", shop, token=user.token, expect=(201, 409))
        answer = await client.get("/market/shop", token=user.token)
    return Seller(user.token, msgspec.json.decode(answer.body, type=Shop).currency)


def article(rng: random.Random, world: World) -> str:
    """The slug of one, a popular one mostly."""
    site = world.get(Site)
    return quote(site.slugs[site.articles_by_rank.draw(rng) - 1], safe="")


def ware(rng: random.Random, world: World) -> Ware:
    """A popular one mostly."""
    site = world.get(Site)
    return site.wares[site.wares_by_rank.draw(rng) - 1]


def reader(rng: random.Random, world: World) -> User:
    return rng.choice(world.get(Site).readers)


def one(rng: random.Random, choices: Sequence[str]) -> str:
    """One of them, as a part of a path."""
    return quote(rng.choice(choices), safe="")


def depth(rng: random.Random) -> int:
    """Which page of a list: mostly the first."""
    return 0 if rng.random() < 0.8 else rng.randrange(1, 5)


def fresh() -> str:
    """Different in every run: a second one with the same seed must not meet the names of the first."""
    return secrets.token_hex(8)


def _articles(answer: Answer) -> list[Article]:
    return msgspec.json.decode(answer.body, type=Articles).articles
