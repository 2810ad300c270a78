"""GET /market/search of listings: PostgreSQL full text in one statement, the shop joined, a keyset page.

Only the rows of the page get a headline. Words are compared as they are, without stemming, as market does.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy import Float, bindparam, func, select, tuple_
from sqlalchemy.orm import defer, joinedload

from bench.twin.database import Reading
from bench.twin.errors import Refusal
from bench.twin.tables import Listing, Stock

__all__ = ["router"]

router = APIRouter(prefix="/market")

MAX_LIMIT = 100
START, STOP = "\x02", "\x03"
HEADLINE = f"StartSel={START}, StopSel={STOP}, MaxWords=35, MinWords=15, MaxFragments=1"
PUBLIC = ("active", "sold_out")


class Money(BaseModel):
    amount: int
    currency: str


class Summary(BaseModel):
    id: int
    seller_id: int
    shop: str
    shop_name: str
    title: str
    price: Money
    category: str
    status: Literal["active", "sold_out"]
    available: int
    media: list[str]
    version: int
    listed_at: datetime
    created_at: datetime
    updated_at: datetime


class Fragment(BaseModel):
    text: str
    hit: bool


class Found(BaseModel):
    kind: Literal["listing"]
    listing: Summary
    snippet: list[Fragment]
    updating: bool


class Page(BaseModel):
    items: list[Found]
    next: str | None


ASKED = func.websearch_to_tsquery("simple", bindparam("q"))
RANK = func.ts_rank(Listing.search, ASKED, 1)
BEST = (
    select(Listing.id, RANK.label("rank"))
    .where(Listing.search.bool_op("@@")(ASKED), Listing.status.in_(PUBLIC))
    .order_by(RANK.desc(), Listing.id.desc())
    .limit(bindparam("limit"))
)
BEHIND = BEST.where(tuple_(RANK, Listing.id) < tuple_(bindparam("rank", type_=Float), bindparam("id")))


def _statement(best: Any) -> Any:
    found = best.subquery()
    headline = func.ts_headline("simple", Listing.description, ASKED, HEADLINE)
    return (
        select(Listing, Stock.on_hand - Stock.reserved, found.c.rank, headline)
        .join(found, found.c.id == Listing.id)
        .join(Stock, Stock.listing_id == Listing.id)
        .options(joinedload(Listing.shop, innerjoin=True), defer(Listing.description))
        .order_by(found.c.rank.desc(), Listing.id.desc())
    )


FIRST, FURTHER = _statement(BEST), _statement(BEHIND)


@router.get("/search")
async def search(
    session: Reading,
    kind: Literal["listing"],
    q: str = "",
    limit: Annotated[int, Query(ge=1)] = 20,
    after: str | None = None,
) -> Page:
    limit = min(limit, MAX_LIMIT)
    values: dict[str, Any] = {"q": q, "limit": limit + 1}
    if after is not None:
        values |= _position(after)
    rows = (await session.execute(FIRST if after is None else FURTHER, values)).all()
    items = [
        Found(
            kind="listing", listing=_summary(listing, available), snippet=_snippet(headline), updating=False
        )
        for listing, available, _, headline in rows[:limit]
    ]
    return Page(items=items, next=_cursor(rows[limit - 1]) if len(rows) > limit else None)


def _summary(listing: Listing, available: int) -> Summary:
    return Summary(
        id=listing.id,
        seller_id=listing.seller_id,
        shop=listing.shop.slug,
        shop_name=listing.shop.name,
        title=listing.title,
        price=Money(amount=listing.amount, currency=listing.currency),
        category=listing.category,
        status="active" if available > 0 else "sold_out",
        available=available,
        media=listing.media,
        version=listing.version,
        listed_at=listing.listed_at,
        created_at=listing.created_at,
        updated_at=listing.updated_at,
    )


def _snippet(headline: str) -> list[Fragment]:
    """What stands between the marks was looked for."""
    before, *parts = headline.split(START)
    fragments = [Fragment(text=before, hit=False)] if before else []
    for part in parts:
        hit, _, rest = part.partition(STOP)
        fragments.append(Fragment(text=hit, hit=True))
        if rest:
            fragments.append(Fragment(text=rest, hit=False))
    return fragments


def _cursor(row: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps([row.rank, row[0].id]).encode()).decode()


def _position(after: str) -> dict[str, Any]:
    try:
        rank, id = json.loads(base64.urlsafe_b64decode(after))
        return {"rank": float(rank), "id": int(id)}
    except (ValueError, TypeError, binascii.Error):
        raise Refusal(422, {"after": ["is no cursor of this list"]}) from None
