"""Carts, orders and sales, over the module's own tables, the catalog and the payments."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from market.catalog.api import Catalog
from market.dashboard.api import Dashboard
from market.faults import Conflict, Invalid, NotFound, Refused, Stale
from market.moments import moment
from market.money import Money, total
from market.notifications.api import Notifications
from market.orders import adopting, reasons, rules
from market.orders.api import (
    Cart,
    Disagreements,
    NewOrder,
    Order,
    OrderLine,
    OrderPage,
    Sale,
    SalePage,
    WantedLine,
)
from market.orders.comparing import compare
from market.orders.jobs import Advance, Tell
from market.orders.record import Placed
from market.orders.settings import OrderSettings
from market.orders.steps import PLACE, SHIPPED, Placing
from market.orders.store import CartRow, OrderStore
from market.orders.telling import Teller
from market.payments.api import Payments
from market.recommendations.api import Recommendations
from market.webhooks.api import Webhooks
from springtide.clock import Clock
from springtide.context import current
from springtide.db.idempotency import Answer, Idempotency, Once
from springtide.errors import InvalidCursor, JobFailed, SpringtideError
from springtide.flows import Flows
from springtide.jobs import Run
from springtide.services import ModuleContext

__all__ = ["OrderService", "build"]

_log = logging.getLogger(__name__)

HOLD = 5.0
"""Seconds after which workers go on with an order whose request may have died."""

MARGIN = 0.5
"""Seconds of a request that are kept for its answer: with less left, no further step is begun."""

NO_CURSOR = "is no cursor of this list"


def build(context: ModuleContext) -> OrderService:
    settings: OrderSettings = context.settings or OrderSettings()
    return OrderService(
        OrderStore(context.db, clock=context.clock),
        flows=context.flows,
        catalog=context.service(Catalog),
        payments=context.service(Payments),
        teller=Teller(
            catalog=context.service(Catalog),
            payments=context.service(Payments),
            notifications=context.service(Notifications),
            recommendations=context.service(Recommendations),
            dashboard=context.service(Dashboard),
            webhooks=context.service(Webhooks),
        ),
        keys=Idempotency(context.db, sink=context.sink),
        settings=settings,
        clock=context.clock,
    )


class OrderService:
    """Implements `market.orders.api.Orders`. What the steps use (`steps.py`) has no underscore."""

    def __init__(
        self,
        store: OrderStore,
        *,
        flows: Flows,
        catalog: Catalog,
        payments: Payments,
        teller: Teller,
        keys: Idempotency,
        settings: OrderSettings,
        clock: Clock,
    ) -> None:
        self.catalog = catalog
        self.payments = payments
        self.hold_seconds = settings.hold_seconds
        self._store = store
        self._flows = flows
        self._teller = teller
        self._keys = keys
        self._pay_within = timedelta(seconds=settings.pay_within)
        self._clock = clock

    def now(self) -> datetime:
        return moment(self._clock)

    async def cart(self, buyer: int) -> Cart:
        return await self._shown(await self._store.cart(buyer))

    async def put(self, buyer: int, listing_id: int, quantity: int, price: Money | None = None) -> Cart:
        rules.check_put(listing_id, quantity, price)
        seen = await self._seen(listing_id, price) if quantity > 0 else None

        def change(lines: list[WantedLine]) -> list[WantedLine]:
            if seen is None:
                return [line for line in lines if line.listing_id != listing_id]
            return rules.with_line(lines, WantedLine(listing_id=listing_id, quantity=quantity, price=seen))

        return await self._shown(await self._store.change_cart(buyer, change))

    async def place(self, buyer: int, new: NewOrder, once: Once | None = None) -> Order:
        new = rules.check_new(new)
        fresh = await self._store.new_id(buyer)

        made: list[Placed] = []

        async def effect(tx: Any) -> int:
            made.append(await self._insert(tx, fresh, buyer, new))
            return made[0].id

        id = await self._once(once, buyer, effect)
        order = made[0] if made else await self._must_find(id)
        return (await self._go_on(order)).shown()

    async def order(self, id: int, viewer: int) -> Order:
        order = await self._must_find(id)
        if order.buyer_id == viewer:
            return order.shown()
        if order.confirmed_at is None or not order.of(viewer):
            raise NotFound("order")
        return order.shown_to(viewer)

    async def history(self, buyer: int, limit: int, after: str | None) -> OrderPage:
        rules.check_limit(limit)
        try:
            return await self._store.history(buyer, limit, after)
        except InvalidCursor as error:
            raise Invalid({"after": [NO_CURSOR]}) from error

    async def sales(self, seller: int, limit: int, after: str | None) -> SalePage:
        rules.check_limit(limit)
        try:
            return await self._store.sales(seller, limit, after)
        except InvalidCursor as error:
            raise Invalid({"after": [NO_CURSOR]}) from error

    async def cancel(self, id: int, buyer: int, once: Once | None = None) -> Order:
        _check_id(id)

        async def effect(tx: Any) -> int:
            order = await self._store.find_in(tx, id)
            if order is None or order.buyer_id != buyer:
                raise NotFound("order")
            if order.state == "failed":
                raise Conflict("order", "has failed: there is nothing to cancel")
            if order.state not in ("cancelling", "cancelled"):
                order.check_not_shipped()
                flow = order.flow or await adopting.begin_last(self._store, self._flows, tx, id)
                if not await self._flows.cancel(tx, flow, reasons.BUYER.says, hold=HOLD):
                    raise Conflict("order", "cannot be cancelled any more")
            return id

        await self._once(once, id, effect)
        return (await self._go_on(await self._must_find(id))).shown()

    async def ship(self, id: int, seller: int, once: Once | None = None) -> Sale:
        _check_id(id)

        async def effect(tx: Any) -> int:
            known = await self._store.find_in(tx, id)
            if known is not None and known.flow is not None and not known.shipped:
                await self._flows.send(tx, SHIPPED, str(id))
            order = await self._store.find_in(tx, id, lock=True)
            if order is None or order.confirmed_at is None or not order.of(seller):
                raise NotFound("order")
            if order.state != "confirmed":
                raise Conflict("order", "is cancelled: do not send it")
            if any(line.shipped_at is None for line in order.of(seller)):
                await self._store.ship(tx, order, seller)
            return id

        await self._once(once, id, effect)
        sale = (await self._must_find(id)).sale(seller)
        await self._store.put_sale(sale)
        return sale

    async def payment_known(self, id: int) -> None:
        order = await self._store.find(id)
        if order is not None and order.flow is not None and order.state == "awaiting_payment":
            async with self._store.write(id) as tx:
                await self._flows.wake(tx, order.flow)

    async def reconcile(self) -> Disagreements:
        return await compare(self._store, self.catalog, self.payments)

    async def tell(self, job: Tell, run: Run) -> None:
        """The job: everybody hears what became of it. One that is not at its end will have another job."""
        order = await self._store.find(job.order_id)
        if order is None:
            raise JobFailed(f"there is no order {job.order_id}")
        if not order.at_end:
            return
        if order.confirmed_at is not None:
            for seller in order.sellers:
                await self._store.put_sale(order.sale(seller))
        await self._teller.tell(order)

    async def adopt(self) -> None:
        """For the workers, periodically: what the release before has begun."""
        await adopting.adopt_due(self, self._store, self._flows)

    async def advance(self, job: Advance, run: Run) -> None:
        """The job of the release before: it goes on with one order."""
        await adopting.adopt(self, self._store, self._flows, job.order_id)

    async def _go_on(self, order: Placed) -> Placed:
        """As far as the request's time goes; what is in the way of it now is the workers' afterwards."""
        if order.at_end or order.flow is None:
            return order
        try:
            await self._flows.drive(order.id, order.flow, self, more=self._in_time)
        except (SpringtideError, Refused, TimeoutError) as error:
            _log.warning("order %d goes on later: %r", order.id, error)
        try:
            return await self._must_find(order.id)
        except SpringtideError:
            return order

    def _in_time(self) -> bool:
        context = current()
        left = None if context is None else context.remaining(self._clock.monotonic())
        return left is None or left > MARGIN

    async def _insert(self, tx: Any, id: int, buyer: int, new: NewOrder) -> Placed:
        """In one transaction: the order, its workflow, the cart that it empties; or the order there was."""
        lines = new.lines
        if new.cart_version is not None:
            cart = await self._store.lock_cart(tx, buyer)
            made = await self._store.of_cart(tx, buyer, new.cart_version)
            if made is not None:
                return made
            if cart.version != new.cart_version:
                raise Stale("cart")
            if not cart.lines:
                raise Conflict("cart", "is empty")
            lines = cart.lines
            await self._store.empty_cart(tx, buyer)
        assert lines is not None
        money = total((line.price * line.quantity for line in lines), lines[0].price.currency)
        kept = [
            OrderLine(listing_id=line.listing_id, quantity=line.quantity, price=line.price)
            for line in sorted(lines, key=lambda line: line.listing_id)
        ]
        at = self.now()
        placing = Placing(
            id=id, lines=kept, total=money, source=new.source, placed_at=at, pay_by=at + self._pay_within
        )
        flow = await self._flows.start(tx, PLACE, placing, key=str(id), hold=HOLD)
        return await self._store.insert(tx, id, buyer, new, kept, money, flow, placing.pay_by, at)

    async def _once(self, once: Once | None, home: int, effect: Callable[[Any], Awaitable[int]]) -> int:
        """The id that `effect` answers, or answered when this request came before."""
        if once is None:
            async with self._store.write(home) as tx:
                return await effect(tx)

        async def kept(tx: Any) -> Answer:
            return Answer(200, body=str(await effect(tx)).encode())

        outcome = await self._keys.run(once, kept, home=home)
        return int(outcome.answer.body)

    async def _seen(self, listing_id: int, price: Money | None) -> Money:
        """The price that goes into the cart. Raises NotFound, Conflict."""
        found = [one for one in await self.catalog.listings([listing_id]) if one.status in rules.ON_SALE]
        if not found:
            raise NotFound("listing")
        now = found[0].price
        if price is not None and price.currency != now.currency:
            raise Conflict("currency", f"of the listing is {now.currency}")
        return now if price is None else price

    async def _shown(self, cart: CartRow) -> Cart:
        ids = [line.listing_id for line in cart.lines]
        listings = await self.catalog.listings(ids) if ids else []
        return rules.cart_of(cart.version, cart.lines, {listing.id: listing for listing in listings})

    async def _must_find(self, id: int) -> Placed:
        _check_id(id)
        order = await self._store.find(id)
        if order is None:
            raise NotFound("order")
        return order


def _check_id(id: int) -> None:
    if not rules.is_id(id):
        raise NotFound("order")
