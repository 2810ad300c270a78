"""Reserve, charge, sell: what placing an order does, so that it survives a kill between any two steps.

    placing           the order, its stock and its key are committed; the provider may have been asked
    awaiting_payment  it was asked, and nobody knows what became of it
    confirmed         charged once; the stock is sold and both sides of the payment are booked
    failed            nothing is charged and nothing held; `reason` says why

What is wanted is committed before the provider is asked, under a key made from the order's id, and what
became of it in one transaction that only an open order takes. Whoever finds an open order that is old enough
asks again under the same key, which the provider charges once; past `pay_by` the key is cancelled instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import contains_eager, selectinload

from bench.twin.database import Database
from bench.twin.provider import Charge, Provider, Unknown
from bench.twin.tables import Entry, Listing, Movement, Order, OrderLine, Stock

__all__ = ["PAY_WITHIN", "Placing", "lock_stocks", "moment", "out_of_reach"]

_log = logging.getLogger(__name__)

OPEN = ("placing", "awaiting_payment")
PAY_WITHIN = timedelta(minutes=15)
BATCH = 100

EXPIRED = {"code": "expired", "says": "It could not be paid in time. Nothing is charged.", "faults": []}
CANCELLED = {
    "code": "payment_cancelled",
    "says": "The payment was called off. Nothing is charged.",
    "faults": [],
}


def moment() -> datetime:
    """Now, to the millisecond: what is stored is what is shown."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def key_of(order_id: int) -> str:
    return f"twin-{order_id}-1"


class Placing:
    """An open order is gone on with when nobody has touched it for `pending_after` seconds."""

    def __init__(self, database: Database, provider: Provider, *, pending_after: float) -> None:
        self._database = database
        self._provider = provider
        self._pending_after = timedelta(seconds=pending_after)
        self._pause = pending_after / 3

    async def pay(self, order: Order) -> None:
        """Charge an open order whose lines are loaded, and settle it; it stays open when nobody knows."""
        try:
            if moment() < order.pay_by:
                charge = await self._provider.charge(
                    key_of(order.id), order.amount, order.currency, order.source
                )
            else:
                charge = await self._provider.cancel(key_of(order.id))
        except Unknown as error:
            _log.info("the payment of order %d is open: %s", order.id, error)
            await self._settle(order, "awaiting_payment")
            return
        if charge.status == "succeeded":
            await self._settle(order, "confirmed", provider_id=charge.id)
        else:
            await self._settle(order, "failed", reason=_reason(order, charge))

    async def recover(self) -> None:
        """Go on with the orders that somebody left."""
        statement = (
            select(Order)
            .where(Order.state.in_(OPEN), Order.updated_at <= moment() - self._pending_after)
            .order_by(Order.updated_at)
            .limit(BATCH)
            .options(selectinload(Order.lines))
        )
        async with self._database.reading() as session:
            found = (await session.scalars(statement)).all()
        for order in found:
            await self.pay(order)

    async def recover_forever(self) -> None:
        while True:
            try:
                await self.recover()
            except Exception:
                _log.exception("recovering orders")
            await asyncio.sleep(self._pause)

    async def _settle(
        self,
        order: Order,
        state: Literal["awaiting_payment", "confirmed", "failed"],
        *,
        reason: dict[str, Any] | None = None,
        provider_id: str | None = None,
    ) -> None:
        """Move an order that is open; one that somebody else has settled is read again."""
        at = moment()
        async with self._database.writing() as session:
            moved = await session.execute(
                update(Order)
                .where(Order.id == order.id, Order.state.in_(OPEN))
                .values(
                    state=state,
                    reason=reason,
                    provider_id=provider_id,
                    version=Order.version + 1,
                    updated_at=at,
                )
                .execution_options(synchronize_session=False)
                .returning(Order.state, Order.reason, Order.version, Order.updated_at)
            )
            row = moved.one_or_none()
            if row is not None and state == "confirmed":
                await _sell(session, order, at)
            elif row is not None and state == "failed":
                await _release(session, order.lines)
            elif row is None:
                columns = select(Order.state, Order.reason, Order.version, Order.updated_at)
                row = (await session.execute(columns.where(Order.id == order.id))).one()
            await session.commit()
        order.state, order.reason, order.version, order.updated_at = row


def out_of_reach(stock: Stock | None, line: OrderLine, currency: str) -> dict[str, Any] | None:
    """What is wrong with a line, None when it can be had as it was seen."""
    if stock is None or stock.listing.status != "active":
        return {"listing_id": line.listing_id, "code": "not_for_sale"}
    listing = stock.listing
    if (listing.amount, listing.currency) != (line.amount, currency):
        price = {"amount": listing.amount, "currency": listing.currency}
        return {"listing_id": line.listing_id, "code": "price_changed", "price": price}
    if stock.on_hand - stock.reserved < line.quantity:
        left = stock.on_hand - stock.reserved
        return {"listing_id": line.listing_id, "code": "out_of_stock", "available": left}
    return None


async def lock_stocks(session: AsyncSession, ids: Sequence[int]) -> dict[int, Stock]:
    """In the order of their ids, so that two orders never wait for each other in a circle."""
    statement = (
        select(Stock)
        .join(Stock.listing)
        .options(contains_eager(Stock.listing).load_only(
            Listing.seller_id, Listing.title, Listing.amount, Listing.currency, Listing.status
        ))
        .where(Stock.listing_id.in_(ids))
        .order_by(Stock.listing_id)
        .with_for_update(of=Stock)
    )  # fmt: skip
    return {stock.listing_id: stock for stock in await session.scalars(statement)}


async def _sell(session: AsyncSession, order: Order, at: datetime) -> None:
    for line in order.lines:
        await session.execute(
            update(Stock)
            .where(Stock.listing_id == line.listing_id)
            .values(on_hand=Stock.on_hand - line.quantity, reserved=Stock.reserved - line.quantity)
            .execution_options(synchronize_session=False)
        )
    await session.execute(
        insert(Movement),
        [
            {"listing_id": line.listing_id, "order_id": order.id, "change": -line.quantity, "created_at": at}
            for line in order.lines
        ],
    )
    await session.execute(
        insert(Entry),
        [
            {
                "order_id": order.id,
                "account": account,
                "amount": amount,
                "currency": order.currency,
                "created_at": at,
            }
            for account, amount in (("provider", order.amount), ("orders", -order.amount))
        ],
    )


async def _release(session: AsyncSession, lines: Sequence[OrderLine]) -> None:
    for line in lines:
        await session.execute(
            update(Stock)
            .where(Stock.listing_id == line.listing_id)
            .values(reserved=Stock.reserved - line.quantity)
            .execution_options(synchronize_session=False)
        )


def _reason(order: Order, charge: Charge) -> dict[str, Any]:
    if charge.status == "cancelled":
        return EXPIRED if moment() >= order.pay_by else CANCELLED
    says = "The payment was declined. Nothing is charged; you can order again and pay in another way."
    return {"code": "declined", "says": says, "faults": [], "decline_code": charge.decline_code}
