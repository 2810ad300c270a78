"""Payments against a provider that misbehaves: charged once, lost never, booked always."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.market.paying import CARD, SECRET, Inbox, World, euros, order, world

from market.faults import Conflict, Forbidden, Invalid, NotFound
from market.money import Money
from market.payments.rules import genuine, key_of, named
from market.provider.webhooks import sign
from springtide.clock import SystemClock
from springtide.context import Part, RequestContext, activate


@pytest.fixture
async def both(urls: list[str], home: Path, tmp_path: Path) -> AsyncIterator[tuple[World, Inbox]]:
    async with world(urls, home, tmp_path, pending_after=0.0, call_timeout=5.0) as made:
        yield made


def within(seconds: float) -> Any:
    """A request that has so much time."""
    return activate(RequestContext(deadline=SystemClock().monotonic() + seconds))


async def state(there: World, id: int) -> str:
    found = await there.payments.status(id)
    return "none" if found is None else found.charge.state


async def test_an_order_is_charged_once_and_booked(both: tuple[World, Inbox]) -> None:
    """Again, at once from many callers, or after its webhook: the same charge."""
    there, inbox = both
    for _ in range(4):
        id = order()
        charges = await asyncio.gather(*(there.payments.charge(id, euros(1250), CARD) for _ in range(10)))
        assert {charge.state for charge in charges} == {"succeeded"}
    await inbox.until(4)
    assert (await there.payments.charge(id, euros(1250), CARD)).state == "succeeded"
    assert len((await there.provider.journal())["charges"]) == 4
    assert await there.agree()


async def test_another_amount_for_a_charged_order_is_refused(both: tuple[World, Inbox]) -> None:
    there, _ = both
    id = order()
    await there.payments.charge(id, euros(100), CARD)
    for other in (euros(101), Money(100, "USD")):
        with pytest.raises(Conflict):
            await there.payments.charge(id, other, CARD)
    for wrong in (euros(0), euros(-5)):
        with pytest.raises(Invalid):
            await there.payments.charge(order(), wrong, CARD)
    assert await there.agree()


async def test_a_declined_card_books_nothing_and_another_may_be_tried(both: tuple[World, Inbox]) -> None:
    there, inbox = both
    id = order()
    declined = await there.payments.charge(id, euros(100), "card_no_funds")
    assert (declined.state, declined.decline_code) == ("declined", "insufficient_funds")
    assert (await there.payments.charge(id, euros(100), "card_no_funds")).attempt == 1
    assert await there.payments.balances() == []
    charged = await there.payments.charge(id, euros(100), CARD)
    assert (charged.state, charged.attempt) == ("succeeded", 2)
    await inbox.until(2)  # the first attempt's webhook does not undo the second
    assert await state(there, id) == "succeeded"
    assert await there.agree()


async def test_a_slow_provider_costs_the_caller_no_more_than_its_deadline(
    both: tuple[World, Inbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The charge is pending, and settled later; the time is in the request's ledger."""
    there, inbox = both
    monkeypatch.setattr("market.payments.client.SHARE", 0.2)  # a busy machine takes the rest to ask
    await there.provider.behave(answer_delay={"seconds": 30})
    id = order()
    inbox.refuse = True
    with within(4.5) as context:
        charge = await there.payments.charge(id, euros(100), CARD)
        assert (context.remaining(SystemClock().monotonic()) or 0) > 0
    assert charge.state == "succeeded"  # asked for by its key after the answer did not come
    assert context.ledger.parts[Part.CALL].calls == 2
    await there.provider.behave(delay={"seconds": 30})
    other = order()
    with within(1.2):
        assert (await there.payments.charge(other, euros(100), CARD)).state == "pending"
    await there.provider.behave()
    await there.reconcile()
    assert await state(there, other) == "succeeded"
    assert await there.agree()


@pytest.mark.parametrize(
    "trouble",
    [{"down": True}, {"failure_rate": 1.0}, {"lost_answer_rate": 1.0, "webhooks_held": True}],
    ids=str,
)
async def test_what_stayed_open_is_settled_once_the_provider_is_well(
    both: tuple[World, Inbox], trouble: dict[str, Any]
) -> None:
    there, _ = both
    await there.provider.behave(**trouble)
    ids = [order() for _ in range(4)]
    await asyncio.gather(*(there.payments.charge(id, euros(100 + id % 7), CARD) for id in ids))
    await there.provider.behave()
    await there.reconcile()
    assert [await state(there, id) for id in ids] == ["succeeded"] * 4
    assert await there.agree()


async def test_while_the_provider_is_down_a_round_asks_few(both: tuple[World, Inbox]) -> None:
    there, _ = both
    await there.provider.behave(down=True)
    for _ in range(20):
        await there.payments.charge(order(), euros(5), CARD)
    round = await there.payments.reconcile()
    assert not round.reachable
    assert round.asked <= 8


async def test_a_webhook_before_the_answer_and_every_one_twice(both: tuple[World, Inbox]) -> None:
    there, inbox = both
    await there.provider.behave(webhook_first=True, deliveries=3)
    ids = [order() for _ in range(3)]
    charges = await asyncio.gather(*(there.payments.charge(id, euros(700), CARD) for id in ids))
    assert {charge.state for charge in charges} == {"succeeded"}
    await inbox.until(12)
    events = await there.platform.database("payments").scatter_sum("select count(*) from payments.event")
    assert events == 3
    assert await there.agree()


async def test_a_late_webhook_settles_what_nobody_asked_about(both: tuple[World, Inbox]) -> None:
    """The answer is lost and so is the question; the webhook comes after the shop was down for it."""
    there, inbox = both
    await there.provider.behave(answer_delay={"seconds": 30}, webhook_delay=1.5)
    inbox.refuse, id = True, order()
    charging = asyncio.create_task(there.payments.charge(id, euros(900), CARD))
    while not (await there.provider.journal())["charges"]:
        await asyncio.sleep(0.02)
    charging.cancel()
    await asyncio.gather(charging, return_exceptions=True)
    assert await state(there, id) == "pending"
    await inbox.until(1, status=503)
    inbox.refuse = False
    await inbox.until(1)
    assert await state(there, id) == "succeeded"
    assert await there.agree()


async def test_refunds_come_in_parts_once_each_and_never_beyond_the_charge(both: tuple[World, Inbox]) -> None:
    there, inbox = both
    id = order()
    with pytest.raises(NotFound):
        await there.payments.refund(id, euros(1), "no charge")
    await there.payments.charge(id, euros(1000), CARD)
    first = await asyncio.gather(*(there.payments.refund(id, euros(400), "broken") for _ in range(6)))
    assert {refund.number for refund in first} == {1}
    with pytest.raises(Conflict):
        await there.payments.refund(id, euros(300), "broken")
    with pytest.raises(Conflict):
        await there.payments.refund(id, euros(601), "too much")
    results = await asyncio.gather(
        *(there.payments.refund(id, euros(200), "part", f"part {n}") for n in range(6)),
        return_exceptions=True,
    )
    assert sum(not isinstance(result, Exception) for result in results) == 3
    await inbox.until(5)
    found = await there.payments.status(id)
    assert found is not None
    assert found.charge.refunded == euros(1000)
    assert len(found.refunds) == 4
    assert await there.agree()


async def test_an_open_refund_is_settled_later(both: tuple[World, Inbox]) -> None:
    there, _ = both
    id = order()
    await there.payments.charge(id, euros(1000), CARD)
    await there.provider.behave(down=True)
    assert (await there.payments.refund(id, euros(300), "broken")).state == "pending"
    with pytest.raises(Conflict):
        await there.payments.refund(id, euros(800), "the rest")
    await there.provider.behave()
    await there.reconcile()
    assert await there.agree()
    found = await there.payments.status(id)
    assert found is not None
    assert [refund.state for refund in found.refunds] == ["succeeded"]


async def test_cancelling_gives_back_or_prevents_the_charge(both: tuple[World, Inbox]) -> None:
    """Whether it was charged, is open, or is still under way when it is cancelled: nothing is kept."""
    there, _ = both
    charged, never, late = order(), order(), order()
    await there.payments.charge(charged, euros(500), CARD)
    assert (await there.payments.cancel(charged, "out of stock")).refunded == euros(500)
    await there.payments.cancel(charged, "again")
    await there.provider.behave(down=True)
    await there.payments.charge(never, euros(500), CARD)
    assert (await there.payments.cancel(never, "gave up")).state == "pending"
    await there.provider.behave(delay={"seconds": 5.0})
    charging = asyncio.create_task(there.payments.charge(late, euros(500), CARD))
    while await state(there, late) != "pending":
        await asyncio.sleep(0.01)
    await there.provider.behave()
    assert (await there.payments.cancel(late, "gave up")).state == "cancelled"
    assert (await charging).state == "cancelled"
    await there.reconcile()
    assert await state(there, never) == "cancelled"
    with pytest.raises(Conflict):
        await there.payments.charge(never, euros(500), CARD)
    assert (await there.payments.balances())[0].amount == 0
    assert await there.agree()


@pytest.mark.parametrize("learned_by", ["reconciliation", "webhook"])
async def test_a_charge_that_turns_out_to_be_made_after_it_was_cancelled_is_given_back(
    both: tuple[World, Inbox], learned_by: str
) -> None:
    there, inbox = both
    await there.provider.behave(answer_delay={"seconds": 30}, webhooks_held=True)
    id = order()
    charging = asyncio.create_task(there.payments.charge(id, euros(500), CARD))
    while not (await there.provider.journal())["charges"]:
        await asyncio.sleep(0.02)
    charging.cancel()
    await asyncio.gather(charging, return_exceptions=True)
    await there.provider.behave(down=True, webhooks_held=True)
    assert (await there.payments.cancel(id, "gave up")).state == "pending"
    await there.provider.behave(webhooks_held=learned_by == "reconciliation")
    if learned_by == "webhook":
        await inbox.until(2)
    else:
        await there.reconcile()
    found = await there.payments.status(id)
    assert found is not None
    assert (found.charge.state, found.charge.refunded) == ("succeeded", euros(500))
    assert [refund.state for refund in found.refunds] == ["succeeded"]
    assert await there.agree()


async def test_forged_and_replayed_webhooks_are_refused(both: tuple[World, Inbox]) -> None:
    there, inbox = both
    id = order()
    await there.payments.charge(id, euros(500), CARD)
    await inbox.until(1)
    body, signature, _ = inbox.seen[-1]
    now = SystemClock().now()
    for forged in ("", "t=1,v1=00", sign("another secret", body, int(now)), signature[:-1] + "g"):
        with pytest.raises(Forbidden):
            await there.payments.receive(body, forged)
    with pytest.raises(Forbidden):
        await there.payments.receive(body.replace(b"500", b"501"), signature)
    with pytest.raises(Forbidden):
        await there.payments.receive(body, sign(SECRET, body, int(now) - 301))
    await there.payments.receive(body, signature)  # replayed within the window: it has had its effect
    assert not genuine(None, body, sign("", body, int(now)), now)
    for name, wrong in ((b"500", b"501"), (str(id).encode(), str(order()).encode())):
        tampered = body.replace(b"evt_", b"evt_x").replace(name, wrong)
        with pytest.raises((Conflict, NotFound)):  # a provider that contradicts what we asked it for
            await there.payments.receive(tampered, sign(SECRET, tampered, int(now)))
    with pytest.raises(Invalid):
        await there.payments.receive(b"{", sign(SECRET, b"{", int(now)))
    assert await there.agree()


async def test_the_ledger_takes_neither_imbalance_nor_change(
    both: tuple[World, Inbox], urls: list[str]
) -> None:
    """The database itself refuses both."""
    there, _ = both
    id = order(100)
    await there.payments.charge(id, euros(500), CARD)
    connection = await asyncpg.connect(urls[0])
    try:
        for change in ("update payments.entry set amount = amount + 1", "delete from payments.entry"):
            with pytest.raises(asyncpg.RestrictViolationError):
                await connection.execute(change)
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(
                "insert into payments.entry values (100, $1, 5, 'provider', 7, 'EUR', now())", id
            )
    finally:
        await connection.close()
    assert await there.agree()


def test_keys_are_read_as_they_are_written() -> None:
    assert named("market", key_of("market", 77, 2)) == (77, False, 2)
    assert named("market", key_of("market", 77, 3, refund=True)) == (77, True, 3)
    for foreign in ("other-77-2", "market-0-1", "market-77", "market-77-2-3", "market-x-77-2", "market77-2"):
        assert named("market", foreign) is None
