"""POST /market/orders: its request, its answer, and the transaction with which an order begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from bench.twin import tables
from bench.twin.auth import Somebody
from bench.twin.database import Writing
from bench.twin.errors import Refusal
from bench.twin.placing import PAY_WITHIN, Placing, lock_stocks, moment, out_of_reach

__all__ = ["router"]

router = APIRouter(prefix="/market")

MAX = 1 << 53
GRAVEST_FIRST = {
    "not_for_sale": "Something in it is not for sale any more.",
    "out_of_stock": "There is not enough left of something in it.",
    "price_changed": "The price of something in it has changed.",
}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Money(Strict):
    amount: Annotated[int, Field(ge=1, le=MAX, strict=True)]
    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]


class WantedLine(Strict):
    listing_id: Annotated[int, Field(ge=0, lt=MAX, strict=True)]
    quantity: Annotated[int, Field(ge=1, le=10_000, strict=True)]
    price: Money


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be one line of text")
    return value


Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(_one_line)
]
Extra = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200), AfterValidator(_one_line)]
PostalCode = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20), AfterValidator(_one_line)
]


class Address(Strict):
    name: Text
    street: Text
    city: Text
    postal_code: PostalCode
    country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
    extra: Extra = ""


def _orderable(lines: list[WantedLine]) -> list[WantedLine]:
    if len({line.listing_id for line in lines}) < len(lines):
        raise ValueError("must name each listing once")
    if len({line.price.currency for line in lines}) > 1:
        raise ValueError("must be of one currency")
    if sum(line.price.amount * line.quantity for line in lines) > MAX:
        raise ValueError("come to more than can be paid at once")
    return lines


class NewOrder(Strict):
    source: Text
    address: Address
    lines: Annotated[list[WantedLine], Field(min_length=1, max_length=100), AfterValidator(_orderable)]


class Line(BaseModel):
    listing_id: int
    quantity: int
    price: Money
    seller_id: int | None
    title: str | None
    shipped_at: datetime | None


class Fault(BaseModel):
    listing_id: int
    code: Literal["out_of_stock", "price_changed", "not_for_sale"]
    available: int | None = None
    price: Money | None = None


class Reason(BaseModel):
    code: str
    says: str
    faults: list[Fault] = []
    decline_code: str | None = None


class Order(BaseModel):
    id: int
    buyer_id: int
    state: str
    reason: Reason | None
    lines: list[Line]
    total: Money
    address: Address
    pay_by: datetime
    version: int
    created_at: datetime
    updated_at: datetime


IdempotencyKey = Annotated[str | None, Header(min_length=8, max_length=128)]


@router.post("/orders", status_code=201)
async def place(
    request: Request,
    response: Response,
    session: Writing,
    viewer: Somebody,
    new: NewOrder,
    idempotency_key: IdempotencyKey = None,
) -> Order:
    if idempotency_key is None:
        raise Refusal(400, {"idempotency-key": ["is missing"]})
    fingerprint = hashlib.sha256(await request.body()).digest()
    try:
        order = await _begin(session, viewer, new, idempotency_key, fingerprint)
    except IntegrityError as error:
        if "requests_pkey" in str(error.orig):  # the same key at the same time: that one is committed by now
            await session.rollback()
            order = await _known(session, viewer, idempotency_key, fingerprint)
        elif "buyer_id" in str(error.orig):
            raise Refusal(401, {"token": ["is invalid"]}) from None
        else:
            raise
    else:
        if order.state == "placing":
            placing: Placing = request.app.state.placing
            await placing.pay(order)
    response.headers["Location"] = f"/market/orders/{order.id}"
    return _shown(order)


async def _begin(
    session: AsyncSession, buyer: int, new: NewOrder, key: str, fingerprint: bytes
) -> tables.Order:
    """In one transaction: the order, the stock that it holds, and the record of the request."""
    at = moment()
    wanted = sorted(new.lines, key=lambda line: line.listing_id)
    currency = wanted[0].price.currency
    stocks = await lock_stocks(session, [line.listing_id for line in wanted])
    order = tables.Order(
        buyer_id=buyer,
        state="placing",
        amount=sum(line.price.amount * line.quantity for line in wanted),
        currency=currency,
        source=new.source,
        address=new.address.model_dump(),
        version=1,
        pay_by=at + PAY_WITHIN,
        created_at=at,
        updated_at=at,
        lines=[
            tables.OrderLine(listing_id=line.listing_id, quantity=line.quantity, amount=line.price.amount)
            for line in wanted
        ],
    )
    faults = [out_of_reach(stocks.get(line.listing_id), line, currency) for line in order.lines]
    if any(faults):
        order.state, order.reason = "failed", _not_reserved([fault for fault in faults if fault is not None])
    else:
        for line in order.lines:
            stock = stocks[line.listing_id]
            stock.reserved += line.quantity
            line.seller_id, line.title = stock.listing.seller_id, stock.listing.title
    session.add(order)
    await session.flush()
    await session.execute(
        insert(tables.Request).values(
            user_id=buyer, key=key, fingerprint=fingerprint, order_id=order.id, created_at=at
        )
    )
    await session.commit()
    return order


async def _known(session: AsyncSession, buyer: int, key: str, fingerprint: bytes) -> tables.Order:
    """The order that this key has made. Raises Refusal when it was sent with another body."""
    found = await session.get_one(tables.Request, (buyer, key))
    if found.fingerprint != fingerprint:
        raise Refusal(422, {"idempotency-key": ["was used for a request with another body"]})
    return await session.get_one(tables.Order, found.order_id, options=[selectinload(tables.Order.lines)])


def _not_reserved(faults: list[Mapping[str, Any]]) -> dict[str, Any]:
    codes = {fault["code"] for fault in faults}
    code = next(code for code in GRAVEST_FIRST if code in codes)
    return {"code": code, "says": f"{GRAVEST_FIRST[code]} Nothing is charged.", "faults": faults}


def _shown(order: tables.Order) -> Order:
    lines = [
        Line(
            listing_id=line.listing_id,
            quantity=line.quantity,
            price=Money(amount=line.amount, currency=order.currency),
            seller_id=line.seller_id,
            title=line.title,
            shipped_at=None,
        )
        for line in order.lines
    ]
    return Order(
        id=order.id,
        buyer_id=order.buyer_id,
        state=order.state,
        reason=None if order.reason is None else Reason(**order.reason),
        lines=lines,
        total=Money(amount=order.amount, currency=order.currency),
        address=Address.model_construct(**order.address),
        pay_by=order.pay_by,
        version=order.version,
        created_at=order.created_at,
        updated_at=order.updated_at,
    )
