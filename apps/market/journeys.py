"""What visitors of market do, as load: nine in ten requests read.

    browse     home page: list and tags                     read      list, an article, its comments
    person     a profile and that person's articles         topic     the articles of a tag
    feed       what a signed-in reader follows              react     an article, then favour or comment on it
    follow     a profile, then following that person        write     post an article
    join       register

People who sign in are a pool of POOL seeded ones, signed in before the clock starts: a password check costs
20 ms of CPU by design, and the mix would otherwise measure little else. Names, tags and slugs are learned
from the site itself, so the journeys fit any number of seeded users.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from urllib.parse import quote

import msgspec

from market.seed import PASSWORD
from springtide.errors import LoadError
from springtide.ops.load.client import Answer
from springtide.ops.load.journeys import Client, Journey, World
from springtide.ops.load.zipf import Zipf

__all__ = ["journeys"]

POOL = 8
PAGES = 5
LIST = "/api/articles"
ARTICLE = "/api/articles/{slug}"


class Author(msgspec.Struct):
    username: str


class Article(msgspec.Struct):
    slug: str
    author: Author


class Articles(msgspec.Struct):
    articles: list[Article]


class Tags(msgspec.Struct):
    tags: list[str]


class User(msgspec.Struct):
    username: str
    token: str


class Login(msgspec.Struct):
    user: User


class Site(msgspec.Struct):
    """What is known of the site: some of its articles, people and tags, and who is signed in."""

    slugs: list[str]
    people: list[str]
    tags: list[str]
    readers: list[User]
    popular: Zipf


async def prepare(client: Client, world: World) -> None:
    """Look around and sign the pool in."""
    slugs: dict[str, None] = {}
    people: dict[str, None] = {}
    for page in range(PAGES):
        found = _articles(await client.get(f"{LIST}?limit=100&offset={page * 100}"))
        slugs |= dict.fromkeys(article.slug for article in found)
        people |= dict.fromkeys(article.author.username for article in found)
        if len(found) < 100:
            break
    tags = msgspec.json.decode((await client.get("/api/tags")).body, type=Tags).tags
    if not slugs or not tags:
        raise LoadError("the site has no articles: run `springtide seed` first")
    rng = random.Random(f"{world.seed}:journeys")  # noqa: S311 - chooses invented people
    readers = []
    for username in rng.sample(list(people), min(POOL, len(people))):
        credentials = {"user": {"email": f"{username}@example.com", "password": PASSWORD}}
        answer = await client.post("/api/users/login", credentials)
        readers.append(msgspec.json.decode(answer.body, type=Login).user)
    order = list(slugs)
    rng.shuffle(order)  # what is popular is not what is new
    world.put(Site(order, list(people), tags, readers, Zipf(len(order), s=0.9)))


async def browse(client: Client, rng: random.Random, world: World) -> None:
    await client.get(f"{LIST}?limit=20&offset={20 * _depth(rng)}", route=LIST)
    await client.get("/api/tags")


async def read(client: Client, rng: random.Random, world: World) -> None:
    await client.get(f"{LIST}?limit=20&offset=0", route=LIST)
    slug = _slug(rng, world)
    await client.get(f"{LIST}/{slug}", route=ARTICLE)
    await client.get(f"{LIST}/{slug}/comments", route=f"{ARTICLE}/comments")


async def person(client: Client, rng: random.Random, world: World) -> None:
    username = _one(rng, world.get(Site).people)
    await client.get(f"/api/profiles/{username}", route="/api/profiles/{username}")
    await client.get(f"{LIST}?author={username}&limit=20", route=f"{LIST}?author")


async def topic(client: Client, rng: random.Random, world: World) -> None:
    await client.get(f"{LIST}?tag={_one(rng, world.get(Site).tags)}&limit=20", route=f"{LIST}?tag")


async def feed(client: Client, rng: random.Random, world: World) -> None:
    token = _reader(rng, world).token
    await client.get("/api/user", token=token)
    await client.get(f"{LIST}/feed?limit=20", route=f"{LIST}/feed", token=token)


async def react(client: Client, rng: random.Random, world: World) -> None:
    token, slug = _reader(rng, world).token, _slug(rng, world)
    await client.get(f"{LIST}/{slug}", route=ARTICLE, token=token)
    if rng.random() < 0.6:
        await client.post(f"{LIST}/{slug}/favorite", route=f"{ARTICLE}/favorite", token=token)
    else:
        comment = {"comment": {"body": f"Thank you, this helped ({rng.getrandbits(32):08x})."}}
        await client.post(f"{LIST}/{slug}/comments", comment, route=f"{ARTICLE}/comments", token=token)


async def follow(client: Client, rng: random.Random, world: World) -> None:
    reader, people = _reader(rng, world), world.get(Site).people
    other = rng.choice([each for each in people if each != reader.username] or people)
    path = f"/api/profiles/{quote(other, safe='')}"
    await client.get(path, route="/api/profiles/{username}", token=reader.token)
    await client.post(f"{path}/follow", route="/api/profiles/{username}/follow", token=reader.token)


async def write(client: Client, rng: random.Random, world: World) -> None:
    article = {
        "title": f"Written under load {_fresh()}",
        "description": "One of many.",
        "body": "It was a busy day, and yet there was time to write this down. " * 10,
        "tagList": rng.sample(world.get(Site).tags, min(2, len(world.get(Site).tags))),
    }
    await client.post(LIST, {"article": article}, token=_reader(rng, world).token)


async def join(client: Client, rng: random.Random, world: World) -> None:
    name = f"visitor-{_fresh()}"
    user = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
    await client.post("/api/users", {"user": user})


def journeys() -> list[Journey]:
    """Weights are per journey; by requests the mix is about 90 % reads."""
    return [
        Journey("browse", 24, browse, steps=2, prepare=prepare),
        Journey("read", 30, read, steps=3, prepare=prepare),
        Journey("person", 8, person, steps=2, prepare=prepare),
        Journey("topic", 10, topic, steps=1, prepare=prepare),
        Journey("feed", 12, feed, steps=2, prepare=prepare),
        Journey("react", 14, react, steps=2, prepare=prepare),
        Journey("follow", 3, follow, steps=2, prepare=prepare),
        Journey("write", 2, write, steps=1, prepare=prepare),
        Journey("join", 0.5, join, steps=1, prepare=prepare),
    ]


def _articles(answer: Answer) -> list[Article]:
    return msgspec.json.decode(answer.body, type=Articles).articles


def _fresh() -> str:
    """Different in every run: a second one with the same seed must not meet the names of the first."""
    return secrets.token_hex(8)


def _depth(rng: random.Random) -> int:
    """Which page of a list: mostly the first."""
    return 0 if rng.random() < 0.8 else rng.randrange(1, 5)


def _slug(rng: random.Random, world: World) -> str:
    site = world.get(Site)
    return quote(site.slugs[site.popular.draw(rng) - 1], safe="")


def _reader(rng: random.Random, world: World) -> User:
    return rng.choice(world.get(Site).readers)


def _one(rng: random.Random, choices: Sequence[str]) -> str:
    return quote(rng.choice(choices), safe="")
