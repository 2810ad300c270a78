"""The open loop against a server with known delays: what it measures is true, and nothing is left out."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from springtide.errors import LoadError
from springtide.ops.load.arrivals import Phase
from springtide.ops.load.client import HttpClient
from springtide.ops.load.generator import Generator, Options
from springtide.ops.load.histogram import Histogram
from springtide.ops.load.journeys import Client, Journey, World
from springtide.ops.load.pacer import LoopPacer, Pacer, pacer
from springtide.ops.load.results import Results

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "tests.integration._load_server", str(listener.fileno())]
        server = subprocess.Popen(command, cwd=ROOT, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL)
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/")  # accepted by the kernel at once, answered when the server is up
            assert connection.getresponse().status == 200
            connection.close()
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(10)


def journey(path: str, **options: object) -> Journey:
    async def run(client: Client, rng: random.Random, world: World) -> None:
        await client.get(path, expect=options.get("expect"))  # type: ignore[arg-type]

    return Journey(path, 1, run)


def options(url: str, *, rate: float, duration: float, **more: object) -> Options:
    phase = Phase(name="steady", duration=duration, start_rate=rate, end_rate=rate)
    return Options(url=url, phases=(phase,), **more)  # type: ignore[arg-type]


def accounted(results: Results) -> bool:
    return all(
        journey.planned == journey.completed + journey.abandoned + journey.unsent + journey.unfinished
        for journey in results.journeys.values()
    )


async def test_quantiles_are_those_of_the_servers_delays(url: str) -> None:
    """Nine in ten answers take 20 ms, one in ten 120 ms: p50 and p99 say so, as a clock beside them does."""
    beside = Histogram()

    async def run(client: Client, rng: random.Random, world: World) -> None:
        begun = time.monotonic()
        await client.get(f"/delay/{20 if rng.random() < 0.9 else 120}", route="/delay")
        beside.record(time.monotonic() - begun)

    generator = Generator(options(url, rate=200, duration=2), [Journey("j", 1, run)])
    results = await generator.run()
    latency = results.routes["GET /delay"].latency
    assert latency.count == results.ok == results.planned > 300
    assert accounted(results) and not results.errors
    assert latency.quantile(0.5) >= 0.019 and latency.quantile(0.99) >= 0.119
    for q in (0.1, 0.5, 0.9, 0.99):
        assert results.service.quantile(q) <= beside.quantile(q) * 1.02  # a bucket's width
    assert latency.minimum is not None and latency.minimum >= 0.019  # the server's timers round to 1 ms


async def test_a_stalled_server_shows_although_a_closed_loop_would_hide_it(url: str) -> None:
    """A stop of 1 s: counted from when requests were due, p99 is about 1 s; from when sent, little."""
    generator = Generator(
        options(url, rate=100, duration=3, distribution="uniform", connections=1),
        [journey("/stall/open/100/1.0")],
    )
    results = await generator.run()
    assert accounted(results) and results.ok == 300
    assert results.latency.quantile(0.99) > 0.9
    assert results.latency.quantile(0.9) > 0.5
    # What the wire saw is one slow answer in 300.
    assert results.service.quantile(0.99) < results.latency.quantile(0.9)

    http, closed = HttpClient(url, connections=1), Histogram()
    for _ in range(300):
        begun = time.monotonic()
        await http.request("GET", "/stall/closed/100/1.0")
        closed.record(time.monotonic() - begun)
    await http.close()
    assert closed.maximum > 0.9
    assert closed.quantile(0.99) < closed.maximum / 2  # the same stall, and a report without it


async def test_expected_statuses_are_no_errors_and_others_are_counted_by_status(url: str) -> None:
    mix = [
        journey("/status/404"),
        journey("/status/503"),
        journey("/status/409", expect=(409,)),
        journey("/ok"),
    ]
    results = await Generator(options(url, rate=200, duration=1), mix).run()
    errors = results.errors
    assert set(errors) == {"status 404", "status 503"}
    assert results.journeys["/status/404"].abandoned == errors["status 404"] > 0
    assert results.journeys["/status/409"].completed == results.routes["GET /status/409"].ok > 0
    assert accounted(results) and results.sent == results.planned


async def test_a_failed_step_ends_its_journey(url: str) -> None:
    async def run(client: Client, rng: random.Random, world: World) -> None:
        await client.get("/ok")
        await client.get("/status/500")
        raise AssertionError("not reached")

    results = await Generator(options(url, rate=50, duration=0.5), [Journey("j", 1, run, steps=2)]).run()
    assert results.journeys["j"].abandoned == results.planned > 0
    assert results.sent == 2 * results.planned


async def test_what_does_not_fit_in_flight_is_counted_as_unsent(url: str) -> None:
    generator = Generator(
        options(url, rate=100, duration=1, distribution="uniform", max_in_flight=5), [journey("/delay/300")]
    )
    results = await generator.run()
    assert results.planned == 100
    assert 60 < results.unsent < 95
    assert results.ok == results.planned - results.unsent
    assert accounted(results) and results.phases[0].unsent == results.unsent


async def test_timeouts_are_errors_and_stay_in_the_latencies(url: str) -> None:
    generator = Generator(options(url, rate=50, duration=0.5, timeout=0.2), [journey("/delay/2000")])
    results = await generator.run()
    assert results.errors == {"timeout": results.planned}
    assert results.latency.count == results.planned
    assert results.latency.quantile(0.5) >= 0.2


async def test_nobody_listening_is_counted_as_connect() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        results = await Generator(options(dead, rate=50, duration=0.5), [journey("/")]).run()
    assert results.errors == {"connect": results.planned} and results.planned > 0


async def test_stopping_keeps_what_was_measured_and_counts_what_was_cut_off(url: str) -> None:
    generator = Generator(options(url, rate=100, duration=60), [journey("/ok"), journey("/delay/30000")])
    running = asyncio.create_task(generator.run())
    while generator.results.ok < 20:
        await asyncio.sleep(0.01)
    generator.stop()
    results = await asyncio.wait_for(running, 2)
    assert results.interrupted and results.seconds < 30
    assert results.errors["unfinished"] > 0
    assert results.journeys["/delay/30000"].unfinished > 0
    assert accounted(results)


async def test_what_is_in_flight_at_the_end_is_waited_for_and_no_longer_than_drain(url: str) -> None:
    short = await Generator(options(url, rate=50, duration=0.2), [journey("/delay/400")]).run()
    assert short.ok == short.planned > 0
    cut = await Generator(options(url, rate=50, duration=0.2, drain=0.1), [journey("/delay/5000")]).run()
    assert cut.errors == {"unfinished": cut.planned} and cut.seconds < 5


async def test_a_journeys_own_fault_ends_the_run_with_its_cause(url: str) -> None:
    async def run(client: Client, rng: random.Random, world: World) -> None:
        await client.get("/ok")
        raise KeyError("slug")

    generator = Generator(options(url, rate=100, duration=30), [Journey("j", 1, run)])
    with pytest.raises(LoadError, match="slug") as fault:
        await generator.run()
    assert isinstance(fault.value.__cause__, KeyError)
    assert generator.results.ok > 0 and generator.results.seconds < 10


async def test_preparation_is_not_measured_and_its_failure_says_why(url: str) -> None:
    async def prepare(client: Client, world: World) -> None:
        await client.get("/delay/50")
        world.put("token")

    async def run(client: Client, rng: random.Random, world: World) -> None:
        assert world.get(str) == "token"
        await client.get("/ok", token=world.get(str))

    generator = Generator(options(url, rate=50, duration=0.3), [Journey("j", 1, run, prepare=prepare)])
    await generator.prepare()
    results = await generator.run()
    assert set(results.routes) == {"GET /ok"}

    async def refused(client: Client, world: World) -> None:
        await client.get("/status/401")

    generator = Generator(options(url, rate=50, duration=0.3), [Journey("j", 1, run, prepare=refused)])
    with pytest.raises(LoadError, match="status 401"):
        await generator.prepare()


async def test_the_servers_own_times_are_added_up(url: str) -> None:
    results = await Generator(options(url, rate=100, duration=0.5), [journey("/timing")]).run()
    assert results.timed == results.ok > 0
    assert results.parts["sql"] == pytest.approx(0.0025 * results.ok)
    assert results.parts["cpu"] == pytest.approx(0.0005 * results.ok)


async def test_the_same_seed_makes_the_same_choices(url: str) -> None:
    async def chosen() -> list[float]:
        seen: dict[float, None] = {}

        async def run(client: Client, rng: random.Random, world: World) -> None:
            seen[rng.random()] = None
            await client.get("/ok")

        await Generator(options(url, rate=100, duration=0.3, seed=9), [Journey("j", 1, run)]).run()
        return sorted(seen)

    assert await chosen() == await chosen()


async def test_a_generator_that_is_itself_late_says_so(url: str) -> None:
    """Its own loop is held up: the requests count as late, and from when they were due."""

    async def run(client: Client, rng: random.Random, world: World) -> None:
        await client.get("/ok")
        if rng.random() < 0.2:
            until = time.monotonic() + 0.05
            while time.monotonic() < until:  # computes, as a journey should not
                pass

    results = await Generator(options(url, rate=100, duration=1), [Journey("j", 1, run)]).run()
    assert results.late > 0.3 * results.sent
    assert results.latency.quantile(0.9) > 0.02


@pytest.fixture(params=["best", "loop"])
async def waiting(request: pytest.FixtureRequest) -> AsyncIterator[Pacer]:
    made = pacer() if request.param == "best" else LoopPacer()
    yield made
    made.close()


async def test_a_pacer_is_never_early_and_does_not_wait_for_what_has_passed(waiting: Pacer) -> None:
    lateness = []
    for _ in range(20):
        due = time.monotonic() + 0.005
        await waiting.until(due)
        lateness.append(time.monotonic() - due)
    assert min(lateness) >= 0
    await waiting.until(time.monotonic() - 1)  # passed already: at once


async def test_a_pacer_may_be_cancelled_and_used_again(waiting: Pacer) -> None:
    task = asyncio.create_task(waiting.until(time.monotonic() + 60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    due = time.monotonic() + 0.01
    await waiting.until(due)
    assert time.monotonic() >= due


# The command, in processes of its own

TOPOLOGY = """
name = "tiny"
stage = 1
app = "tiny:app"
path = "."
journeys = "tiny:journeys"
[objectives]
peak_rps = 100.0
"""

TINY = """
from springtide.ops.load.journeys import Journey

async def fast(client, rng, world):
    await client.get("/ok")

async def slow(client, rng, world):
    await client.get("/delay/5")
    await client.get("/delay/5")

journeys = [Journey("fast", 1, fast), Journey("slow", 1, slow, steps=2)]
"""

MAIN = """
import argparse, sys
from springtide.errors import SpringtideError
from springtide.ops.load.commands import add_commands
parser = argparse.ArgumentParser()
add_commands(parser.add_subparsers(required=True))
args = parser.parse_args()
try:
    sys.exit(args.run(args))
except SpringtideError as error:
    sys.exit(f"error: {error}")
"""


def command(folder: Path, *arguments: str, source: str = TINY) -> subprocess.Popen[str]:
    (folder / "springtide.toml").write_text(TOPOLOGY)
    (folder / "tiny.py").write_text(source)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SPRINGTIDE_")}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, "load", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_command_reports_the_planned_rate_as_json(url: str, tmp_path: Path, processes: str) -> None:
    run = command(
        tmp_path,
        "--url",
        url,
        "--duration",
        "2",
        "--phases",
        "steady",
        "--processes",
        processes,
        "--json",
        "r.json",
    )
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["processes"] == int(processes)
    assert 140 < report["requests_ok"] < 260  # 100 requests/s for 2 s, Poisson
    assert report["requests_failed"] == report["journeys_unsent"] == 0
    assert report["routes"]["GET /delay/5"]["latency_ms"]["p50"] > 5
    assert "GET /delay/5" in out and "journey" in out


def test_one_plan_gives_the_same_journeys_to_any_number_of_processes(url: str, tmp_path: Path) -> None:
    def planned(processes: str) -> dict[str, int]:
        run = command(tmp_path, "--url", url, "--duration", "1", "--processes", processes, "--json", "-")
        out, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
        return {name: journey["planned"] for name, journey in json.loads(out)["journeys"].items()}

    assert planned("1") == planned("3")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_shows_what_was_measured(url: str, tmp_path: Path, processes: str) -> None:
    run = command(tmp_path, "--url", url, "--duration", "600", "--processes", processes, "--json", "r.json")
    assert run.stderr is not None
    assert "ok/s" in run.stderr.readline()  # the live line: it is running
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 130, err
    assert "ended early" in out and "Traceback" not in err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["interrupted"] and report["seconds"] < 60


WAITING = """
from springtide.ops.load.journeys import Journey

async def forever(client, world):
    open("preparing", "w").close()
    while True:
        await client.get("/delay/1000")

async def run(client, rng, world):
    await client.get("/ok")

journeys = [Journey("run", 1, run, prepare=forever)]
"""


@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_ends_a_preparation_that_does_not_end_by_itself(
    url: str, tmp_path: Path, processes: str
) -> None:
    """At once, with a sentence, and no generator process is left to load the server."""
    run = command(tmp_path, "--url", url, "--processes", processes, source=WAITING)
    try:
        until(lambda: (tmp_path / "preparing").exists())
        begun = time.monotonic()
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert time.monotonic() - begun < 8  # a generator that must be killed takes 10 s
    assert run.returncode == 1 and err.strip() == "error: the load was ended before it began"


@pytest.mark.parametrize("during", ["preparation", "run"])
def test_generators_follow_a_killed_parent_quietly(url: str, tmp_path: Path, during: str) -> None:
    """They hold the terminal, so that it falls silent when the last of them is gone."""
    source = WAITING if during == "preparation" else TINY
    run = command(tmp_path, "--url", url, "--processes", "2", "--duration", "600", source=source)
    assert run.stderr is not None and run.stdout is not None
    if during == "preparation":
        until(lambda: (tmp_path / "preparing").exists())
    else:
        assert "ok/s" in run.stderr.readline()
    run.kill()
    rest = run.stderr.read()
    run.stdout.close()
    run.stderr.close()
    assert run.wait(10) == -signal.SIGKILL
    assert "Traceback" not in rest and "Error" not in rest


def until(happened: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """For what another process does; there is nothing to await."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_command_refuses_foreign_hosts_and_says_when_nothing_runs(tmp_path: Path) -> None:
    for arguments, word in (
        (["--url", "http://192.0.2.1"], "--i-may-load-this-host"),
        ([], "springtide up"),
        (["--url", "https://127.0.0.1"], "http://host"),
    ):
        run = command(tmp_path, *arguments)
        _, err = run.communicate(timeout=60)
        assert run.returncode == 1 and word in err and "Traceback" not in err


def test_the_running_platforms_address_is_the_default(url: str, tmp_path: Path) -> None:
    state = tmp_path / ".springtide" / "run" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"url": url}))
    run = command(tmp_path, "--duration", "0.5", "--requests", "10", "--json", "-")
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert json.loads(out)["url"] == url
