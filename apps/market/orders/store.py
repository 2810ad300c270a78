# ruff: noqa: S608 - what the statements are put together from are this file's own lists of columns
"""The tables of the orders module: the only place with its SQL.

A buyer's cart and orders are in the buyer's bucket, so that an order, the cart that it empties, the record of
the request and the job that goes on with it are one transaction. A seller's list is a copy in the seller's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from market.moments import moment
from market.money import Money, total
from market.orders.api import Address, NewOrder, OrderLine, OrderPage, Reason, Sale, SalePage, WantedLine
from market.orders.record import Placed
from market.orders.saga import Move
from springtide.clock import Clock
from springtide.db import ASC, Consistency, Database, Keyset, bucket_of, desc
from springtide.db.keyset import asc

__all__ = ["CartRow", "OrderStore"]

_ORDER = """id, buyer_id, state, step, reason, lines, amount, currency, source, address, cart_version,
    version, tries, pay_by, due_at, confirmed_at, created_at, updated_at"""

CART = "select version, lines from orders.cart where bucket = $1 and buyer_id = $2"

LOCK_CART = f"{CART} for no key update"

MAKE_CART = """
insert into orders.cart (bucket, buyer_id, version, lines, updated_at) values ($1, $2, 0, '[]', $3)
on conflict (bucket, buyer_id) do nothing
"""

CHANGE_CART = """
update orders.cart set version = version + 1, lines = $3, updated_at = $4
where bucket = $1 and buyer_id = $2
returning version, lines
"""

# Only if nothing was put into it since the order was made from it.
RESTORE_CART = """
update orders.cart set version = version + 1, lines = $4, updated_at = $5
where bucket = $1 and buyer_id = $2 and version = $3 + 1
"""

INSERT = f"""
insert into orders.placed
    (bucket, id, buyer_id, state, lines, amount, currency, source, address, cart_version, pay_by, due_at,
     created_at, updated_at)
values ($1, $2, $3, 'placing', $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)
returning {_ORDER}
"""

ORDER = f"select {_ORDER} from orders.placed where bucket = $1 and id = $2"

LOCK = f"{ORDER} for no key update"

OF_CART = f"select {_ORDER} from orders.placed where bucket = $1 and buyer_id = $2 and cart_version = $3"

# A move that only passes waits for no disk: a crash of the server that loses it has steps repeated, and its
# version given to another move. So the version alone does not tell that the order is as it was.
MOVE = f"""
update orders.placed
set state = $4, step = $5, reason = coalesce($6, reason), lines = coalesce($7, lines), tries = 0,
    due_at = coalesce($8, due_at), confirmed_at = coalesce(confirmed_at, $9), version = version + 1,
    updated_at = greatest($10::timestamptz, updated_at)
where bucket = $1 and id = $2 and version = $3 and state = $12 and step = $13
    and (not $11::boolean or pg_catalog.set_config('synchronous_commit', 'off', true) = 'off')
returning {_ORDER}
"""

SHIP = f"""
update orders.placed
set lines = $4, version = version + 1, due_at = $5, updated_at = greatest($6::timestamptz, updated_at)
where bucket = $1 and id = $2 and version = $3 and state = 'confirmed'
returning {_ORDER}
"""

TOLD = """
update orders.placed set due_at = null, tries = 0
where bucket = $1 and id = $2 and version = $3 and state in ('confirmed', 'cancelled', 'failed')
"""

HISTORY = f"select {_ORDER} from orders.placed where bucket = $1 and buyer_id = $2 and {{condition}}"

DUE = "select due_at, id, tries from orders.placed where due_at <= $1"

CLAIM = """
update orders.placed set due_at = $4, tries = tries + 1
where bucket = $1 and id = $2 and tries = $3 and due_at <= $5
returning id
"""

EVERY = f"select bucket, {_ORDER} from orders.placed where {{condition}}"

PUT_SALE = """
insert into orders.sale as sale
    (bucket, seller_id, order_id, state, lines, sold_at, shipped_at, version)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (bucket, seller_id, order_id) do update
set state = excluded.state, lines = excluded.lines, shipped_at = excluded.shipped_at,
    version = excluded.version
where sale.version < excluded.version
"""

SALES = """
select order_id, seller_id, state, lines, sold_at, shipped_at, version from orders.sale
where bucket = $1 and seller_id = $2 and {condition}
"""

NEWEST = Keyset(desc("created_at", datetime), desc("id"))
LATEST = Keyset(desc("sold_at", datetime), desc("order_id"))
BY_ID = Keyset(asc("bucket"), asc("id"))

PATIENCE = timedelta(seconds=30)
"""How long an order may take before a worker looks whether somebody still works on it."""


class CartRow(NamedTuple):
    version: int
    lines: list[WantedLine]


class OrderStore:
    """`advance` makes the job that goes on with an order."""

    def __init__(self, db: Database, *, clock: Clock, advance: Callable[[int], Any]) -> None:
        self._db = db
        self._clock = clock
        self._advance = advance

    def write(self, key: int) -> AbstractAsyncContextManager[Any]:
        return self._db.write(key)

    async def new_id(self, buyer: int) -> int:
        """An id in the buyer's bucket."""
        return await self._db.ids.take(buyer)

    async def cart(self, buyer: int) -> CartRow:
        row = await self._db.read(buyer).fetch_one(CART, bucket_of(buyer), buyer)
        return _cart(row)

    async def change_cart(
        self, buyer: int, change: Callable[[list[WantedLine]], list[WantedLine]]
    ) -> CartRow:
        """What `change` makes of the lines; it may raise. A change to what is there already is none."""
        bucket, at = bucket_of(buyer), moment(self._clock)
        async with self._db.write(buyer) as tx:
            row = await tx.fetch_one(LOCK_CART, bucket, buyer)
            if row is None:
                await tx.execute(MAKE_CART, bucket, buyer, at)
                row = await tx.fetch_one(LOCK_CART, bucket, buyer)
            known = _cart(row)
            lines = change(known.lines)
            if lines == known.lines:
                return known
            return _cart(await tx.fetch_one(CHANGE_CART, bucket, buyer, msgspec.to_builtins(lines), at))

    async def lock_cart(self, tx: Any, buyer: int) -> CartRow:
        return _cart(await tx.fetch_one(LOCK_CART, bucket_of(buyer), buyer))

    async def empty_cart(self, tx: Any, buyer: int) -> None:
        await tx.fetch_one(CHANGE_CART, bucket_of(buyer), buyer, [], moment(self._clock))

    async def of_cart(self, tx: Any, buyer: int, version: int) -> Placed | None:
        """The order that this version of the cart has made."""
        row = await tx.fetch_one(OF_CART, bucket_of(buyer), buyer, version)
        return None if row is None else _placed(row)

    async def insert(
        self, tx: Any, id: int, buyer: int, new: NewOrder, lines: list[WantedLine], pay_within: timedelta
    ) -> Placed:
        """The order, and the job that goes on with it if we do not."""
        at = moment(self._clock)
        money = total((line.price * line.quantity for line in lines), lines[0].price.currency)
        kept = [
            OrderLine(listing_id=line.listing_id, quantity=line.quantity, price=line.price)
            for line in sorted(lines, key=lambda line: line.listing_id)
        ]
        row = await tx.fetch_one(
            INSERT, bucket_of(id), id, buyer, msgspec.to_builtins(kept), money.amount, money.currency,
            new.source, msgspec.to_builtins(new.address), new.cart_version, at + pay_within, at + PATIENCE,
            at,
        )  # fmt: skip
        await self._enqueue(tx, id, delay=RESUME_AFTER)
        return _placed(row)

    async def find(self, id: int) -> Placed | None:
        """As it is now: buyers, the provider and workers all move it on, each from what it has read."""
        row = await self._db.read(id, consistency=Consistency.STRONG).fetch_one(ORDER, bucket_of(id), id)
        return None if row is None else _placed(row)

    async def lock(self, tx: Any, id: int) -> Placed | None:
        row = await tx.fetch_one(LOCK, bucket_of(id), id)
        return None if row is None else _placed(row)

    async def move(self, order: Placed, move: Move) -> Placed:
        """Implements `saga.Records`. At the end of the way workers are asked to tell it."""
        async with self._db.write(order.id) as tx:
            moved = await self.move_in(tx, order, move)
        return moved if moved is not None else await self._must_find(order.id)

    async def move_in(self, tx: Any, order: Placed, move: Move) -> Placed | None:
        """None when somebody else has moved it."""
        at = moment(self._clock)
        end = move.state in ("confirmed", "cancelled", "failed")
        due_at = at + (AWAITED if move.state == "awaiting_payment" else PATIENCE)
        row = await tx.fetch_one(
            MOVE, bucket_of(order.id), order.id, order.version, move.state, move.step,
            None if move.reason is None else msgspec.to_builtins(move.reason),
            None if move.lines is None else msgspec.to_builtins(move.lines),
            None if move.passing else due_at, at if move.state == "confirmed" else None, at, move.passing,
            order.state, order.step,
        )  # fmt: skip
        if row is None:
            return None
        moved = _placed(row)
        if move.state == "failed" and moved.cart_version is not None:
            await self._restore_cart(tx, moved, at)
        if end:
            await self._enqueue(tx, order.id, delay=0.0)
        elif move.state == "cancelling":
            await self._enqueue(tx, order.id, delay=RESUME_AFTER)
        return moved

    async def ship(self, tx: Any, order: Placed, seller: int) -> None:
        """The lines of `seller` in an order that `tx` has locked; workers are asked to tell it."""
        at = moment(self._clock)
        lines = [
            msgspec.structs.replace(line, shipped_at=at)
            if line.seller_id == seller and line.shipped_at is None
            else line
            for line in order.lines
        ]
        bucket = bucket_of(order.id)
        await tx.execute(SHIP, bucket, order.id, order.version, msgspec.to_builtins(lines), at + PATIENCE, at)
        await self._enqueue(tx, order.id, delay=0.0)

    async def told(self, order: Placed) -> None:
        """Everybody knows the order as it was in this version."""
        async with self._db.write(order.id) as tx:
            await tx.execute(TOLD, bucket_of(order.id), order.id, order.version)

    async def history(self, buyer: int, limit: int, after: str | None) -> OrderPage:
        """Raises InvalidCursor."""
        bucket = bucket_of(buyer)
        step = NEWEST.step(after, limit=limit, first=3)
        sql = f"{HISTORY.format(condition=step.where)} order by {step.order_by} limit ${3 + len(step.args)}"
        page = step.page(await self._db.read(buyer).fetch(sql, bucket, buyer, *step.args, step.fetch))
        return OrderPage(items=[_placed(row).shown() for row in page.items], next=page.next_cursor)

    async def sales(self, seller: int, limit: int, after: str | None) -> SalePage:
        """Raises InvalidCursor."""
        bucket = bucket_of(seller)
        step = LATEST.step(after, limit=limit, first=3)
        sql = f"{SALES.format(condition=step.where)} order by {step.order_by} limit ${3 + len(step.args)}"
        page = step.page(await self._db.read(seller).fetch(sql, bucket, seller, *step.args, step.fetch))
        return SalePage(items=[_sale(row) for row in page.items], next=page.next_cursor)

    async def put_sale(self, sale: Sale) -> None:
        """An older copy than the one that is there changes nothing."""
        seller = sale.seller_id
        async with self._db.write(seller) as tx:
            await tx.execute(
                PUT_SALE, bucket_of(seller), seller, sale.order_id, sale.state,
                msgspec.to_builtins(sale.lines), sale.sold_at, sale.shipped_at, sale.version,
            )  # fmt: skip

    async def due(self, limit: int) -> list[tuple[int, int]]:
        """Orders that a worker should look at, and how often one did; the longest overdue first."""
        order = [("due_at", ASC), ("id", ASC)]
        rows = await self._db.scatter(DUE, moment(self._clock), order=order, limit=limit)
        return [(row["id"], row["tries"]) for row in rows]

    async def claim(self, id: int, tries: int, pause: float) -> bool:
        """Whether it is the caller's to look at; nobody else's before `pause` seconds."""
        at = moment(self._clock)
        async with self._db.write(id) as tx:
            args = (bucket_of(id), id, tries, at + timedelta(seconds=pause), at)
            return await tx.fetch_value(CLAIM, *args) is not None

    async def every(self, after: str | None, limit: int) -> tuple[list[Placed], str | None]:
        """A page of all orders, and the cursor of the next."""
        step = BY_ID.step(after, limit=limit)
        sql = EVERY.format(condition=step.where)
        rows = await self._db.scatter(sql, *step.args, order=BY_ID.order, limit=step.fetch)
        page = step.page(rows)
        return [_placed(row) for row in page.items], page.next_cursor

    async def _restore_cart(self, tx: Any, order: Placed, at: datetime) -> None:
        lines = [
            WantedLine(listing_id=line.listing_id, quantity=line.quantity, price=line.price)
            for line in order.lines
        ]
        buyer = order.buyer_id
        await tx.execute(
            RESTORE_CART, bucket_of(buyer), buyer, order.cart_version, msgspec.to_builtins(lines), at
        )

    async def _enqueue(self, tx: Any, id: int, *, delay: float) -> None:
        """One job an order: while it has not begun it is only brought forward."""
        await tx.enqueue(self._advance(id), delay=delay, unique_key=str(id))

    async def _must_find(self, id: int) -> Placed:
        order = await self.find(id)
        if order is None:
            raise RuntimeError(f"order {id} is gone; orders are never deleted")
        return order


RESUME_AFTER = 5.0
"""Seconds after which a worker goes on with an order whose request may have died."""

AWAITED = timedelta(seconds=1)
"""How soon it is first asked what became of a pending charge."""


def _cart(row: Any) -> CartRow:
    return (
        CartRow(0, [])
        if row is None
        else CartRow(row["version"], msgspec.convert(row["lines"], list[WantedLine]))
    )


def _placed(row: Any) -> Placed:
    fields = {name: row[name] for name in Placed.__struct_fields__}
    fields["reason"] = None if row["reason"] is None else msgspec.convert(row["reason"], Reason)
    fields["lines"] = msgspec.convert(row["lines"], list[OrderLine])
    fields["address"] = msgspec.convert(row["address"], Address)
    return Placed(**fields)


def _sale(row: Any) -> Sale:
    lines = msgspec.convert(row["lines"], list[OrderLine])
    fields = {name: row[name] for name in Sale.__struct_fields__ if name not in ("lines", "total")}
    money: Money = total((line.price * line.quantity for line in lines), lines[0].price.currency)
    return Sale(lines=lines, total=money, **fields)
