"""Jobs that were claimed together share a task until one of them waits, and none of them notices."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.jobs_support import DO, Deed, Doer, deeds, reach, rows, states, until, working

from springtide.context import current
from springtide.db import Database
from springtide.errors import JobLost
from springtide.jobs import Run, _dispatch
from springtide.jobs._store import Store
from springtide.signals import JobFinished, Signal

Urls = tuple[str, str]

SEEN: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="")

SLOW = {"lease": 30.0, "heartbeat": 10.0, "stall": 10.0, "poll": 30.0}


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls[:1], tmp_path / "migrations", size=8) as made:
        yield made


async def add_together(database: Database, *what: str) -> None:
    async with database.write("a") as tx:
        await tx.enqueue_many([Deed(one) for one in what])


async def test_jobs_that_wait_for_each_other_run_at_once(database: Database, database_urls: Urls) -> None:
    """The first of a claim waits for the last one, and the others for both."""
    together = asyncio.Barrier(5)

    async def act(deed: Deed, run: Run) -> None:
        await together.wait()

    await add_together(database, *"abcde")
    async with working(database, database_urls, [DO], Doer(act), slots=5, **SLOW):
        await reach(database, *["done"] * 5)


async def test_one_task_is_enough_for_jobs_that_do_not_wait(database: Database, database_urls: Urls) -> None:
    """And whatever one sets in its context, its request among it, the next one does not see."""
    tasks, seen, requests = set(), [], []

    async def act(deed: Deed, run: Run) -> None:
        tasks.add(asyncio.current_task())
        seen.append(SEEN.get())
        SEEN.set(deed.what)
        requests.append(current())

    await add_together(database, *"abcde")
    async with working(database, database_urls, [DO], Doer(act), slots=5, **SLOW):
        await reach(database, *["done"] * 5)
    assert len(tasks) == 1
    assert seen == [""] * 5
    assert len({id(request) for request in requests}) == 5


async def test_what_a_job_sets_is_there_after_it_has_waited(database: Database, database_urls: Urls) -> None:
    """Also when it was not the first of its row, and in the tasks that it starts."""
    seen = {}

    async def later(what: str) -> None:
        await asyncio.sleep(0)
        seen[what] = SEEN.get()

    async def act(deed: Deed, run: Run) -> None:
        SEEN.set(deed.what)
        if deed.what in "bd":
            await asyncio.sleep(0)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(later(deed.what))

    await add_together(database, *"abcde")
    async with working(database, database_urls, [DO], Doer(act), slots=5, **SLOW):
        await reach(database, *["done"] * 5)
    assert seen == {what: what for what in "abcde"}


async def test_a_job_that_cancels_its_task_takes_no_other_along(
    database: Database, database_urls: Urls
) -> None:
    """It asks for its own cancellation and ends before that comes: the next of its row run undisturbed."""

    async def act(deed: Deed, run: Run) -> None:
        task = asyncio.current_task()
        assert task is not None
        if deed.what == "b":
            task.cancel()
        elif deed.what == "d":
            await asyncio.sleep(0)

    await add_together(database, *"abcde")
    doer = Doer(act)
    async with working(database, database_urls, [DO], doer, slots=5, **SLOW):
        found = await reach(database, *["done"] * 5)
    assert [row["attempt"] for row in found] == [1] * 5


async def test_a_run_that_has_ended_cannot_cancel_another(database: Database, database_urls: Urls) -> None:
    """The lease of one that is done and not yet written is lost, while the next of its row has their task."""
    began, go_on = asyncio.Event(), asyncio.Event()

    async def act(deed: Deed, run: Run) -> None:
        if deed.what == "b":
            began.set()
            await go_on.wait()

    await add_together(database, "a", "b")
    async with working(database, database_urls, [DO], Doer(act), slots=5, **SLOW) as worker:
        hands = worker._dispatcher._hands
        async with asyncio.timeout(30):
            while not (runs := hands.runs):
                await asyncio.sleep(0)
            first = runs[0]
            while first in hands.unended:
                await asyncio.sleep(0)
        first.cancel("lost")
        async with asyncio.timeout(30):
            await began.wait()
        go_on.set()
        found = await reach(database, "done", "done")
    assert [row["attempt"] for row in found] == [1, 1]


async def test_a_row_that_breaks_on_one_job_goes_on_with_the_others(
    database: Database, database_urls: Urls
) -> None:
    """Something of ours raises where nothing may: that job's lease runs out, and no other's."""

    class Faulty:
        def emit(self, signal: Signal) -> None:
            if isinstance(signal, JobFinished) and signal.outcome == "lost":
                raise RuntimeError("a sink that raises")

    async def act(deed: Deed, run: Run) -> None:
        if deed.what == "b":
            raise JobLost("it says so at once")

    await add_together(database, *"abc")
    async with working(database, database_urls, [DO], Doer(act), slots=5, sink=Faulty(), **SLOW):

        async def others() -> bool:
            return sorted(await states(database)) == ["done", "done", "running"]

        await until(others)
        assert [row["attempt"] for row in await rows(database)] == [1, 1, 1]


async def test_while_there_is_more_to_do_one_claim_serves_many_slots(
    database: Database, database_urls: Urls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits until half of the slots are free, but not for ever."""
    free = {what: asyncio.Event() for what in "abcdefgh"}
    asked: list[int] = []
    claim, turn = Store.claim, Store.turn

    async def act(deed: Deed, run: Run) -> None:
        await free[deed.what].wait()

    async def claims(self: Store, names: Any, limit: int, *rest: Any) -> Any:
        asked.append(limit)
        return await claim(self, names, limit, *rest)

    async def turns(self: Store, runs: Any, results: Any, names: Any, limit: int, *rest: Any) -> Any:
        asked.append(limit)
        return await turn(self, runs, results, names, limit, *rest)

    monkeypatch.setattr(Store, "claim", claims)
    monkeypatch.setattr(Store, "turn", turns)
    monkeypatch.setattr(_dispatch, "GATHER", 60.0)
    await add_together(database, *"abcdefgh")
    doer = Doer(act)
    async with working(database, database_urls, [DO], doer, slots=4, **SLOW):
        await until(lambda: len(doer.calls) == 4)
        first, second = (free[what] for what, _ in doer.calls[:2])
        first.set()
        await until(lambda: rows(database, "state = 'done'"))
        assert asked == [4]
        second.set()
        await until(lambda: len(doer.calls) == 6)
        assert asked == [4, 2]
        for one in free.values():
            one.set()
        await reach(database, *["done"] * 8)


async def test_one_free_slot_is_claimed_for_soon_enough(database: Database, database_urls: Urls) -> None:
    release = asyncio.Event()

    async def act(deed: Deed, run: Run) -> None:
        if deed.what != "a":
            await release.wait()

    await add_together(database, *"abcdefgh")
    doer = Doer(act)
    async with working(database, database_urls, [DO], doer, slots=4, **SLOW):
        await until(lambda: len(doer.calls) == 5)
        release.set()
        await reach(database, *["done"] * 8)
