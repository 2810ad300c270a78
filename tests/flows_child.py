"""Processes that run flows and are killed (SIGKILL) at every point of every step, once at each.

Run as `python -m tests.flows_child FOLDER URL...`. A flow is named by the point at which whoever runs it
dies, `<step> <before|inside|after>`, forward, or behind a step that refuses. Processes are forked one after
another, two at a time, until none dies any more. Prints, as JSON, how many were killed.

before   the step has not begun                       inside   its effect has happened, nothing is recorded
after    state, result and next job are committed, the job is not yet told to have ended
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from tests.flowing import PLACE, Order, Shop, running
from tests.jobs_support import deeds, until

from springtide.db import WriteTransaction
from springtide.flows import Flows, StepRun
from springtide.flows._moves import Moves

AT_ONCE = 2
FORWARD = ("do reserve", "do pay", "do send")
BACKWARD = ("undo pay", "undo reserve")
MOMENTS = ("before", "inside", "after")

POINTS = [
    *(f"sent {step} {moment}" for step in FORWARD for moment in MOMENTS),
    *(f"unsendable {step} {moment}" for step in ("do send", *BACKWARD) for moment in ("before", "after")),
    *(f"unsendable {step} inside" for step in BACKWARD),
]
"""`do send` of an order that cannot be sent refuses before it has an effect: it has no inside."""


class Mortal(Shop):
    """Dies at the point that the order is named by, unless somebody has died there: then there is a file."""

    def __init__(self, *arguments: Any, graves: Path) -> None:
        super().__init__(*arguments)
        self.graves = graves

    async def happen(self, what: str, order: Order, run: StepRun) -> Any:
        self.die(order.id, f"{what} before")
        value = await super().happen(what, order, run)
        self.die(order.id, f"{what} inside")
        return value

    def refuse(self, order: Order) -> None:
        self.die(order.id, "do send before")

    def die(self, id: str, at: str) -> None:
        if id.endswith(at) and not self.dead(id):
            (self.graves / id).touch()
            killed()

    def dead(self, id: str) -> bool:
        return (self.graves / id).exists()


def killed() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class Recording(Moves):
    """Dies when the commit of a move is known, before the job that made it is told to have ended."""

    shop: Mortal

    async def _move(self, tx: WriteTransaction, workflow: Any, row: Any, *args: Any, **how: Any) -> bool:
        moved = await super()._move(tx, workflow, row, *args, **how)
        step = workflow.steps[min(row["step"], len(workflow.steps) - 1)].name
        way = "undo" if row["state"] == "undoing" else "do"
        if moved and how.get("outcome") is not None and row["key"] is not None:
            tx.on_commit(lambda: self.shop.die(row["key"], f"{way} {step} after"))
        return moved


async def run(folder: str, urls: list[str]) -> None:
    async with deeds(urls, Path(folder) / "migrations", size=8) as database:
        flows = Flows(database, [PLACE])
        shop = Mortal(database, graves=Path(folder))
        moves = Recording("deeds", flows.statements, flows.moves._sink)
        moves.shop = shop
        for handler in flows.handlers:
            step: Any = handler.method
            step.__self__._moves = moves
        async with running(flows, shop, urls, slots=1):

            async def ended() -> bool:
                """Also the jobs of those who were killed after the last move of a flow."""
                jobs = await database.scatter("select id from deeds._job")
                return all(map(shop.dead, POINTS)) and not jobs and not await flows.list()

            await until(ended, seconds=240)


if __name__ == "__main__":
    folder, *urls = sys.argv[1:]
    died, children = 0, set[int]()
    while children or died == 0:
        while len(children) < AT_ONCE:
            pid = os.fork()
            if pid == 0:
                try:
                    asyncio.run(run(folder, urls))
                    code = 0
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    code = 1
                os._exit(code)
            children.add(pid)
        pid, status = os.wait()
        children.remove(pid)
        code = os.waitstatus_to_exitcode(status)
        if code != -signal.SIGKILL:
            for left in children:
                os.waitpid(left, 0)
            break
        died += 1
    print(json.dumps({"died": died, "code": code}))
