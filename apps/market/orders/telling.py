"""Who is told what of an order that is at its end; by a job, so it may be said again and in any order.

confirmed             recommendations: who bought what      dashboard: each seller's sale
no more, and was so   both: it counts no more

One that does not listen keeps no other from hearing it; the job says all of it again later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from market.dashboard import api as dashboard
from market.orders.record import Placed
from market.recommendations.api import Recommendations
from springtide.errors import SpringtideError

__all__ = ["Teller"]

Tell = Callable[[], Awaitable[None]]


class Teller:
    def __init__(self, *, recommendations: Recommendations, dashboard: dashboard.Dashboard) -> None:
        self._recommendations = recommendations
        self._dashboard = dashboard

    async def tell(self, order: Placed) -> None:
        """Raises the first error, after everybody was told who would listen."""
        failed: SpringtideError | None = None
        for say in self._said(order):
            try:
                await say()
            except SpringtideError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _said(self, order: Placed) -> list[Tell]:
        if order.confirmed_at is None:
            return []
        bought = order.state == "confirmed"
        said: list[Tell] = [partial(self._tell_recommendations, order, bought=bought)]
        said += [partial(self._tell_dashboard, order, seller, bought=bought) for seller in order.sellers]
        return said

    async def _tell_recommendations(self, order: Placed, *, bought: bool) -> None:
        if bought:
            listings = [line.listing_id for line in order.lines]
            await self._recommendations.bought(order.id, order.buyer_id, listings)
        else:
            await self._recommendations.undone(order.id)

    async def _tell_dashboard(self, order: Placed, seller: int, *, bought: bool) -> None:
        if not bought:
            await self._dashboard.undone(order.id, seller, order.updated_at)
            return
        sale = order.sale(seller)
        lines = [
            dashboard.SaleLine(
                listing_id=line.listing_id, title=line.title or "", quantity=line.quantity, price=line.price
            )
            for line in sale.lines
        ]
        await self._dashboard.sold(
            dashboard.Sale(order_id=order.id, seller=seller, at=sale.sold_at, lines=lines)
        )
