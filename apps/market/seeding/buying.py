"""Seeded orders of the last three months, in the order of time, and all that follows from each.

An order takes what is on hand (sellers restock when it runs out, mostly), is charged once and shipped within
a day; a few are declined. What is bought together repeats, so that there is something to recommend.
Nothing that is seeded can be cancelled any more: the payment provider never saw these charges.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from datetime import datetime, timedelta
from random import Random
from typing import NamedTuple

from market.catalog.api import ReservedLine
from market.catalog.bulk import BulkMovement, BulkReservation
from market.dashboard.api import Sale, SaleLine
from market.dashboard.bulk import BulkSale
from market.money import Money, total
from market.orders.api import Address, OrderLine
from market.orders.bulk import BulkOrder
from market.payments.bulk import BulkCharge
from market.recommendations.bulk import BulkOrder as Basket
from market.seeding.chance import DAY, counted
from market.seeding.selling import Selling
from market.seeding.words import CITIES, NOUNS
from springtide.db import Database, bucket_of
from springtide.ops.load.seeding import IdBlocks

__all__ = ["Buying", "Purchase"]

ORDERS_PER_PERSON = 1.5
BEGAN = 91 * DAY
LASTED = 90 * DAY
DECLINED = 0.04
RESTOCKED = 0.9
ROWS = 19.5
"""About how many rows one order makes, over all modules, with what is counted from it."""


class Purchase(NamedTuple):
    """An order, and the movements of stock that led to it and came of it."""

    order: BulkOrder
    movements: list[BulkMovement]

    @property
    def confirmed(self) -> bool:
        return self.order.decline_code is None

    def charge(self) -> BulkCharge:
        order = self.order
        amount: Money = total(
            (line.price * line.quantity for line in order.lines), order.lines[0].price.currency
        )
        made = f"seeded-{order.id}" if self.confirmed else None
        return BulkCharge(order.id, amount, order.source, made, order.decline_code, order.at)

    def reservation(self) -> BulkReservation:
        lines = [
            ReservedLine(
                listing_id=line.listing_id,
                seller_id=line.seller_id or 0,
                title=line.title or "",
                quantity=line.quantity,
                price=line.price,
            )
            for line in self.order.lines
        ]
        return BulkReservation(self.order.id, lines, self.confirmed, self.order.at)

    def basket(self) -> Basket:
        order = self.order
        return Basket(order.id, order.buyer, [line.listing_id for line in order.lines], order.at)

    def sales(self) -> Iterator[BulkSale]:
        """One for each seller in it."""
        of: dict[int, list[SaleLine]] = {}
        for line in self.order.lines:
            sold = SaleLine(
                listing_id=line.listing_id, title=line.title or "", quantity=line.quantity, price=line.price
            )
            of.setdefault(line.seller_id or 0, []).append(sold)
        for seller, lines in of.items():
            yield BulkSale(Sale(order_id=self.order.id, seller=seller, at=self.order.at, lines=lines))


class Buying:
    """Order number k is by the person `buyers[k]`."""

    def __init__(self, selling: Selling) -> None:
        self._selling = selling
        self.plan = selling.plan
        rng, users = self.plan.random("buyers"), self.plan.users
        self.size = int(ORDERS_PER_PERSON * users)
        self._buyers = array("I", (rng.randrange(users) for _ in range(self.size)))
        self._ids = IdBlocks({})

    @classmethod
    async def drawn(cls, selling: Selling, db: Database) -> Buying:
        made = cls(selling)
        ids = selling.people.ids
        made._ids = await IdBlocks.take(db, counted(bucket_of(ids[buyer]) for buyer in made._buyers))
        return made

    @property
    def rows(self) -> int:
        """About how many there will be."""
        return int(ROWS * self.size)

    def purchases(self) -> Iterator[Purchase]:
        """Each once: they change the stock of what they take."""
        rng = self.plan.random("orders")
        popular = self._selling.wanted()
        for number, person in enumerate(self._buyers):
            at = self.plan.moment(BEGAN, LASTED, number, self.size)
            buyer = self._selling.people.ids[person]
            first = popular.draw(rng) % self._selling.on_sale(at)
            declined = rng.random() < DECLINED
            order = self._ids.next(bucket_of(buyer))
            movements: list[BulkMovement] = []
            chosen = self._chosen(rng, first, buyer, at)
            shipped = None if declined else at + timedelta(minutes=rng.randrange(60, 20 * 60))
            lines = [
                OrderLine(
                    listing_id=self._selling.ids[ware],
                    quantity=quantity,
                    price=self._selling.price(ware),
                    seller_id=self._selling.seller(ware),
                    title=self._selling.title(ware),
                    shipped_at=shipped,
                )
                for ware, quantity in chosen.items()
                if declined or self._taken(rng, ware, quantity, order, at, movements)
            ]
            if lines:
                lines.sort(key=lambda line: line.listing_id)
                code = "insufficient_funds" if declined else None
                made = BulkOrder(order, buyer, lines, self._address(rng, person), "card", code, at)
                yield Purchase(made, movements)

    def _chosen(self, rng: Random, first: int, buyer: int, at: datetime) -> dict[int, int]:
        """Ware -> quantity: one that is popular, and often neighbours of it, in one currency."""
        selling, chosen = self._selling, dict[int, int]()
        for step in (0, *rng.sample((1, 2, 3), k=rng.choice((0, 0, 1, 1, 2)))):
            ware = (first + step) % selling.on_sale(at)
            if selling.seller(ware) != buyer and selling.currency(ware) == selling.currency(first):
                chosen.setdefault(ware, rng.choice((1, 1, 1, 1, 2, 3)))
        return chosen

    def _taken(
        self, rng: Random, ware: int, quantity: int, order: int, at: datetime, into: list[BulkMovement]
    ) -> bool:
        """Whether it was there; then it is sold."""
        if self._selling.on_hand[ware] < quantity:
            if rng.random() >= RESTOCKED:
                return False
            self._move(ware, rng.randrange(20, 80), None, at - timedelta(minutes=30), into)
        self._move(ware, -quantity, order, at, into)
        return True

    def _move(
        self, ware: int, change: int, order: int | None, at: datetime, into: list[BulkMovement]
    ) -> None:
        selling = self._selling
        selling.on_hand[ware] += change
        selling.movements[ware] += 1
        on_hand, number = selling.on_hand[ware], selling.movements[ware]
        kind, note = ("adjustment", "restocked") if order is None else ("sale", "")
        into.append(BulkMovement(selling.ids[ware], number, kind, change, on_hand, order, note, at))  # type: ignore[arg-type]  # the pair of words is one of two

    def _address(self, rng: Random, person: int) -> Address:
        city, _, country = rng.choice(CITIES).rpartition(" ")
        return Address(
            name=self._selling.people.name(person).replace(".", " ").title(),
            street=f"{rng.randrange(1, 150)} {rng.choice(NOUNS).capitalize()} Street",
            city=city,
            postal_code=str(rng.randrange(10_000, 99_999)),
            country=country,
        )
