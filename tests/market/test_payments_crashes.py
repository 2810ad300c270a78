"""kill -9, at every step, of the provider and of our own process: one charge, and books that agree."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tests
from tests.market.paying import APPS, CARD, Inbox, World, euros, order, world
from tests.market.paying_child import STEPS
from tests.market.working import together

ROOT = Path(tests.__path__[0]).parent


@pytest.fixture
async def both(urls: list[str], home: Path, tmp_path: Path) -> AsyncIterator[tuple[World, Inbox]]:
    async with world(urls, home, tmp_path, pending_after=0.0, call_timeout=5.0) as made:
        yield made


async def charged_once(there: World, id: int) -> None:
    found = await there.payments.status(id)
    assert found is not None
    assert found.charge.state == "succeeded"
    made = [c for c in (await there.provider.journal())["charges"] if c["key"] == f"market-{id}-1"]
    assert len(made) == 1


@pytest.mark.timeout(400)  # each process imports all of market first, and a machine may be busy
async def test_our_process_is_killed_at_every_step(
    both: tuple[World, Inbox], urls: list[str], tmp_path: Path
) -> None:
    """What it began is finished by the reconciliation, or done once by whoever repeats the call."""
    there, _ = both
    await there.provider.behave(webhooks_held=True)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}"}
    orders = {step: order() for step in STEPS}

    async def killed(step: str, id: int) -> None:
        command = ["-m", "tests.market.paying_child", step, str(id), str(tmp_path), there.provider.url, *urls]
        child = await asyncio.create_subprocess_exec(sys.executable, *command, env=environment, cwd=ROOT)
        assert await child.wait() == -signal.SIGKILL, step

    await together(killed(step, id) for step, id in orders.items())
    await there.reconcile()
    cancelled = orders.pop("cancel recorded")
    found = await there.payments.status(cancelled)
    assert found is not None
    assert [(refund.amount, refund.state) for refund in found.refunds] == [(euros(800), "succeeded")]
    for step, id in orders.items():
        await charged_once(there, id)
        await there.payments.charge(id, euros(800), CARD)
        await there.payments.refund(id, euros(300), "broken")
        found = await there.payments.status(id)
        assert found is not None
        assert [(refund.number, refund.state) for refund in found.refunds] == [(1, "succeeded")], step
    assert len((await there.provider.journal())["refunds"]) == len(STEPS)
    assert await there.agree()


@pytest.mark.parametrize("step", ["before_journal", "after_journal", "after_webhook"])
async def test_the_provider_is_killed_at_a_step(both: tuple[World, Inbox], step: str) -> None:
    there, inbox = both
    id = order()
    for call in (
        lambda: there.payments.charge(id, euros(800), CARD),
        lambda: there.payments.refund(id, euros(300), "broken"),
    ):
        await there.provider.behave(die=step, webhook_first=step == "after_webhook")
        work: Any = call()
        await work
        assert await there.provider.ended() == -signal.SIGKILL
        await there.provider.start()
        await there.reconcile()
    await inbox.until(2)
    await charged_once(there, id)
    assert await there.agree()


async def test_half_a_line_in_the_providers_journal_was_never_acknowledged(both: tuple[World, Inbox]) -> None:
    there, inbox = both
    first, second = order(), order()
    await there.payments.charge(first, euros(800), CARD)
    await inbox.until(1)
    await there.provider.kill()
    with there.provider.state.open("a") as file:
        file.write('{"op":"charge","charge":{"key":"half')
    assert (await there.payments.charge(second, euros(800), CARD)).state == "pending"
    await there.provider.start()
    await there.reconcile()
    for id in (first, second):
        await charged_once(there, id)
    assert {record["op"] for record in there.provider.kept()} <= {"charge", "delivered"}
    assert await there.agree()


async def test_a_storm_leaves_books_that_agree(both: tuple[World, Inbox]) -> None:
    """Failures, lost answers, delays, duplicates and two kills of the provider under concurrent callers."""
    there, _ = both
    storm: dict[str, Any] = {
        "failure_rate": 0.2, "lost_answer_rate": 0.2, "deliveries": 2,
        "delay": {"kind": "exponential", "seconds": 0.02},
        "answer_delay": {"kind": "uniform", "seconds": 0.02},
    }  # fmt: skip
    chance = random.Random(7)
    orders = [order() for _ in range(30)]

    async def shop(id: int) -> None:
        card = chance.choice([CARD, CARD, "card_no_funds"])
        await asyncio.gather(*(there.payments.charge(id, euros(1000), card) for _ in range(3)))
        if chance.random() < 0.3:
            await there.payments.cancel(id, "gave up")

    for part in range(3):
        await there.provider.behave(**storm)
        shopping = asyncio.gather(*(shop(id) for id in orders[part * 10 : part * 10 + 10]))
        if part:
            await asyncio.sleep(chance.uniform(0.02, 0.3))  # somewhere in the middle, wherever that is
            await there.provider.kill()
        await shopping
        if part:
            await there.provider.start()
    await there.provider.behave()
    await there.reconcile()
    for id in orders:
        found = await there.payments.status(id)
        assert found is not None
        assert found.charge.state != "pending"
        assert all(refund.state == "succeeded" for refund in found.refunds)
    assert await there.agree()


async def test_the_webhook_route_hands_the_bytes_on(both: tuple[World, Inbox]) -> None:
    """204 for a genuine event, a problem for a forged one."""
    there, inbox = both
    await there.payments.charge(order(), euros(800), CARD)
    await inbox.until(1)
    body, signature, _ = inbox.seen[-1]
    transport = httpx.ASGITransport(app=there.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://market") as client:
        path, headers = "/market/payments/webhook", {"Provider-Signature": signature}
        assert (await client.post(path, content=body, headers=headers)).status_code == 204
        for forged in (await client.post(path, content=body), await client.post(path, content=body + b" ")):
            assert forged.status_code == 403
            assert forged.headers["content-type"] == "application/problem+json"
