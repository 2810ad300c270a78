# ruff: noqa: S608 - what the statements are put together from are this file's own lists of columns
"""The tables of the orders module: the only place with its SQL.

A buyer's cart and orders are in the buyer's bucket, so that an order, the cart that it empties, the record of
the request and the workflow that goes on with it are one transaction. A seller's list is a copy in the
seller's. Rows are locked in one order: an event's, the flow's, the order's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from market.moments import moment
from market.money import Money, total
from market.orders import reasons
from market.orders.api import (
    Address,
    NewOrder,
    OrderEnded,
    OrderLine,
    OrderPage,
    OrderPlaced,
    OrderState,
    Reason,
    Sale,
    SalePage,
    WantedLine,
)
from market.orders.jobs import Tell
from market.orders.record import Placed
from springtide.clock import Clock
from springtide.db import Consistency, Database, Keyset, bucket_of, desc
from springtide.db.keyset import asc
from springtide.db.scatter import ASC
from springtide.flows import Moved

__all__ = ["CartRow", "OrderStore", "follow"]

_ORDER = """id, buyer_id, state, reason, lines, amount, currency, source, address, cart_version, version,
    flow, pay_by, confirmed_at, created_at, updated_at"""

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
    (bucket, id, buyer_id, state, lines, amount, currency, source, address, cart_version, flow, pay_by,
     created_at, updated_at)
values ($1, $2, $3, 'placing', $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)
returning {_ORDER}
"""

ORDER = f"select {_ORDER} from orders.placed where bucket = $1 and id = $2"

LOCK = f"{ORDER} for no key update"

OF_CART = f"select {_ORDER} from orders.placed where bucket = $1 and buyer_id = $2 and cart_version = $3"

# From one of the states $4 only: what is the same already is no change. A buyer's reason stays the reason,
# and what is confirmed keeps its lines, which know what was shipped.
TURN = f"""
update orders.placed
set state = case when $3 = 'failed' and coalesce(reason, $6::jsonb) ->> 'code' = 'buyer' then 'cancelled'
        else $3 end,
    lines = case when confirmed_at is null then coalesce($5, lines) else lines end,
    reason = coalesce(reason, $6), version = version + 1,
    confirmed_at = case when $3 = 'confirmed' then greatest(clock_timestamp(), updated_at)
        else confirmed_at end,
    updated_at = greatest(clock_timestamp(), updated_at)
where bucket = $1 and id = $2 and state = any($4::text[])
returning {_ORDER}
"""

SHIP = f"""
update orders.placed
set lines = $4, version = version + 1, updated_at = greatest($5::timestamptz, updated_at)
where bucket = $1 and id = $2 and version = $3 and state = 'confirmed'
returning {_ORDER}
"""

DUE = "select due_at, id from orders.placed where due_at <= $1"

ADOPTED = """
update orders.placed set flow = coalesce($3, flow), due_at = null, version = version + 1
where bucket = $1 and id = $2
"""

HISTORY = f"select {_ORDER} from orders.placed where bucket = $1 and buyer_id = $2 and {{condition}}"

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

UNDER_WAY = ["placing", "awaiting_payment", "confirmed"]
"""States from which an order may still be off."""


class CartRow(NamedTuple):
    version: int
    lines: list[WantedLine]


class OrderStore:
    def __init__(self, db: Database, *, clock: Clock) -> None:
        self._db = db
        self._clock = clock

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
        self,
        tx: Any,
        id: int,
        buyer: int,
        new: NewOrder,
        lines: list[OrderLine],
        money: Money,
        flow: UUID,
        pay_by: datetime,
        at: datetime,
    ) -> Placed:
        row = await tx.fetch_one(
            INSERT, bucket_of(id), id, buyer, msgspec.to_builtins(lines), money.amount, money.currency,
            new.source, msgspec.to_builtins(new.address), new.cart_version, flow, pay_by, at,
        )  # fmt: skip
        await tx.publish(OrderPlaced(order_id=id, at=at), key=f"order {id}")
        return _placed(row)

    async def find(self, id: int) -> Placed | None:
        """As it is now: buyers, the provider and workers all move it on, each from what it has read."""
        row = await self._db.read(id, consistency=Consistency.STRONG).fetch_one(ORDER, bucket_of(id), id)
        return None if row is None else _placed(row)

    async def find_in(self, tx: Any, id: int, *, lock: bool = False) -> Placed | None:
        row = await tx.fetch_one(LOCK if lock else ORDER, bucket_of(id), id)
        return None if row is None else _placed(row)

    async def due(self, limit: int) -> list[int]:
        """Orders that the release before has left something to do of; the longest overdue first."""
        order = [("due_at", ASC), ("id", ASC)]
        rows = await self._db.scatter(DUE, moment(self._clock), order=order, limit=limit)
        return [row["id"] for row in rows]

    async def adopted(self, tx: Any, id: int, flow: UUID | None) -> None:
        """Nothing is left to do of it but by its flow."""
        await tx.execute(ADOPTED, bucket_of(id), id, flow)

    async def tell(self, tx: Any, id: int) -> None:
        await _tell(tx, id)

    async def ship(self, tx: Any, order: Placed, seller: int) -> None:
        """The lines of `seller` in an order that `tx` has locked; everybody is told."""
        at = moment(self._clock)
        lines = [
            msgspec.structs.replace(line, shipped_at=at)
            if line.seller_id == seller and line.shipped_at is None
            else line
            for line in order.lines
        ]
        bucket = bucket_of(order.id)
        await tx.execute(SHIP, bucket, order.id, order.version, msgspec.to_builtins(lines), at)
        await _tell(tx, order.id)

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

    async def every(self, after: str | None, limit: int) -> tuple[list[Placed], str | None]:
        """A page of all orders, and the cursor of the next."""
        step = BY_ID.step(after, limit=limit)
        sql = EVERY.format(condition=step.where)
        rows = await self._db.scatter(sql, *step.args, order=BY_ID.order, limit=step.fetch)
        page = step.page(rows)
        return [_placed(row) for row in page.items], page.next_cursor


async def follow(tx: Any, move: Moved) -> None:
    """What the order has come to is in its row, in the commit by which its flow came there.

    Raises Conflict, which keeps the flow where it is, for one of which a part is shipped: a seller may have
    been quicker than whoever cancels it, and that is decided here, where the row is locked.
    """
    id, reason = move.data.id, move.data.reason
    match move.state, move.step:
        case "waiting", "charge":
            await _turn(tx, id, "awaiting_payment", ["placing"])
        case "waiting", "shipped":
            row = await _turn(tx, id, "confirmed", UNDER_WAY[:2], lines=move.data.lines)
            await _publish_end(tx, row)
            await _tell(tx, id)
        case "undoing", _:
            row = await _turn(
                tx, id, "cancelling", UNDER_WAY, lines=move.data.lines, reason=reason or _why(move)
            )
            if row is not None:
                _placed(row).check_not_shipped()
        case "undone", _:
            before = [*UNDER_WAY, "cancelling"]
            row = await _turn(tx, id, "failed", before, lines=move.data.lines, reason=reason or _why(move))
            if row is not None and row["state"] == "failed" and row["cart_version"] is not None:
                await _restore_cart(tx, _placed(row))
            await _publish_end(tx, row)
            await _tell(tx, id)


async def _turn(
    tx: Any,
    id: int,
    state: OrderState,
    before: list[str],
    *,
    lines: list[OrderLine] | None = None,
    reason: Reason | None = None,
) -> Any:
    return await tx.fetch_one(
        TURN, tx.bucket, id, state, before, None if lines is None else msgspec.to_builtins(lines),
        None if reason is None else msgspec.to_builtins(reason),
    )  # fmt: skip


def _why(move: Moved) -> Reason:
    """A buyer cancels with these words; a step that fails again and again is too late at last, and so is an
    order that an operator calls off."""
    return reasons.BUYER if move.reason == reasons.BUYER.says else reasons.EXPIRED


async def _publish_end(tx: Any, row: Any) -> None:
    """`row`: of an order that has come to its end by this, None for one that was there."""
    if row is not None:
        order = _placed(row)
        reason = None if order.reason is None else order.reason.code
        ended = OrderEnded(order_id=order.id, at=order.updated_at, state=row["state"], reason=reason)
        await tx.publish(ended, key=f"order {order.id}")


async def _restore_cart(tx: Any, order: Placed) -> None:
    lines = [
        WantedLine(listing_id=line.listing_id, quantity=line.quantity, price=line.price)
        for line in order.lines
    ]
    buyer, at = order.buyer_id, order.updated_at
    await tx.execute(RESTORE_CART, tx.bucket, buyer, order.cart_version, msgspec.to_builtins(lines), at)


async def _tell(tx: Any, id: int) -> None:
    """One job an order, while it has not begun."""
    await tx.enqueue(Tell(id), unique_key=str(id))


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
