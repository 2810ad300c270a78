"""A process of market's that charges or refunds one order and is killed (SIGKILL) at a given step.

Run as `python -m tests.market.paying_child STEP ORDER HOME PROVIDER URL...`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from tests.market.harness import topology
from tests.market.paying import CARD, KEY, SECRET, euros

from market.payments import store
from market.payments.api import Payments
from market.payments.client import ProviderClient
from market.payments.settings import PaymentSettings
from market.payments.store import PaymentStore
from market.platform import modules
from springtide.platform import Platform

STEPS = {
    "charge recorded": (PaymentStore, "insert_charge"),
    "charge asked for": (ProviderClient, "charge"),
    "charge settling": (store, "_book"),
    "charge settled": (PaymentStore, "settle_charge"),
    "refund recording": (PaymentStore, "insert_refund"),
    "refund asked for": (ProviderClient, "refund"),
    "refund settling": (store, "_book"),
    "refund settled": (PaymentStore, "settle_refund"),
    "cancel recorded": (PaymentStore, "abandon_charge"),
}
"""Step -> the function after whose work, and before anything else, the process dies."""


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def arm(step: str) -> None:
    owner, name = STEPS[step]
    original = getattr(owner, name)

    async def last(*args: Any, **options: Any) -> NoReturn:
        await original(*args, **options)
        die()

    setattr(owner, name, last)


async def main(step: str, order: int, home: str, provider: str, urls: list[str]) -> None:
    settings = PaymentSettings(url=provider, key=KEY, secret=SECRET)
    platform = Platform(topology(urls), modules=modules(provider=settings), home=Path(home))
    await platform.start()
    payments = platform.service(Payments)
    if step.startswith("charge"):
        arm(step)
        await payments.charge(order, euros(800), CARD)
    else:
        await payments.charge(order, euros(800), CARD)
        arm(step)
        if step.startswith("cancel"):
            await payments.cancel(order, "out of stock")
        await payments.refund(order, euros(300), "broken")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:]))
