"""Seeded shops and their listings: every tenth person sells, some sell much.

A listing's stock is what `buying` leaves of it: whoever sells takes from `on_hand` and numbers the movement,
so listings are copied after the orders are.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from datetime import datetime, timedelta

from market.catalog import bulk
from market.media.bulk import BulkPicture, Motif
from market.money import Money
from market.search.api import Document
from market.seeding.chance import DAY, Plan, counted
from market.seeding.people import People
from market.seeding.words import LOOKS, PLACES, PRAISE, SHOPS, WARES
from springtide.db import Database, bucket_of
from springtide.ops.load.seeding import IdBlocks
from springtide.ops.load.zipf import Popularity

__all__ = ["Selling"]

PEOPLE_PER_SHOP = 10
FIRST_LISTED = timedelta(days=350)
SPAN = FIRST_LISTED - DAY

ROWS = 4.6
"""About how many rows one listing makes: itself with its stock, its first movement and a document, a shop
with its reservation for ten of them, and counts. A picture makes three."""

PICTURED = 60
"""So many of the newest listings, and of the most wanted, have a picture; for others pages draw a pattern."""

_CATEGORIES = tuple(WARES)
_NAMES = tuple(tuple(names.split(";")) for names in WARES.values())
_SHUFFLE = 2_654_435_761


class Selling:
    """As many listings as people; number n is in the shop `shops[n]`, costs `prices[n]` cents.

    `on_hand` and `movements` are the state of its stock and change while orders are made.
    """

    def __init__(self, people: People) -> None:
        self.plan: Plan = people.plan
        self.people = people
        self.size = users = self.plan.users
        self.shops = -(-users // PEOPLE_PER_SHOP)
        rng, large = self.plan.random("listings"), self.plan.popularity(self.shops, s=0.6, label="shops")
        self._shop = array("I", (n if n < self.shops else large.draw(rng) for n in range(users)))
        self.prices = array(
            "I", (rng.randrange(4, 160) * 100 - rng.choice((0, 1, 5, 50)) for _ in range(users))
        )
        self._first = array("H", (rng.randrange(1, 60) for _ in range(users)))
        self.on_hand = array("I", self._first)
        self.movements = array("I", (1 for _ in range(users)))
        self.ids = array("q")
        self._pictures: dict[int, int] = {}

    @classmethod
    async def drawn(cls, people: People, db: Database, media: Database) -> Selling:
        made = cls(people)
        homes = [bucket_of(made.seller(number)) for number in range(made.size)]
        blocks = await IdBlocks.take(db, counted(homes))
        made.ids = array("q", (blocks.next(bucket) for bucket in homes))
        few = min(PICTURED, made.size)
        shown = {*range(made.size - few, made.size), *map(made.wanted().item, range(1, few + 1))}
        pictures = await IdBlocks.take(media, counted(homes[number] for number in sorted(shown)))
        made._pictures = {number: pictures.next(homes[number]) for number in sorted(shown)}
        return made

    @property
    def rows(self) -> int:
        """About how many there will be."""
        return int(ROWS * self.size) + 3 * len(self._pictures)

    def seller(self, number: int) -> int:
        """Whose listing it is."""
        return self.people.ids[self._shop[number] * PEOPLE_PER_SHOP]

    def price(self, number: int) -> Money:
        return Money(self.prices[number], self.currency(number))

    def currency(self, number: int) -> str:
        """That of its shop: one in ten sells in dollars."""
        return _currency(self._shop[number])

    def title(self, number: int) -> str:
        _, names, place = self._kind(number)
        look = LOOKS[place // len(names) % len(LOOKS)]
        return f"{look.capitalize()} {names[place % len(names)]}"

    def at(self, number: int) -> datetime:
        """When it was put on sale."""
        return self.plan.moment(FIRST_LISTED, SPAN, number, self.size)

    def on_sale(self, at: datetime) -> int:
        """How many were by then, which are the first ones."""
        return max(int(self.size * (FIRST_LISTED - (self.plan.now - at)) / SPAN), 1)

    def wanted(self) -> Popularity:
        """How often each is bought."""
        return self.plan.popularity(self.size, s=0.8, label="wares")

    def pictures(self, motifs: list[Motif]) -> Iterator[BulkPicture]:
        for number, id in self._pictures.items():
            motif, at = motifs[number % len(motifs)], self.at(number)
            yield BulkPicture(id, self.seller(number), f"listing:{self.ids[number]}", motif, at)

    def largest(self) -> int:
        """The number of the person with the most listings."""
        counts = [0] * self.shops
        for shop in self._shop:
            counts[shop] += 1
        return counts.index(max(counts)) * PEOPLE_PER_SHOP

    def opened(self) -> Iterator[bulk.BulkShop]:
        """The shops, each a day after its owner joined."""
        rng = self.plan.random("shops")
        for shop in range(self.shops):
            owner = shop * PEOPLE_PER_SHOP
            person = self.people.name(owner)
            name = f"{rng.choice(SHOPS)} {person.replace('.', ' ').title()}"
            about = f"{rng.choice(PRAISE)} Things {rng.choice(PLACES)}."
            at = self.people.joined(owner) + DAY
            slug = person.replace(".", "-")
            yield bulk.BulkShop(self.people.ids[owner], slug, name, about, _currency(shop), at)

    def listings(self) -> Iterator[bulk.BulkListing]:
        rng = self.plan.random("descriptions")
        for number, id in enumerate(self.ids):
            yield bulk.BulkListing(
                id,
                self.seller(number),
                self.title(number),
                " ".join(rng.sample(PRAISE, rng.randrange(2, 5))),
                self.price(number),
                self._kind(number)[0],
                [str(self._pictures[number])] if number in self._pictures else [],
                self.on_hand[number],
                self.movements[number],
                self.at(number),
            )

    def first_stock(self) -> Iterator[bulk.BulkMovement]:
        for number, id in enumerate(self.ids):
            first = self._first[number]
            yield bulk.BulkMovement(id, 1, "adjustment", first, first, None, "first stock", self.at(number))

    def documents(self) -> Iterator[Document]:
        return map(bulk.document_of, self.listings())

    def _kind(self, number: int) -> tuple[str, tuple[str, ...], int]:
        """Category, the names of its wares, and a number to choose with."""
        place = (number * _SHUFFLE + self.plan.seed) % (1 << 32) >> 4
        category, place = place % len(_CATEGORIES), place // len(_CATEGORIES)
        return _CATEGORIES[category], _NAMES[category], place


def _currency(shop: int) -> str:
    return "USD" if shop % 10 == 9 else "EUR"
