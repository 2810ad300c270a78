"""One worker: the modules' jobs and periodic work, until SIGTERM. `python -m ...worker`.

It builds the same platform as the app servers, without serving HTTP. On SIGTERM it takes no more jobs;
running ones are finished within the drain time, less what cancelling and handing back the others may take. On
SIGUSR1 it takes no more jobs, finishes the running ones, however long they take, and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from springtide.errors import RunnerError, SpringtideError
from springtide.jobs import Worker
from springtide.lifecycle import Group
from springtide.ops._process import begun, runner
from springtide.platform import Platform
from springtide.telemetry.prometheus import serve

__all__ = ["main"]


HAND_BACK = 4.0
"""Seconds of the drain time that are kept for cancelling jobs and handing them back."""


async def _work(ready_fd: int, drain: float, metrics_port: int | None) -> None:
    stopping, retiring = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stopping.set)
    loop.add_signal_handler(signal.SIGUSR1, retiring.set)
    platform = Platform.from_topology()  # the one that the supervisor named in the environment
    if metrics_port is not None:
        await _show_metrics(platform, metrics_port)
    async with platform:
        work = platform.background(drain=max(drain - HAND_BACK, 1.0))
        background = Group("background", work)
        await background.start()
        begun()
        try:
            os.write(ready_fd, b"1")
            os.close(ready_fd)
            await _until(stopping, _retired(retiring, [one for one in work if isinstance(one, Worker)]))
        finally:
            await background.stop()


async def _show_metrics(platform: Platform, port: int) -> None:
    host = platform.topology.servers.host
    try:
        await asyncio.to_thread(serve, platform.metrics, host, port)
    except OSError as error:
        where = f"workers.metrics_port: cannot listen on {host}:{port}"
        raise RunnerError(f"{where}: {error.strerror}") from error


async def _until(stopping: asyncio.Event, retired: Coroutine[Any, Any, None]) -> None:
    """Return when the one is set or the other is done."""
    either = [asyncio.ensure_future(stopping.wait()), asyncio.ensure_future(retired)]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in either:
            one.cancel()
        await asyncio.wait(either)


async def _retired(retiring: asyncio.Event, workers: Sequence[Worker]) -> None:
    """Return when the jobs that ran when it was asked for are done."""
    await retiring.wait()
    await asyncio.gather(*(worker.retire() for worker in workers))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="springtide worker")
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--drain", type=float, required=True)
    parser.add_argument("--metrics-port", type=int)
    args = parser.parse_args(arguments)
    os.set_inheritable(args.ready_fd, False)
    try:
        with runner() as running:
            running.run(_work(args.ready_fd, args.drain, args.metrics_port))
    except SpringtideError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
