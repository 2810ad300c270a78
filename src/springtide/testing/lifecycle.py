"""The stress test that every service passes: storms of concurrent start, stop and cancel."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable
from typing import Any

from springtide.lifecycle import Service

__all__ = ["stress"]


async def stress(
    factory: Callable[[], Service],
    *,
    storms: int = 10,
    calls: int = 12,
    pause: float = 0.0,
    timeout: float = 30.0,
    seed: int = 0,
) -> None:
    """Hold a service to the contract of `springtide.lifecycle`; AssertionError tells storm and calls.

    factory: makes a new service; one is made per storm.
    calls:   starts and stops per storm; about a third of them are cancelled at a random moment.
    pause:   longest real time between two calls, in seconds, for services that do I/O; most are back to back.
    timeout: seconds until a storm counts as hung.

    After each storm: an uncancelled last call decides whether the service runs; it can be started and
    stopped again; stopped, it has left no task; and no exception went unseen.
    """
    gc.freeze()  # each storm looks for what it left itself, not through everything that was there before
    try:
        for storm in range(storms):
            dice = random.Random(f"{seed}/{storm}")  # noqa: S311 - replays the same storm
            history: list[str] = []
            try:
                async with asyncio.timeout(timeout):
                    await _storm(factory(), dice, calls, pause, history)
            except TimeoutError as error:
                raise AssertionError(f"storm {storm} of seed {seed} hung: {' '.join(history)}") from error
            except Exception as error:
                raise AssertionError(f"storm {storm} of seed {seed} failed: {' '.join(history)}") from error
    finally:
        gc.unfreeze()


async def _storm(service: Service, dice: random.Random, calls: int, pause: float, history: list[str]) -> None:
    loop = asyncio.get_running_loop()
    unseen: list[dict[str, Any]] = []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: unseen.append(context))
    before = asyncio.all_tasks()
    try:
        async with asyncio.TaskGroup() as group:
            last = verb = "stop"
            for _ in range(calls):
                verb = dice.choice(("start", "stop"))
                cancel = dice.random() < 0.33
                history.append(f"{verb}{'!' if cancel else ''}")
                call = group.create_task(getattr(service, verb)())
                if cancel:
                    group.create_task(_cancel(call, dice.randrange(6)))
                for _ in range(dice.choice((0, 0, 0, 1, 2, 5))):
                    await asyncio.sleep(0)
                if pause and dice.random() < 0.3:
                    await asyncio.sleep(dice.uniform(0, pause))
            last = dice.choice(("start", "stop"))
            history.append(last)
            group.create_task(getattr(service, last)())
        _expect(service, last)
        await service.start()
        _expect(service, "start")
        await service.stop()
        await service.stop()
        _expect(service, "stop")
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - before
        assert not left, f"tasks were left: {[task.get_name() for task in left]}"
        del call, group
        gc.collect()
        await asyncio.sleep(0)
        assert not unseen, f"nobody saw: {unseen}"
    finally:
        loop.set_exception_handler(handler)


async def _cancel(call: asyncio.Task[None], after: int) -> None:
    for _ in range(after):
        await asyncio.sleep(0)
    call.cancel()


def _expect(service: Service, last: str) -> None:
    state = getattr(service, "state", None)
    if state is None:
        return
    wanted = ("running",) if last == "start" else ("new", "stopped")
    assert state in wanted, f"after {last}, {service.name} is {state}, not {' or '.join(wanted)}"
