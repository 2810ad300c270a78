"""The load generator held against wrk (closed loop, C): the same server, the same region of rates.

    rate_vs_wrk      answers per second of ours at the rate that wrk reached at a fixed delay, relative to wrk
    p50_vs_wrk       median latency relative to wrk's, both with DELAY_MS in the server
    p99_vs_wrk       the same for p99
    cpu_us           CPU of the generator per request at 1,000/s, kernel included (target <= 150)
    max_rate         requests/s of one generator process against a server that answers at once
    stall_p99_ms     p99 of a server that stopped for one second of three, by ours (true: about 1,000)
    stall_closed_ms  p99 of the same answers counted from when they were sent, as a closed loop does

wrk sends a request when the one before was answered, so with c connections and a delay d its rate is about
c / d; ours plans that very rate. Stated bounds: rate_vs_wrk in 0.95..1.05, p50_vs_wrk in 0.9..1.1. Needs wrk.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

from bench._harness import arguments
from springtide.ops._process import runner
from springtide.ops.load.arrivals import Phase
from springtide.ops.load.generator import Generator, Options
from springtide.ops.load.journeys import Client, Journey
from springtide.ops.load.results import Results

ROOT = Path(__file__).parents[1]
DELAY_MS = 20
CONNECTIONS = 8
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def ours(url: str, path: str, *, rate: float, seconds: float, connections: int) -> Results:
    async def run(client: Client, rng: object, world: object) -> None:
        await client.get(path)

    phase = Phase(name="steady", duration=seconds, start_rate=rate, end_rate=rate)
    options = Options(url=url, phases=(phase,), distribution="uniform", connections=connections)
    with runner() as running:
        return running.run(Generator(options, [Journey("get", 1, run)]).run())


def wrk(url: str, path: str, *, seconds: float, connections: int) -> tuple[float, float, float]:
    """Requests per second, p50 and p99 in seconds."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--timeout", "10s", "--latency"]
    out = subprocess.run([*command, url + path], capture_output=True, text=True, check=True).stdout

    def quantile(name: str) -> float:
        found = re.search(rf"^\s*{name}%\s+([\d.]+)(us|ms|s|m)$", out, re.MULTILINE)
        assert found is not None, out
        return float(found[1]) * UNITS[found[2]]

    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    assert rate is not None, out
    return float(rate[1]), quantile("50"), quantile("99")


def serve(listener: socket.socket) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.integration._load_server", str(listener.fileno())]
    server = subprocess.Popen(command, cwd=ROOT, pass_fds=[listener.fileno()])
    connection = HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=30)
    connection.request("GET", "/")
    assert connection.getresponse().status == 200
    connection.close()
    return server


def main() -> None:
    options = arguments(__doc__)
    if shutil.which("wrk") is None:
        sys.exit("bench.load needs wrk: `make servers`, or apt-get install wrk")
    seconds = 2.0 if options.quick else 5.0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        server = serve(listener)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            report = measure(url, rounds=options.rounds, seconds=seconds)
        finally:
            server.terminate()
            server.wait(10)
    print(json.dumps(report))


def measure(url: str, *, rounds: int, seconds: float) -> dict[str, float]:
    path = f"/delay/{DELAY_MS}"
    wrk(url, path, seconds=1, connections=CONNECTIONS)
    ratios: dict[str, list[float]] = {"rate": [], "p50": [], "p99": []}
    for number in range(rounds):
        rate, p50, p99 = wrk(url, path, seconds=seconds, connections=CONNECTIONS)
        # More connections than wrk: an open loop's requests overlap where wrk's wait for each other.
        mine = ours(url, path, rate=rate, seconds=seconds, connections=CONNECTIONS * 8)
        assert not mine.errors, mine.errors
        latency = mine.latency
        ratios["rate"].append(mine.ok / seconds / rate)
        ratios["p50"].append(latency.quantile(0.5) / p50)
        ratios["p99"].append(latency.quantile(0.99) / p99)
        print(
            f"round {number + 1}: {rate:.0f}/s, p50 {p50 * 1e3:.2f} ms by wrk,"
            f" {latency.quantile(0.5) * 1e3:.2f} ms by ours; p99 {p99 * 1e3:.2f} and"
            f" {latency.quantile(0.99) * 1e3:.2f} ms"
        )
    stamp = time.time_ns()
    stalled = ours(url, f"/stall/ours{stamp}/150/1.0", rate=100, seconds=3, connections=1)
    busy = [ours(url, "/ok", rate=1000, seconds=2, connections=CONNECTIONS) for _ in range(3)]
    with runner() as running:
        fastest = running.run(saturate(url))
    report = {f"{name}_vs_wrk": round(statistics.median(values), 3) for name, values in ratios.items()}
    return report | {
        "cpu_us": round(statistics.median(each.cpu * each.seconds / each.sent * 1e6 for each in busy), 1),
        "max_rate": round(fastest),
        "stall_p99_ms": round(stalled.latency.quantile(0.99) * 1e3, 1),
        "stall_closed_ms": round(stalled.service.quantile(0.99) * 1e3, 1),
    }


async def saturate(url: str) -> float:
    """Requests per second when far more are planned than can be sent."""

    async def run(client: Client, rng: object, world: object) -> None:
        await client.get("/ok")

    phase = Phase(name="flood", duration=3, start_rate=50_000, end_rate=50_000)
    options = Options(url=url, phases=(phase,), connections=32, max_in_flight=64, limit=150_000)
    results = await Generator(options, [Journey("get", 1, run)]).run()
    return results.ok / results.seconds


if __name__ == "__main__":
    main()
