"""Loads: once for all who want the value at the same time, and nobody's end is the end of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from springtide.cache import Cache, CacheClass
from springtide.context import Identity, RequestContext, activate, current
from springtide.errors import DeadlineExceeded, LoadsSaturated, LoadTimeout, Unavailable
from springtide.testing.clock import ManualClock

PATIENCE = 30.0


class Loader:
    """Loads when it is told to; remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.gate = asyncio.Event()
        self.error: BaseException | None = None
        self.cancelled = 0
        self.context: RequestContext | None = None

    async def one(self, id: int) -> str | None:
        self.calls.append(id)
        self.context = current()
        await self._pass()
        return f"value {id}" if id >= 0 else None

    async def many(self, ids: list[int]) -> dict[int, str]:
        self.calls.append(ids)
        await self._pass()
        return {id: f"value {id}" for id in ids if id >= 0}

    async def _pass(self) -> None:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error


@asynccontextmanager
async def a_class(
    loader: Loader, *, many: bool = False, cache: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[CacheClass[str]]:
    """Its time stands still: who asks too long after a load began joins it no more, and a busy machine can
    make that of any two tasks."""
    made = Cache("app", **{"clock": ManualClock(), **(cache or {})})
    options |= {"load_many": loader.many} if many else {}
    defined = made.define("value:{id}", str, load=loader.one, **options)
    async with asyncio.timeout(PATIENCE), made:
        yield defined


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)


async def test_a_hundred_who_ask_at_once_make_one_load() -> None:
    """And all of them get its value."""
    loader = Loader()
    async with a_class(loader) as values:
        tasks = [asyncio.create_task(values.get(7)) for _ in range(100)]
        await until(lambda: values.stats.joined == 99)
        loader.gate.set()
        assert await asyncio.gather(*tasks) == ["value 7"] * 100
    assert loader.calls == [7]


async def test_nothing_is_kept_without_a_shared_level() -> None:
    """What is asked for after a load has ended is loaded again."""
    loader = Loader()
    loader.gate.set()
    async with a_class(loader) as values:
        assert [await values.get(7), await values.get(7), await values.get(-1)] == [
            "value 7",
            "value 7",
            None,
        ]
    assert loader.calls == [7, 7, -1]


async def test_cancelling_the_first_of_ten_leaves_the_other_nine_their_value() -> None:
    """Who began the load is one waiter among others."""
    loader = Loader()
    async with a_class(loader) as values:
        tasks = [asyncio.create_task(values.get(7)) for _ in range(10)]
        await until(lambda: values.stats.joined == 9 and loader.calls)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        loader.gate.set()
        assert tasks[0].cancelled()
        assert await asyncio.gather(*tasks[1:]) == ["value 7"] * 9
    assert loader.calls == [7]
    assert not loader.cancelled


async def test_the_last_one_to_leave_cancels_the_load() -> None:
    """A load that nobody waits for ends, and whoever comes next begins another one."""
    loader = Loader()
    async with a_class(loader) as values:
        tasks = [asyncio.create_task(values.get(7)) for _ in range(3)]
        await until(lambda: values.stats.joined == 2 and loader.calls)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        later = asyncio.create_task(values.get(7))
        await until(lambda: len(loader.calls) == 2)
        loader.gate.set()
        assert await later == "value 7"
    assert loader.cancelled == 1


async def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    """What the loader raises is raised as it is; the next one who asks is loaded for."""
    loader = Loader()
    loader.error = LookupError("no such table")
    async with a_class(loader) as values:
        tasks = [asyncio.create_task(values.get(7)) for _ in range(5)]
        await until(lambda: values.stats.joined == 4)
        loader.gate.set()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(end) for end in ends] == ["no such table"] * 5
        loader.error = None
        assert await values.get(7) == "value 7"
        assert values.stats.failed == {"LookupError": 1}


async def test_a_loader_that_is_cancelled_from_inside_cancels_nobody() -> None:
    """A CancelledError that nobody asked for is an error, not the end of whoever waits."""
    loader = Loader()
    loader.error = asyncio.CancelledError()
    loader.gate.set()
    async with a_class(loader) as values:
        with pytest.raises(Unavailable, match="cancelled from inside"):
            await values.get(7)


async def test_a_load_has_a_time_of_its_own() -> None:
    """LoadTimeout for all who wait, and the loader is cancelled; its own TimeoutError stays what it is."""
    loader = Loader()
    async with a_class(loader, hard_timeout=0.05) as values:
        with pytest.raises(LoadTimeout, match=r"a load of value took longer than 0\.05 s"):
            await values.get(7)
        assert loader.cancelled == 1
        loader.gate.set()
        loader.error = TimeoutError("a socket")
        with pytest.raises(TimeoutError, match="a socket"):
            await values.get(7)


async def test_who_runs_out_of_time_leaves_alone() -> None:
    """A caller's deadline ends his wait, not the load that others wait for."""
    loader, clock = Loader(), ManualClock()
    async with a_class(loader, cache={"clock": clock}) as values:
        patient = asyncio.create_task(values.get(7))
        await until(lambda: loader.calls)
        spent = RequestContext(deadline=clock.monotonic())
        with activate(spent), pytest.raises(DeadlineExceeded, match="waiting for a load of value"):
            await values.get(7)
        loader.gate.set()
        assert await patient == "value 7"


async def test_a_load_knows_the_session_and_the_ledger_but_not_who_asks() -> None:
    """A value is the same for everybody."""
    loader = Loader()
    loader.gate.set()
    async with a_class(loader) as values:
        mine = RequestContext(request_id="r", deadline=1e12, known=Identity(1, "session"))
        with activate(mine):
            await values.get(7)
    theirs = loader.context
    assert theirs is not None and theirs is not mine
    assert theirs.known is None
    assert theirs.deadline is not None and theirs.deadline < 1e12
    assert (theirs.request_id, theirs.causality, theirs.ledger) == ("r", mine.causality, mine.ledger)


async def test_who_comes_later_than_a_kept_value_may_be_old_begins_anew() -> None:
    """What a slow load has read may be older than the budget allows to whoever comes that much later."""
    loader = Loader()
    clock = ManualClock()
    async with a_class(loader, cache={"clock": clock}) as values:
        first = asyncio.create_task(values.get(7))
        await until(lambda: loader.calls)
        await clock.advance(values.definition.parts.trusted + 0.001)
        second = asyncio.create_task(values.get(7))
        await until(lambda: len(loader.calls) == 2)
        loader.gate.set()
        assert await first == await second == "value 7"


async def test_many_are_loaded_by_one_call() -> None:
    """The keys that nobody loads yet, each once; absent ones are left out, the order is the caller's."""
    loader = Loader()
    async with a_class(loader, many=True) as values:
        early = asyncio.create_task(values.get(1))
        await until(lambda: loader.calls)
        many = asyncio.create_task(values.get_many([3, 1, -2, 3, 2]))
        await until(lambda: len(loader.calls) == 2)
        late = asyncio.create_task(values.get(3))
        await until(lambda: values.stats.joined == 2)
        loader.gate.set()
        found = await many
        assert (await early, await late) == ("value 1", "value 3")
    assert list(found.items()) == [(3, "value 3"), (1, "value 1"), (2, "value 2")]
    assert loader.calls == [1, [3, -2, 2]]


async def test_leaving_a_wait_for_many_cancels_what_nobody_else_wants() -> None:
    """All loads of the call are given up, but not the one that somebody else waits for."""
    loader = Loader()
    async with a_class(loader) as values:
        other = asyncio.create_task(values.get(1))
        await until(lambda: loader.calls == [1])
        many = asyncio.create_task(values.get_many([1, 2]))
        await until(lambda: loader.calls == [1, 2])
        many.cancel()
        await asyncio.wait([many])
        await until(lambda: loader.cancelled == 1)
        loader.gate.set()
        assert await other == "value 1"


async def test_loads_at_once_are_bounded_and_so_are_those_that_wait() -> None:
    """Past both bounds a load is turned away at once; who leaves the line gives his place up."""
    loader = Loader()
    async with a_class(loader, cache={"max_loads": 2, "max_waiting": 2}) as values:
        tasks = [asyncio.create_task(values.get(id)) for id in range(4)]
        await until(lambda: values._cache.admission.waiting == 2)
        with pytest.raises(LoadsSaturated, match="2 loads of cached values are under way and 2 wait"):
            await values.get(4)
        tasks[2].cancel()
        await until(lambda: values._cache.admission.waiting == 1)
        assert loader.calls == [0, 1]
        loader.gate.set()
        assert await asyncio.gather(tasks[0], tasks[1], tasks[3]) == ["value 0", "value 1", "value 3"]
        assert values._cache.admission.running == 0


async def test_loads_that_wait_for_loads_are_never_stuck() -> None:
    """Neither one that a load begins nor one that stood in line before waits for the load's own place."""
    cache = Cache("app", max_loads=1)
    begun = asyncio.Event()
    go = asyncio.Event()

    async def load_inner(id: int) -> str:
        return f"inner {id}"

    async def load_outer(id: int) -> str:
        begun.set()
        await go.wait()
        return f"outer of {await inner.get(id)}, {await inner.get(id + 1)}"

    inner = cache.define("inner:{id}", str, load=load_inner)
    outer = cache.define("outer:{id}", str, load=load_outer)
    async with asyncio.timeout(PATIENCE), cache:
        whole = asyncio.create_task(outer.get(1))
        await begun.wait()
        queued = asyncio.create_task(inner.get(1))
        await until(lambda: cache.admission.waiting == 1)
        go.set()
        assert await whole == "outer of inner 1, inner 2"
        assert await queued == "inner 1"
        assert cache.admission.running == 0


async def test_a_stopped_cache_leaves_no_load_behind() -> None:
    """Who still waits hears that it is over."""
    loader = Loader()
    cache = Cache("app")
    values = cache.define("value:{id}", str, load=loader.one)
    async with asyncio.timeout(PATIENCE):
        async with cache:
            task = asyncio.create_task(values.get(7))
            await until(lambda: loader.calls)
        with pytest.raises(Unavailable):
            await task
    assert loader.cancelled == 1


async def test_a_loader_that_gives_something_else_is_found_out() -> None:
    """Its type is checked: what is stored has to be what is read."""

    async def load(id: int) -> Any:
        return ["a list"]

    cache = Cache("app")
    values = cache.define("value:{id}", str, load=load)
    async with cache:
        with pytest.raises(TypeError, match="the loader of value gave list"):
            await values.get(7)
