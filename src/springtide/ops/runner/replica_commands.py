"""`springtide replicas add | remove | list | promote`: the replicas of a platform that runs, or will run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from springtide.errors import ConfigurationError, RunnerError
from springtide.ops.runner import control, pgdata, standby
from springtide.ops.runner.groups import groups
from springtide.ops.runner.home import Home
from springtide.ops.runner.operating import Staged, chosen_cluster
from springtide.ops.runner.records import Record, read_record, write_record
from springtide.topology import Topology, load

__all__ = ["add_commands"]

NOT_RUNNING = 3
"""Exit code of `list` when nothing runs, as of `status`."""


def add_commands(subparsers: Any) -> None:
    """Add `replicas` and its four commands to the command line's sub-parsers."""
    replicas = subparsers.add_parser("replicas", help="add, remove, show and promote replicas of a database")
    commands = replicas.add_subparsers(dest="replicas_command", required=True, metavar="COMMAND")

    add = commands.add_parser("add", help="copy the primary to a new replica, on the running platform")
    add.add_argument("cluster", nargs="?", help="cluster (default: the only one)")
    add.add_argument("--name", help="name of the new node (default: replica-N)")
    add.set_defaults(run=_add)

    remove = commands.add_parser(
        "remove", help="end a replica: its process, slot, data and its lines in the file"
    )
    remove.add_argument("node")
    remove.set_defaults(run=_remove)

    show = commands.add_parser("list", help="roles, states and lags; exit code 3 = nothing runs")
    show.add_argument("--json", action="store_true", help="as JSON")
    show.set_defaults(run=_list)

    promote = commands.add_parser(
        "promote", help="make a replica the primary; the present one then follows it"
    )
    promote.add_argument("node")
    promote.add_argument(
        "--force", action="store_true", help="although acknowledged commits may be lost, or it is behind"
    )
    promote.set_defaults(run=_promote)

    for command in (add, remove, show, promote):
        command.add_argument(
            "--file",
            type=Path,
            default=Path("springtide.toml"),
            help="the topology (default: springtide.toml)",
        )


def _running(home: Home) -> bool:
    return home.path.is_dir() and home.holder() is not None


def _add(args: argparse.Namespace) -> int:
    home = Home.beside(args.file)
    if _running(home):
        request = {"do": "add", "cluster": args.cluster, "name": args.name}
        node = control.ask(home.run, request)
        print(f"{node} follows and is in {args.file}")
        return 0
    from springtide.ops.runner import editing

    with _edited(home, args.file) as staged:
        cluster = chosen_cluster(staged.topology, args.cluster)
        node = args.name or editing.free_name(staged.topology)
        staged.text = editing.added(staged.text, staged.topology, cluster, node, source=args.file.absolute())
    print(f"{node} is in {args.file}; nothing runs, so it is made by the next `springtide up`")
    return 0


def _remove(args: argparse.Namespace) -> int:
    home = Home.beside(args.file)
    if _running(home):
        control.ask(home.run, {"do": "remove", "node": args.node})
        print(f"{args.node} and its data are gone, also from {args.file}")
        return 0
    from springtide.ops.runner import editing

    data = home.path / "data" / args.node
    with _edited(home, args.file) as staged:
        clusters = [
            cluster
            for cluster in staged.topology.clusters.values()
            if args.node in (cluster.primary, *cluster.replicas)
        ]
        if not clusters:
            raise ConfigurationError(f"node {args.node} belongs to no cluster")
        found = read_record(home.path / "clusters", clusters[0].name)
        staged.text = editing.removed(
            staged.text,
            staged.topology,
            clusters[0].name,
            args.node,
            primary=found.primary if found is not None else clusters[0].primary,
            source=args.file.absolute(),
        )
        if data.exists() and pgdata.postmaster(data.resolve()) is not None:
            raise RunnerError(
                f"{args.node} still runs, left by a killed supervisor: `springtide up` or `down` first"
            )
    pgdata.discard(home.path, args.node, data.resolve())
    print(f"{args.node} and its data are gone, also from {args.file}; nothing runs")
    return 0


class _edited:
    """The file's text, to be changed in the block, which holds the home: nobody can start it meanwhile."""

    def __init__(self, home: Home, file: Path) -> None:
        self._home = home
        self._file = file

    def __enter__(self) -> Staged:
        self._staged = Staged(self._file.absolute())
        self._lock = self._home.lock() if self._home.path.is_dir() else None
        if self._lock is not None:
            self._lock.__enter__()
        return self._staged

    def __exit__(self, kind: Any, *rest: Any) -> None:
        try:
            if kind is None:
                self._staged.prepare()
                self._staged.commit()
        finally:
            self._staged.clear()
            if self._lock is not None:
                self._lock.__exit__(None, None, None)


def _promote(args: argparse.Namespace) -> int:
    home = Home.beside(args.file)
    if not _running(home):
        cluster = _begin_with(home, load(args.file), args.node, forced=args.force)
        print(f"{args.node} becomes the primary of cluster {cluster} with the next `springtide up`")
        return 0
    cluster = control.ask(home.run, {"do": "promote", "node": args.node, "force": args.force})
    print(f"{args.node} is the primary of cluster {cluster}")
    return 0


def _begin_with(home: Home, topology: Topology, node: str, *, forced: bool) -> str:
    """Note that `node` is promoted, which the next runner does; the cluster. For a primary that is lost."""
    found = [group for group in groups(topology) if node in (group.primary, *group.replicas)]
    if not found or not home.path.is_dir():
        raise RunnerError(f"{node} is not a node of a cluster that has run here")
    group, folder = found[0], home.path / "clusters"
    with home.lock():
        record = read_record(folder, group.name) or Record(primary=group.primary)
        if node == record.primary:
            raise RunnerError(f"{node} is the primary of cluster {group.name} already")
        data = {n: (home.path / "data" / n).resolve() for n in (group.primary, *group.replicas)}
        if not standby.is_standby(data[node]) or standby.repair_wanted(data[node]) is not None:
            raise RunnerError(f"{node} has no copy of the data that can be opened without the primary's help")
        if not forced:
            raise RunnerError(
                f"nothing runs here: `springtide up` first; or --force, when {record.primary} is lost for "
                f"good: what {node} has not received is lost then"
            )
        others = [other for other in data if other != node]
        for other in others:
            if standby.is_standby(data[other]):  # it may have more than `node`
                standby.want_repair(data[other], "rewind")
        chosen = Record(
            primary=node,
            epoch=record.epoch + 1,
            promoting=True,
            voters=tuple(others) if group.quorum else (),
        )
        write_record(folder, group.name, chosen)
    return group.name


def _list(args: argparse.Namespace) -> int:
    home = Home.beside(args.file)
    running = _running(home)
    rows = control.ask(home.run, {"do": "list"}, timeout=60.0) if running else []
    if args.json:
        print(json.dumps(rows))
    elif not running:
        print("nothing runs here")
    elif not rows:
        print("no cluster has replicas: `springtide replicas add` makes one")
    else:
        print(_table(rows))
    return 0 if running else NOT_RUNNING


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ("CLUSTER", "NODE", "ROLE", "STATE", "CONFIRMS", "LAG", "SECONDS", "SLOT", "TIMELINE")
    cells = [header]
    for row in rows:
        lag, seconds = row["lag_bytes"], row["lag_seconds"]
        cells.append(
            (
                row["cluster"],
                row["node"],
                row["role"],
                row["state"],
                {True: "yes", False: "no", None: ""}[row["confirms"]],
                "" if lag is None else f"{lag} B",
                "" if seconds is None else f"{seconds:.3f}",
                row["slot"] or "",
                "" if row["timeline"] is None else str(row["timeline"]),
            )
        )
    widths = [max(len(row[at]) for row in cells) for at in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines += [f"{row['node']}: {row['error']}" for row in rows if row["error"]]
    return "\n".join(lines)
