"""Carts, orders and sales, over the module's own tables, the catalog and the payments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from market.catalog.api import Catalog
from market.dashboard.api import Dashboard
from market.faults import Conflict, Invalid, NotFound, Refused, Stale
from market.moments import moment
from market.money import Money
from market.notifications.api import Notifications
from market.orders import reasons, rules, saga
from market.orders.api import Cart, Disagreements, NewOrder, Order, OrderPage, Sale, SalePage, WantedLine
from market.orders.comparing import compare
from market.orders.jobs import Advance
from market.orders.record import Placed
from market.orders.settings import OrderSettings
from market.orders.steps import STEPS, steps
from market.orders.store import CartRow, OrderStore
from market.orders.telling import Teller
from market.payments.api import Payments
from market.recommendations.api import Recommendations
from market.webhooks.api import Webhooks
from springtide.clock import Clock
from springtide.context import RequestContext, activate, current
from springtide.db.idempotency import Answer, Idempotency, Once
from springtide.errors import InvalidCursor, JobFailed, SpringtideError
from springtide.jobs import Run
from springtide.services import ModuleContext

__all__ = ["ADVANCE_EVERY", "OrderService", "build"]

_log = logging.getLogger(__name__)

ADVANCE_EVERY = 2.0
"""Seconds between two looks for orders that somebody should go on with."""

BATCH = 100
AT_ONCE = 8
TURN = 10.0
"""How many orders one look takes, how many together, and the seconds that each may have."""

MAX_PAUSE = 60.0
"""The longest time between two looks at an order that makes no progress, in seconds."""

MARGIN = 0.5
"""Seconds of a request that are kept for its answer: with less left, no further step is begun."""

NO_CURSOR = "is no cursor of this list"


def build(context: ModuleContext) -> OrderService:
    settings: OrderSettings = context.settings or OrderSettings()
    return OrderService(
        OrderStore(context.db, clock=context.clock, advance=Advance),
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
    """Implements `market.orders.api.Orders`."""

    def __init__(
        self,
        store: OrderStore,
        *,
        catalog: Catalog,
        payments: Payments,
        teller: Teller,
        keys: Idempotency,
        settings: OrderSettings,
        clock: Clock,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._payments = payments
        self._teller = teller
        self._keys = keys
        self._pay_within = timedelta(seconds=settings.pay_within)
        self._clock = clock
        self._steps = steps(catalog, payments, hold_seconds=settings.hold_seconds, now=lambda: moment(clock))

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
            order = await self._store.lock(tx, id)
            if order is None or order.buyer_id != buyer:
                raise NotFound("order")
            if order.state == "failed":
                raise Conflict("order", "has failed: there is nothing to cancel")
            if any(line.shipped_at is not None for line in order.lines):
                raise Conflict("order", "is on its way: a part of it has been shipped")
            if order.state not in ("cancelling", "cancelled"):
                await self._store.move_in(tx, order, saga.turn(reasons.BUYER, len(STEPS)))
            return id

        await self._once(once, id, effect)
        return (await self._go_on(await self._must_find(id))).shown()

    async def ship(self, id: int, seller: int, once: Once | None = None) -> Sale:
        _check_id(id)

        async def effect(tx: Any) -> int:
            order = await self._store.lock(tx, id)
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

    async def reconcile(self) -> Disagreements:
        return await compare(self._store, self._catalog, self._payments)

    async def advance(self, job: Advance, run: Run) -> None:
        """The job: what is left to do and to tell."""
        order = await self._store.find(job.order_id)
        if order is None:
            raise JobFailed(f"there is no order {job.order_id}")
        await self._finish(order)

    async def advance_due(self) -> None:
        """For the workers, periodically: orders whose charge is pending, and those that somebody left."""
        slots = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for id, tries in await self._store.due(BATCH):
                group.create_task(self._take(id, tries, slots))

    async def _take(self, id: int, tries: int, slots: asyncio.Semaphore) -> None:
        async with slots:
            with activate(RequestContext(deadline=self._clock.monotonic() + TURN)):
                try:
                    if await self._store.claim(id, tries, min(2.0 ** min(tries, 20), MAX_PAUSE)):
                        await self._finish(await self._must_find(id))
                except (SpringtideError, Refused) as error:
                    _log.warning("order %d is not finished: %r", id, error)

    async def _finish(self, order: Placed) -> None:
        order = await saga.run(self._steps, order, self._store, self._in_time)
        if order.at_end and order.due_at is not None:
            await self._tell(order)

    async def _tell(self, order: Placed) -> None:
        if order.confirmed_at is not None:
            for seller in order.sellers:
                await self._store.put_sale(order.sale(seller))
        await self._teller.tell(order)
        await self._store.told(order)

    async def _go_on(self, order: Placed) -> Placed:
        """As far as the request's time goes; what is in the way of it now is the workers' afterwards."""
        try:
            return await saga.run(self._steps, order, self._store, self._in_time)
        except (SpringtideError, Refused) as error:
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
        """In one transaction: the order, and the cart that it empties; or the order that there was."""
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
        return await self._store.insert(tx, id, buyer, new, lines, self._pay_within)

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
        found = [one for one in await self._catalog.listings([listing_id]) if one.status in rules.ON_SALE]
        if not found:
            raise NotFound("listing")
        now = found[0].price
        if price is not None and price.currency != now.currency:
            raise Conflict("currency", f"of the listing is {now.currency}")
        return now if price is None else price

    async def _shown(self, cart: CartRow) -> Cart:
        ids = [line.listing_id for line in cart.lines]
        listings = await self._catalog.listings(ids) if ids else []
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
