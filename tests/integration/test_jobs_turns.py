"""Jobs that were claimed together share a task until one of them waits, and none of them notices; the next
ones are claimed meanwhile."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.jobs_support import DO, Deed, Doer, Heard, deeds, reach, rows, states, until, working

from springtide.context import current
from springtide.db import Database, bucket_of
from springtide.errors import JobLost
from springtide.jobs import Run, _dispatch, _hands, _room
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


def claims_asked(monkeypatch: pytest.MonkeyPatch, answered: asyncio.Event | None = None) -> list[int]:
    """How many jobs each claim asks for; one that also ends jobs is not answered before `answered`."""
    asked: list[int] = []
    meet, turn = Store.meet, Store.turn

    async def meets(self: Store, names: Any, limit: int, *rest: Any) -> Any:
        asked.append(limit)
        return await meet(self, names, limit, *rest)

    async def turns(self: Store, runs: Any, results: Any, names: Any, limit: int, *rest: Any) -> Any:
        asked.append(limit)
        found = await turn(self, runs, results, names, limit, *rest)
        if answered is not None:
            await answered.wait()
        return found

    monkeypatch.setattr(Store, "meet", meets)
    monkeypatch.setattr(Store, "turn", turns)
    return asked


async def test_while_there_is_more_to_do_one_claim_serves_many_slots(
    database: Database, database_urls: Urls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits until half of the slots are free, but not for ever."""
    free = {what: asyncio.Event() for what in "abcdefgh"}
    asked = claims_asked(monkeypatch)

    async def act(deed: Deed, run: Run) -> None:
        await free[deed.what].wait()

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


async def test_slots_that_become_free_during_a_claim_wait_for_half_of_them(
    database: Database, database_urls: Urls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where jobs are not swift, a claim that was filled begins no other one."""
    free = {what: asyncio.Event() for what in "abcdefgh"}
    answered = asyncio.Event()
    asked = claims_asked(monkeypatch, answered)

    async def act(deed: Deed, run: Run) -> None:
        await free[deed.what].wait()

    monkeypatch.setattr(_dispatch, "GATHER", 60.0)
    monkeypatch.setattr(_room, "HORIZON", 0.0)
    await add_together(database, *"abcdefgh")
    doer = Doer(act)
    async with working(database, database_urls, [DO], doer, slots=4, **SLOW) as made:
        await until(lambda: len(doer.calls) == 4)
        for what in "ab":
            free[what].set()
        await until(lambda: asked == [4, 2])
        free["c"].set()
        await until(lambda: made._dispatcher._hands.busy == 1)
        answered.set()
        await until(lambda: len(doer.calls) >= 6)
        assert asked == [4, 2]
        for event in free.values():
            event.set()
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


# -- ahead ---------------------------------------------------------------------------------------------


@pytest.fixture
def under_way(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """As long as there are claims under way that also end jobs. Jobs are swift on a busy machine, too, and as
    many are ahead as run."""
    monkeypatch.setattr(_hands, "FRESH", 600.0)
    monkeypatch.setattr(_room, "HORIZON", 600.0)
    monkeypatch.setattr(_room, "MOST", 0)
    turn, found = Store.turn, list[None]()

    async def turned(*arguments: Any) -> Any:
        found.append(None)
        try:
            return await turn(*arguments)
        finally:
            found.pop()

    monkeypatch.setattr(Store, "turn", turned)
    return found


async def test_swift_jobs_are_claimed_while_others_run(
    database: Database, database_urls: Urls, under_way: list[None]
) -> None:
    """So neither the database nor the loop waits for the other; and still no more than the slots run."""
    met, running, most = 0, 0, 0

    async def act(deed: Deed, run: Run) -> None:
        nonlocal met, running, most
        running += 1
        most = max(most, running)
        if int(deed.what) < 300:
            met += len(under_way)
        elif int(deed.what) % 20 == 0:
            await asyncio.sleep(0.001)
        running -= 1

    doer = Doer(act)
    await add_together(database, *map(str, range(500)))
    async with working(database, database_urls, [DO], doer, slots=10, **SLOW):
        await reach(database, *["done"] * 500)
    assert met > 30 and 1 < most <= 10, (met, most)
    assert sorted(int(what) for what, _ in doer.calls) == list(range(500))


async def test_the_swifter_jobs_are_the_more_are_claimed_ahead(
    database: Database, database_urls: Urls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as end within a moment, and a bound; what runs are still no more than the slots."""
    running, most, in_hand = 0, 0, [0]

    async def act(deed: Deed, run: Run) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        in_hand.append(made._dispatcher._hands.busy + made._dispatcher.room.reserved)
        if int(deed.what) % 20 == 0:
            await asyncio.sleep(0)
        running -= 1

    monkeypatch.setattr(_hands, "FRESH", 600.0)
    monkeypatch.setattr(_room, "HORIZON", 600.0)
    monkeypatch.setattr(_room, "MOST", 60)
    doer = Doer(act)
    await add_together(database, *map(str, range(600)))
    async with working(database, database_urls, [DO], doer, slots=5, **SLOW) as made:
        await reach(database, *["done"] * 600)
    assert 30 < max(in_hand) <= 60 and most <= 5
    assert sorted(int(what) for what, _ in doer.calls) == list(range(600))


async def test_jobs_that_come_after_a_while_are_not_taken_for_swift(
    database: Database, database_urls: Urls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is claimed that would have to go back, because jobs that ended long ago were swift."""
    gate = asyncio.Event()

    async def act(deed: Deed, run: Run) -> None:
        if deed.what == "long":
            await gate.wait()

    monkeypatch.setattr(_room, "HORIZON", 600.0)
    monkeypatch.setattr(_hands, "FRESH", 0.2)
    doer, heard = Doer(act), Heard()
    options = {**SLOW, "slots": 5, "sink": heard, "poll": 0.05}
    async with working(database, database_urls, [DO], doer, **options) as made:
        await add_together(database, *["swift"] * 50)
        await reach(database, *["done"] * 50)
        await asyncio.sleep(2 * 0.2)
        await add_together(database, *["long"] * 50)
        await until(lambda: made._dispatcher._hands.busy == 5)
        await asyncio.sleep(2 * _room.KEPT)
        assert made.running == 5 and not _returned(heard)
        gate.set()
        await reach(database, *["done"] * 100)


async def test_nothing_is_claimed_ahead_of_another_shard(
    database_urls: Urls, tmp_path: Path, under_way: list[None]
) -> None:
    """Its jobs get their share of the slots as soon as there are some."""
    async with deeds(database_urls, tmp_path / "migrations", size=8) as database:
        here = next(
            name for name in map(str, range(99)) if database.shards.shard_of(bucket_of(name)) == "main"
        )
        there = next(
            name for name in map(str, range(99)) if database.shards.shard_of(bucket_of(name)) != "main"
        )
        asked = asyncio.Event()

        async def act(deed: Deed, run: Run) -> None:
            if deed.what == "50":
                asked.set()

        async def add_some(key: str, *what: str) -> None:
            async with database.write(key) as tx:
                await tx.enqueue_many([Deed(one) for one in what])

        doer = Doer(act)
        await add_some(here, *map(str, range(1500)))
        async with working(database, database_urls, [DO], doer, slots=5, **{**SLOW, "poll": 0.02}):
            await asked.wait()
            await add_some(there, *["there"] * 10)
            await until(lambda: [what for what, _ in doer.calls].count("there") == 10)
            assert len(doer.calls) < 1000


async def test_nothing_is_claimed_ahead_once_a_transport_brings_jobs(
    database: Database, database_urls: Urls, under_way: list[None]
) -> None:
    """It may come back in the midst of claims, each of which would begin the next one."""

    async def act(deed: Deed, run: Run) -> None:
        if deed.what == "50":
            made._dispatcher.carry(True)

    doer = Doer(act)
    await add_together(database, *map(str, range(500)))
    async with working(database, database_urls, [DO], doer, slots=5, **SLOW) as made:
        await until(lambda: len(doer.calls) > 50 and not made.running and not made._dispatcher.room.reserved)
        assert len(doer.calls) < 75  # in hand, kept and under way
        made._dispatcher.carry(False)
        await reach(database, *["done"] * 500)


@pytest.mark.parametrize("stopped", [False, True])
async def test_what_was_claimed_ahead_goes_back_when_jobs_turn_out_long(
    database: Database,
    database_urls: Urls,
    monkeypatch: pytest.MonkeyPatch,
    under_way: list[None],
    stopped: bool,
) -> None:
    """After a moment, or at once where the worker stops; no attempt is counted."""
    gate, long = asyncio.Event(), 0

    async def act(deed: Deed, run: Run) -> None:
        nonlocal long
        if under_way or long:
            long += 1
            await gate.wait()

    if stopped:
        monkeypatch.setattr(_room, "KEPT", 60.0)
    doer, heard = Doer(act), Heard()
    options = {"slots": 5, "drain": 0.1, "sink": heard, **SLOW}
    await add_together(database, *map(str, range(100)))
    async with working(database, database_urls, [DO], doer, **options) as made:
        if stopped:
            await until(lambda: made.running == 10 and long == 5)
        else:
            await until(lambda: _returned(heard) == 5 and made.running == long == 5)
            assert {row["attempt"] for row in await rows(database, "state = 'ready'")} == {0}
            gate.set()
            await reach(database, *["done"] * 100)
    if stopped:
        assert _returned(heard) == 10
        assert {(row["state"], row["attempt"]) for row in await rows(database)} == {("done", 1), ("ready", 0)}
    else:
        assert sorted(int(what) for what, _ in doer.calls) == list(range(100))


async def test_what_went_back_is_claimed_again_as_soon_as_a_slot_is_free(
    database: Database, database_urls: Urls, monkeypatch: pytest.MonkeyPatch, under_way: list[None]
) -> None:
    """Also where the claim that brought it had found less than it asked for; and it went by one statement."""
    gate, back = asyncio.Event(), list[int]()
    hand_back = Store.hand_back

    async def act(deed: Deed, run: Run) -> None:
        if int(deed.what) >= 42:
            await gate.wait()

    async def handed_back(self: Store, runs: Any, *arguments: Any) -> Any:
        back.append(len(runs))
        return await hand_back(self, runs, *arguments)

    monkeypatch.setattr(_room, "MOST", 20)
    monkeypatch.setattr(Store, "hand_back", handed_back)
    heard = Heard()
    options = {**SLOW, "slots": 5, "sink": heard, "poll": 3600.0}
    await add_together(database, *map(str, range(55)))
    async with working(database, database_urls, [DO], Doer(act), **options) as made:
        await until(lambda: made.running == made._dispatcher._hands.busy == 5 and _returned(heard) > 1)
        gate.set()
        await reach(database, *["done"] * 55)
    assert sum(back) == _returned(heard) > len(back)
    assert {row["attempt"] for row in await rows(database)} == {1}


def _returned(heard: Heard) -> int:
    return sum(one.outcome == "returned" for one in heard.of(JobFinished))
