"""Hold a base backup to its manifest: what pg_verifybackup does, where that program cannot be used.

    every file that the manifest lists is there, with its size and its SHA-256; no other file is there
    the manifest is what its own checksum says
    the log that the backup needs is in it, and can be read (by pg_waldump, see `taking.py`)

Not looked at, as by PostgreSQL: pg_wal (read instead), and the files that a restore changes.
The embedded server's wheel brings a pg_verifybackup that does not start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from springtide.ops.runner.backups import wal

__all__ = ["Manifest", "Range", "faults", "read"]

NAME = "backup_manifest"
IGNORED = frozenset({NAME, "postgresql.auto.conf", "recovery.signal", "standby.signal"})


@dataclass(frozen=True, slots=True)
class Range:
    """The log of `timeline` from `begin` to `end`, in bytes."""

    timeline: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """`files`: path -> size and SHA-256 in hexadecimal; `log`: what a recovery needs to be consistent."""

    files: dict[str, tuple[int, str]]
    log: tuple[Range, ...]

    @property
    def size_bytes(self) -> int:
        return sum(size for size, _ in self.files.values())


def read(data: Path) -> Manifest:
    """The manifest of the backup in `data`. Raises ValueError, with what is wrong, OSError without one."""
    raw = (data / NAME).read_bytes()
    end = raw.rfind(b'"Manifest-Checksum"')
    parsed: Any = json.loads(raw)
    if end < 0 or hashlib.sha256(raw[:end]).hexdigest() != parsed.get("Manifest-Checksum"):
        raise ValueError(f"{NAME} is not what its checksum says")
    files = {}
    for file in parsed["Files"]:
        path = file.get("Path") or bytes.fromhex(file["Encoded-Path"]).decode(errors="surrogateescape")
        if file.get("Checksum-Algorithm") != "SHA256":
            raise ValueError(f"{path} has no SHA-256 in {NAME}")
        files[path] = (int(file["Size"]), str(file["Checksum"]))
    log = tuple(
        Range(int(part["Timeline"]), wal.position(part["Start-LSN"]), wal.position(part["End-LSN"]))
        for part in parsed["WAL-Ranges"]
    )
    return Manifest(files, log)


def faults(data: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the files in `data`, one sentence each, as they are found."""
    there = {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()}
    for path in sorted(there - manifest.files.keys() - IGNORED):
        if not path.startswith("pg_wal/"):
            yield f"{path} does not belong to the backup"
    for path, (size, checksum) in manifest.files.items():
        if path in IGNORED:
            continue
        if path not in there:
            yield f"{path} is missing"
        elif (data / path).stat().st_size != size:
            yield f"{path} has {(data / path).stat().st_size} bytes instead of {size}"
        else:
            with (data / path).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                    yield f"{path} has another content than it had"
