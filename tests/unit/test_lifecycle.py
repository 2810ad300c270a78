"""The start/stop contract, groups, supervised and periodic tasks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from springtide.context import RequestContext, activate, current
from springtide.lifecycle import Group, Periodic, StartStop, Supervised
from springtide.signals import ServiceChanged, Signal, TaskFailed
from springtide.testing import ManualClock, stress


class Recorder:
    def __init__(self) -> None:
        self.signals: list[Signal] = []

    def emit(self, signal: Signal) -> None:
        self.signals.append(signal)

    def states(self) -> list[str]:
        return [signal.state for signal in self.signals if isinstance(signal, ServiceChanged)]


class Door:
    """A service whose opening and closing wait until the test lets them pass; counts what is held."""

    def __init__(self, name: str = "door", *, stubborn: bool = False, fails: bool = False) -> None:
        self.name = name
        self.held = 0
        self.most = 0
        self.may_open = asyncio.Event()
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.begun = asyncio.Event()
        self.fails = fails
        self._stubborn = stubborn
        self.sink = Recorder()
        self._life = StartStop(name, self._open, self._close, sink=self.sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def _open(self) -> None:
        self.begun.set()
        try:
            await self.may_open.wait()
        except asyncio.CancelledError:
            if not self._stubborn:
                raise
        if self.fails:
            raise OSError(f"{self.name} is stuck")
        self.held += 1
        self.most = max(self.most, self.held)

    async def _close(self) -> None:
        await self.may_close.wait()
        self.held -= 1


def open_door(name: str = "door", **options: bool) -> Door:
    door = Door(name, **options)
    door.may_open.set()
    return door


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(*bodies: Awaitable[None]) -> AsyncIterator[list[asyncio.Future[None]]]:
    tasks = [asyncio.ensure_future(body) for body in bodies]
    await settle()
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- StartStop


async def test_start_and_stop_twice_open_and_close_once() -> None:
    """start and stop are idempotent, also when called concurrently."""
    door = open_door()
    await asyncio.gather(door.start(), door.start())
    await door.start()
    assert (door.state, door.held) == ("running", 1)
    await asyncio.gather(door.stop(), door.stop())
    await door.stop()
    assert (door.state, door.held) == ("stopped", 0)
    assert door.sink.states() == ["starting", "running", "stopping", "stopped"]


async def test_a_stopped_service_starts_again() -> None:
    """stopped is not the end."""
    door = open_door()
    for _ in range(3):
        await door.start()
        assert door.held == 1
        await door.stop()
        assert door.held == 0


async def test_stopping_what_never_started_does_nothing() -> None:
    """stop before start is no error, and the service stays new."""
    door = Door()
    await door.stop()
    assert (door.state, door.sink.signals) == ("new", [])


async def test_every_waiter_of_a_failed_start_hears_why() -> None:
    """All who wait for one start get its error; the service can be started again."""
    door = Door(fails=True)
    async with running(door.start(), door.start(), door.start()) as starts:
        door.may_open.set()
        results = await asyncio.gather(*starts, return_exceptions=True)
    assert [str(result) for result in results] == ["door is stuck"] * 3
    assert door.state == "failed"
    door.fails = False
    await door.start()
    assert door.state == "running"
    await door.stop()


async def test_a_failed_start_nobody_waits_for_is_not_an_unseen_exception() -> None:
    """The caller was cancelled; the failure is in the state and the signal, not in asyncio's log."""
    unseen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    door = Door(fails=True)
    async with running(door.start()):
        pass
    door.may_open.set()
    await settle()
    assert door.state == "failed"
    assert unseen == []
    last = door.sink.signals[-1]
    assert isinstance(last, ServiceChanged) and last.error is not None and "stuck" in last.error


async def test_a_cancelled_caller_leaves_the_change_whole() -> None:
    """Cancelling whoever called start does not leave the service half open."""
    door = Door()
    async with running(door.start()):
        assert door.state == "starting"
    door.may_open.set()
    await settle()
    assert (door.state, door.held) == ("running", 1)
    await door.stop()


async def test_stop_ends_a_start() -> None:
    """stop during start cancels the opening; start returns, nothing is held."""
    door = Door()
    async with running(door.start()) as (start,):
        await door.stop()
        await start
    assert (door.state, door.held) == ("stopped", 0)


async def test_a_start_after_a_stop_wins() -> None:
    """start, stop, start while the first is still opening: the service runs."""
    door = Door()
    async with running(door.start()) as (first,):
        stop = asyncio.ensure_future(door.stop())
        await asyncio.sleep(0)
        again = asyncio.ensure_future(door.start())
        await asyncio.sleep(0)
        door.may_open.set()
        await asyncio.gather(first, stop, again)
    assert (door.state, door.held, door.most) == ("running", 1, 1)
    await door.stop()


async def test_a_stop_after_a_start_wins() -> None:
    """stop, start, stop while the service is still closing: it stays stopped."""
    door = open_door()
    await door.start()
    door.may_close.clear()
    async with running(door.stop()) as (first,):
        start = asyncio.ensure_future(door.start())
        await asyncio.sleep(0)
        last = asyncio.ensure_future(door.stop())
        await asyncio.sleep(0)
        door.may_close.set()
        await asyncio.gather(first, start, last)
    await settle()
    assert (door.state, door.held) == ("stopped", 0)


async def test_an_opening_that_ignores_its_end_is_closed() -> None:
    """stop means stopped, even if the opening swallowed the cancellation and succeeded."""
    door = Door(stubborn=True)
    async with running(door.start()) as (start,):
        await door.stop()
        await start
    assert (door.state, door.held) == ("stopped", 0)
    assert door.sink.states() == ["starting", "stopping", "stopped"]


async def test_several_stops_cancel_an_opening_once() -> None:
    """How the opening cleans up is not cut short by the next stop."""
    cleaned = asyncio.Event()
    cleaning = asyncio.Event()
    go = asyncio.Event()

    async def opening() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await go.wait()
            cleaned.set()

    async def closing() -> None:
        raise AssertionError("it never opened")

    service = StartStop("slow", opening, closing)
    async with running(service.start()) as (start,), running(service.stop()) as (stop,):
        await cleaning.wait()
        async with running(service.stop()) as (other,):
            go.set()
            await asyncio.gather(start, stop, other)
    assert cleaned.is_set()
    assert service.state == "stopped"


async def test_an_opening_cancelled_from_inside_has_failed() -> None:
    """A CancelledError nobody asked for is a failed start, not a stop."""

    async def opening() -> None:
        raise asyncio.CancelledError

    async def closing() -> None:
        raise AssertionError("it never opened")

    service = StartStop("odd", opening, closing)
    with pytest.raises(asyncio.CancelledError):
        await service.start()
    assert service.state == "failed"


async def test_a_failed_closing_is_told_to_whoever_stops() -> None:
    """The service counts as stopped, and stop raises."""

    async def opening() -> None:
        return None

    async def closing() -> None:
        raise OSError("disk full")

    service = StartStop("leaky", opening, closing)
    await service.start()
    with pytest.raises(OSError, match="disk full"):
        await service.stop()
    assert service.state == "stopped"


async def test_a_service_started_within_a_request_is_not_part_of_it() -> None:
    """What a service starts does not inherit the deadline of whoever started it."""
    seen: list[RequestContext | None] = []
    done = asyncio.Event()

    async def body() -> None:
        seen.append(current())
        done.set()

    service = Supervised("outlives", body)
    with activate(RequestContext(deadline=0.0)):
        await service.start()
        await done.wait()
        assert current() is not None
    await service.stop()
    assert seen == [None]


# --- Group


def scribe(log: list[str], name: str, *, fails: str = "") -> StartStop:
    def step(verb: str) -> Callable[[], Awaitable[None]]:
        async def body() -> None:
            log.append(f"{verb} {name}")
            await asyncio.sleep(0)
            if verb == fails:
                raise OSError(f"{verb} {name}")

        return body

    return StartStop(name, step("open"), step("close"))  # type: ignore[arg-type]  # coroutines, typed wider


async def test_a_group_starts_in_order_and_stops_in_reverse() -> None:
    """a before b, b gone before a."""
    log: list[str] = []
    group = Group("both", [scribe(log, "a"), scribe(log, "b")])
    await group.start()
    await group.stop()
    assert log == ["open a", "open b", "close b", "close a"]


async def test_a_group_that_cannot_start_stops_what_had_started() -> None:
    """The error is the start's own, also when a stop fails on the way back."""
    log: list[str] = []
    services = [scribe(log, "a"), scribe(log, "b", fails="close"), scribe(log, "c", fails="open")]
    group = Group("all", services)
    with pytest.raises(OSError, match="open c"):
        await group.start()
    assert group.state == "failed"
    assert log == ["open a", "open b", "open c", "close b", "close a"]


async def test_a_group_stops_every_service_even_if_some_fail() -> None:
    """All errors are raised together, after everything was stopped."""
    log: list[str] = []
    group = Group("all", [scribe(log, "a"), scribe(log, "b", fails="close")])
    await group.start()
    with pytest.raises(ExceptionGroup) as caught:
        await group.stop()
    assert [str(error) for error in caught.value.exceptions] == ["close b"]
    assert log[-2:] == ["close b", "close a"]


async def test_a_stop_while_a_failed_group_cleans_up_leaves_nothing() -> None:
    """The stop's cancellation arrives during the way back; every service is stopped all the same."""
    first, slow = open_door("first"), open_door("slow")
    slow.may_close.clear()
    broken = open_door("broken", fails=True)
    group = Group("all", [first, slow, broken])
    async with running(group.start()) as (start,):
        assert slow.state == "stopping"
        async with running(group.stop()) as (stop,):
            slow.may_close.set()
            await asyncio.gather(start, stop, return_exceptions=True)
    assert [door.held for door in (first, slow, broken)] == [0, 0, 0]
    assert [door.state for door in (first, slow, broken)] == ["stopped", "stopped", "failed"]


# --- Supervised and Periodic


async def test_a_failed_body_is_started_again_later_each_time() -> None:
    """Delays double up to the maximum, each with full jitter."""
    clock, sink = ManualClock(), Recorder()
    runs = 0

    async def body() -> None:
        nonlocal runs
        runs += 1
        raise OSError("down")

    task = Supervised("fragile", body, backoff=1.0, max_backoff=8.0, clock=clock, sink=sink)
    await task.start()
    for expected in (1, 2, 4, 8, 8):
        await clock.until_sleeping()
        failed = [signal for signal in sink.signals if isinstance(signal, TaskFailed)][-1]
        assert failed.retry_in is not None
        assert 0.5 * expected <= failed.retry_in < 1.5 * expected
        await clock.advance(failed.retry_in)
    assert runs == 6
    await task.stop()
    assert clock.sleepers == 0


async def test_a_body_that_returns_is_done() -> None:
    """Returning is not failing."""
    runs = 0
    done = asyncio.Event()

    async def body() -> None:
        nonlocal runs
        runs += 1
        done.set()

    task = Supervised("once", body)
    await task.start()
    await done.wait()
    await settle()
    await task.stop()
    assert runs == 1


async def test_a_body_cancelled_from_inside_is_started_again() -> None:
    """A cancelled future that the body awaits does not end the task for ever."""
    clock = ManualClock()
    runs = 0

    async def body() -> None:
        nonlocal runs
        runs += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    task = Supervised("unlucky", body, clock=clock)
    await task.start()
    await clock.until_sleeping()
    await clock.advance(60)
    assert runs >= 2
    await task.stop()


async def test_a_body_that_fails_on_its_way_out_is_heard() -> None:
    """stop returns; the failure is logged, and a signal says that nothing is started again."""
    unseen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    sink = Recorder()

    async def body() -> None:
        try:
            await forever()
        finally:
            raise OSError("the disk is full")

    supervised = Supervised("writer", body, sink=sink)
    await supervised.start()
    await settle()
    await supervised.stop()
    assert supervised.state == "stopped"
    gc.collect()
    await settle()
    failed = [signal for signal in sink.signals if isinstance(signal, TaskFailed)]
    assert failed == [TaskFailed("writer", "OSError('the disk is full')", None)]
    assert unseen == []


async def test_a_body_that_swallows_its_cancellation_ends_all_the_same() -> None:
    """stop returns although the first cancellation got lost in the body."""
    clock = ManualClock()
    entered = asyncio.Event()

    async def body() -> None:
        entered.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    for task in (Periodic("p", body, every=1.0, clock=clock), Supervised("s", body, clock=clock)):
        entered.clear()
        await task.start()
        if isinstance(task, Periodic):
            await clock.until_sleeping()
            await clock.advance(2)
        await entered.wait()
        async with asyncio.timeout(5):
            await task.stop()
        assert task.state == "stopped"


async def test_a_periodic_body_is_called_again_after_it_raised() -> None:
    """Calls come every `every` seconds give or take the jitter, whatever they do."""
    clock, sink = ManualClock(), Recorder()
    times: list[float] = []

    async def body() -> None:
        times.append(clock.monotonic())
        if len(times) == 1:
            raise OSError("first")
        if len(times) == 2:
            raise asyncio.CancelledError

    begun = clock.monotonic()
    task = Periodic("tick", body, every=10.0, jitter=0.2, clock=clock, sink=sink)
    await task.start()
    for _ in range(4):
        await clock.until_sleeping()
        await clock.advance(12.0)
    await task.stop()
    gaps = [after - before for before, after in zip([begun, *times], times, strict=False)]
    assert len(times) >= 4
    assert all(8.0 <= gap <= 24.0 for gap in gaps)
    assert [type(signal) for signal in sink.signals].count(TaskFailed) == 2


async def test_a_first_call_may_come_at_once() -> None:
    """Without a pause before it; the pauses come between the calls."""
    clock, calls = ManualClock(), 0

    async def body() -> None:
        nonlocal calls
        calls += 1

    task = Periodic("tick", body, every=10.0, at_once=True, clock=clock)
    await task.start()
    await clock.until_sleeping()
    assert calls == 1
    await clock.advance(12.0)
    await clock.until_sleeping()
    assert calls == 2
    await task.stop()


@pytest.mark.parametrize("every", [0, -1.0])
def test_a_period_must_be_positive(every: float) -> None:
    """The message shows the value."""

    async def body() -> None:
        return None

    with pytest.raises(ValueError, match=f"got {every}"):
        Periodic("never", body, every=every)
    with pytest.raises(ValueError, match="jitter must be in"):
        Periodic("never", body, every=1.0, jitter=1.0)
    with pytest.raises(ValueError, match="backoff must be"):
        Supervised("never", body, backoff=2.0, max_backoff=1.0)


# --- Storms


class Slow(Door):
    """Opens and closes over several turns of the loop; holding twice or below zero is a fault."""

    async def _open(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        assert self.held == 0
        self.held = 1

    async def _close(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        assert self.held == 1
        self.held = 0


async def forever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "factory",
    [
        Slow,
        lambda: Group("group", [Slow("a"), Slow("b"), Group("inner", [Slow("c")])]),
        lambda: Supervised("supervised", forever),
        lambda: Periodic("periodic", forever, every=0.001),
    ],
    ids=["StartStop", "Group", "Supervised", "Periodic"],
)
async def test_storms_of_start_stop_and_cancel(factory: Callable[[], Slow]) -> None:
    """The last call decides, nothing hangs, nothing is left."""
    await stress(factory, storms=150, seed=7)


async def test_the_stress_test_finds_a_service_that_loses_an_exception() -> None:
    """Also when only the collector of garbage brings it to light."""

    class Careless(Slow):
        async def _open(self) -> None:
            await super()._open()

            async def fail() -> None:
                raise OSError("nobody listens")

            lost = asyncio.get_running_loop().create_task(fail())
            ring: list[object] = [lost]
            ring.append(ring)

    with pytest.raises(AssertionError, match="storm") as caught:
        await stress(Careless, storms=1)
    assert "nobody listens" in str(caught.value.__cause__)


async def test_the_stress_test_finds_a_service_that_forgets_its_task() -> None:
    """A helper that never fails would prove nothing."""

    class Forgetful(Slow):
        async def _open(self) -> None:
            self.task = asyncio.get_running_loop().create_task(forever(), name="forgotten")
            await super()._open()

    before = asyncio.all_tasks()
    with pytest.raises(AssertionError, match="storm 0"):
        await stress(Forgetful, storms=1)
    for task in asyncio.all_tasks() - before:
        task.cancel()
