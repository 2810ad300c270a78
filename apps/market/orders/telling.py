"""Who is told what of an order that is at its end; by a job, so it may be said again and in any order.

                      buyer              each seller       recommendations    dashboard
confirmed             it is confirmed    it was sold       who bought what    each seller's sale
a part is shipped     what is coming     -                 -                  -
cancelled, was sold   what is given back it is cancelled   counts no more     was sold, is given back
cancelled, never sold what is given back -                 -                  -
failed, never sold    why                -                 -                  -

A seller's webhooks are told all that became of the sale, in its order: confirmed, then shipped or cancelled.

A sale that was given back before anybody was told of it is told whole: what a seller's days count must not
depend on how soon the job came. A notice has a key of the order's, so it is told once. Who does not listen
keeps nobody else from hearing it; the job says all of it again later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from market.catalog.api import Catalog
from market.dashboard import api as dashboard
from market.faults import Refused
from market.money import Money
from market.notifications.api import TITLES_LENGTH, Kind, Notice, Notifications
from market.orders import reasons
from market.orders.api import OrderLine, Sale
from market.orders.record import Placed
from market.payments.api import Payments
from market.recommendations.api import Recommendations
from market.webhooks.api import News, SoldLine, SoldOrder, Webhooks
from springtide.errors import SpringtideError

__all__ = ["Teller"]

Tell = Callable[[], Awaitable[None]]

GONE = "Something that is not there any more"


class Teller:
    def __init__(
        self,
        *,
        catalog: Catalog,
        payments: Payments,
        notifications: Notifications,
        recommendations: Recommendations,
        dashboard: dashboard.Dashboard,
        webhooks: Webhooks,
    ) -> None:
        self._catalog = catalog
        self._payments = payments
        self._notifications = notifications
        self._recommendations = recommendations
        self._dashboard = dashboard
        self._webhooks = webhooks

    async def tell(self, order: Placed) -> None:
        """Raises the first error, after everybody was told who would listen."""
        failed: SpringtideError | Refused | None = None
        for say in self._said(order):
            try:
                await say()
            except (SpringtideError, Refused) as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _said(self, order: Placed) -> list[Tell]:
        if order.confirmed_at is None:
            return [partial(self._tell_failed if order.state == "failed" else self._tell_cancelled, order)]
        if order.state == "confirmed":
            said: list[Tell] = [partial(self._tell_confirmed, order), partial(self._tell_bought, order)]
            for seller in order.sellers:
                said += [partial(self._tell_sale, order, seller), partial(self._tell_sold, order, seller)]
                said.append(partial(self._tell_shipped, order, seller))
                said.append(partial(self._tell_programs, order, seller))
            return said
        said = [partial(self._tell_cancelled, order), partial(self._tell_undone, order)]
        for seller in order.sellers:
            said += [partial(self._tell_sale, order, seller), partial(self._tell_sold, order, seller)]
            said.append(partial(self._tell_given_back, order, seller))
            said.append(partial(self._tell_programs, order, seller))
        return said

    async def _tell_confirmed(self, order: Placed) -> None:
        data = {"total": str(order.money), "titles": await self._titles(order.lines)}
        await self._notify(order, order.buyer_id, "order_confirmed", data)

    async def _tell_failed(self, order: Placed) -> None:
        says = "" if order.reason is None else order.reason.says
        data = {"reason": says, "titles": await self._titles(order.lines)}
        await self._notify(order, order.buyer_id, "order_failed", data)

    async def _tell_cancelled(self, order: Placed) -> None:
        back = Money(0, order.currency)
        for charge in await self._payments.charges([order.id]):
            back = charge.refunded
        data = {"money": reasons.given_back(back), "titles": await self._titles(order.lines)}
        await self._notify(order, order.buyer_id, "order_cancelled", data)

    async def _tell_shipped(self, order: Placed, seller: int) -> None:
        sale = order.sale(seller)
        if sale.shipped_at is not None:
            data = {"titles": await self._titles(sale.lines)}
            await self._notify(order, order.buyer_id, "order_shipped", data, part=f"-{seller}")

    async def _tell_sale(self, order: Placed, seller: int) -> None:
        sale = order.sale(seller)
        data = {
            "actor": str(order.buyer_id),
            "total": str(sale.total),
            "titles": await self._titles(sale.lines),
        }
        kind: Kind = "sale_cancelled" if sale.state == "cancelled" else "sale"
        await self._notify(order, seller, kind, data)

    async def _notify(
        self, order: Placed, recipient: int, kind: Kind, data: dict[str, str], *, part: str = ""
    ) -> None:
        notice = Notice(
            recipient=recipient,
            kind=kind,
            key=f"order-{order.id}-{kind}{part}",
            data={"order": str(order.id), **data},
            link="/selling/sales" if kind in ("sale", "sale_cancelled") else f"/orders/{order.id}",
        )
        await self._notifications.notify(notice)

    async def _tell_bought(self, order: Placed) -> None:
        listings = [line.listing_id for line in order.lines]
        await self._recommendations.bought(order.id, order.buyer_id, listings)

    async def _tell_undone(self, order: Placed) -> None:
        await self._recommendations.undone(order.id)

    async def _tell_sold(self, order: Placed, seller: int) -> None:
        sale = order.sale(seller)
        lines = [
            dashboard.SaleLine(
                listing_id=line.listing_id, title=line.title or GONE, quantity=line.quantity, price=line.price
            )
            for line in sale.lines
        ]
        await self._dashboard.sold(
            dashboard.Sale(order_id=order.id, seller=seller, at=sale.sold_at, lines=lines)
        )

    async def _tell_given_back(self, order: Placed, seller: int) -> None:
        await self._dashboard.undone(order.id, seller, order.updated_at)

    async def _tell_programs(self, order: Placed, seller: int) -> None:
        """The numbers are those of what can follow what; each is told once."""
        sale = order.sale(seller)
        data, subject = _sold(sale), f"order {order.id}"
        news = [News(type="order.confirmed", subject=subject, number=1, at=sale.sold_at, data=data)]
        if sale.shipped_at is not None:
            news.append(News(type="order.shipped", subject=subject, number=2, at=sale.shipped_at, data=data))
        if sale.state == "cancelled":
            at = order.updated_at
            news.append(News(type="order.cancelled", subject=subject, number=3, at=at, data=data))
        await self._webhooks.tell(seller, news)

    async def _titles(self, lines: Sequence[OrderLine]) -> str:
        """One per line. An order whose stock was never reserved has none of its own."""
        unknown = [line.listing_id for line in lines if line.title is None]
        found = await self._catalog.listings(unknown) if unknown else []
        titles = {listing.id: listing.title for listing in found}
        said = (" ".join((line.title or titles.get(line.listing_id, GONE)).split()) for line in lines)
        return "\n".join(said)[:TITLES_LENGTH]


def _sold(sale: Sale) -> SoldOrder:
    return SoldOrder(
        order_id=sale.order_id,
        state=sale.state,
        lines=[
            SoldLine(listing_id=line.listing_id, title=line.title, quantity=line.quantity, price=line.price)
            for line in sale.lines
        ],
        total=sale.total,
        sold_at=sale.sold_at,
        shipped_at=sale.shipped_at,
    )
