"""Processes of market's that run the workflow of orders and are killed (SIGKILL), each at a point of its own.

The points are those of every step that the workflow has, forward and, where something undoes it, backward:

before     the step has not begun
effect     its effect has happened, nothing is recorded
recorded   state, result and next job are committed, and nobody goes on
refused    forward: it had no effect, and the turn is committed
unsure     forward: it had one, does not know of it, and the turn is committed

Run as `python -m tests.market.ordering_child request HOME PROVIDER LISTING PRICE URL...`, a process is forked
for each point that a request comes by, some at a time: it places an order, or places and cancels one. As
`... worker HOME PROVIDER DOOMED URL...`, workers are forked one after the other, and each runs what is due
until it comes to a point at which nobody has died; DOOMED is a file: JSON, the point of each flow.
Prints, as JSON, the points at which none died.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import asyncpg
import msgspec
from tests.jobs_support import until
from tests.market.harness import topology
from tests.market.ordering import HOME, once
from tests.market.paying import CARD, KEY, SECRET, euros

from market.orders import reasons
from market.orders.api import NewOrder, Orders, WantedLine
from market.orders.steps import PLACE
from market.payments.settings import PaymentSettings
from market.platform import modules
from springtide.errors import StepRefused
from springtide.flows import Step, StepRun
from springtide.flows._engine import At
from springtide.flows._moves import Moves
from springtide.lifecycle import Group
from springtide.platform import Platform

AT_ONCE = 4
"""Most of a child's time is waiting, for the database and the provider."""

NAMES = [step.name for step in PLACE.steps]

WAITS = next(index for index, step in enumerate(PLACE.steps) if not isinstance(step, Step))
"""So far a request drives it; what comes behind waits for something."""


def points() -> list[str]:
    found = []
    for step in PLACE.steps:
        if isinstance(step, Step):
            found += [f"do {step.name} {at}" for at in ("before", "effect", "recorded", "refused", "unsure")]
            if step.undo is not None:
                found += [f"undo {step.name} {at}" for at in ("before", "effect", "recorded")]
        else:
            found += [f"do {step.name} {at}" for at in ("before", "recorded")]
    return found


POINTS = points()


def before_the_wait(point: str) -> bool:
    return NAMES.index(point.split()[1]) < WAITS


IN_REQUESTS = [point for point in POINTS if before_the_wait(point)]


def wanted(point: str) -> str:
    """The state in which an order that died there ends."""
    way, _, at = point.split()
    if way == "undo":
        return "cancelled"
    return "failed" if at in ("refused", "unsure") else "confirmed"


def buyer_at(point: str, *, worker: bool = False) -> int:
    """Every other one is on the second of two shards."""
    number = POINTS.index(point)
    return (5_000 + number + 500 * worker) << 10 | (900 if number % 2 else 100)


def order_of(listing: int, price: int) -> NewOrder:
    lines = [WantedLine(listing_id=listing, quantity=1, price=euros(price))]
    return NewOrder(source=CARD, address=HOME, lines=lines)


Doomed = Callable[[Any], str | None]
"""The point at which whoever runs this flow is to die, None: nowhere."""


def arm(doomed: Doomed, last: Callable[[str], None]) -> None:
    """Every step of every flow, in this process. `last` is what a point hears before the process dies."""

    def pass_by(flow: Any, at: str) -> None:
        if doomed(flow) == at:
            last(at)
            die()

    def armed(step: Step, way: str, act: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def run(orders: Any, order: Any, run: StepRun) -> Any:
            data = msgspec.structs.replace(order, reason=reasons.EXPIRED)
            if doomed(run.flow) == f"{way} {step.name} refused":
                raise StepRefused("refused", data=data)
            done = await act(orders, order, run)
            pass_by(run.flow, f"{way} {step.name} effect")
            if doomed(run.flow) == f"{way} {step.name} unsure":
                raise StepRefused("unsure", undo=True, data=data)
            return done

        return run

    for step in PLACE.steps:
        if isinstance(step, Step):
            object.__setattr__(step, "do", armed(step, "do", step.do))
            if step.undo is not None:
                object.__setattr__(step, "undo", armed(step, "undo", step.undo))

    do, undo, move, go_on = At.do, At.undo, Moves._move, Moves.go_on

    async def begin(self: At, implementation: Any, go: Any, *args: Any) -> Any:
        pass_by(go.flow, f"do {self._node.name} before")
        return await do(self, implementation, go, *args)

    async def turn(self: At, implementation: Any, go: Any, *args: Any) -> Any:
        pass_by(go.flow, f"undo {self._node.name} before")
        return await undo(self, implementation, go, *args)

    async def record(self: Moves, tx: Any, workflow: Any, row: Any, *args: Any, **how: Any) -> Any:
        moved = await move(self, tx, workflow, row, *args, **how)
        way = "undo" if row["state"] == "undoing" else "do"
        name = workflow.steps[min(row["step"], len(workflow.steps) - 1)].name
        if moved is not None:
            ats = ("refused", "unsure") if how["outcome"] == "refused" else ("recorded",)
            for at in ats if how["outcome"] in ("done", "undone", "refused") else ():
                tx.on_commit(lambda at=at: pass_by(row["id"], f"{way} {name} {at}"))
        return moved

    async def pass_on(self: Moves, database: Any, workflow: Any, row: Any, *args: Any) -> Any:
        moved = await go_on(self, database, workflow, row, *args)
        if moved is not None:
            pass_by(row["id"], f"do {workflow.steps[row['step']].name} recorded")
        return moved

    patches: Any = (
        (At, "do", begin), (At, "undo", turn), (Moves, "_move", record), (Moves, "go_on", pass_on),
    )  # fmt: skip
    for owner, attribute, patch in patches:
        setattr(owner, attribute, patch)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


async def platform_of(home: str, provider: str, urls: list[str]) -> Platform:
    settings = PaymentSettings(url=provider, key=KEY, secret=SECRET)
    platform = Platform(topology(urls), modules=modules(provider=settings), home=Path(home))
    await platform.start()
    return platform


async def request(point: str, home: str, provider: str, listing: int, price: int, urls: list[str]) -> None:
    arm(lambda flow: point, lambda at: None)
    platform = await platform_of(home, provider, urls)
    orders, buyer = platform.service(Orders), buyer_at(point)
    order = await orders.place(buyer, order_of(listing, price), once(point))
    if point.startswith("undo"):
        await orders.cancel(order.id, buyer, once(f"cancel at {point}"))


async def work(home: str, provider: str, doomed: Path, urls: list[str]) -> None:
    flows = doomed_by(doomed)

    def dead(point: str) -> bool:
        return (doomed.parent / point).exists()

    def point_of(flow: Any) -> str | None:
        found = flows.get(str(flow))
        return None if found is None or dead(found) else found

    arm(point_of, lambda at: (doomed.parent / at).touch())
    platform = await platform_of(home, provider, urls)
    workers = Group("workers", tuple(platform.background()))
    await workers.start()
    await until(lambda: all(map(dead, flows.values())), seconds=120)


def doomed_by(file: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(file.read_text())
    return found


async def expire(urls: list[str]) -> None:
    """The leases of who has died are over."""
    for url in urls:
        connection = await asyncpg.connect(url, ssl=False)
        try:
            await connection.execute(
                "update orders._job set leased_until = now() - interval '1 s' where state = 'running'"
            )
        finally:
            await connection.close()


def fork(body: Callable[[], Any]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(body())
        finally:
            os._exit(1)
    return pid


def killed(status: int) -> bool:
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def all_requests(home: str, provider: str, listing: str, price: str, *urls: str) -> list[str]:
    survived, left, running = [], list(IN_REQUESTS), dict[int, str]()
    while left or running:
        while left and len(running) < AT_ONCE:
            point = left.pop(0)
            given = (point, home, provider, int(listing), int(price), list(urls))
            running[fork(lambda given=given: request(*given))] = point
        pid, status = os.wait()
        point = running.pop(pid)
        if not killed(status):
            survived.append(point)
    return survived


def all_workers(home: str, provider: str, doomed: str, *urls: str) -> list[str]:
    flows = doomed_by(Path(doomed))
    while left := [point for point in flows.values() if not (Path(doomed).parent / point).exists()]:
        os.waitpid(fork(lambda: expire(list(urls))), 0)
        pid = fork(lambda: work(home, provider, Path(doomed), list(urls)))
        if not killed(os.waitpid(pid, 0)[1]):
            return left
    return []


if __name__ == "__main__":
    mode, *arguments = sys.argv[1:]
    print(json.dumps((all_requests if mode == "request" else all_workers)(*arguments)))
