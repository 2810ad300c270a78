"""The twin's tables, as one schema with foreign keys: what one team with one database would make.

Tags are an array and favourites are counted on the article, so that a list of articles needs no other table.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Computed, ForeignKey, Index, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP, TSVECTOR
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = [
    "Article",
    "Base",
    "Entry",
    "Favorite",
    "Follow",
    "Listing",
    "Movement",
    "Order",
    "OrderLine",
    "Request",
    "Shop",
    "Stock",
    "User",
]

Moment = TIMESTAMP(timezone=True, precision=3)


class Base(DeclarativeBase):
    pass


class User(Base):
    """`username_key` and `email_key` are the folded forms under which names are compared."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    username: Mapped[str] = mapped_column(Text)
    username_key: Mapped[str] = mapped_column(Text, unique=True)
    email: Mapped[str] = mapped_column(Text)
    email_key: Mapped[str] = mapped_column(Text, unique=True)
    password_hash: Mapped[str] = mapped_column(Text)
    bio: Mapped[str | None] = mapped_column(Text)
    image: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Moment)
    updated_at: Mapped[datetime] = mapped_column(Moment)


class Follow(Base):
    __tablename__ = "follows"

    follower_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), primary_key=True)
    followee_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(Moment)


class Article(Base):
    __tablename__ = "articles"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    slug: Mapped[str] = mapped_column(Text, unique=True)
    title: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    favorites: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(Moment)
    updated_at: Mapped[datetime] = mapped_column(Moment)

    author: Mapped[User] = relationship()

    __table_args__ = (
        Index("articles_newest", text("created_at desc"), text("id desc")),
        Index("articles_of_author", "author_id", text("created_at desc"), text("id desc")),
        Index("articles_of_tag", "tags", postgresql_using="gin"),
    )


class Favorite(Base):
    __tablename__ = "favorites"

    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), primary_key=True)
    article_id: Mapped[int] = mapped_column(
        ForeignKey(Article.id, ondelete="CASCADE"), primary_key=True, index=True
    )


class Shop(Base):
    __tablename__ = "shops"

    seller_id: Mapped[int] = mapped_column(ForeignKey(User.id), primary_key=True)
    slug: Mapped[str] = mapped_column(Text, unique=True)
    name: Mapped[str] = mapped_column(Text)
    currency: Mapped[str] = mapped_column(Text)


class Listing(Base):
    """`search` is kept by PostgreSQL itself, so that what is written is found at once."""

    __tablename__ = "listings"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    seller_id: Mapped[int] = mapped_column(ForeignKey(Shop.seller_id))
    title: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(Text)
    category: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    media: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    version: Mapped[int] = mapped_column(server_default=text("1"))
    listed_at: Mapped[datetime] = mapped_column(Moment)
    created_at: Mapped[datetime] = mapped_column(Moment)
    updated_at: Mapped[datetime] = mapped_column(Moment)
    search: Mapped[str] = mapped_column(
        TSVECTOR,
        Computed(
            "setweight(to_tsvector('simple', title), 'A') || setweight(to_tsvector('simple', category), 'B')"
            " || setweight(to_tsvector('simple', description), 'D')",
            persisted=True,
        ),
        deferred=True,
    )

    shop: Mapped[Shop] = relationship()

    __table_args__ = (
        Index(
            "listings_newest",
            text("listed_at desc"),
            text("id desc"),
            postgresql_where=text("status = 'active'"),
        ),
        Index("listings_of_seller", "seller_id", text("created_at desc"), text("id desc")),
        Index("listings_search", "search", postgresql_using="gin"),
    )


class Stock(Base):
    """Apart from the listing, because every sale rewrites it. `on_hand` is the sum of the movements."""

    __tablename__ = "stocks"

    listing_id: Mapped[int] = mapped_column(ForeignKey(Listing.id), primary_key=True)
    on_hand: Mapped[int]
    reserved: Mapped[int] = mapped_column(server_default=text("0"))

    listing: Mapped[Listing] = relationship()

    __table_args__ = (
        CheckConstraint("reserved >= 0 and on_hand >= reserved", name="stock_not_oversold"),
        {"postgresql_with": {"fillfactor": 70}},
    )


class Movement(Base):
    __tablename__ = "movements"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    listing_id: Mapped[int] = mapped_column(ForeignKey(Listing.id), index=True)
    order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"))
    change: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(Moment)


class Order(Base):
    """placing -> awaiting_payment -> confirmed | failed; `reason` says why it failed."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    buyer_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    state: Mapped[str] = mapped_column(Text)
    reason: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(Text)
    address: Mapped[dict[str, Any]] = mapped_column(JSONB)
    version: Mapped[int] = mapped_column(server_default=text("1"))
    pay_by: Mapped[datetime] = mapped_column(Moment)
    provider_id: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Moment)
    updated_at: Mapped[datetime] = mapped_column(Moment)

    lines: Mapped[list[OrderLine]] = relationship(order_by="OrderLine.listing_id", lazy="raise")

    __table_args__ = (
        CheckConstraint(
            "state in ('placing', 'awaiting_payment', 'confirmed', 'failed')", name="order_state"
        ),
        Index("orders_of_buyer", "buyer_id", text("created_at desc"), text("id desc")),
        Index("orders_open", "updated_at", postgresql_where=text("state in ('placing', 'awaiting_payment')")),
    )


class OrderLine(Base):
    """A failed order may name listings that are not there: seller and title are None then."""

    __tablename__ = "order_lines"

    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), primary_key=True)
    listing_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    quantity: Mapped[int]
    amount: Mapped[int] = mapped_column(BigInteger)
    seller_id: Mapped[int | None] = mapped_column(ForeignKey(User.id))
    title: Mapped[str | None] = mapped_column(Text)


class Entry(Base):
    """The ledger: the two entries of an order add up to 0."""

    __tablename__ = "entries"

    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), primary_key=True)
    account: Mapped[str] = mapped_column(Text, primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Moment)


class Request(Base):
    """An idempotency key of a user, written in the transaction that makes its order."""

    __tablename__ = "requests"

    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    fingerprint: Mapped[bytes]
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))
    created_at: Mapped[datetime] = mapped_column(Moment)
