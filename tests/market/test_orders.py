"""Placing an order: what is sold is paid once, what is not sold costs nothing, whoever fails when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from msgspec import structs
from tests.market.catalog import ANNA, BERT
from tests.market.harness import one_platform
from tests.market.ordering import HOME, Shop, buyer, once, shop
from tests.market.paying import CARD, euros
from tests.market.working import work

from market.catalog import api as catalog
from market.catalog.api import ListingChanges, NewShop
from market.faults import Conflict, Invalid, NotFound, Stale
from market.money import Money
from market.orders import rules
from market.orders.api import MAX_LINES, MAX_QUANTITY, NewOrder, Order, WantedLine
from market.orders.steps import PLACE
from springtide.clock import SystemClock
from springtide.context import RequestContext, activate
from springtide.errors import IdempotencyInFlight, StepRefused, Unavailable
from springtide.flows import Flows, FlowUpkeep, Step, StepRun
from springtide.jobs import operating
from springtide.telemetry._redact import redact_value

pytestmark = one_platform

STEPS = [step for step in PLACE.steps if isinstance(step, Step)]

RUN = StepRun(flow=UUID(int=0), key="k/undo", do_key="k", attempt=1, max_attempts=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _shop_of_1(
    _databases: list[str], home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shop]:
    async with shop(_databases[:1], home, tmp_path_factory.mktemp("one")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _shop_of_2(
    _databases: list[str], home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shop]:
    async with shop(_databases, home, tmp_path_factory.mktemp("two")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def there(request: pytest.FixtureRequest, urls: list[str], _shop_of_1: Shop, _shop_of_2: Shop) -> Shop:
    """Two sellers and a provider that is well; nothing else."""
    made = _shop_of_1 if len(urls) == 1 else _shop_of_2
    await made.open()
    return made


async def test_an_order_is_paid_once_and_sold(there: Shop) -> None:
    """Of two sellers, on any shards; each line remembers what it was."""
    lamp, book = await there.listing(), await there.listing(BERT, title="A book")
    ada = buyer()
    order = await there.place(ada, lamp, book, quantity=2)
    assert (order.state, order.reason) == ("confirmed", None)
    assert order.total == lamp.price * 4
    assert {(line.seller_id, line.title) for line in order.lines} == {(ANNA, "A lamp"), (BERT, "A book")}
    assert await there.left(lamp) == await there.left(book) == (3, 0)
    assert len((await there.provider.journal())["charges"]) == 1
    await there.work()
    assert await there.orders.order(order.id, ada) == order
    assert await there.check()


async def test_who_shows_the_workflow_of_an_order_hides_what_pays_for_it(there: Shop) -> None:
    order = await there.place(buyer(), await there.listing())
    data = (await there.flow(order.id)).data
    assert CARD in str(data) and CARD not in str(redact_value("", data))
    assert (await there.placing(order.id)).source == CARD


async def test_a_stock_of_one_goes_to_one_of_a_hundred_buyers(there: Shop) -> None:
    """One is charged, ninety-nine are told that nothing is left, and nobody else has paid."""
    lamp = await there.listing(stock=1)

    async def insist() -> Order:
        ada, click = buyer(), once()
        while True:  # a busy market turns away, and whoever comes again with the same key is served once
            try:
                return await there.place(ada, lamp, by=click)
            except (Unavailable, IdempotencyInFlight):
                await asyncio.sleep(0.1)

    placed = await asyncio.gather(*(insist() for _ in range(100)))
    await there.work()
    ended = [await there.orders.order(order.id, order.buyer_id) for order in placed]
    assert sorted(order.state for order in ended) == ["confirmed"] + ["failed"] * 99
    for order in ended:
        if order.reason is not None:
            assert order.reason.code == "out_of_stock"
            assert [(fault.listing_id, fault.available) for fault in order.reason.faults] == [(lamp.id, 0)]
    assert await there.left(lamp) == (0, 0)
    assert len((await there.provider.journal())["charges"]) == 1
    assert await there.check()


async def test_a_request_that_is_sent_again_is_the_same_order(there: Shop) -> None:
    """At once (a double click) and later; the answer is the order as it is by then."""
    lamp, ada, click = await there.listing(stock=9), buyer(), once()
    answers = await asyncio.gather(
        *(there.place(ada, lamp, by=click) for _ in range(4)), return_exceptions=True
    )
    ids = {answer.id for answer in answers if isinstance(answer, Order)}
    assert len(ids) == 1
    assert all(isinstance(answer, Order | IdempotencyInFlight) for answer in answers)
    await there.orders.cancel(ids.copy().pop(), ada)
    again = await there.place(ada, lamp, by=click)
    assert ({again.id}, again.state) == (ids, "cancelled")
    await there.work()
    assert await there.left(lamp) == (9, 0)
    assert await there.check()


async def test_one_version_of_a_cart_makes_one_order(there: Shop) -> None:
    """Two tabs, and the back button, each with a key of its own; a cart that has changed is refused."""
    lamp, book, ada = await there.listing(stock=9), await there.listing(BERT, stock=9), buyer()
    await there.orders.put(ada, lamp.id, 2)
    stale = (await there.orders.put(ada, lamp.id, 3)).version - 1
    cart = await there.orders.put(ada, book.id, 1)
    with pytest.raises(Stale):
        await there.place(ada, cart_version=stale)
    tabs = await asyncio.gather(*(there.place(ada, cart_version=cart.version) for _ in range(4)))
    assert len({order.id for order in tabs}) == 1
    assert (await there.place(ada, cart_version=cart.version)).id == tabs[0].id
    empty = await there.orders.cart(ada)
    assert (empty.lines, empty.total, empty.orderable) == ([], None, False)
    with pytest.raises(Conflict, match="is empty"):
        await there.place(ada, cart_version=empty.version)
    await there.work()
    assert await there.left(lamp) == (6, 0)
    assert await there.check()


async def test_a_declined_order_gives_everything_back_and_may_be_tried_again(there: Shop) -> None:
    """The stock, and the cart as it was; another card is another order."""
    lamp, ada = await there.listing(stock=2), buyer()
    cart = await there.orders.put(ada, lamp.id, 2)
    failed = await there.place(ada, source="card_no_funds", cart_version=cart.version)
    assert failed.state == "failed"
    assert failed.reason is not None
    assert (failed.reason.code, failed.reason.decline_code) == ("declined", "insufficient_funds")
    assert await there.left(lamp) == (2, 0)
    again = await there.orders.cart(ada)
    assert (again.lines, again.version > cart.version) == (cart.lines, True)
    assert (await there.place(ada, cart_version=cart.version)).id == failed.id
    assert (await there.place(ada, cart_version=again.version)).state == "confirmed"
    await there.work()
    assert await there.check()


async def test_a_cart_that_was_filled_again_is_not_overwritten_by_a_failed_order(there: Shop) -> None:
    lamp, book, ada = await there.listing(), await there.listing(), buyer()
    cart = await there.orders.put(ada, lamp.id, 1)
    await there.provider.behave(down=True)
    assert (await there.place(ada, cart_version=cart.version)).state == "awaiting_payment"
    await there.orders.put(ada, book.id, 1)
    await there.expire()
    await there.provider.behave()
    await there.work()
    assert [line.listing_id for line in (await there.orders.cart(ada)).lines] == [book.id]
    assert await there.check()


async def test_a_price_that_changed_is_not_charged(there: Shop) -> None:
    """The order fails with the new price; the cart shows both, and buys once the buyer has seen it."""
    lamp, ada = await there.listing(), buyer()
    cart = await there.orders.put(ada, lamp.id, 1)
    dearer = await there.catalog.update(lamp.id, ANNA, ListingChanges(price=euros(1300)), None)
    failed = await there.place(ada, cart_version=cart.version)
    assert failed.reason is not None
    assert failed.reason.code == "price_changed"
    assert [fault.price for fault in failed.reason.faults] == [dearer.price]
    shown = await there.orders.cart(ada)
    line = shown.lines[0]
    assert (line.change, line.price, line.price_now) == ("price_changed", lamp.price, dearer.price)
    assert not shown.orderable
    seen = await there.orders.put(ada, lamp.id, 1)
    assert seen.orderable
    assert (await there.place(ada, cart_version=seen.version)).total == dearer.price
    await there.work()
    assert await there.check()


async def test_a_cart_says_what_is_true_now(there: Shop) -> None:
    lamp, book, vase = [await there.listing(stock=3) for _ in range(3)]
    ada = buyer()
    for listing, quantity in ((lamp, 2), (book, 3), (vase, 3)):
        await there.orders.put(ada, listing.id, quantity)
    assert (await there.orders.cart(ada)).orderable
    await there.catalog.adjust(book.id, ANNA, -2, "broken")
    await there.catalog.adjust(vase.id, ANNA, -3, "broken")
    changes = {line.listing_id: line.change for line in (await there.orders.cart(ada)).lines}
    assert changes == {lamp.id: "same", book.id: "fewer_left", vase.id: "sold_out"}
    await there.catalog.update(vase.id, ANNA, ListingChanges(status="withdrawn"), None)
    line = (await there.orders.cart(ada)).lines[2]
    assert (line.change, line.price_now, line.available, line.title) == ("not_for_sale", None, 0, None)
    with pytest.raises(NotFound):
        await there.orders.put(ada, vase.id, 1)
    cart = await there.orders.put(ada, vase.id, 0)
    assert (await there.orders.put(ada, vase.id, 0)).version == cart.version
    failed = await there.place(ada, cart_version=cart.version)
    assert failed.reason is not None
    assert failed.reason.code == "out_of_stock"


async def test_an_order_has_one_currency(there: Shop) -> None:
    carl = buyer()
    await there.catalog.open_shop(carl, NewShop(name="Carl's", currency="USD"))
    lamp = await there.listing()
    dollars = await there.listing(carl, price=Money(900, "USD"))
    ada = buyer()
    await there.orders.put(ada, lamp.id, 1)
    with pytest.raises(Conflict, match="of the cart is EUR and this costs USD"):
        await there.orders.put(ada, dollars.id, 1)
    with pytest.raises(Invalid, match="must be one in an order, these lines have EUR and USD"):
        await there.place(ada, lamp, dollars)
    lying = [WantedLine(listing_id=dollars.id, quantity=1, price=euros(900))]
    failed = await there.orders.place(ada, NewOrder(source=CARD, address=HOME, lines=lying), once())
    assert failed.reason is not None
    assert (failed.reason.code, failed.reason.faults[0].price) == ("price_changed", dollars.price)
    await there.work()
    assert await there.check()


@pytest.mark.parametrize("quantity", [-1, 10_001, 1 << 40])
async def test_quantities_that_nobody_could_buy_are_refused(there: Shop, quantity: int) -> None:
    lamp = await there.listing()
    with pytest.raises(Invalid, match="quantity"):
        await there.orders.put(buyer(), lamp.id, quantity)
    with pytest.raises(Invalid, match="quantity"):
        await there.place(buyer(), lamp, quantity=quantity)
    with pytest.raises(Invalid, match="quantity"):
        await there.place(buyer(), lamp, quantity=0)


async def test_a_cart_and_an_order_have_a_hundred_lines_at_most(there: Shop) -> None:
    lines = [WantedLine(listing_id=(n << 10) + 5, quantity=1, price=euros(1)) for n in range(1, 102)]
    with pytest.raises(Invalid, match="too many"):
        await there.orders.place(buyer(), NewOrder(source=CARD, address=HOME, lines=lines), once())
    with pytest.raises(Conflict, match="full"):
        rules.with_line(lines[:100], lines[100])
    assert MAX_LINES <= catalog.MAX_LINES
    assert MAX_QUANTITY <= catalog.MAX_QUANTITY


@pytest.mark.parametrize(
    "trouble",
    [
        {"down": True}, {"failure_rate": 1.0}, {"lost_answer_rate": 1.0, "webhooks_held": True},
        {"webhook_first": True, "deliveries": 3},
    ],
    ids=str,
)  # fmt: skip
async def test_an_order_survives_what_the_provider_does(there: Shop, trouble: dict[str, Any]) -> None:
    """Its stock is held until the payment is known; then it is confirmed without anybody asking."""
    lamp, ada = await there.listing(), buyer()
    await there.provider.behave(**trouble)
    order = await there.place(ada, lamp)
    assert order.state in ("awaiting_payment", "confirmed")
    if order.state == "awaiting_payment":
        assert await there.left(lamp) == (5, 1)
    await there.provider.behave()
    await there.work()
    assert (await there.orders.order(order.id, ada)).state == "confirmed"
    assert await there.left(lamp) == (4, 0)
    assert len((await there.provider.journal())["charges"]) == 1
    assert await there.check()


async def test_a_slow_provider_costs_no_more_than_the_requests_time(
    there: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is that the payment is awaited; the order goes on by itself."""
    monkeypatch.setattr("market.payments.client.RESERVE", 5.0)  # a busy machine writes slowly
    lamp, ada = await there.listing(), buyer()
    await there.provider.behave(delay={"seconds": 30})
    with activate(RequestContext(deadline=SystemClock().monotonic() + 7.0)) as context:
        order = await there.place(ada, lamp)
        assert (context.remaining(SystemClock().monotonic()) or 0) > 0
    assert order.state in ("placing", "awaiting_payment")
    await there.provider.behave()
    await there.work()
    assert (await there.orders.order(order.id, ada)).state == "confirmed"
    assert await there.check()


async def test_an_order_that_is_not_paid_in_time_is_given_up(there: Shop) -> None:
    """Its stock is free again, and its charge can never be made."""
    lamp, ada = await there.listing(stock=1), buyer()
    await there.provider.behave(down=True)
    order = await there.place(ada, lamp)
    assert order.state == "awaiting_payment"
    await there.expire()
    await work(there.platform, ["orders"])
    given_up = await there.orders.order(order.id, ada)
    assert given_up.reason is not None
    assert (given_up.state, given_up.reason.code) == ("failed", "expired")
    assert await there.left(lamp) == (1, 0)
    await there.provider.behave()
    await there.work()
    assert (await there.provider.journal())["charges"] == []
    with pytest.raises(Conflict):
        await there.payments.charge(order.id, order.total, CARD)
    assert await there.check()


async def test_what_was_paid_for_stock_that_is_lost_is_given_back(there: Shop) -> None:
    """The reservation ends behind the order's back while the charge is pending."""
    lamp, ada = await there.listing(), buyer()
    await there.provider.behave(down=True)
    order = await there.place(ada, lamp)
    await there.catalog.release(order.id)
    await there.provider.behave()
    await there.work()
    ended = await there.orders.order(order.id, ada)
    assert ended.state == "failed"
    found = await there.payments.status(order.id)
    assert found is not None
    assert (found.charge.state, found.charge.refunded) == ("succeeded", order.total)
    assert await there.left(lamp) == (5, 0)
    assert await there.check()


async def test_a_cancelled_order_is_given_back_and_restocked(there: Shop) -> None:
    lamp, ada = await there.listing(), buyer()
    order = await there.place(ada, lamp, quantity=2)
    cancelled = await asyncio.gather(*(there.orders.cancel(order.id, ada) for _ in range(5)))
    await there.work()
    ended = await there.orders.order(order.id, ada)
    assert ended.reason is not None
    assert (ended.state, ended.reason.code) == ("cancelled", "buyer")
    assert {one.state for one in cancelled} <= {"cancelling", "cancelled"}
    assert await there.left(lamp) == (5, 0)
    assert len((await there.provider.journal())["refunds"]) == 1
    with pytest.raises(NotFound):
        await there.orders.cancel(order.id, buyer())
    failed = await there.place(ada, lamp, source="card_declined")
    with pytest.raises(Conflict, match="failed"):
        await there.orders.cancel(failed.id, ada)
    await there.work()
    assert await there.check()


async def test_what_is_shipped_is_not_cancelled(there: Shop) -> None:
    """By any of its sellers; and what is cancelled is not shipped."""
    lamp, book, ada = await there.listing(), await there.listing(BERT), buyer()
    order = await there.place(ada, lamp, book)
    with pytest.raises(NotFound):
        await there.orders.ship(order.id, buyer())
    sale = await there.orders.ship(order.id, ANNA)
    assert (await there.orders.ship(order.id, ANNA), sale.state) == (sale, "shipped")
    with pytest.raises(Conflict, match="shipped"):
        await there.orders.cancel(order.id, ada)
    other = await there.place(ada, lamp)
    await there.orders.cancel(other.id, ada)
    with pytest.raises(Conflict, match="cancelled"):
        await there.orders.ship(other.id, ANNA)
    await there.work()
    assert await there.check()


async def test_what_is_shipped_is_undone_by_nobody(there: Shop) -> None:
    """Neither by an operator nor because the job that ends its flow died: the money stays where it is."""
    lamp, ada = await there.listing(), buyer()
    order = await there.place(ada, lamp)
    await there.orders.ship(order.id, ANNA)
    flows = there.platform.flows("orders")
    assert flows is not None
    flow = await there.flow(order.id)
    with pytest.raises(Conflict, match="shipped"):
        async with there.db.write(order.id) as tx:
            await flows.cancel(tx, flow.id, "a mistake")
    for pool in there.db.pools.values():
        await pool.execute("update orders._job set state = 'dead', error = 'x' where kind like '%.shipped'")
    await FlowUpkeep(flows).tend()
    assert (await there.flow(order.id)).state == "waiting"
    await operating.retry([there.db], operating.Wanted(kinds=["orders.place.shipped"]))
    await there.work()
    assert (await there.flow(order.id)).state == "done"
    assert (await there.orders.order(order.id, ada)).state == "confirmed"
    assert await there.left(lamp) == (4, 0)
    assert await there.check()


async def test_what_an_operator_calls_off_is_not_the_buyers_doing(there: Shop) -> None:
    lamp, ada = await there.listing(), buyer()
    order = await there.place(ada, lamp)
    flows = there.platform.flows("orders")
    assert flows is not None
    async with there.db.write(order.id) as tx:
        assert await flows.cancel(tx, (await there.flow(order.id)).id, "a fraud")
    await there.work()
    ended = await there.orders.order(order.id, ada)
    assert ended.reason is not None
    assert (ended.state, ended.reason.code) == ("failed", "expired")
    assert await there.left(lamp) == (5, 0)
    assert await there.check()


async def test_a_buyer_cancels_in_every_state(there: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun, not paid yet, paid, being undone and undone: it ends cancelled, and nothing is kept."""
    lamp = await there.listing(stock=9)

    async def dead(*arguments: Any, **options: Any) -> None:
        return None

    placed: dict[str, Order] = {"confirmed": await there.place(buyer(), lamp)}
    for state in ("cancelling", "cancelled"):
        placed[state] = order = await there.place(buyer(), lamp)
        with monkeypatch.context() as patch:
            if state == "cancelling":
                patch.setattr(Flows, "drive", dead)
            assert (await there.orders.cancel(order.id, order.buyer_id)).state == state
    with monkeypatch.context() as patch:
        patch.setattr(Flows, "drive", dead)
        placed["placing"] = await there.place(buyer(), lamp)
    await there.provider.behave(down=True)
    placed["awaiting_payment"] = await there.place(buyer(), lamp)
    for state, order in placed.items():
        assert (await there.orders.order(order.id, order.buyer_id)).state == state
        await there.orders.cancel(order.id, order.buyer_id)
    await there.provider.behave()
    await there.work()
    for order in placed.values():
        ended = await there.orders.order(order.id, order.buyer_id)
        assert ended.reason is not None
        assert (ended.state, ended.reason.code) == ("cancelled", "buyer")
    assert await there.left(lamp) == (9, 0)
    journal = await there.provider.journal()
    assert len(journal["charges"]) == len(journal["refunds"]) == 3
    assert await there.check()


async def test_of_who_ships_and_who_cancels_one_is_first(there: Shop) -> None:
    """Never both, and never neither."""
    lamp = await there.listing(stock=9)
    placed = [await there.place(buyer(), lamp) for _ in range(6)]

    async def both(order: Order) -> tuple[bool, bool]:
        said = await asyncio.gather(
            there.orders.ship(order.id, ANNA), there.orders.cancel(order.id, order.buyer_id),
            return_exceptions=True,
        )  # fmt: skip
        assert all(isinstance(one, Conflict) for one in said if isinstance(one, BaseException)), said
        return not isinstance(said[0], BaseException), not isinstance(said[1], BaseException)

    said = await asyncio.gather(*map(both, placed))
    await there.work()
    for order, (shipped, cancelled) in zip(placed, said, strict=True):
        assert shipped != cancelled
        ended = await there.orders.order(order.id, order.buyer_id)
        assert ended.state == ("confirmed" if shipped else "cancelled")
        assert [line.shipped_at is not None for line in ended.lines] == [shipped]
    assert await there.check()


async def test_cancelling_while_it_is_placed_leaves_nothing_half_done(there: Shop) -> None:
    """Whichever is first: in the end it is cancelled, and neither money nor stock is kept."""
    lamp = await there.listing(stock=100)
    await there.provider.behave(delay={"kind": "uniform", "seconds": 0.02})
    people = [buyer() for _ in range(15)]

    async def change_of_mind(ada: int) -> None:
        placing = asyncio.create_task(there.place(ada, lamp))
        while not (found := (await there.orders.history(ada, 1, None)).items):
            await asyncio.sleep(0)
        await there.orders.cancel(found[0].id, ada)
        await placing

    await asyncio.gather(*map(change_of_mind, people))
    await there.work()
    states = [(await there.orders.history(ada, 1, None)).items[0].state for ada in people]
    assert states == ["cancelled"] * len(people)
    assert await there.left(lamp) == (100, 0)
    assert await there.check()


async def test_a_step_that_is_late_meets_its_compensation(there: Shop) -> None:
    """A process that slept through the cancellation reserves, charges and sells nothing any more; nor does
    one that begins after what undoes it, which bears that nothing was ever done."""
    lamp, ada = await there.listing(), buyer()
    await there.provider.behave(down=True)
    order = await there.place(ada, lamp)
    sleeping = await there.placing(order.id)
    await there.orders.cancel(order.id, ada)
    await there.provider.behave()
    await there.work()
    never = structs.replace(sleeping, id=order.id + (1_000_000 << 10))
    for step in reversed(STEPS):
        assert step.undo is not None
        await step.undo(there.service, never, RUN)
    for late in (sleeping, never):
        for step in STEPS:
            with pytest.raises(StepRefused):
                await step.do(there.service, late, RUN)
    assert await there.left(lamp) == (5, 0)
    assert (await there.provider.journal())["charges"] == []


async def test_who_cancels_reads_what_is_given_back(there: Shop) -> None:
    """The sum that was paid; nothing for an order that was never charged."""
    lamp, ada, eve = await there.listing(), buyer(), buyer()
    paid = await there.place(ada, lamp, quantity=2)
    await there.provider.behave(down=True)
    open_ = await there.place(eve, lamp)
    await there.orders.cancel(open_.id, eve)
    await there.provider.behave()
    await there.orders.cancel(paid.id, ada)
    await there.work()

    async def read(person: int) -> str:
        told = (await there.notifications.inbox(person)).items
        return next(notice.text for notice in told if notice.kind == "order_cancelled")

    assert f"You get back: {paid.total}" in await read(ada)
    assert "You pay nothing" in await read(eve)
    assert str(open_.total) not in await read(eve)
    assert await there.check()


async def test_lists_are_of_ones_own(there: Shop) -> None:
    """History and sales in pages; an order shows a seller the own lines, and is nobody else's."""
    lamp, book, ada = await there.listing(stock=50), await there.listing(BERT, stock=50), buyer()
    placed = [await there.place(ada, lamp, book) for _ in range(5)]
    await there.place(buyer(), lamp)
    await there.work()
    found: list[int] = []
    page = await there.orders.history(ada, 2, None)
    while True:
        found += [order.id for order in page.items]
        if page.next is None:
            break
        page = await there.orders.history(ada, 2, page.next)
    assert found == [order.id for order in reversed(placed)]
    sold = await there.orders.sales(ANNA, 4, None)
    assert sold.next is not None
    rest = await there.orders.sales(ANNA, 4, sold.next)
    assert len(sold.items + rest.items) == 6
    assert {line.listing_id for sale in sold.items for line in sale.lines} == {lamp.id}
    seen = await there.orders.order(placed[0].id, BERT)
    assert ([line.listing_id for line in seen.lines], seen.total) == ([book.id], book.price)
    for stranger in (buyer(), 0):
        with pytest.raises(NotFound):
            await there.orders.order(placed[0].id, stranger)
    with pytest.raises(Invalid):
        await there.orders.sales(ANNA, 2, page.next or (await there.orders.history(ada, 2, None)).next)


async def test_everybody_is_told_once_what_became_of_it(there: Shop) -> None:
    """Buyer and sellers, whoever counts sales, and whoever learns from them; also of what is undone."""
    lamp, book = await there.listing(title="A lamp\nof two lines"), await there.listing(BERT)
    ada, eve = buyer(), buyer()
    kept, undone = await there.place(ada, lamp, book), await there.place(ada, lamp)
    await there.place(eve, lamp, source="card_declined")
    await there.work()
    await there.orders.cancel(undone.id, ada)
    await there.orders.ship(kept.id, BERT)
    for _ in range(2):
        await there.tell()
        await there.work()

    async def heard(person: int) -> list[str]:
        return sorted(notice.kind for notice in (await there.notifications.inbox(person)).items)

    assert await heard(ada) == ["order_cancelled", "order_confirmed", "order_confirmed", "order_shipped"]
    assert await heard(eve) == ["order_failed"]
    assert await heard(ANNA) == ["sale", "sale", "sale_cancelled"]
    assert await heard(BERT) == ["sale"]
    today = (await there.dashboard.days(ANNA, 1))[0]
    assert (today.orders, today.refunds, today.revenue) == (2, 1, lamp.price * 2)
    states = {sale.order_id: sale.state for sale in (await there.orders.sales(ANNA, 10, None)).items}
    assert states == {kept.id: "open", undone.id: "cancelled"}


async def test_the_days_of_a_seller_do_not_depend_on_when_they_were_told(there: Shop) -> None:
    """A sale that is cancelled before its job ran counts as one that was cancelled after it."""
    lamp, ada = await there.listing(), buyer()
    order = await there.place(ada, lamp)
    await there.orders.cancel(order.id, ada)
    await there.work()
    today = (await there.dashboard.days(ANNA, 1))[0]
    assert (today.orders, today.revenue) == (1, lamp.price)
    assert (today.refunds, today.refunded) == (1, lamp.price)


async def test_disagreements_are_found(there: Shop) -> None:
    """Each kind is counted when somebody makes it by hand."""
    lamp, ada = await there.listing(stock=9), buyer()
    paid, ended = await there.place(ada, lamp), await there.place(ada, lamp)
    await there.orders.cancel(ended.id, ada)
    await there.work()
    assert await there.check()
    for state, id in (("failed", paid.id), ("confirmed", ended.id)):
        async with there.db.write(id) as tx:
            await tx.execute(
                "update orders.placed set state = $3 where bucket = $1 and id = $2", id & 1023, id, state
            )
    said = await there.disagreements()
    assert (said.confirmed_not_paid, said.confirmed_not_sold) == (1, 1)
    assert (said.ended_still_paid, said.ended_still_held) == (1, 1)
