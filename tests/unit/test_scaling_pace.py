"""Workers come at once and go slowly: the decision alone, a simulated load, and processes that crash."""

from __future__ import annotations

import asyncio
import http.server
import json
import math
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.jobs.scaling import Bounds, Load, wanted
from springtide.ops.runner import workers as module
from springtide.ops.runner.children import Child
from springtide.ops.runner.programs import PythonProgram
from springtide.ops.runner.scaling import Fleet, Pace
from springtide.ops.runner.workers import Workers
from springtide.topology.layers import WorkerScalingSpec

LOOKS = st.lists(
    st.tuples(st.floats(0.1, 30), st.none() | st.integers(0, 30), st.booleans(), st.booleans()), max_size=60
)


@given(LOOKS, st.integers(1, 5), st.integers(0, 10), st.floats(1, 100))
def test_it_never_leaves_the_bounds(
    looks: list[tuple[float, int | None, bool, bool]], least: int, more: int, down_after: float
) -> None:
    """Whatever is wanted, whoever is in trouble and however long retiring ones take: no more processes than
    the most, no fewer that take jobs than the least, one is retired at a time, and what nobody knows or who
    is in trouble adds none."""
    pace, now, most = Pace(), 0.0, least + more
    running, retiring = least, 0
    for pause, wants, well, ended in looks:
        now += pause
        retiring = 0 if ended else retiring
        fleet = Fleet(running, retiring, well)
        change = pace.look(now, wants, fleet, least=least, most=most, down_after=down_after)
        assert change >= -1
        if change < 0:
            assert wants is not None
            assert retiring == 0
            running, retiring = running - 1, retiring + 1
        else:
            assert change == 0 or (well and wants is not None)
            running += change
        assert least <= running
        assert running + retiring <= most


@given(st.integers(1, 20), st.lists(st.integers(0, 20), min_size=1, max_size=20), st.integers(1, 30))
def test_a_load_that_goes_up_and_down_moves_nothing(start: int, wants: list[int], turns: int) -> None:
    """A pattern that comes again within the window: at its most from the first time on, without end."""
    pace, now, running = Pace(), 0.0, start
    peak = max(max(wants), 1)
    seen = []
    for turn in range(turns + 40):
        for want in wants:
            now += 1.0
            running += pace.look(now, want, Fleet(running), least=1, most=20, down_after=len(wants) * 1.0)
            assert running >= want
        if turn:
            assert running >= peak
        seen.append(running)
    assert seen[-1] == peak
    assert seen[-turns:] == [peak] * turns


def test_fewer_takes_its_time() -> None:
    """Not before the whole window said so, then one, and the next only when that one has ended."""
    pace, options = Pace(), {"least": 1, "most": 10, "down_after": 60.0}
    assert pace.look(0.0, 5, Fleet(2), **options) == 3  # type: ignore[arg-type]
    assert pace.look(59.0, 2, Fleet(5), **options) == 0  # type: ignore[arg-type]
    assert pace.look(60.0, 2, Fleet(5), **options) == 0  # type: ignore[arg-type]
    assert pace.look(61.0, 2, Fleet(5), **options) == -1  # type: ignore[arg-type]
    assert pace.look(62.0, 2, Fleet(4, retiring=1), **options) == 0  # type: ignore[arg-type]
    assert pace.look(63.0, 2, Fleet(4), **options) == -1  # type: ignore[arg-type]
    assert pace.look(64.0, None, Fleet(3), **options) == 0  # type: ignore[arg-type]
    assert pace.look(65.0, 2, Fleet(3), **options) == 0  # type: ignore[arg-type]
    assert pace.look(126.0, 2, Fleet(3), **options) == -1  # type: ignore[arg-type]


@pytest.mark.parametrize("arrival, service, burst", [(40.0, 0.5, 0), (40.0, 0.5, 20_000), (0.5, 90.0, 0)])
def test_a_constant_load_ends_at_a_constant_number(arrival: float, service: float, burst: int) -> None:
    """Simulated: a queue in which jobs come and are worked off as measured. The queue drains, and from then
    on the number of workers stays where it is, at what the load needs or one above."""
    bounds = Bounds(10, most=50, time_to_drain=60.0)
    pace, running, waiting, measured = Pace(), 1, float(burst), 0.0
    history = []
    for look in range(2000):
        now = look * 2.0
        came = arrival * 2.0
        done = min(waiting + came, running * bounds.slots / service * 2.0)
        waiting += came - done
        measured += (1 - math.exp(-2.0 / 60)) * (arrival - measured)
        at_work = min(math.ceil(done / 2.0 * service), running * bounds.slots)
        load = Load("deeds", "main", "deed.do", int(waiting), at_work, measured, service)
        change = pace.look(
            now, wanted([load], bounds).workers, Fleet(running), least=1, most=50, down_after=300.0
        )
        running += change
        history.append((running, waiting))
    needed = math.ceil(arrival * service / bounds.slots)
    assert {workers for workers, _ in history[-500:]} <= {needed, needed + 1}
    assert len({workers for workers, _ in history[-500:]}) == 1
    assert history[-1][1] <= arrival * bounds.time_to_drain
    assert max(workers for workers, _ in history) <= 50


# -- with processes --------------------------------------------------------------------------------------

WORKER = """
import os, signal, sys, time
if os.path.exists("crash"):
    sys.exit(1)
signal.signal(signal.SIGUSR1, lambda *_: open(os.environ["SPRINGTIDE_NODE"] + ".retired", "w").close())
open(os.environ["SPRINGTIDE_NODE"] + ".started", "a").write("x")
os.write(int(sys.argv[sys.argv.index("--ready-fd") + 1]), b"1")
while not os.path.exists("release"):
    if os.path.exists("die"):
        sys.exit(1)
    time.sleep(0.01)
    if os.path.exists("go") and os.path.exists(os.environ["SPRINGTIDE_NODE"] + ".retired"):
        sys.exit(0)
"""


class Says:
    """A server whose /scaling says `workers`, or nothing when that is None."""

    def __init__(self) -> None:
        self.workers: int | None = 1
        self.asked = 0
        self.url = ""


@contextmanager
def saying() -> Iterator[Says]:
    says = Says()

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            says.asked += 1
            self.send_response(503 if says.workers is None or self.path != "/scaling" else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"workers": says.workers}).encode())

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    says.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield says
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@asynccontextmanager
async def following(folder: Path, says: Says, spec: WorkerScalingSpec) -> AsyncIterator[Workers]:
    (folder / "worker_of_tests.py").write_text(WORKER)

    async def make(number: int) -> Child:
        program = PythonProgram(
            f"worker-{number}",
            "worker_of_tests",
            [],
            log=folder / f"worker-{number}.log",
            folder=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            drain=0.1,
        )
        return Child(program, "worker", changed=lambda: None, backoff=0.01, max_backoff=0.02)

    made = Workers(make, scaling=lambda: spec, changed=lambda: None)
    await made.prepare(1)
    try:
        await asyncio.gather(*(child.start() for child in made.children))
        await made.follow(says.url)
        yield made
    finally:
        await made.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.02)


async def until(condition: object) -> None:
    async with asyncio.timeout(60):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def looked(says: Says, times: int = 5) -> None:
    """Several whole looks have passed."""
    asked = says.asked
    await until(lambda: says.asked >= asked + times)


def spec(**values: float) -> WorkerScalingSpec:
    return WorkerScalingSpec(**{"min": 1, "max": 3, "down_after": 0.05, **values})  # type: ignore[arg-type]


async def test_a_worker_goes_by_drain_and_comes_again(tmp_path: Path) -> None:
    """Up at once to the most; the last one that came is told to finish, and nobody else while it has not; a
    load that comes back finds room only when it has; then its number is used again."""
    with saying() as says:
        async with following(tmp_path, says, spec()) as workers:
            says.workers = 9
            await until(lambda: sum(child.running for child in workers.children) == 3)
            await looked(says)
            assert len(workers.children) == 3
            says.workers = 1
            await until((tmp_path / "worker-3.retired").exists)
            await looked(says)
            states = [child.state().state for child in workers.children]
            assert states == ["running", "running", "retiring"]
            says.workers = 3
            await looked(says)
            assert [child.state().state for child in workers.children] == states
            (tmp_path / "go").touch()
            await until(lambda: [child.state().state for child in workers.children] == ["running"] * 3)
            assert (tmp_path / "worker-3.started").read_text() == "xx"
            assert not (tmp_path / "worker-2.retired").exists()
        assert workers.children == [] or all(not child.running for child in workers.children)


async def test_while_nobody_knows_nothing_changes(tmp_path: Path) -> None:
    """No page, or none that answers: as many workers as before, however long."""
    with saying() as says:
        async with following(tmp_path, says, spec()) as workers:
            says.workers = 2
            await until(lambda: sum(child.running for child in workers.children) == 2)
            says.workers = None
            await looked(says, 20)
            assert [child.running for child in workers.children] == [True, True]


async def test_workers_that_crash_are_not_joined_by_more(tmp_path: Path) -> None:
    """They end again and again and the queue asks for ever more: there is still the one."""
    with saying() as says:
        async with following(tmp_path, says, spec()) as workers:
            (tmp_path / "die").touch()
            await until(lambda: workers.children[0].restarts >= 1)
            says.workers = 9
            await looked(says, 20)
            assert len(workers.children) == 1


async def test_one_that_cannot_be_started_ends_nothing(tmp_path: Path) -> None:
    """The new one ends at once, three times: it is given up for a while, and the others run on."""
    with saying() as says:
        async with following(tmp_path, says, spec()) as workers:
            (tmp_path / "crash").touch()
            says.workers = 2
            await until(lambda: len(workers.children) == 2)
            await until(lambda: len(workers.children) == 1)
            await looked(says)
            assert [child.running for child in workers.children] == [True]


async def test_the_end_of_the_platform_does_not_wait_for_jobs(tmp_path: Path) -> None:
    """A worker that finishes its jobs is stopped with the others, and none is left."""
    with saying() as says:
        async with following(tmp_path, says, spec()) as workers:
            says.workers = 2
            await until(lambda: sum(child.running for child in workers.children) == 2)
            says.workers = 1
            await until((tmp_path / "worker-2.retired").exists)
            pids = [child.program.identity.pid for child in workers.children]
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
