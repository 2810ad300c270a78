"""What a supervisor that was killed left running: found by evidence in /proc, then ended.

App servers and workers are known by their command line and by SPRINGTIDE_HOME in their environment, so even
one that was started in the very moment of the kill is found, and a recycled pid is never touched; programs
beside them, and what those start, by SPRINGTIDE_PROGRAM in addition, Redis by SPRINGTIDE_CACHE, brokers by
SPRINGTIDE_BROKER. PostgreSQL is known by its data folder, a replica that was being added by its note in
clusters/. Only for the holder of the home's lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from springtide.errors import RunnerError
from springtide.ops.runner import pgdata, processes
from springtide.ops.runner.accounts import server_account
from springtide.ops.runner.home import Home
from springtide.ops.runner.postgres import SHUTDOWN
from springtide.ops.runner.processes import Process, Stage
from springtide.ops.runner.records import joins

__all__ = [
    "clear_joins",
    "end_broker",
    "end_leftovers",
    "hold",
    "left_brokers",
    "left_caches",
    "left_databases",
    "left_programs",
    "left_servers",
]

_log = logging.getLogger(__name__)

MODULES = (b"springtide.ops.runner.appserver", b"springtide.ops.runner.worker")
STAGES = (Stage(signal.SIGTERM, 5.0), Stage(signal.SIGKILL, 5.0))
BROKER_STAGES = (Stage(signal.SIGTERM, 20.0), Stage(signal.SIGKILL, 8.0))


def left_servers(home: Home) -> list[int]:
    """App servers and workers of this home that run now."""
    return _marked(home, lambda arguments, _: any(module in arguments for module in MODULES))


def left_programs(home: Home) -> list[int]:
    """Programs of this home, and what they started, that run now."""
    return _marked(home, lambda _, variables: any(v.startswith(b"SPRINGTIDE_PROGRAM=") for v in variables))


def left_caches(home: Home, node: str | None = None) -> list[int]:
    """Redis servers of this home that run now: those of `node`, or all."""
    return _of_node(home, b"SPRINGTIDE_CACHE=", node)


def left_brokers(home: Home, node: str | None = None) -> list[int]:
    """RabbitMQ and NATS servers of this home that run now: those of `node`, or all. What one of them started
    ends with it and does not count."""
    found = _of_node(home, b"SPRINGTIDE_BROKER=", node)
    return [pid for pid in found if processes.parent(pid) not in found]


def _of_node(home: Home, begin: bytes, node: str | None) -> list[int]:
    mark = begin + os.fsencode(node or "")
    return _marked(
        home, lambda _, variables: any(v == mark or (node is None and v.startswith(mark)) for v in variables)
    )


def _marked(home: Home, ours: Callable[[list[bytes], list[bytes]], bool]) -> list[int]:
    """Processes with this home in their environment for which `ours(arguments, environment)` holds."""
    mark = b"SPRINGTIDE_HOME=" + os.fsencode(home.path)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # ended meanwhile, or another user's
            variables = (entry / "environ").read_bytes().split(b"\0")
            if mark in variables and ours((entry / "cmdline").read_bytes().split(b"\0"), variables):
                found.append(int(entry.name))
    return found


def _data_folders(home: Home) -> list[Path]:
    return [folder.resolve() for folder in (home.path / "data").glob("*") if folder.is_dir()]


def left_databases(home: Home) -> list[pgdata.Postmaster]:
    """PostgreSQL servers that run on this home's data."""
    return [found for folder in _data_folders(home) if (found := pgdata.postmaster(folder)) is not None]


def hold(pids: list[int]) -> list[Process]:
    """Those of `pids` that run still, so that none can be taken for another any more."""
    held = []
    for pid in pids:
        with suppress(ProcessLookupError):
            held.append(Process(pid))
    return held


async def end_leftovers(home: Home, *, databases: bool, caches: Collection[str] = ()) -> list[int]:
    """End app servers and workers, then programs, then Redis servers but those of the nodes `caches`, then
    brokers, then `databases` if asked; the pids that were ended."""
    ended = await _end(await asyncio.to_thread(left_servers, home), STAGES)
    ended += await _end(await asyncio.to_thread(left_programs, home), STAGES)
    left = await asyncio.to_thread(left_caches, home)
    for node in caches:
        kept = await asyncio.to_thread(left_caches, home, node)
        left = [pid for pid in left if pid not in kept]
    ended += await _end(left, STAGES)
    ended += await _end(await asyncio.to_thread(left_brokers, home), BROKER_STAGES)
    if databases:
        servers = await asyncio.to_thread(left_databases, home)
        ended += await _end([server.pid for server in servers], SHUTDOWN)
        await asyncio.to_thread(_remove_sockets, home)
    return ended


async def end_broker(home: Home, node: str, stages: Sequence[Stage]) -> None:
    """End what runs of the broker `node`: two at once must not have its data open."""
    await _end(await asyncio.to_thread(left_brokers, home, node), stages)


def clear_joins(home: Home, nodes: Collection[str]) -> None:
    """Nothing stays of replicas that were being added and are none of the topology's `nodes`: processes,
    data, password. Their slots go when the primary runs."""
    for node in joins(home.path / "clusters"):
        link = home.path / "data" / node
        if node in nodes or (link.is_symlink() and not _of_this_home(link, home)):
            continue
        data = link.resolve()
        _log.warning("%s was being added when the supervisor was killed: what is there is removed", node)
        pgdata.Staging.clear(data)
        pgdata.clear_stale(data)
        pgdata.remove_socket_folder(data, server_account())
        pgdata.discard(home.path, node, data)


def _of_this_home(link: Path, home: Home) -> bool:
    """A home that was copied has links to the data of the one that it is a copy of."""
    return link.readlink().parent.name.endswith(f"-{pgdata.home_hash(home.path)}")


def _remove_sockets(home: Home) -> None:
    account = server_account()
    for folder in _data_folders(home):
        pgdata.remove_socket_folder(folder, account)


async def _end(pids: list[int], stages: Sequence[Stage]) -> list[int]:
    held = await asyncio.to_thread(hold, pids)
    results = await asyncio.gather(*(processes.stop(process, stages) for process in held))
    if stubborn := [process.pid for process, ended in zip(held, results, strict=True) if not ended]:
        raise RunnerError(f"processes {stubborn} do not end, not even when killed")
    for process in held:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what they had started
    return [process.pid for process in held]
