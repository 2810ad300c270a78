"""An order as the module keeps it, and what it shows of it to whom. Pure."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from market.faults import Conflict
from market.money import Money, total
from market.orders.api import Address, Order, OrderLine, OrderState, Reason, Sale, SaleState

__all__ = ["Placed"]


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `orders.placed`; the migrations say what its columns mean."""

    id: int
    buyer_id: int
    state: OrderState
    reason: Reason | None
    lines: list[OrderLine]
    amount: int
    currency: str
    source: str
    address: Address
    cart_version: int | None
    version: int
    flow: UUID | None
    pay_by: datetime
    confirmed_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def money(self) -> Money:
        return Money(self.amount, self.currency)

    @property
    def at_end(self) -> bool:
        return self.state in ("confirmed", "cancelled", "failed")

    @property
    def shipped(self) -> bool:
        """Whether a part of it is on its way."""
        return any(line.shipped_at is not None for line in self.lines)

    def check_not_shipped(self) -> None:
        """Raises Conflict."""
        if self.shipped:
            raise Conflict("order", "is on its way: a part of it has been shipped")

    @property
    def sellers(self) -> list[int]:
        """Each once, in no order that means anything."""
        return sorted({line.seller_id for line in self.lines if line.seller_id is not None})

    def of(self, seller: int) -> list[OrderLine]:
        return [line for line in self.lines if line.seller_id == seller]

    def shown(self) -> Order:
        """To its buyer."""
        return self._shown(self.lines, self.reason, self.money)

    def shown_to(self, seller: int) -> Order:
        """The own lines; why a buyer changed their mind is not for sellers."""
        lines = self.of(seller)
        return self._shown(lines, None, self._sum(lines))

    def sale(self, seller: int) -> Sale:
        """The part of `seller` in an order that was confirmed."""
        assert self.confirmed_at is not None
        lines = self.of(seller)
        shipped_at = max((line.shipped_at for line in lines if line.shipped_at is not None), default=None)
        state: SaleState = "open" if shipped_at is None else "shipped"
        if self.state != "confirmed":
            state = "cancelled"
        return Sale(
            order_id=self.id,
            seller_id=seller,
            state=state,
            lines=lines,
            total=self._sum(lines),
            sold_at=self.confirmed_at,
            shipped_at=shipped_at,
            version=self.version,
        )

    def _sum(self, lines: list[OrderLine]) -> Money:
        return total((line.price * line.quantity for line in lines), self.currency)

    def _shown(self, lines: list[OrderLine], reason: Reason | None, money: Money) -> Order:
        return Order(
            id=self.id,
            buyer_id=self.buyer_id,
            state=self.state,
            reason=reason,
            lines=lines,
            total=money,
            address=self.address,
            pay_by=self.pay_by,
            version=self.version,
            created_at=self.created_at,
            updated_at=self.updated_at,
        )
