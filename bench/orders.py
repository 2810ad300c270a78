"""Orders under fire: are they placed once, paid once and never lost, while everything is killed?

market runs as `springtide up` runs it, with a payment provider that fails, loses answers and repeats itself.
Shoppers order, some with cards that are declined, some of stock that runs out, some change their mind; each
repeats its request with the same Idempotency-Key until it hears an answer, and some repeat it afterwards. All
the while the app server, the worker, PostgreSQL and the provider are killed (SIGKILL), one after the other.
Then everything may come to rest, and what shoppers were told, the provider's journal, the ledger, the orders
and the stock are held against each other:

    double_charges     orders of which the provider keeps more than it should
    lost_orders        orders that a shopper was told of and that are not there, not what was told, or two;
                       confirmed ones that are not paid; charges without an order
    oversold           listings of which more was sold than there was, or whose stock is not what was left
    ledger_imbalance   entries that do not add up, and accounts that differ from the journal (0 or more)

All four are 0, or this exits with status 1. `--quick` places 300 orders.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock
from uuid import UUID

import httpx
import msgspec

from bench._battlefield import ROOT, Battlefield, battlefield

SHOPPERS = 24
SELLERS = 4
BUYERS = 24
PLENTY, FEW = 12, 12
"""Listings with more stock than anybody orders, and listings that run out."""

KILLS = 24
"""About so many in a run of 10,000 orders; `--quick` has a few."""

PATIENCE = 180.0
LAST = ("confirmed", "failed", "cancelled")

ADDRESS = {
    "name": "Ada", "street": "1 Harbour Lane", "city": "Hamburg", "postal_code": "20457", "country": "DE",
}  # fmt: skip


@dataclass
class Told:
    """What the shopper of one order heard."""

    ids: set[int] = field(default_factory=set)
    states: list[str] = field(default_factory=list)
    cancelled: bool = False


@dataclass
class World:
    battle: Battlefield
    chance: random.Random
    orders: int
    tokens: list[str] = field(default_factory=list)
    stock: dict[int, int] = field(default_factory=dict)
    prices: dict[int, dict[str, Any]] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    retries: int = 0
    answered: int = 0


async def call(
    world: World,
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str | None = None,
    key: str | None = None,
) -> httpx.Response:
    """Until there is an answer that is one: what is down, busy or still at work is asked again."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if key is not None:
        headers["Idempotency-Key"] = key
    while True:
        try:
            answer = await world.battle.http.request(
                method, f"{world.battle.url}{path}", json=body, headers=headers
            )
        except httpx.HTTPError:
            answer = None
        if answer is not None and answer.status_code < 500 and not _in_flight(answer):
            return answer
        world.retries += 1
        await asyncio.sleep(world.chance.uniform(0.05, 0.4))


def _in_flight(answer: httpx.Response) -> bool:
    return answer.status_code == 409 and "retry-after" in answer.headers


async def open_shops(world: World) -> None:
    async def register(name: str) -> str:
        user = {"username": name, "email": f"{name}@example.com", "password": "correct horse battery"}
        answer = await call(world, "POST", "/api/users", {"user": user})
        token: str = answer.json()["user"]["token"]
        return token

    sellers = await asyncio.gather(*(register(f"seller{number}") for number in range(SELLERS)))
    world.tokens = await asyncio.gather(*(register(f"buyer{number}") for number in range(BUYERS)))
    for number, token in enumerate(sellers):
        await call(world, "POST", "/market/shops", {"name": f"Shop {number}", "currency": "EUR"}, token=token)
    few = max(world.orders // 100, 3)
    for number in range(PLENTY + FEW):
        new = {
            "title": f"Thing {number}", "price": {"amount": 100 + number, "currency": "EUR"},
            "category": "lighting", "stock": 1_000_000 if number < PLENTY else few, "status": "active",
        }  # fmt: skip
        listing = (await call(world, "POST", "/market/listings", new, token=sellers[number % SELLERS])).json()
        world.stock[listing["id"]] = new["stock"]
        world.prices[listing["id"]] = listing["price"]


async def shop(world: World, number: int) -> None:
    """One order, and what somebody does who is not sure whether it was placed."""
    chance, told = world.chance, world.told[number]
    token = chance.choice(world.tokens)
    ids = list(world.stock)
    chosen = {chance.choice(ids[:PLENTY]) for _ in range(chance.choice((1, 1, 2)))}
    if chance.random() < 0.2:
        chosen.add(chance.choice(ids[PLENTY:]))
    body = {
        "source": chance.choices(("card_visa", "card_declined", "card_no_funds"), (90, 5, 5))[0],
        "address": ADDRESS,
        "lines": [
            {"listing_id": id, "quantity": chance.choice((1, 1, 2)), "price": world.prices[id]}
            for id in chosen
        ],
    }
    key = str(UUID(int=chance.getrandbits(128)))
    for _ in range(2 if chance.random() < 0.1 else 1):
        answer = await call(world, "POST", "/market/orders", body, token=token, key=key)
        if answer.status_code != 201:
            raise RuntimeError(f"an order was answered {answer.status_code}: {answer.text}")
        order = answer.json()
        told.ids.add(order["id"])
        told.states.append(order["state"])
        world.answered += 1
    if chance.random() < 0.04:
        told.cancelled = True
        await call(world, "POST", f"/market/orders/{order['id']}/cancel", token=token, key=f"{key}-cancel")


async def place_all(world: World) -> None:
    world.told = [Told() for _ in range(world.orders)]
    numbers = iter(range(world.orders))

    async def shopper() -> None:
        for number in numbers:
            await shop(world, number)
            if number and number % 1_000 == 0:
                print(f"  {number} orders, {world.battle.kills.total()} kills", flush=True)

    async with asyncio.TaskGroup() as group:
        killer = group.create_task(kill(world))
        shoppers = [group.create_task(shopper()) for _ in range(SHOPPERS)]
        await asyncio.wait(shoppers)
        killer.cancel()


async def kill(world: World) -> None:
    """By what was answered, not by the clock: on a slow machine as many orders lie between two kills."""
    mean = max(world.orders // KILLS, 40)
    while True:
        due = world.answered + world.chance.randint(1, 2 * mean)
        while world.answered < due:
            await asyncio.sleep(world.chance.uniform(0.001, 0.05))
        await world.battle.kill(world.chance)


async def judge(world: World) -> dict[str, Any]:
    """Let it come to rest, then compare."""
    sys.path.insert(0, str(ROOT / "apps"))
    with mock.patch.dict(os.environ, world.battle.environment | {"SPRINGTIDE_HOME": str(world.battle.home)}):
        from market.orders.api import Orders
        from market.payments.api import Payments
        from market.platform import modules
        from springtide.platform import Platform

        platform = Platform.from_topology(world.battle.file, modules=modules())
    async with platform:
        databases = {name: platform.database(name) for name in ("orders", "payments", "catalog")}
        await rest(databases, platform.service(Payments))
        said = msgspec.to_builtins(await platform.service(Orders).reconcile())
        figures = await compare(world, databases)
    figures["disagreements"] = sum(value for name, value in said.items() if name != "checked")
    return figures


async def rest(databases: dict[str, Any], payments: Any) -> None:
    """Until nothing is under way any more."""
    moving = {
        # but what waits for a seller
        "orders": "select count(*) from orders._job where kind <> 'orders.place.shipped' or state <> 'ready'",
        "payments": "select (select count(*) from payments.charge where state = 'pending')"
        " + (select count(*) from payments.refund where state = 'pending')",
        "catalog": "select count(*) from catalog.reservation"
        " where state in ('reserving', 'reserved') or not settled",
    }
    limit = time.monotonic() + PATIENCE
    while True:
        left = {name: await databases[name].scatter_sum(sql) for name, sql in moving.items()}
        if not any(left.values()):
            return
        if time.monotonic() > limit:
            raise RuntimeError(f"it does not come to rest: {left}")
        # What workers look at again only after a long pause is due now.
        await payments.reconcile(datetime.now(UTC) + timedelta(hours=3))
        for pool in databases["orders"].pools.values():
            await pool.execute(
                "update orders._job set run_at = now()"
                " where run_at > now() and state = 'ready' and kind <> 'orders.place.shipped'"
            )
        await asyncio.sleep(1)


async def compare(world: World, databases: dict[str, Any]) -> dict[str, Any]:
    placed = {
        row["id"]: row
        for row in await databases["orders"].scatter(
            "select bucket, id, state, amount, lines from orders.placed"
        )
    }
    journal = await world.battle.journal()
    charged, orders_of = defaultdict[int, int](int), dict[str, int]()
    for charge in journal["charges"]:
        order = int(charge["key"].split("-")[1])
        orders_of[charge["id"]] = order
        if charge["status"] == "succeeded":
            charged[order] += charge["amount"]
    for refund in journal["refunds"]:
        charged[orders_of[refund["charge"]]] -= refund["amount"]
    due = {id: row["amount"] if row["state"] == "confirmed" else 0 for id, row in placed.items()}
    lost = sum(wrong(told, placed) for told in world.told)
    lost += len(charged.keys() - placed.keys())
    lost += sum(charged[id] < amount for id, amount in due.items())
    lost += len(placed) - len({id for told in world.told for id in told.ids})
    return {
        "states": dict(Counter(row["state"] for row in placed.values())),
        "double_charges": sum(kept > due.get(id, 0) for id, kept in charged.items()),
        "lost_orders": lost,
        "oversold": await oversold(world, databases["catalog"], placed),
        "ledger_imbalance": await imbalance(databases["payments"], sum(charged.values())),
    }


def wrong(told: Told, placed: dict[int, Any]) -> bool:
    """Whether an order is not what its shopper was told: what was at its end then is what it is now."""
    if len(told.ids) != 1 or not told.ids <= placed.keys():
        return True
    now = placed[next(iter(told.ids))]["state"]
    return now not in LAST or any(
        state in LAST and state != now and not (told.cancelled and now == "cancelled")
        for state in told.states
    )


async def oversold(world: World, catalog: Any, placed: dict[int, Any]) -> int:
    sold: Counter[int] = Counter()
    for row in placed.values():
        if row["state"] == "confirmed":
            for line in row["lines"]:
                sold[line["listing_id"]] += line["quantity"]
    left = {
        id: (on_hand, reserved)
        for id, on_hand, reserved in await catalog.scatter(
            "select listing_id, on_hand, reserved from catalog.stock"
        )
    }
    return sum(sold[id] > stock or left[id] != (stock - sold[id], 0) for id, stock in world.stock.items())


async def imbalance(payments: Any, kept: int) -> int:
    """Smallest units: of entries that do not add up, and by which the accounts differ from the journal."""
    rows = await payments.scatter(
        "select bucket, order_id, number, sum(amount)::bigint as amount from payments.entry"
        " group by bucket, order_id, number"
    )
    accounts: Counter[str] = Counter()
    for account, amount in await payments.scatter(
        "select account, sum(amount)::bigint as amount from payments.entry group by account"
    ):
        accounts[account] += amount
    return (
        sum(abs(row["amount"]) for row in rows)
        + abs(accounts["provider"] - kept)
        + abs(accounts["orders"] + kept)
    )


async def run(orders: int, seed: int) -> dict[str, Any]:
    async with battlefield() as battle:
        world = World(battle, random.Random(seed), orders)
        await open_shops(world)
        print(f"{orders} orders by {SHOPPERS} shoppers", flush=True)
        begun = time.monotonic()
        await place_all(world)
        seconds = time.monotonic() - begun
        print(f"placed in {seconds:.0f} s with {battle.kills.total()} kills", flush=True)
        await battle.heal()
        figures = await judge(world)
    states = figures.pop("states")
    return {
        "orders": orders, "kills": battle.kills.total(), **figures,
        **{state: states.get(state, 0) for state in LAST}, "unfinished": sum(states.values())
        - sum(states.get(state, 0) for state in LAST), "killed": dict(battle.kills),
        "retries": world.retries, "seconds": round(seconds, 1), "seed": seed,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="300 orders, for a smoke test")
    parser.add_argument("--orders", type=int, default=None, help="how many (10,000)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of what is ordered and killed")
    options = parser.parse_args()
    orders = options.orders or (300 if options.quick else 10_000)
    figures = asyncio.run(run(orders, options.seed))
    print(json.dumps(figures))
    wanted = ("double_charges", "lost_orders", "oversold", "ledger_imbalance", "disagreements")
    return 1 if any(figures[name] for name in wanted) else 0


if __name__ == "__main__":
    sys.exit(main())
