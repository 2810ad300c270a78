"""What each process of this machine has seen of its cache, as files: `<folder>/<node>.json`.

Written every few seconds and at the end, whole, for the owner alone; a few of ended processes are kept.
`springtide cache` adds them up, and the next start loads what was asked for most (`warm`) when Redis has
forgotten it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["ClassReport", "Report", "merged", "read_reports", "write_report"]

MAX_FILES = 64
"""Files that are kept; the oldest ones are of processes that have ended."""


class ClassReport(msgspec.Struct, frozen=True, kw_only=True):
    """One class. `counts` as `Stats` has them; `hot`: arguments and how often they were asked for of late."""

    counts: dict[str, int | float]
    reasons: dict[str, dict[str, int]] = {}
    entries: int = 0
    bytes: int = 0
    reads: float = 0.0
    hot: list[tuple[tuple[int | str, ...], float]] = []


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One process. `written` and `since` are seconds since 1970."""

    node: str
    pid: int
    since: float
    written: float
    classes: dict[str, ClassReport]

    def age(self) -> float:
        """Seconds since it was written."""
        return max(time.time() - self.written, 0.0)


def write_report(folder: Path, report: Report) -> None:
    """Replace this process's file. Where no platform runs (no parent of `folder`), nothing is left."""
    if not folder.parent.is_dir():
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    half = folder / f".{report.node}.{os.getpid()}"
    try:
        descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(report))
        half.replace(folder / f"{report.node}.json")
    finally:
        half.unlink(missing_ok=True)
    found = sorted(folder.glob("*.json"), key=_written)
    for path in found[:-MAX_FILES]:
        with suppress(OSError):
            path.unlink()


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def read_reports(folder: Path) -> list[Report]:
    """Those that can be read, by node; another version's are passed over."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, msgspec.MsgspecError):
            found.append(msgspec.json.decode(path.read_bytes(), type=Report))
    return found


def merged(reports: Iterable[Report]) -> dict[str, list[tuple[tuple[int | str, ...], float]]]:
    """Per class what all of them were asked for, the most frequent first."""
    added: dict[str, dict[tuple[int | str, ...], float]] = {}
    for report in reports:
        for name, one in report.classes.items():
            counts = added.setdefault(name, {})
            for arguments, count in one.hot:
                counts[arguments] = counts.get(arguments, 0.0) + count
    return {name: sorted(counts.items(), key=_second, reverse=True) for name, counts in added.items()}


def _second(pair: tuple[Any, float]) -> float:
    return pair[1]
