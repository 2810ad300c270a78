"""Programs that make variants: each run is bounded in time, memory, output and how many run at once.

A run that is cancelled, or whose time is up, is killed; so is one whose process here is (see `limited.py`).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Ended", "Workshop"]

LAUNCHER = Path(__file__).with_name("limited.py")

MAX_OUTPUT = 65_536
"""Bytes of what a program prints that are kept; the rest is read and dropped."""


class Ended(NamedTuple):
    """`code` is None when its time was up."""

    code: int | None
    output: str
    errors: str


class Workshop:
    """At most `at_once` programs at a time; the next wait. Limits are per program."""

    def __init__(
        self,
        *,
        at_once: int = 2,
        seconds: float = 60.0,
        memory_bytes: int = 2 << 30,
        file_bytes: int = 64 << 20,
    ) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._file_bytes = file_bytes

    async def run(self, command: Sequence[str]) -> Ended:
        """Raises OSError when no process can be started."""
        limits = (str(self._memory_bytes), str(int(self._seconds) + 1), str(self._file_bytes))
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        async with self._slots:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", str(LAUNCHER), *limits, *command,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, env=environment,
            )  # fmt: skip
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                async with asyncio.timeout(self._seconds):
                    output, errors = await asyncio.gather(_read(process.stdout), _read(process.stderr))
                    code = await process.wait()
            except TimeoutError:
                return Ended(None, "", "")
            finally:
                if process.returncode is None:
                    process.kill()
                    await asyncio.shield(process.wait())
        return Ended(code, output, errors)


async def _read(stream: asyncio.StreamReader) -> str:
    kept = bytearray()
    while piece := await stream.read(MAX_OUTPUT):
        kept += piece[: MAX_OUTPUT - len(kept)]
    return kept.decode("utf-8", "replace")
