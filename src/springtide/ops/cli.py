"""`springtide`: the command line.

Each area brings its own commands; only the area of the command that was asked for is imported, so that
`springtide up` stays small and quick. Errors are one clear message on stderr: exit code 2 for what is
configured wrongly, 1 for what went wrong, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import springtide
from springtide.errors import ConfigurationError, SpringtideError

__all__ = ["main"]

AREAS = {
    "springtide.ops.new.commands": ("new",),
    "springtide.ops.runner.commands": ("up", "down", "status", "logs"),
    "springtide.ops.runner.replica_commands": ("replicas",),
    "springtide.ops.runner.backups.commands": ("backup", "restore"),
    "springtide.ops.topology_commands": ("topology",),
    "springtide.ops.db_commands": ("db",),
    "springtide.ops.cache_commands": ("cache",),
    "springtide.ops.schedule_commands": ("schedule",),
    "springtide.ops.jobs_commands": ("jobs",),
    "springtide.ops.events_commands": ("events",),
    "springtide.ops.flow_commands": ("flows",),
    "springtide.ops.load.commands": ("seed", "load"),
    "springtide.ops.demo": ("demo",),
}
"""Module -> its commands, in the order in which the help lists them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `arguments` None means those of this process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _interruptible():
            args = _parser(given).parse_args(given)
        code: int = args.run(args)
        sys.stdout.flush()
    except SpringtideError as error:
        print(f"springtide: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `springtide logs | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the process at once while nothing has begun yet.

    As an exception it may surface in a callback of the import system or of the garbage collector, where
    Python prints and forgets it.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="springtide",
        description="The layers between a Python web application and its next million users.",
    )
    parser.add_argument("--version", action="version", version=f"springtide {springtide.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = next((area for area, names in AREAS.items() if given and given[0] in names), None)
    for area in [wanted] if wanted else AREAS:
        importlib.import_module(area).add_commands(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
