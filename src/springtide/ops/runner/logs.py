"""The log files of the nodes: bounded, readable while they grow.

Every process appends to its file itself, so logging goes on when the supervisor is gone. A file that has
grown past its bound is copied aside and truncated (as logrotate's `copytruncate`): the writer keeps its
descriptor. Lines written between the copy and the truncation, a few microseconds, are lost.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["follow", "last_lines", "rotate", "tail"]

MAX_BYTES = 10 * 1024 * 1024
KEEP = 3
CHUNK = 64 * 1024


def rotate(path: Path, *, max_bytes: int = MAX_BYTES, keep: int = KEEP) -> bool:
    """Move the content to `<path>.1` (older ones to .2 ... .<keep>) when it exceeds `max_bytes`."""
    try:
        if path.stat().st_size <= max_bytes:
            return False
        for number in range(keep - 1, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            if older.exists():
                older.replace(path.with_name(f"{path.name}.{number + 1}"))
        shutil.copy2(path, path.with_name(f"{path.name}.1"))
    except FileNotFoundError:
        return False
    os.truncate(path, 0)
    return True


def last_lines(path: Path, count: int, *, begin: int = 0) -> list[str]:
    """The last `count` lines written after byte `begin`; reads from the end, whatever the size."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            if begin > end:  # rotated since
                begin = 0
            data = b""
            while end > begin and data.count(b"\n") <= count:
                start = max(begin, end - CHUNK)
                file.seek(start)
                data = file.read(end - start) + data
                end = start
    except FileNotFoundError:
        return []
    return data.decode(errors="replace").splitlines()[-count:] if count else []


def tail(path: Path, count: int, *, begin: int = 0) -> str:
    """`last_lines`, indented, for the end of an error message."""
    lines = last_lines(path, count, begin=begin)
    if not lines:
        return f"  {path} is empty"
    return "\n".join([f"  last lines of {path}:", *(f"    {line}" for line in lines)])


class _Followed:
    """One file and how far it was read; begins again when it was truncated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def lines(self) -> Iterator[str]:
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._position:
                self._position, self._rest = 0, b""
            file.seek(self._position)
            while data := file.read(CHUNK):
                self._position += len(data)
                *complete, self._rest = (self._rest + data).split(b"\n")
                yield from (line.decode(errors="replace") for line in complete)


async def follow(paths: Iterable[Path], *, every: float = 0.2) -> AsyncIterator[tuple[Path, str]]:
    """Each line that is appended to one of `paths` from now on, until the caller stops asking."""
    followed = await asyncio.to_thread(lambda: [(path, _Followed(path)) for path in paths])
    while True:
        for path, reader in followed:
            for line in await asyncio.to_thread(lambda reader=reader: list(reader.lines())):  # type: ignore[misc] # a default argument binds the loop variable
                yield path, line
        await asyncio.sleep(every)
