"""One worker: the modules' jobs and periodic work, until SIGTERM. `python -m ...worker`.

It builds the same platform as the app servers, without serving HTTP. On SIGTERM it takes no more jobs;
running ones are finished within the drain time, less what cancelling and handing back the others may take.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys

from springtide.errors import SpringtideError
from springtide.lifecycle import Group
from springtide.platform import Platform

__all__ = ["main"]


HAND_BACK = 4.0
"""Seconds of the drain time that are kept for cancelling jobs and handing them back."""


async def _work(ready_fd: int, drain: float) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stopping.set)
    platform = Platform.from_topology()  # the one that the supervisor named in the environment
    async with platform:
        background = Group("background", platform.background(drain=max(drain - HAND_BACK, 1.0)))
        await background.start()
        try:
            os.write(ready_fd, b"1")
            os.close(ready_fd)
            await stopping.wait()
        finally:
            await background.stop()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="springtide worker")
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--drain", type=float, required=True)
    args = parser.parse_args(arguments)
    os.set_inheritable(args.ready_fd, False)
    try:
        asyncio.run(_work(args.ready_fd, args.drain))
    except SpringtideError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
