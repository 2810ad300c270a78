"""The parts of the runner: processes held safely, children started again, logs bounded, state kept."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from springtide.errors import ProcessCrashed, RunnerError
from springtide.ops.runner import logs, pgdata, ports, processes, psql
from springtide.ops.runner.children import Child
from springtide.ops.runner.home import Home, NodeState, State
from springtide.ops.runner.processes import Identity, Stage
from springtide.ops.runner.programs import PythonProgram
from springtide.testing import ManualClock

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
STUBBORN = (
    "import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "open(sys.argv[1], 'w').close()\ntime.sleep(60)"
)


async def spawn(*arguments: str, log: Path | None = None) -> processes.Process:
    return await processes.spawn(list(arguments) or SLEEP, log=log, env=dict(os.environ))


async def test_a_recycled_pid_is_never_adopted() -> None:
    """A pid that belongs to another process now, or to one of another boot, is not the one we noted."""
    process = await spawn()
    noted = process.identity
    assert await asyncio.to_thread(processes.alive, noted)
    for stranger in (replace(noted, started=noted.started - 1), replace(noted, boot="another")):
        assert await asyncio.to_thread(processes.adopt, stranger) is None
    adopted = await asyncio.to_thread(processes.adopt, noted)
    assert adopted is not None and adopted.send(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    assert await adopted.wait() is None
    assert await asyncio.to_thread(processes.adopt, noted) is None
    assert not process.send(signal.SIGTERM)


async def test_several_may_wait_for_one_process() -> None:
    """Each waiter hears of the end, and a cancelled one does not disturb the others."""
    process = await spawn()
    waiters = [asyncio.ensure_future(process.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    process.send(signal.SIGTERM)
    assert await asyncio.gather(*waiters[1:]) == [-signal.SIGTERM] * 2


async def test_stop_escalates(tmp_path: Path) -> None:
    """A process that ignores SIGTERM is killed after its time; a stopped (SIGSTOP) one ends as well."""
    mark = tmp_path / "ready"
    process = await spawn(sys.executable, "-S", "-c", STUBBORN, str(mark))
    while not await asyncio.to_thread(mark.exists):
        await asyncio.sleep(0.01)
    assert await processes.stop(process, [Stage(signal.SIGTERM, 0.1), Stage(signal.SIGKILL, 5.0)])
    assert process.returncode == -signal.SIGKILL
    frozen = await spawn()
    frozen.send(signal.SIGSTOP)
    while not await asyncio.to_thread(processes.suspended, frozen.pid):
        await asyncio.sleep(0.01)
    assert await processes.stop(frozen, [Stage(signal.SIGTERM, 5.0)])
    assert frozen.returncode == -signal.SIGTERM


async def test_a_cancelled_spawn_loses_no_process(tmp_path: Path) -> None:
    """Cancelled while the process is being started: it does not run on."""
    mark = tmp_path / "mark"
    code = f"import time; time.sleep(0.3); open({str(mark)!r}, 'w')"
    spawning = asyncio.ensure_future(spawn(sys.executable, "-S", "-c", code))
    await asyncio.sleep(0)
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    await asyncio.sleep(0.5)  # the time it would have needed; that nothing happens has no event
    assert not await asyncio.to_thread(mark.exists)


async def test_a_cancellation_is_not_lost_as_the_answer_comes() -> None:
    """Whoever is cancelled in the very moment in which psql has ended is cancelled, and does not go on."""
    for _ in range(5):
        options = {"sql": "select 1;", "who": "db", "environment": {}, "timeout": 60.0}
        asking = asyncio.ensure_future(psql.run(Path("/bin/true"), **options))
        at_work = False
        while not asking.done():
            others = asyncio.all_tasks() - {asyncio.current_task(), asking}
            at_work = at_work or len(others) >= 3  # one for each of its pipes
            if at_work and not others and not asking.cancelling():
                asking.cancel()
            await asyncio.sleep(0)
        assert asking.cancelled()


async def test_what_cannot_be_started_is_named() -> None:
    """A program that is not there: its name and the reason."""
    with pytest.raises(RunnerError, match=r"cannot start /no/such: No such file"):
        await spawn("/no/such")


class Fake:
    """A program whose starts and ends the test decides."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.name, self.log, self.address = "node", Path("node.log"), "here"
        self.outcomes = list(outcomes)
        self.identity = Identity(1, 1, "boot")
        self.ended = asyncio.Event()
        self.starts = self.stops = 0

    async def start(self) -> None:
        self.starts += 1
        self.ended.clear()
        if self.outcomes and (outcome := self.outcomes.pop(0)) is not None:
            raise outcome

    async def stop(self) -> None:
        self.stops += 1

    async def wait(self) -> int | None:
        await self.ended.wait()
        return 3


def child(program: Fake, changes: list[str]) -> Child:
    made: Child
    made = Child(
        program,
        "fake",
        changed=lambda: changes.append(made.state().state),
        backoff=0.001,
        max_backoff=0.01,
    )
    return made


async def test_a_crash_at_the_first_start_is_retried_three_times() -> None:
    """Three crashes before it was ever ready end it with the last error; other errors at once."""
    program = Fake(*[ProcessCrashed(f"crash {n}") for n in (1, 2, 3)])
    changes: list[str] = []
    with pytest.raises(RunnerError, match="crash 3"):
        await child(program, changes).start()
    assert program.starts == 3 and changes == ["starting", "failed"]
    program = Fake(RunnerError("no rights"))
    with pytest.raises(RunnerError, match="no rights"):
        await child(program, []).start()
    assert program.starts == 1


async def test_once_ready_it_is_started_again_for_ever() -> None:
    """It ends, fails to start five times, and runs again; each state is told."""
    program = Fake(None, *[RunnerError("not now")] * 5)
    changes: list[str] = []
    made = child(program, changes)
    await made.start()
    program.ended.set()
    while made.restarts == 0:
        await asyncio.sleep(0.001)
    assert program.starts == 7 and made.state().state == "running" and made.state().error is None
    assert changes.count("restarting") == 6
    await made.stop()
    assert made.state().state == "stopped" and made.state().identity is None


async def test_an_end_is_told_before_any_pause() -> None:
    """The clock stands still, so no pause ends: who asked to be told has been, and a failure of theirs ends
    nothing; the program is not started again before its pause."""
    program, told, clock = Fake(), asyncio.Event(), ManualClock()

    async def ended() -> None:
        told.set()
        raise RunnerError("not now")

    made = Child(program, "fake", changed=lambda: None, ended=ended, clock=clock)
    await made.start()
    program.ended.set()
    async with asyncio.timeout(20):
        await told.wait()
    assert program.starts == 1 and made.state().state == "restarting"
    async with asyncio.timeout(20):
        while made.restarts == 0:
            await clock.advance(1.0)
            await asyncio.sleep(0)
    assert program.starts == 2
    await made.stop()


async def test_a_stop_during_the_start_ends_it() -> None:
    """Stopped before it is ready: the program is stopped, and no watch is left."""

    class Slow(Fake):
        async def start(self) -> None:
            await asyncio.sleep(60)

    program = Slow()
    made = child(program, [])
    starting = asyncio.ensure_future(made.start())
    await asyncio.sleep(0.01)
    await made.stop()
    await asyncio.wait([starting])
    assert program.stops == 1 and made.state().state != "running"


async def test_silent_program_is_ended(tmp_path: Path) -> None:
    """A child that neither ends nor says that it is ready is killed after its time."""
    (tmp_path / "silent.py").write_text("print('loading', flush=True)\nimport time; time.sleep(60)\n")
    program = PythonProgram(
        "app-1",
        "silent",
        [],
        log=tmp_path / "app-1.log",
        folder=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        start_timeout=1.0,
    )
    with pytest.raises(RunnerError, match=r"(?s)was not ready within 1 s.*loading"):
        await program.start()


def test_logs_are_bounded(tmp_path: Path) -> None:
    """A file past its bound moves aside, the oldest is dropped, and the writer's descriptor goes on."""
    log = tmp_path / "db.log"
    writer = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in range(5):
        os.write(writer, f"round {number}\n".encode() * 10)
        assert logs.rotate(log, max_bytes=50, keep=3)
        assert not logs.rotate(log, max_bytes=50, keep=3)
    os.write(writer, b"last\n")
    os.close(writer)
    assert log.read_text() == "last\n"
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["db.log", "db.log.1", "db.log.2", "db.log.3"]
    assert (tmp_path / "db.log.3").read_text().startswith("round 2")


@pytest.mark.parametrize("count", [0, 1, 3, 5000, 10_000])
def test_last_lines(tmp_path: Path, count: int) -> None:
    """The last lines of a long file, whatever the size of what is read at once."""
    log = tmp_path / "log"
    lines = [f"line {n} {'x' * (n % 97)}" for n in range(8000)]
    log.write_text("\n".join(lines) + "\n")
    assert logs.last_lines(log, count) == (lines[-count:] if count else [])
    assert logs.last_lines(log, 5, begin=log.stat().st_size) == []
    assert logs.last_lines(tmp_path / "none", 5) == []


async def test_follow_sees_lines_over_a_rotation(tmp_path: Path) -> None:
    """Lines appended from now on come complete, also after the file was truncated."""
    log = tmp_path / "log"
    log.write_text("before\n")
    following = logs.follow([log], every=0.01)
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0.03)
    with log.open("a") as file:
        file.write("whole\nhal")
    assert await first == (log, "whole")
    second = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0.03)
    os.truncate(log, 0)
    with log.open("a") as file:
        file.write("new\n")
    assert (await second)[1] == "new"
    await following.aclose()  # type: ignore[attr-defined]  # an async generator has it


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home")
    made.create()
    yield made


def test_state_survives_and_strangers_are_ignored(home: Home) -> None:
    """What was written is read again; half a file, or one of another version, counts as none."""
    node = NodeState(
        name="db",
        kind="postgres",
        state="running",
        identity=Identity(1, 2, "b"),
        address="x",
        since=1.0,
        restarts=0,
    )
    state = State(
        platform="shop",
        supervisor=Identity(3, 4, "b"),
        topology="t",
        url=None,
        ready=True,
        nodes=(node, replace(node, identity=None)),
    )
    home.write_state(state)
    assert home.read_state() == state
    assert stat.S_IMODE((home.run / "state.json").stat().st_mode) == 0o600
    for text in ("", "{", "[]", '{"nodes": []}', '{"nodes": [{"name": "db"}]}'):
        (home.run / "state.json").write_text(text)
        assert home.read_state() is None
    home.clear()
    assert home.read_state() is None


def test_the_lock_names_its_holder(home: Home) -> None:
    """Held by another: refused with the process that holds it; free again when that is gone."""
    with home.lock(), pytest.raises(RunnerError, match=rf"process {os.getpid()}"), Home(home.path).lock():
        pass
    with home.lock():
        pass


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    """A file in the way, or a place that is no folder: a clear error with the path."""
    (tmp_path / "home").write_text("")
    with pytest.raises(RunnerError, match=str(tmp_path / "home")):
        Home(tmp_path / "home").create()


def test_holder_of_a_port() -> None:
    """A port that somebody has is refused with who it is; IPv6 hosts work."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunnerError, match=rf"taken by process {os.getpid()} .*: do this"):
            ports.bind("127.0.0.1", port, remedy="do this")
    with pytest.raises(RunnerError, match="no address of this machine"):
        ports.bind("192.0.2.1", 0, remedy="")
    with ports.bind("localhost", 0, remedy="") as listener:
        assert listener.getsockname()[1] > 0


def test_what_is_not_finished_goes_although_somebody_still_writes_there(tmp_path: Path) -> None:
    """A killed base backup, or a thread whose caller was cancelled, may make a file while it is removed. What
    is of another node stays."""
    left, other = tmp_path / ".new-db-x", tmp_path / ".new-db-2-x"
    left.mkdir()
    other.mkdir()
    for number in range(200):
        (left / str(number)).touch()
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set() and number < 1_000_000:
            number += 1
            with suppress(OSError):
                (left / f"late-{number}").touch()

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    threading.Timer(0.2, stop.set).start()
    pgdata.Staging.clear(tmp_path / "db")
    stop.set()
    for writer in writers:
        writer.join()
    assert list(tmp_path.iterdir()) == [other]
