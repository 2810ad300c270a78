"""What the runner noted of its backups, as metrics.

The runner takes the backups and has no page of its own; every app server reads the notes when it is asked,
so each of them tells the same. Moments are shown as they are: their age goes on growing when nobody takes
backups any more, and `springtide_backups_noted_timestamp_seconds` tells that nobody looks.
A file that is not there, or holds something else, shows nothing: what is missing can be alerted on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["BackupNotes"]

_GAUGES = (
    ("springtide_backup_last_timestamp_seconds", "When the newest backup was complete.", ("last", "ended")),
    ("springtide_backup_failed_timestamp_seconds", "When a backup failed last.", ("failed",)),
    ("springtide_archive_waiting_files", "Files of the log that are not archived.", ("archive", "waiting")),
    ("springtide_archive_lag_seconds", "How long the oldest of them waits.", ("archive", "lag")),
    ("springtide_archive_failing", "1: the log cannot be archived.", ("archive", "failing")),
    ("springtide_backups_noted_timestamp_seconds", "When the runner looked last.", ("noted",)),
)


class BackupNotes(Collector):
    """Reads `path` when the registry is asked, from whichever thread asks."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterator[Metric]:
        notes = self._notes()
        for name, says, keys in _GAUGES:
            family = GaugeMetricFamily(name, says, labels=["cluster"])
            for cluster, note in notes.items():
                if (value := _value(note, keys)) is not None:
                    family.add_metric([cluster], value)
            yield family

    def _notes(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _value(note: Any, keys: tuple[str, ...]) -> float | None:
    for key in keys:
        note = note.get(key) if isinstance(note, dict) else None
    return float(note) if isinstance(note, (int, float)) else None
