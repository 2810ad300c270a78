"""Stock is never sold twice and never lost, whoever comes at once and whatever crashes when."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.market.catalog import ANNA, BERT, Market, lines, opened

from market.catalog.api import (
    Ended,
    Line,
    ListingChanges,
    NotForSale,
    NotReserved,
    OutOfStock,
    PriceChanged,
    Reserved,
)
from market.faults import Conflict, Invalid
from market.money import Money
from springtide.topology import PoolSpec

two_shards = pytest.mark.parametrize("shards", [2], ids=["two-shards"], indirect=True)
"""For what cannot happen where all is one transaction."""


@pytest.fixture
async def market(urls: list[str], home: Path) -> AsyncIterator[Market]:
    async with opened(urls, home) as market:
        yield market


@pytest.fixture
async def patient(urls: list[str], home: Path) -> AsyncIterator[Market]:
    """For a crowd on a slow machine: who waits for a connection gets one in the end."""
    async with opened(urls, home, PoolSpec(acquire_timeout=25.0)) as market:
        yield market


async def test_a_stock_of_one_goes_to_one_of_a_hundred(patient: Market) -> None:
    """Exactly one reservation, ninety-nine that are told that nothing is left."""
    market = patient
    lamp = await market.listing(stock=1)
    answers = await asyncio.gather(
        *(market.service.reserve(market.order(bucket * 10), lines(lamp)) for bucket in range(100))
    )
    assert sum(isinstance(answer, Reserved) for answer in answers) == 1
    for answer in answers:
        if isinstance(answer, NotReserved):
            assert answer.faults == [OutOfStock(listing_id=lamp.id, available=0)]
    assert await market.left(lamp) == (1, 1, 0)
    assert (await market.service.listing(lamp.id, None)).status == "sold_out"
    assert await market.check()


async def test_every_step_twice_is_once(market: Market) -> None:
    lamp, book = await market.listing(stock=5), await market.listing(BERT, stock=5)
    order, wanted = market.order(), lines(lamp, book, quantity=2)
    first = await market.service.reserve(order, wanted)
    assert isinstance(first, Reserved)
    assert await market.service.reserve(order, list(reversed(wanted))) == first
    assert await market.left(lamp) == await market.left(book) == (5, 2, 3)
    for _ in range(2):
        await market.service.commit(order)
        assert await market.left(lamp) == await market.left(book) == (3, 0, 3)
    assert await market.service.reserve(order, wanted) == NotReserved(
        order_id=order, faults=[Ended(outcome="committed")]
    )
    with pytest.raises(Conflict):
        await market.service.release(order)
    for _ in range(2):
        await market.service.restock(order)
        assert await market.left(lamp) == await market.left(book) == (5, 0, 5)
    with pytest.raises(Conflict):
        await market.service.commit(order)
    log = (await market.service.movements(lamp.id, ANNA, 10, None)).items
    assert [(one.number, one.kind, one.change, one.on_hand) for one in log] == [
        (3, "return", 2, 5), (2, "sale", -2, 3), (1, "adjustment", 5, 5)
    ]  # fmt: skip
    assert [one.order_id for one in log] == [order, order, None]
    assert await market.check()


async def test_release_twice_gives_back_once(market: Market) -> None:
    lamp = await market.listing(stock=2)
    order = market.order()
    await market.service.reserve(order, lines(lamp, quantity=2))
    assert await market.left(lamp) == (2, 2, 0)
    for _ in range(2):
        await market.service.release(order)
        assert await market.left(lamp) == (2, 0, 2)
    assert (await market.service.listing(lamp.id, None)).status == "active"
    with pytest.raises(Conflict):
        await market.service.commit(order)
    assert await market.check()


async def test_steps_of_one_order_at_once(market: Market) -> None:
    """Reserve, commit and release of the same orders, all at the same time: each ends in one way."""
    goods = [await market.listing(owner, stock=8) for owner in (ANNA, BERT, ANNA, BERT)]
    chance = random.Random(7)
    orders = {market.order(chance.randrange(1024)): chance.sample(goods, 2) for _ in range(12)}

    async def step(name: str, order: int) -> None:
        try:
            if name == "reserve":
                await market.service.reserve(order, lines(*orders[order]))
            else:
                await getattr(market.service, name)(order)
        except Conflict:
            pass  # the other one was first

    steps = [(name, order) for order in orders for name in ("reserve", "reserve", "commit", "release")]
    chance.shuffle(steps)
    await asyncio.gather(*(step(*one) for one in steps))
    assert await market.check()
    market.clock.step(10_000)
    await market.service.sweep()
    assert await market.check()
    assert sum([(await market.left(one))[1] for one in goods]) == 0


async def test_all_lines_or_none(market: Market) -> None:
    """One line that cannot be had, on whichever shard, and every fault of every shard is named."""
    lamp, book = await market.listing(stock=5), await market.listing(BERT, stock=1)
    cheap = await market.listing(BERT, price=Money(100, "EUR"))
    draft = await market.listing(ANNA, status="draft")
    order = market.order()
    wanted = [
        *lines(lamp, book, quantity=2),
        Line(listing_id=cheap.id, quantity=1, price=Money(99, "EUR")),
        *lines(draft),
        Line(listing_id=(99 << 10) | 5, quantity=1, price=Money(1, "EUR")),
    ]
    answer = await market.service.reserve(order, wanted)
    assert isinstance(answer, NotReserved)
    assert sorted(answer.faults, key=lambda fault: fault.listing_id) == sorted(
        [
            OutOfStock(listing_id=book.id, available=1),
            PriceChanged(listing_id=cheap.id, price=Money(100, "EUR")),
            NotForSale(listing_id=draft.id),
            NotForSale(listing_id=(99 << 10) | 5),
        ],
        key=lambda fault: fault.listing_id,
    )
    assert await market.left(lamp) == (5, 0, 5)
    assert await market.service.reserve(order, wanted) == answer
    with pytest.raises(Conflict):
        await market.service.commit(order)
    assert await market.check()


async def test_the_price_is_the_one_that_was_reserved(market: Market) -> None:
    lamp = await market.listing(stock=5)
    order = market.order()
    before = await market.service.reserve(order, lines(lamp))
    changes = ListingChanges(price=Money(9900, "EUR"), title="Dear lamp")
    await market.service.update(lamp.id, ANNA, changes, None)
    assert await market.service.reserve(order, lines(lamp)) == before
    later = await market.service.reserve(market.order(), lines(lamp))
    assert isinstance(later, NotReserved)
    assert later.faults == [PriceChanged(listing_id=lamp.id, price=Money(9900, "EUR"))]
    foreign = [Line(listing_id=lamp.id, quantity=1, price=Money(9900, "USD"))]
    other = await market.service.reserve(market.order(), foreign)
    assert isinstance(other, NotReserved)
    assert other.faults == later.faults


async def test_what_is_withdrawn_is_not_for_sale_but_what_was_promised_is_kept(market: Market) -> None:
    lamp = await market.listing(stock=5)
    order = market.order()
    await market.service.reserve(order, lines(lamp))
    await market.service.update(lamp.id, ANNA, ListingChanges(status="withdrawn"), None)
    answer = await market.service.reserve(market.order(), lines(lamp))
    assert isinstance(answer, NotReserved)
    assert answer.faults == [NotForSale(listing_id=lamp.id)]
    await market.service.commit(order)
    assert await market.left(lamp) == (4, 0, 4)
    assert await market.check()


async def test_an_order_keeps_its_lines(market: Market) -> None:
    lamp = await market.listing(stock=5)
    order = market.order()
    await market.service.reserve(order, lines(lamp))
    with pytest.raises(Invalid, match="not those"):
        await market.service.reserve(order, lines(lamp, quantity=2))
    assert await market.left(lamp) == (5, 1, 4)


@pytest.mark.parametrize("quantity", [0, -1, -(1 << 31), 10_001, 1 << 31, 1 << 62])
async def test_quantities_that_nobody_can_buy(market: Market, quantity: int) -> None:
    lamp = await market.listing(stock=5)
    with pytest.raises(Invalid, match="quantity"):
        await market.service.reserve(market.order(), lines(lamp, quantity=quantity))
    assert await market.left(lamp) == (5, 0, 5)


async def test_lines_that_make_no_order(market: Market) -> None:
    lamp = await market.listing()
    for wrong in ([], lines(lamp, lamp), lines(*[lamp] * 101)):
        with pytest.raises(Invalid, match="lines"):
            await market.service.reserve(market.order(), wrong)
    for order in (-1, 1 << 53):
        with pytest.raises(Invalid, match="order_id"):
            await market.service.reserve(order, lines(lamp))


async def test_a_late_reserve_finds_that_the_order_was_given_up(market: Market) -> None:
    lamp = await market.listing()
    order = market.order()
    await market.service.release(order)
    answer = await market.service.reserve(order, lines(lamp))
    assert answer == NotReserved(order_id=order, faults=[Ended(outcome="released")])
    assert await market.left(lamp) == (5, 0, 5)


async def test_what_nobody_reserved_cannot_be_sold(market: Market) -> None:
    for step in (market.service.commit, market.service.restock):
        with pytest.raises(Conflict, match="does not exist"):
            await step(market.order())


async def test_a_reservation_expires(market: Market) -> None:
    """Not before its time; then the sweep gives it back, and it can no longer be sold."""
    lamp, book = await market.listing(stock=1), await market.listing(BERT, stock=1)
    order, sold = market.order(), market.order()
    assert isinstance(await market.service.reserve(order, lines(lamp), 60.0), Reserved)
    assert isinstance(await market.service.reserve(sold, lines(book), 60.0), Reserved)
    await market.service.commit(sold)
    market.clock.step(59)
    await market.service.sweep()
    assert await market.left(lamp) == (1, 1, 0)
    market.clock.step(1)
    await asyncio.gather(*(market.service.sweep() for _ in range(3)))
    assert await market.left(lamp) == (1, 0, 1)
    assert await market.left(book) == (0, 0, 0)
    with pytest.raises(Conflict, match="released"):
        await market.service.commit(order)
    assert isinstance(await market.service.reserve(market.order(), lines(lamp)), Reserved)
    assert await market.check()


class Killed(Exception):
    """The process ends here."""


class Mortal:
    """A store whose process is killed before its n-th step."""

    def __init__(self, store: Any, lives: int) -> None:
        self._store = store
        self.lives = lives

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name in ("one_shard", "by_shard", "write"):
            return method

        async def step(*args: Any, **options: Any) -> Any:
            self.lives -= 1
            if self.lives < 0:
                raise Killed
            return await method(*args, **options)

        return step


@pytest.mark.parametrize("then", ["again", "release", "expire"])
@pytest.mark.parametrize("step", ["reserve", "refuse", "commit", "release", "restock"])
async def test_a_crash_between_any_two_steps(market: Market, step: str, then: str) -> None:
    """Whoever goes on, by repeating, releasing or waiting: nothing is lost, nothing is held for ever."""
    crashes = 0
    for lives in range(20):
        lamp, book = await market.listing(stock=3), await market.listing(BERT, stock=3)
        order, wanted = market.order(), lines(lamp, book)
        if step == "refuse":  # the shard that comes second
            wanted = [*lines(lamp), *lines(book, quantity=4)]
        if step in ("commit", "release", "restock"):
            await market.service.reserve(order, wanted)
        if step == "restock":
            await market.service.commit(order)
        mortal = Mortal(market.stock, lives)
        doomed = market.serve(mortal)

        async def act(service: Any, step: str = step, order: int = order, wanted: Any = wanted) -> Any:
            if step in ("reserve", "refuse"):
                return await service.reserve(order, wanted)
            return await getattr(service, step)(order)

        try:
            await act(doomed)
        except Killed:
            crashes += 1
        else:
            break
        if then == "again":
            await act(market.service)
        elif then == "release":
            try:
                await market.service.release(order)
            except Conflict:
                assert step in ("commit", "restock")
        market.clock.step(100_000)
        await market.service.sweep()
        assert await market.check()
        for one in (lamp, book):
            on_hand, reserved, _ = await market.left(one)
            assert reserved == 0
            if step in ("reserve", "refuse", "release"):
                assert on_hand == 3
        sold = {(await market.left(one))[0] for one in (lamp, book)}
        assert len(sold) == 1, "one line was sold and the other not"
        if step == "commit" and then == "again":
            assert sold == {2}
        if step == "restock" and then == "again":
            assert sold == {3}
    assert crashes >= 2


async def test_what_is_decided_is_brought_to_an_end_without_the_caller(market: Market) -> None:
    """A sale that was decided and left is swept after seconds, not only when the reservation expires."""
    lamp, book = await market.listing(stock=3), await market.listing(BERT, stock=3)
    order = market.order()
    await market.service.reserve(order, lines(lamp, book))
    await market.stock.decide(None, order, "committed", ["reserved"], lamp.created_at)
    market.clock.step(11)
    await market.service.sweep()
    assert await market.left(lamp) == await market.left(book) == (2, 0, 2)
    assert await market.check()


async def test_what_a_slow_reserve_holds_after_the_release_is_given_back(market: Market) -> None:
    """Its process is gone before it can look; the sweep finds it by its time."""
    lamp = await market.listing(stock=1)
    order, wanted = market.order(), lines(lamp)
    at = lamp.created_at
    known = await market.stock.begin(None, order, wanted, at, at)
    await market.service.release(order)
    assert await market.stock.hold(None, order, wanted, known.expires_at, take=True) == []
    assert await market.left(lamp) == (1, 1, 0)
    market.clock.step(1)
    await market.service.sweep()
    assert await market.left(lamp) == (1, 0, 1)
    assert await market.check()


class Slow:
    """A store that stops before its n-th hold until somebody else has acted."""

    def __init__(self, store: Any, holds: int, act: Any) -> None:
        self._store = store
        self._holds = holds
        self._act = act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def hold(self, *args: Any, **options: Any) -> Any:
        self._holds -= 1
        if self._holds == 0:
            await self._act()
        return await self._store.hold(*args, **options)


@two_shards
@pytest.mark.parametrize("holds", [1, 2])
async def test_a_reserve_that_was_overtaken_takes_back_what_it_held(market: Market, holds: int) -> None:
    """At once, though the release that came between had found nothing more to do."""
    lamp, book = await market.listing(stock=1), await market.listing(BERT, stock=1)
    order = market.order()
    doomed = market.serve(Slow(market.stock, holds, lambda: market.service.release(order)))
    answer = await doomed.reserve(order, lines(lamp, book))
    assert answer == NotReserved(order_id=order, faults=[Ended(outcome="released")])
    assert await market.left(lamp) == await market.left(book) == (1, 0, 1)
    assert await market.check()


@two_shards
async def test_a_reserve_that_was_repeated_meanwhile_answers_the_same(market: Market) -> None:
    lamp, book = await market.listing(stock=1), await market.listing(BERT, stock=1)
    order, wanted = market.order(), lines(lamp, book)
    slow = market.serve(Slow(market.stock, 2, lambda: market.service.reserve(order, wanted)))
    assert await slow.reserve(order, wanted) == await market.service.reserve(order, wanted)
    assert await market.left(lamp) == await market.left(book) == (1, 1, 0)


async def test_a_sale_that_was_left_half_done_comes_back_whole(market: Market) -> None:
    lamp, book = await market.listing(stock=3), await market.listing(BERT, stock=3)
    order = market.order()
    await market.service.reserve(order, lines(lamp, book))
    await market.stock.decide(None, order, "committed", ["reserved"], lamp.created_at)
    await market.service.restock(order)
    assert await market.left(lamp) == await market.left(book) == (3, 0, 3)
    assert await market.check()


async def test_counts_follow_the_seller(market: Market) -> None:
    """Through every status and from one category to another."""
    lamp = await market.listing(status="draft")
    counted = []
    for changes in (
        ListingChanges(category="kitchen"),
        ListingChanges(status="active"),
        ListingChanges(category="fiction", title="Bright lamp"),
        ListingChanges(status="withdrawn"),
        ListingChanges(status="active", category="textiles"),
    ):
        await market.service.update(lamp.id, ANNA, changes, None)
        assert await market.check()
        counted.append({one.slug for one in await market.service.categories() if one.listings})
    assert counted == [set(), {"home", "kitchen"}, {"books", "fiction"}, set(), {"home", "textiles"}]


async def test_the_database_itself_refuses_to_oversell(market: Market) -> None:
    """Even a statement that forgets the condition."""
    lamp = await market.listing(stock=1)
    for change in ("reserved = reserved + 2", "reserved = -1", "on_hand = -1"):
        with pytest.raises(asyncpg.CheckViolationError):
            async with market.db.write(lamp.id) as tx:
                await tx.execute(f"update catalog.stock set {change}")


async def test_crossing_orders_do_not_wait_in_a_circle(market: Market) -> None:
    """Orders that want the same listings in opposite order, with sellers who change them meanwhile."""
    goods = [await market.listing(stock=100) for _ in range(6)]

    async def buy(number: int) -> None:
        order, chosen = market.order(number * 31 % 1024), goods if number % 2 else goods[::-1]
        assert isinstance(await market.service.reserve(order, lines(*chosen)), Reserved)
        await (market.service.commit if number % 3 else market.service.release)(order)

    async def stock_up(number: int) -> None:
        await market.service.adjust(goods[number % 6].id, ANNA, 1, "more")

    await asyncio.gather(*map(buy, range(12)), *map(stock_up, range(12)))
    assert await market.check()
    assert [await market.left(one) for one in goods] == [(94, 0, 94)] * 6


class Looking:
    """A store whose first decision, which finds no record, is followed at once by what somebody else does."""

    def __init__(self, store: Any, act: Any) -> None:
        self._store = store
        self._act = act
        self._waiting = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def decide(self, *args: Any, **options: Any) -> Any:
        decided = await self._store.decide(*args, **options)
        if self._waiting:
            self._waiting = False
            # In a context of its own: the transaction that is open here is not the other one's.
            await asyncio.get_running_loop().create_task(self._act(), context=contextvars.Context())
        return decided


async def test_a_release_that_is_told_of_no_reservation_misses_none(market: Market) -> None:
    """One that commits between its two looks is released as well."""
    lamp = await market.listing(stock=1)
    order = market.order()
    looking = market.serve(Looking(market.stock, lambda: market.service.reserve(order, lines(lamp))))
    await looking.release(order)
    assert await market.left(lamp) == (1, 0, 1)
    with pytest.raises(Conflict):
        await market.service.commit(order)
    assert await market.check()
