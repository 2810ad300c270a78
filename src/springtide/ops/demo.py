"""`springtide demo`: the whole journey of a newcomer in one command.

start the platform -> seed it, unless it has data -> drive it -> show what happened -> serve until Ctrl-C.

Each step is the command that one would type oneself, printed before it runs. Whatever ends the demo (Ctrl-C
at any moment, SIGTERM, a closed terminal, a step that fails), the platform that it started is stopped before
it returns. The steps run in sessions of their own, so that each hears of an interruption once, from here.
"""

from __future__ import annotations

import argparse
import errno
import math
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from springtide.errors import RunnerError
from springtide.ops.runner.commands import own_name
from springtide.ops.runner.home import Home, State
from springtide.topology import Topology, load

__all__ = ["add_commands"]

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_commands(subparsers: Any) -> None:
    """Add `demo` to the command line's sub-parsers."""
    demo = subparsers.add_parser("demo", help="start, seed and drive the platform, then keep it serving")
    demo.add_argument(
        "--file", type=Path, default=Path("springtide.toml"), help="the topology (default: springtide.toml)"
    )
    demo.add_argument("--port", type=int, help="public port (default: servers.port, or a free one)")
    demo.add_argument("--users", type=int, default=1000, metavar="N", help="how many people (1000)")
    demo.add_argument("--duration", type=float, default=30.0, metavar="S", help="seconds of traffic (30)")
    demo.add_argument(
        "--seconds",
        type=_seconds,
        default=os.environ.get("DEMO_SECONDS") or None,
        metavar="S",
        help="keep serving so long instead of until Ctrl-C (DEMO_SECONDS)",
    )
    demo.set_defaults(run=_demo)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be >= 0 seconds, got {text}")
    return seconds


def _demo(args: argparse.Namespace) -> int:
    topology = load(args.file)
    port = args.port if args.port is not None else _port(topology)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` means what it says
            signal.signal(number, _interrupt)
    try:
        return _shown(args, topology, port)
    except KeyboardInterrupt:
        return INTERRUPTED


def _shown(args: argparse.Namespace, topology: Topology, port: int) -> int:
    running = Home.beside(args.file)
    ours = running.holder() is None  # one that runs already is not ours to stop: `up` says so
    try:
        code = _step(args.file, "up", "--detach", "--port", str(port))
        if code:
            ours = False
            return code
        state = running.read_state()
        if state is None or state.url is None:
            raise RunnerError("the platform was up and stopped again: see `springtide logs`")
        if topology.seed is not None:
            code = _step(args.file, "seed", "--users", str(args.users), "--if-empty")
        if not code and topology.journeys is not None:
            code = _step(args.file, "load", "--duration", f"{args.duration:g}")
        if code:
            return code
        _say(_urls(state, running.read_notes()))
        _serve(args.seconds)
        return 0
    finally:
        try:
            _be_deaf()
        finally:  # also when the interruption comes right here
            if ours:
                _finish(args.file)


def _step(file: Path, *words: str) -> int:
    """Run one springtide command in a process of its own; its exit code. An interruption is passed on."""
    _say(f"\n$ springtide {' '.join(words)}")
    process = subprocess.Popen(_command(file, *words), start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise


def _finish(file: Path) -> None:
    _say("\n$ springtide down")
    subprocess.run(_command(file, "down"), start_new_session=True, check=False)


def _command(file: Path, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "springtide.ops.cli", words[0], "--file", str(file), *words[1:]]


def _serve(seconds: float | None) -> None:
    if seconds is None:
        _say("serving until Ctrl-C")
        signal.pause()
        return
    _say(f"serving for {seconds:g} s")
    time.sleep(seconds)


def _urls(state: State, notes: list[str]) -> str:
    """Where everything is, and what the seed said about how to use it."""
    rows = {
        "the application": f"{state.url}/",
        "its API": f"{state.url}/docs",
        "metrics": f"{state.url}/metrics",
        "health": f"{state.url}/health/dependencies",
        **{node.name: node.address or "" for node in state.nodes if node.kind == "program"},
        "logs": f"{own_name()} logs -f",
    }
    lines = [f"  {name:<16} {where}" for name, where in rows.items()]
    return "\n".join(["", *lines, *([""] if notes else []), *(f"  {note}" for note in notes), ""])


def _port(topology: Topology) -> int:
    """The port that the topology names; a free one when somebody else has it."""
    spec = topology.servers
    family = socket.AF_INET6 if ":" in spec.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((spec.host, spec.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                _say(f"port {spec.port} is taken, so the demo takes a free one")
                return 0
    return spec.port  # whatever else is wrong with it, `up` explains


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """The first interruption ends the demo; impatient ones after it cannot cut its end short."""
    _be_deaf()
    raise KeyboardInterrupt


def _be_deaf() -> None:
    for number in SIGNALS:
        signal.signal(number, _impatient)  # not SIG_IGN: the commands that we start would inherit that


def _impatient(_number: int, _frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(sys.stdout.fileno(), b"stopping\n")


def _say(text: str) -> None:
    with suppress(OSError):  # a terminal that was closed is no reason to leave the platform running
        print(text, flush=True)
