"""Seeded articles, what people like of them and say about them. Popularity follows Zipf's law throughout."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from datetime import datetime, timedelta

from market.content import bulk
from market.search.api import Document
from market.seeding.chance import STRIDE, YEAR, Plan, counted, shares
from market.seeding.people import People
from market.seeding.words import NOUNS, OPENINGS, PLACES, QUALITIES, SENTENCES, STEMS
from springtide.db import BUCKETS, Database, bucket_of
from springtide.ops.load.seeding import IdBlocks

__all__ = ["TAGS", "Writing"]

FAVORITES = 5
COMMENTS = 2
MAX_COMMENTS = 400
ROWS = 8.0
"""About how many rows one article makes, favourites and comments aside: itself with a reservation and a
document, two and a half tags, and counts."""

TAGS = tuple(STEMS) + tuple(
    f"{stem}-{word}" for word in ("news", "basics", "ideas", "tools") for stem in STEMS
)


class Writing:
    """As many articles as people, in the last year; article number j is by the person `authors[j]`."""

    def __init__(self, people: People) -> None:
        self.plan: Plan = people.plan
        self._people = people
        users = self.plan.users
        writers, rng = self.plan.popularity(users, s=0.6, label="people"), self.plan.random("authors")
        self._authors = array("I", (writers.draw(rng) for _ in range(users)))
        self._liked = shares(self.plan, users, FAVORITES * users, users - 1, label="likes")
        self._discussed = array("H", shares(self.plan, users, COMMENTS * users, MAX_COMMENTS, label="talk"))
        self._ids = array("q")
        self._comment_ids = IdBlocks({})

    @classmethod
    async def drawn(cls, people: People, db: Database) -> Writing:
        made = cls(people)
        homes = [bucket_of(people.ids[author]) for author in made._authors]
        blocks = await IdBlocks.take(db, counted(homes))
        made._ids = array("q", (blocks.next(bucket) for bucket in homes))
        wanted = [0] * BUCKETS
        for bucket, count in zip(homes, made._discussed, strict=True):
            wanted[bucket] += count
        made._comment_ids = await IdBlocks.take(db, wanted)
        return made

    @property
    def rows(self) -> int:
        """About how many there will be."""
        return int(ROWS * self.plan.users) + sum(self._liked) + sum(self._discussed)

    def articles(self) -> Iterator[bulk.BulkArticle]:
        rng, titles = self.plan.random("articles"), _Titles(self.plan)
        tags = self.plan.popularity(len(TAGS), s=1.0, label="tags")
        for number, id in enumerate(self._ids):
            yield bulk.BulkArticle(
                id,
                self._people.ids[self._authors[number]],
                titles.title(number),
                rng.choice(SENTENCES),
                "\n\n".join(" ".join(rng.choices(SENTENCES, k=5)) for _ in range(rng.randrange(2, 6))),
                list(dict.fromkeys(TAGS[tags.draw(rng)] for _ in range(rng.randrange(1, 5)))),
                self._liked[number],
                self._at(number),
            )

    def documents(self) -> Iterator[Document]:
        return map(bulk.document_of, self.articles())

    def favorites(self) -> Iterator[bulk.BulkFavorite]:
        rng, users = self.plan.random("favorites"), self.plan.users
        for number, article in enumerate(self._ids):
            at, first = self._at(number), rng.randrange(users)
            for step in range(self._liked[number]):
                yield bulk.BulkFavorite(article, self._people.ids[(first + step * STRIDE) % users], at)

    def comments(self) -> Iterator[bulk.BulkComment]:
        rng, ids = self.plan.random("comments"), self._people.ids
        for number, article in enumerate(self._ids):
            at, bucket = self._at(number), bucket_of(article)
            for _ in range(self._discussed[number]):
                at = min(at + timedelta(minutes=rng.randrange(1, 1000)), self.plan.now)
                author = ids[rng.randrange(self.plan.users)]
                body = " ".join(rng.choices(SENTENCES, k=rng.randrange(1, 4)))
                yield bulk.BulkComment(self._comment_ids.next(bucket), article, author, body, at)

    def _at(self, number: int) -> datetime:
        return self.plan.moment(YEAR, YEAR, number, self.plan.users)


class _Titles:
    """A different title for every number: all combinations of the words in a shuffled order."""

    def __init__(self, plan: Plan) -> None:
        self.size = len(OPENINGS) * len(QUALITIES) * len(NOUNS) * len(PLACES)
        self._order = plan.popularity(self.size, s=1.0, label="titles")

    def title(self, number: int) -> str:
        again, place = divmod(number, self.size)
        rest = self._order.item(place + 1)
        words = []
        for choices in (OPENINGS, QUALITIES, NOUNS, PLACES):
            rest, index = divmod(rest, len(choices))
            words.append(choices[index])
        title = " ".join(words)
        return title[0].upper() + title[1:] + (f" part {again + 1}" if again else "")
