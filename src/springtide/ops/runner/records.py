"""What a cluster must remember over restarts of the runner: who is primary, and what was decided about it.

One file per cluster, `<home>/clusters/<cluster>.json`; it is on the disk before anything is done about it.
The topology says how a cluster began, this file how it went on: the primary here wins.

    promoting    `primary` was chosen and may still be a replica: whoever reads this finishes it, first of all
    voters       the replicas of which one had to confirm every acknowledged commit (durability "quorum");
                 grows before, and shrinks after, what PostgreSQL is told
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from springtide.errors import RunnerError
from springtide.ops.runner.pgdata import explain
from springtide.ops.runner.standby import sync_folder

__all__ = ["Record", "read_record", "write_record"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`epoch` grows with every change of the primary."""

    primary: str
    epoch: int = 1
    promoting: bool = False
    voters: tuple[str, ...] = ()


def read_record(folder: Path, cluster: str) -> Record | None:
    """None when nothing was ever decided. Raises RunnerError for a file that cannot be understood: to guess
    who is primary could lose what was written."""
    path = folder / f"{cluster}.json"
    try:
        raw = json.loads(path.read_text())
        return Record(
            primary=str(raw["primary"]),
            epoch=int(raw["epoch"]),
            promoting=bool(raw["promoting"]),
            voters=tuple(str(node) for node in raw["voters"]),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain(error, f"read who is primary of cluster {cluster}:") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunnerError(
            f"{path} says who is primary of cluster {cluster} and cannot be understood: restore it, or write "
            '{"primary": "NODE", "epoch": N, "promoting": false, "voters": []} with what you know'
        ) from error


def write_record(folder: Path, cluster: str, record: Record) -> None:
    """Replace the record; it is on the disk when this returns."""
    path = folder / f"{cluster}.json"
    temporary = folder / f".{cluster}.{secrets.token_hex(4)}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(record), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(folder)
    except OSError as error:
        raise explain(error, f"write down who is primary of cluster {cluster}:") from error
