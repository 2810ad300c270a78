"""`springtide seed` and `springtide load`: options in, a report out.

Both work on the platform that springtide.toml describes and that is running beside it; `load --url` drives
any other server. Driving load at a machine that is not this one needs --i-may-load-this-host, because to
whoever owns that machine it is an attack.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from springtide.errors import AlreadySeeded, ConfigurationError, LoadError
from springtide.ops._process import runner
from springtide.ops.load.arrivals import DISTRIBUTIONS, PHASES, phases
from springtide.ops.load.generator import Options, Snapshot
from springtide.ops.load.journeys import Mix
from springtide.ops.load.processes import Run
from springtide.ops.load.progress import LiveLine, ProgressBar
from springtide.ops.load.report import live, summary, table
from springtide.ops.load.results import Results
from springtide.ops.load.seeding import Seed, SeedReport
from springtide.ops.load.source import find, find_journeys
from springtide.ops.runner.home import Home
from springtide.topology import Topology, load

__all__ = ["add_commands", "check_target"]

INTERRUPTED = 130


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `seed` and `load` to the command line; `args.run(args)` answers the exit code."""
    seed = subparsers.add_parser("seed", help="fill the running platform with plausible data")
    _add_file(seed)
    seed.add_argument("--users", type=_whole(2), default=1000, metavar="N", help="how many people (1000)")
    seed.add_argument("--seed", type=_whole(0), default=1, metavar="N", help="same number, same data (1)")
    seed.add_argument("--if-empty", action="store_true", help="where there is data, leave it and succeed")
    seed.set_defaults(run=_seed)

    drive = subparsers.add_parser(
        "load",
        help="drive the running platform with planned traffic and report latencies",
        description="Open loop: requests are sent when they are planned, and timed from then, however slow"
        " the server is. Ctrl-C ends the run and shows what was measured.",
    )
    _add_file(drive)
    drive.add_argument("--url", help="where to (the running platform): http://host[:port]")
    drive.add_argument(
        "--rate", type=_above_zero, metavar="R", help="requests/s in the steady phase (objectives.peak_rps)"
    )
    drive.add_argument(
        "--duration", type=_above_zero, default=30.0, metavar="S", help="seconds of all phases (30)"
    )
    drive.add_argument(
        "--phases",
        type=_phases,
        default=PHASES,
        metavar="NAMES",
        help="of ramp (0 to rate), steady (rate) and peak (objectives.headroom x rate); all three",
    )
    drive.add_argument("--arrivals", choices=DISTRIBUTIONS, default="poisson", help="(poisson)")
    drive.add_argument("--requests", type=_whole(1), metavar="N", help="end after about N planned requests")
    drive.add_argument(
        "--connections", type=_whole(1), metavar="N", help="at most (objectives.concurrent_users)"
    )
    drive.add_argument(
        "--in-flight",
        type=_whole(1),
        default=1000,
        metavar="N",
        help="journeys at once (1000)",
    )
    drive.add_argument(
        "--timeout", type=_above_zero, default=10.0, metavar="S", help="seconds per request (10)"
    )
    drive.add_argument("--processes", type=_whole(1), default=1, metavar="N", help="generators (1)")
    drive.add_argument("--seed", type=_whole(0), default=1, metavar="N", help="same number, same plan (1)")
    drive.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON, - for stdout")
    drive.add_argument(
        "--i-may-load-this-host",
        action="store_true",
        help="confirm that you may load a server that is not on this machine",
    )
    drive.set_defaults(run=_load)


def check_target(url: str, *, allowed: bool) -> None:
    """Raises ConfigurationError unless `url` is on this machine or its owner was asked (`allowed`)."""
    host = urlsplit(url).hostname
    if not host:
        raise ConfigurationError(f"--url must be http://host[:port], got {url!r}")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost" or host.endswith(".localhost")
    if not loopback and not allowed:
        raise ConfigurationError(
            f"{host} is not this machine: loading a server without its owner's consent is an attack;"
            " confirm with --i-may-load-this-host"
        )


def _seed(args: argparse.Namespace) -> int:
    topology = load(args.file)
    if topology.seed is None:
        raise ConfigurationError(f'{args.file}: no seed; name one, such as seed = "myapp.seed:seed"')
    home = Home.beside(args.file)
    home.use_environment()
    seed = cast(Seed, find(topology.seed, path=_import_path(args.file, topology), key="seed"))
    if not callable(seed):
        raise ConfigurationError(f"seed: {topology.seed!r} must be a function, got {seed!r}")
    with runner() as running:
        try:
            begun = time.monotonic()
            report = running.run(_seeded(args, seed))
        except KeyboardInterrupt:
            print("seeding was ended; nothing of it was kept", file=sys.stderr)
            return INTERRUPTED
        except AlreadySeeded:
            if not args.if_empty:
                raise
            print("there is data already: it is left as it is")
            _say(home.read_notes())
            return 0
    home.write_notes(report.notes)
    seconds = time.monotonic() - begun
    print(f"{report.users:,} users, {report.total:,} rows in {seconds:.1f} s (seed {report.seed})")
    for name, count in report.rows.items():
        print(f"  {name:<28}{count:>12,}")
    _say(report.notes)
    return 0


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        print(note)


async def _seeded(args: argparse.Namespace, seed: Seed) -> SeedReport:
    from springtide.platform import Platform

    bar = ProgressBar(sys.stderr)
    try:
        async with Platform.from_topology(args.file) as platform:
            return await seed(platform, users=args.users, seed=args.seed, progress=bar)
    finally:
        bar.end()


def _load(args: argparse.Namespace) -> int:
    topology = load(args.file)
    if topology.journeys is None:
        raise ConfigurationError(
            f'{args.file}: no journeys; name some, such as journeys = "myapp.journeys:journeys"'
        )
    url = args.url or _running_url(args.file)
    check_target(url, allowed=args.i_may_load_this_host)
    path = _import_path(args.file, topology)
    mix = Mix(find_journeys(topology.journeys, path=path))
    objectives = topology.objectives
    rate = args.rate if args.rate is not None else objectives.peak_rps
    options = Options(
        url=url,
        phases=tuple(
            phases(args.phases, rate=rate / mix.steps, duration=args.duration, peak=objectives.headroom)
        ),
        seed=args.seed,
        distribution=args.arrivals,
        connections=args.connections or objectives.concurrent_users,
        max_in_flight=args.in_flight,
        timeout=args.timeout,
        limit=None if args.requests is None else max(round(args.requests / mix.steps), 1),
    )
    line = LiveLine(sys.stderr)

    def show(snapshot: Snapshot, seconds: float) -> None:
        line.show(live(snapshot, seconds=seconds))

    fault: LoadError | None = None
    with runner() as running:
        run = Run(
            options,
            journeys=topology.journeys,
            path=path,
            processes=args.processes,
            progress=show,
            interval=0.25 if line.terminal else 2.0,
        )
        try:
            running.run(_driven(run))
        except LoadError as error:
            fault = error
        finally:
            line.end()
    if run.results is not None:
        _report(run.results, args.json)
    if fault is not None:
        raise fault
    return INTERRUPTED if run.results is not None and run.results.interrupted else 0


async def _driven(run: Run) -> Results:
    """The run, ended early by the first SIGINT or SIGTERM; a second one ends the program at once."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        run.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return await run.drive()


def _report(results: Results, file: Path | None) -> None:
    if file == Path("-"):
        print(json.dumps(summary(results), indent=2))
        return
    print(table(results))
    if file is not None:
        try:
            file.write_text(json.dumps(summary(results), indent=2) + "\n")
        except OSError as error:
            raise LoadError(f"the report could not be written to {file}: {error.strerror}") from error


def _running_url(file: Path) -> str:
    """Where the platform beside `file` answers, as its runner noted."""
    home = Path(os.environ.get("SPRINGTIDE_HOME") or file.absolute().parent / ".springtide")
    try:
        state = json.loads((home / "run" / "state.json").read_text())
        url = state["url"]
    except (FileNotFoundError, NotADirectoryError):
        url = None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"the running platform's state in {home} cannot be read: {error}") from error
    if not isinstance(url, str):
        raise ConfigurationError("no platform is running here: start it with `springtide up` or give --url")
    return url


def _import_path(file: Path, topology: Topology) -> Path:
    return file.absolute().parent / topology.path


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--file",
        type=Path,
        default=Path(os.environ.get("SPRINGTIDE_TOPOLOGY", "springtide.toml")),
        metavar="TOML",
        help="the topology (springtide.toml)",
    )


def _whole(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {text}")
        return value

    parse.__name__ = "whole number"
    return parse


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def _phases(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    try:
        phases(names, rate=1.0, duration=1.0)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names
