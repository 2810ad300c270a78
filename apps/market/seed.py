"""Plausible data for market: people who follow each other, articles, favourites, comments.

Deterministic: the same number of users and the same seed give the same content (and in fresh databases the
same ids). A few people are followed by many and write much, a few articles and tags are liked and used by
many: popularity follows Zipf's law throughout.

    articles 1, follows about 8, favourites about 5, comments about 2 per user; 200 tags, 1 to 4 per article

Everybody's password is PASSWORD, kept as one hash that was made beforehand (Argon2id with the platform's own
parameters and a fixed salt: fit for invented people only), so anybody can be logged in as: the e-mail address
is `username@example.com`.

Memory: rows are made while they are copied; what is kept is about 30 bytes per user.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from market._words import FIRST, LAST, NOUNS, OPENINGS, PLACES, QUALITIES, SENTENCES, STEMS
from market.content import bulk as content
from market.notifications import bulk as notifications
from market.search import bulk as search
from market.search.api import Document
from market.users import bulk as users_bulk
from springtide.db import BUCKETS, Database, bucket_of
from springtide.errors import AlreadySeeded
from springtide.ops.load.progress import Progress, ProgressBar
from springtide.ops.load.seeding import BulkLoad, IdBlocks, SeedReport
from springtide.ops.load.zipf import Popularity

if TYPE_CHECKING:
    from springtide.platform import Platform

__all__ = ["PASSWORD", "TAGS", "seed"]

PASSWORD = "springtide"  # noqa: S105 - of invented people, printed after every seeding
HASHED = "$argon2id$v=19$m=19456,t=2,p=1$c3ByaW5ndGlkZS1zZWVkcw$PihBH9XXGHBSf4qny66BQSAbnyaNxvjT6dPWxArXB/0"

FOLLOWS = 8
FAVORITES = 5
COMMENTS = 2
MAX_COMMENTS = 400
ROWS = 20.6
"""About how many rows one user makes, favourites and comments aside: an account with two reservations and a
recipient, an article with one, seven and a half follows, two and a half tags, counts, and two documents that
are written twice: where they arrive, and where they stay."""

TAGS = tuple(STEMS) + tuple(
    f"{stem}-{word}" for word in ("news", "basics", "ideas", "tools") for stem in STEMS
)

NOW = datetime(2025, 1, 1, tzinfo=UTC)
"""Fixed, so that content does not depend on the day: the youngest article is a little older."""

YEAR = timedelta(days=365)
MILLISECOND = timedelta(milliseconds=1)
STRIDE = 2_147_483_647
"""A prime above any number of users: multiples of it visit each of them once."""


async def seed(platform: Platform, *, users: int, seed: int, progress: Progress) -> SeedReport:
    """Fill the modules' databases. Raises AlreadySeeded when one is not empty, ValueError below 2 users."""
    if not 2 <= users < STRIDE:
        raise ValueError(f"users must be in 2..{STRIDE - 1}, got {users}")
    people_db, content_db = platform.database("users"), platform.database("content")
    told_db, search_db = platform.database("notifications"), platform.database("search")
    if isinstance(progress, ProgressBar):
        progress.expect(users * 25)
    async with BulkLoad([people_db, content_db, told_db, search_db], progress=progress) as load:
        empty = await users_bulk.is_empty(people_db) and await content.is_empty(content_db)
        if not (empty and await notifications.is_empty(told_db)):
            raise AlreadySeeded(
                "there is data already, and a seed is for an empty platform:"
                " `springtide down`, remove the folder .springtide, `springtide up` gives a fresh one"
            )
        progress.advance("planning", 0)
        made = await _Content.plan(people_db, content_db, users, seed)
        if isinstance(progress, ProgressBar):
            progress.expect(made.rows)
        await users_bulk.copy_accounts(load, people_db, made.accounts())
        await notifications.copy_recipients(load, told_db, made.recipients())
        await users_bulk.copy_follows(load, people_db, made.follows())
        await content.copy_articles(load, content_db, made.articles())
        await content.copy_favorites(load, content_db, made.favorites())
        await content.copy_comments(load, content_db, made.comments())
        await content.copy_counts(load, content_db)
        await search.copy_documents(load, search_db, made.documents())
    example = username(0, seed)
    note = f"log in as anybody: e-mail {example}@example.com, password {PASSWORD}"
    return SeedReport(users=users, seed=seed, rows=load.rows, notes=[note])


class _Content:
    """What will be made, by number: user i, article j. Rows come from generators, one random stream each."""

    def __init__(self, users: int, seed: int) -> None:
        self.users = users
        self.seed = seed
        self.user_ids = array("q")
        self.article_ids = array("q")
        self.authors = array("I")
        self.liked = array("I")
        self.discussed = array("H")
        self.comment_ids = IdBlocks({})

    @classmethod
    async def plan(cls, people_db: Database, content_db: Database, users: int, seed: int) -> _Content:
        made = cls(users, seed)
        rng = made._random("buckets")
        buckets = array("H", (rng.randrange(BUCKETS) for _ in range(users)))
        blocks = await IdBlocks.take(people_db, _counts(buckets))
        made.user_ids = array("q", (blocks.next(bucket) for bucket in buckets))

        writers, rng = Popularity(users, s=0.6, seed=seed, label="people"), made._random("authors")
        made.authors = array("I", (writers.draw(rng) for _ in range(users)))
        made.liked = _shares(users, FAVORITES * users, users - 1, seed=seed, label="likes")
        made.discussed = array("H", _shares(users, COMMENTS * users, MAX_COMMENTS, seed=seed, label="talk"))
        homes = [bucket_of(made.user_ids[author]) for author in made.authors]
        blocks = await IdBlocks.take(content_db, _counts(homes))
        made.article_ids = array("q", (blocks.next(bucket) for bucket in homes))
        wanted = [0] * BUCKETS
        for bucket, count in zip(homes, made.discussed, strict=True):
            wanted[bucket] += count
        made.comment_ids = await IdBlocks.take(content_db, wanted)
        return made

    @property
    def rows(self) -> int:
        """About how many there will be."""
        return int(ROWS * self.users) + sum(self.liked) + sum(self.discussed)

    def accounts(self) -> Iterator[users_bulk.BulkAccount]:
        rng = self._random("accounts")
        for number, id in enumerate(self.user_ids):
            name = username(number, self.seed)
            bio = None
            if rng.random() < 0.8:
                bio = f"{rng.choice(QUALITIES).capitalize()} {rng.choice(NOUNS)} {rng.choice(PLACES)}."
            at = _moment(NOW - 2 * YEAR, number, self.users)
            email = f"{name}@example.com"
            yield users_bulk.BulkAccount(id, name, email, HASHED, bio, None, at)

    def recipients(self) -> Iterator[notifications.BulkRecipient]:
        for number, id in enumerate(self.user_ids):
            name = username(number, self.seed)
            yield notifications.BulkRecipient(id, name, f"{name}@example.com", 1)

    def follows(self) -> Iterator[users_bulk.BulkFollow]:
        rng, ids = self._random("follows"), self.user_ids
        popular = Popularity(self.users, s=0.8, seed=self.seed, label="people")
        for number, follower in enumerate(ids):
            at = _moment(NOW - 2 * YEAR, number, self.users)
            wanted = min(int(rng.expovariate(1 / FOLLOWS)), self.users - 1)
            chosen = dict.fromkeys(popular.draw(rng) for _ in range(wanted))
            chosen.pop(number, None)
            for followee in chosen:
                at += timedelta(hours=rng.randrange(1, 100))
                yield users_bulk.BulkFollow(follower, ids[followee], at)

    def articles(self) -> Iterator[content.BulkArticle]:
        rng, titles = self._random("articles"), _Titles(self.seed)
        tags = Popularity(len(TAGS), s=1.0, seed=self.seed, label="tags")
        for number, id in enumerate(self.article_ids):
            yield content.BulkArticle(
                id,
                self.user_ids[self.authors[number]],
                titles.title(number),
                rng.choice(SENTENCES),
                "\n\n".join(" ".join(rng.choices(SENTENCES, k=5)) for _ in range(rng.randrange(2, 6))),
                list(dict.fromkeys(TAGS[tags.draw(rng)] for _ in range(rng.randrange(1, 5)))),
                self.liked[number],
                self._article_at(number),
            )

    def documents(self) -> Iterator[Document]:
        """Everybody and every article, as the search shall find them."""
        yield from map(users_bulk.document_of, self.accounts())
        yield from map(content.document_of, self.articles())

    def favorites(self) -> Iterator[content.BulkFavorite]:
        rng, ids = self._random("favorites"), self.user_ids
        for number, article in enumerate(self.article_ids):
            at, first = self._article_at(number), rng.randrange(self.users)
            for step in range(self.liked[number]):
                yield content.BulkFavorite(article, ids[(first + step * STRIDE) % self.users], at)

    def comments(self) -> Iterator[content.BulkComment]:
        rng, ids = self._random("comments"), self.user_ids
        for number, article in enumerate(self.article_ids):
            at, bucket = self._article_at(number), bucket_of(article)
            for _ in range(self.discussed[number]):
                at += timedelta(minutes=rng.randrange(1, 1000))
                author = ids[rng.randrange(self.users)]
                body = " ".join(rng.choices(SENTENCES, k=rng.randrange(1, 4)))
                yield content.BulkComment(self.comment_ids.next(bucket), article, author, body, at)

    def _article_at(self, number: int) -> datetime:
        return _moment(NOW - YEAR, number, self.users)

    def _random(self, what: str) -> random.Random:
        return random.Random(f"{self.seed}:{what}")  # noqa: S311 - invents people, hides nothing


class _Titles:
    """A different title for every number: all combinations of the words in a shuffled order."""

    def __init__(self, seed: int) -> None:
        self.size = len(OPENINGS) * len(QUALITIES) * len(NOUNS) * len(PLACES)
        self._order = Popularity(self.size, seed=seed, label="titles")

    def title(self, number: int) -> str:
        again, place = divmod(number, self.size)
        rest = self._order.item(place + 1)
        words = []
        for choices in (OPENINGS, QUALITIES, NOUNS, PLACES):
            rest, index = divmod(rest, len(choices))
            words.append(choices[index])
        title = " ".join(words)
        return title[0].upper() + title[1:] + (f" part {again + 1}" if again else "")


def username(number: int, seed: int) -> str:
    """`mina.tanaka`, from the 4,000th on `mina.tanaka2` and so on; different for different numbers."""
    size = len(FIRST) * len(LAST)
    again, place = divmod(number, size)
    # A fixed shuffle: multiplying by a number that has no factor in common with the size visits all.
    first, last = divmod((place * 2_741 + seed) % size, len(LAST))
    return f"{FIRST[first]}.{LAST[last]}{again + 1 if again else ''}"


def _moment(begin: datetime, number: int, total: int) -> datetime:
    """Point `number` of `total` in the year that begins at `begin`, to the millisecond."""
    return begin + (number * (YEAR // MILLISECOND) // total) * MILLISECOND


def _counts(buckets: array[int] | list[int]) -> list[int]:
    counts = [0] * BUCKETS
    for bucket in buckets:
        counts[bucket] += 1
    return counts


def _shares(items: int, total: int, most: int, *, seed: int, label: str) -> array[int]:
    """`total` things given to `items` by Zipf's law (s = 0.8), at most `most` to one."""
    order = Popularity(items, seed=seed, label=label)
    whole = sum(rank**-0.8 for rank in range(1, items + 1))
    shares = array("I", bytes(4 * items))
    reached = 0.0
    for rank in range(1, items + 1):
        before = int(reached)
        reached += total * rank**-0.8 / whole
        shares[order.item(rank)] = min(int(reached) - before, most)
    return shares
