"""`springtide up | down | status | logs`: the runner on the command line."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from springtide.errors import ConfigurationError, RunnerError
from springtide.ops.runner import broker_status, cache_status, cgroups, logs, pgdata, processes
from springtide.ops.runner.home import Home, NodeState, State
from springtide.ops.runner.leftovers import (
    end_leftovers,
    left_brokers,
    left_caches,
    left_databases,
    left_programs,
    left_servers,
)
from springtide.ops.runner.processes import Stage
from springtide.ops.runner.supervisor import Supervisor
from springtide.topology import load

__all__ = ["add_commands", "own_name"]

_log = logging.getLogger(__name__)

NOT_RUNNING = 3
"""Exit code of `status`, as of systemctl, when nothing runs."""

INTERRUPTED = 130

HEADER = ("NODE", "KIND", "PID", "STATE", "ADDRESS", "UPTIME", "RESTARTS", "MEMORY")
"""Of the table of `status`; of a database with replicas, KIND is its role."""

DOWN = (Stage(signal.SIGTERM, 75.0), Stage(signal.SIGKILL, 5.0))
"""The ordered stop is bounded itself; only a supervisor that hangs is killed."""


def add_commands(subparsers: Any) -> None:
    """Add the four commands to the command line's sub-parsers."""
    up = subparsers.add_parser("up", help="start the platform")
    _file(up)
    up.add_argument("--detach", "-d", action="store_true", help="return when it is up; it runs on")
    up.add_argument("--port", type=_port, help="public port instead of servers.port; 0 = a free one")
    up.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    up.set_defaults(run=_up)

    down = subparsers.add_parser("down", help="stop the platform, and whatever a killed one left")
    _file(down)
    down.set_defaults(run=_down)

    status = subparsers.add_parser("status", help="what runs, where, since when; exit code 3 = nothing")
    _file(status)
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(run=_status)

    show = subparsers.add_parser("logs", help="show the logs of all nodes, or of one")
    _file(show)
    show.add_argument("node", nargs="?", help="only this node, for example db or app-1")
    show.add_argument("-f", "--follow", action="store_true", help="go on as lines are written")
    show.add_argument("-n", "--lines", type=_count, default=50, help="last lines of each node (default: 50)")
    show.set_defaults(run=_logs)


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--file", type=Path, default=Path("springtide.toml"), help="the topology (default: springtide.toml)"
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"must be in 0..65535, got {text}")
    return port


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"must be >= 0, got {text}")
    return count


def _home(file: Path) -> Home:
    """The home beside the topology; the file itself need not be readable any more."""
    home = Home.beside(file)
    if not file.exists() and not home.path.exists():
        raise ConfigurationError(f"there is no {file}: go to your project, or name the file with --file")
    return home


def _up(args: argparse.Namespace) -> int:
    home = _home(args.file)
    topology = replace(load(args.file), source=args.file.absolute())
    supervisor = Supervisor(topology, home, port=args.port)
    home.create()
    if args.detach:
        return _detach(args, home)
    handlers: list[logging.Handler] = [logging.FileHandler(home.logs / "supervisor.log")]
    if args.ready_fd is None:
        handlers.append(logging.StreamHandler())
        handlers[-1].setLevel(logging.WARNING)
    logging.basicConfig(
        level=logging.INFO, handlers=handlers, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    try:
        return asyncio.run(_serve(supervisor, args.ready_fd))
    except RunnerError as error:
        if args.ready_fd is not None:
            _tell(args.ready_fd, {"error": str(error)})
        raise


async def _serve(supervisor: Supervisor, ready_fd: int | None) -> int:
    stopping, up = asyncio.Event(), asyncio.Event()
    running = asyncio.ensure_future(supervisor.run(stopping, up.set))

    def stop() -> None:
        if not stopping.is_set():
            stopping.set()
            if not up.is_set():
                running.cancel()

    loop = asyncio.get_running_loop()
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if sig is not signal.SIGHUP or signal.getsignal(sig) is not signal.SIG_IGN:  # as `nohup` wants it
            loop.add_signal_handler(sig, stop)
    arriving = asyncio.ensure_future(up.wait())
    await asyncio.wait([running, arriving], return_when=asyncio.FIRST_COMPLETED)
    if up.is_set():
        state = supervisor.home.read_state()
        assert state is not None
        if ready_fd is None:
            print(_welcome(state), flush=True)
        elif not _tell(ready_fd, {"warnings": supervisor.warnings}):
            _log.warning("the `springtide up --detach` that started this has ended: nobody waits for it")
            stop()
    arriving.cancel()
    try:
        await running
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise
        return INTERRUPTED
    return 0


def _tell(ready_fd: int, message: dict[str, Any]) -> bool:
    """Answer the `up --detach` that started us; False when it has gone."""
    try:
        os.write(ready_fd, json.dumps(message).encode())
        return True
    except BrokenPipeError:
        return False
    finally:
        os.close(ready_fd)


def _detach(args: argparse.Namespace, home: Home) -> int:
    reader, writer = os.pipe()
    command = [sys.executable, "-P", "-m", "springtide.ops.cli", "up", "--file", str(args.file.absolute())]
    command += ["--ready-fd", str(writer)]
    if args.port is not None:
        command += ["--port", str(args.port)]
    log = home.logs / "supervisor.log"
    begin = log.stat().st_size if log.exists() else 0
    process = asyncio.run(
        processes.spawn(command, log=log, env=os.environ, cwd=Path.cwd(), pass_fds=(writer,))
    )
    try:
        os.close(writer)
        with os.fdopen(reader, "rb") as answers:
            answer = answers.read()
        if not answer:
            raise RunnerError(f"the supervisor ended while starting\n{logs.tail(log, 15, begin=begin)}")
        message = json.loads(answer)
        if "error" in message:
            asyncio.run(process.wait())
            raise RunnerError(message["error"])
        for warning in message["warnings"]:
            print(f"springtide: {warning}", file=sys.stderr)
        state = home.read_state()
        if state is None:
            raise RunnerError(f"the platform was up and stopped again\n{logs.tail(log, 15, begin=begin)}")
        print(_welcome(state, detached=True), flush=True)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second one must not cut this short
        asyncio.run(processes.stop(process, DOWN))
        raise
    return 0


def _welcome(state: State, *, detached: bool = False) -> str:
    lines = [f"{state.platform} is up: {state.url}", ""]
    lines += [f"  {node.name:<12} {node.kind:<10} {node.address or ''}".rstrip() for node in state.nodes]
    name = own_name()
    stop = f"`{name} down` stops it" if detached else "Ctrl-C stops it"
    lines += ["", f"{stop}; `{name} status` and `{name} logs -f` show more."]
    return "\n".join(lines)


def own_name() -> str:
    """What to type for this command: its path when a shell would not find it by name."""
    here = Path(sys.executable).with_name("springtide")
    found = shutil.which("springtide")
    if not here.exists() or (found is not None and Path(found).resolve() == here.resolve()):
        return "springtide"
    return shlex.quote(str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here))


def _down(args: argparse.Namespace) -> int:
    home = _home(args.file)
    if not home.path.is_dir():
        print("nothing runs here")
        return 0
    stopped = asyncio.run(_stop(home))
    print(f"stopped {stopped}" if stopped else "nothing runs here")
    return 0


async def _stop(home: Home) -> str:
    """Stop the supervisor in order, then end what is left; what was stopped, "" for nothing."""
    state = home.read_state()
    noted = state.supervisor if state is not None else home.holder()
    supervisor = processes.adopt(noted) if noted is not None else None
    if supervisor is not None and not await processes.stop(supervisor, DOWN):
        raise RunnerError(f"the supervisor (process {supervisor.pid}) does not end, not even when killed")
    with home.lock():
        left = await end_leftovers(home, databases=True)
        if state is not None:
            cgroups.remove_platform(f"{state.platform}-{pgdata.home_hash(home.path)}")
        home.clear()
    if supervisor is None and not left:
        return ""
    name = state.platform if state is not None else str(home.path.parent)
    return f"{name}, {len(left)} processes that a killed supervisor had left" if left else name


def _status(args: argparse.Namespace) -> int:
    home = _home(args.file)
    state = home.read_state()
    running = state is not None and processes.alive(state.supervisor)
    nodes = list(state.nodes) if running and state is not None else _orphans(home, state)
    url = state.url if running and state is not None else None
    phase = "not running" if not running else "up" if state is not None and state.ready else "changing"
    rows = [_row(node) for node in nodes]
    if args.json:
        name = state.platform if state is not None else None
        pid = state.supervisor.pid if running and state is not None else None
        found: dict[str, Any] = {"platform": name, "state": phase, "url": url, "supervisor": pid}
        found |= {"nodes": rows}
        more = {"caches": cache_status.told_by(home, rows), "brokers": broker_status.told_by(home, rows)}
        found |= {key: told for key, told in {"backups": home.read_backups(), **more}.items() if told}
        print(json.dumps(found))
    else:
        print(f"{state.platform if state else home.path.parent}: {phase}{f' at {url}' if url else ''}")
        if nodes and not running:
            print("its supervisor was killed and left these: `springtide up` takes over, `down` ends them")
        if rows:
            print(_table(rows))
        for node, told in cache_status.told_by(home, rows).items():
            print(f"{node}: {cache_status.sentence(told)}")
        for node, told in broker_status.told_by(home, rows).items():
            print(f"{node}: {broker_status.sentence(told)}")
        for cluster, note in home.read_backups().items() if running else ():
            print(_backups(cluster, note))
    return 0 if running else NOT_RUNNING


def _orphans(home: Home, state: State | None) -> list[NodeState]:
    """Processes that still run although their supervisor does not."""
    if not home.path.is_dir():
        return []
    known = {node.identity.pid: node for node in (state.nodes if state else ()) if node.identity}
    found = []
    for kind, pids in (
        ("postgres", [server.pid for server in left_databases(home)]),
        ("redis", left_caches(home)),
        ("broker", left_brokers(home)),
        ("program", left_programs(home)),
        ("python", left_servers(home)),
    ):
        for pid in pids:
            node = known.get(pid) or NodeState(
                name="?",
                kind=kind,
                state="",
                identity=processes.identify(pid),
                address=None,
                since=0,
                restarts=0,
            )
            found.append(replace(node, state="orphaned"))
    return found


def _row(node: NodeState) -> dict[str, Any]:
    pid = node.identity.pid if node.identity and processes.alive(node.identity) else None
    return {
        "node": node.name,
        "kind": node.kind,
        "role": node.role,
        "pid": pid,
        "state": "frozen" if pid and processes.suspended(pid) else node.state,
        "address": node.address,
        "uptime": round(max(time.time() - node.since, 0), 1) if pid and node.since else None,
        "restarts": node.restarts,
        "rss_bytes": processes.rss_bytes(pid) if pid else None,
        "error": node.error,
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    cells: list[tuple[str, ...]] = [HEADER]
    for row in rows:
        uptime = "" if row["uptime"] is None else _duration(row["uptime"])
        memory = "" if row["rss_bytes"] is None else f"{row['rss_bytes'] / 2**20:.0f} MB"
        values = [
            row["node"],
            row["role"] or row["kind"],
            row["pid"],
            row["state"],
            row["address"],
            uptime,
            row["restarts"],
            memory,
        ]
        cells.append(tuple("" if value is None else str(value) for value in values))
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    for row in rows:
        if row["error"]:
            lines.append(f"{row['node']}: {row['error']}")
    return "\n".join(lines)


def _backups(cluster: str, note: dict[str, Any]) -> str:
    """One line on a cluster's backups, and one on each thing that is wrong with them."""
    last, archive = note.get("last"), note.get("archive") or {}
    parts = ["none yet"]
    if last is not None:
        age = max(time.time() - last["ended"], 0)
        parts = [f"{last['name']}, {_duration(age)} ago"]
        if age > 2 * note.get("every", age):
            parts.append("overdue")
    if archive.get("last"):
        waiting = archive["waiting"]
        behind = f"{waiting} files wait, for {_duration(archive['lag'])}" if waiting else "complete"
        parts.append(f"archived log: {behind}")
    lines = [f"backups of {cluster}: {'; '.join(parts)}"]
    if archive.get("failing"):
        lines.append(
            f"  {archive['file']} cannot be archived: PostgreSQL keeps its log until it can, which fills its "
            "disk; `springtide logs` of its node says why"
        )
    lines += [f"  {text}" for text in (note.get("error"), archive.get("error")) if text]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s"))
    shown = [f"{value}{unit}" for value, unit in parts if value]
    return " ".join(shown[:2]) or "0s"


def _logs(args: argparse.Namespace) -> int:
    home = _home(args.file)
    known = {path.stem: path for path in home.log_files()}
    if args.node is not None and args.node not in known:
        raise ConfigurationError(f"there is no log of {args.node!r}; there are: {', '.join(known) or 'none'}")
    chosen = known if args.node is None else {args.node: known[args.node]}
    width = max((len(name) for name in chosen), default=0)

    def show(path: Path, line: str) -> None:
        prefix = "" if args.node else f"{path.stem:<{width}} | "
        print(f"{prefix}{line}", flush=args.follow)

    async def go_on() -> None:
        async for path, line in logs.follow(chosen.values()):
            show(path, line)

    for path in chosen.values():
        for line in logs.last_lines(path, args.lines):
            show(path, line)
    if args.follow:
        asyncio.run(go_on())
    return 0
