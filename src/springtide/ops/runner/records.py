"""What a cluster must remember over restarts of the runner: who is primary, and what was decided about it.

One file per cluster, `<home>/clusters/<cluster>.json`; it is on the disk before anything is done about it.
The topology says how a cluster began, this file how it went on: the primary here wins.

    promoting    `primary` was chosen and may still be a replica: whoever reads this finishes it, first of all
    voters       the replicas of which one had to confirm every acknowledged commit (durability "quorum");
                 grows before, and shrinks after, what PostgreSQL is told

Beside it `<cluster>.joining` names a node while it is added: what is there of a node that joins, and that the
topology does not list, is of a runner that was killed, and may go.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from springtide.errors import RunnerError
from springtide.ops.runner.durable import replace_file
from springtide.ops.runner.pgdata import explain

__all__ = ["Record", "joins", "note_join", "read_join", "read_record", "write_record"]

JOINING = ".joining"


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
    try:
        _replace(folder, f"{cluster}.json", json.dumps(asdict(record)))
    except OSError as error:
        raise explain(error, f"write down who is primary of cluster {cluster}:") from error


def read_join(folder: Path, cluster: str) -> str | None:
    """The node that was being added to `cluster`; None: no addition is under way, or was cut off."""
    try:
        return (folder / f"{cluster}{JOINING}").read_text().strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain(error, f"read who joins cluster {cluster}:") from error


def joins(folder: Path) -> list[str]:
    """The nodes that were being added to any cluster."""
    clusters = [path.name.removesuffix(JOINING) for path in folder.glob(f"*{JOINING}")]
    return [node for cluster in clusters if (node := read_join(folder, cluster)) is not None]


def note_join(folder: Path, cluster: str, node: str | None) -> None:
    """Note that `node` is being added, or that nobody is; on the disk when this returns."""
    try:
        if node is not None:
            _replace(folder, f"{cluster}{JOINING}", node + "\n")
        else:
            (folder / f"{cluster}{JOINING}").unlink(missing_ok=True)
    except OSError as error:
        raise explain(error, f"write down who joins cluster {cluster}:") from error


def _replace(folder: Path, name: str, text: str) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    replace_file(folder / name, text, mode=0o600)
