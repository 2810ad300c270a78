"""What sessions saw and wrote, kept small: half a million reads of one process are about 20 MB.

A value is remembered by its *stamp*: every value is written once, so the stamp of what was read tells whether
it is the value of its version. A journal is in the order in which its reads ended.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

__all__ = ["Journal", "Record", "Saw", "Wrote", "stamp"]

_SAW = struct.Struct("<HBqIIddd")


class Saw(NamedTuple):
    """One read of one key. `asked`: when its request was sent; `began`: in the app process; `ended`: when the
    session had the answer."""

    session: str
    app: int
    key: int
    version: int
    stamp: int
    asked: float
    began: float
    ended: float


class Wrote(msgspec.Struct, array_like=True, frozen=True):
    """One write. version 0: nobody knows how it ended. `acknowledged`: when its COMMIT was answered."""

    session: str
    key: int
    version: int
    value: str
    asked: float
    acknowledged: float
    ended: float


def stamp(value: str | None) -> int:
    return 0 if value is None else zlib.crc32(value.encode())


class Record(msgspec.Struct):
    """Of one process, as it is on the disk. failed: when a request that failed was sent and ended, and how
    it failed. told: reads that failed as they were told to."""

    sessions: list[str]
    saw: bytes
    wrote: list[Wrote]
    failed: list[tuple[float, float, str]]
    told: int

    @classmethod
    def of(cls, file: Path) -> Record:
        return msgspec.msgpack.decode(file.read_bytes(), type=cls)

    @property
    def seen(self) -> int:
        return len(self.saw) // _SAW.size

    def reads(self) -> Iterator[Saw]:
        names = self.sessions
        for session, *rest in _SAW.iter_unpack(self.saw):
            yield Saw(names[session], *rest)


class Journal:
    """`reads` counts what was seen."""

    def __init__(self) -> None:
        self.reads = 0
        self.wrote: list[Wrote] = []
        self.failed: list[tuple[float, float, str]] = []
        self.told = 0
        self._sessions: dict[str, int] = {}
        self._saw = bytearray()

    def saw(
        self,
        session: str,
        app: int,
        asked: float,
        ended: float,
        found: Iterable[tuple[int, tuple[int, str | None, float] | None]],
    ) -> None:
        """What one request found: of each key version, value and when its read began, or None as told."""
        number = self._sessions.setdefault(session, len(self._sessions))
        for key, one in found:
            if one is None:
                self.told += 1
                continue
            version, value, began = one
            self.reads += 1
            self._saw += _SAW.pack(number, app, key, version, stamp(value), asked, began, ended)

    def keep(self, file: Path) -> None:
        """On the disk, whole as soon as it is there."""
        record = Record(list(self._sessions), bytes(self._saw), self.wrote, self.failed, self.told)
        part = file.with_suffix(".part")
        part.write_bytes(msgspec.msgpack.encode(record))
        part.rename(file)
