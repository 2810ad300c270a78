"""`springtide topology show | diff A B | validate`: look at topologies without starting anything."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from springtide.errors import ConfigurationError
from springtide.topology import Topology, check_built, diff, load, stage_topology, to_json, to_toml

__all__ = ["add_commands"]

_DEFAULT = "springtide.toml"


def add_commands(subparsers: Any) -> None:
    """Add `topology` and its three commands to the command line's sub-parsers."""
    topology = subparsers.add_parser("topology", help="show, compare and check topologies")
    commands = topology.add_subparsers(dest="topology_command", required=True, metavar="COMMAND")
    which = "a file, or a stage such as 3 or stage3"

    show = commands.add_parser("show", help="print the effective topology, defaults included")
    show.add_argument("topology", nargs="?", default=_DEFAULT, help=f"{which} (default: {_DEFAULT})")
    show.add_argument("--json", action="store_true", help="as JSON instead of TOML")
    show.set_defaults(run=_show)

    compare = commands.add_parser("diff", help="what is added, changed and removed from A to B")
    compare.add_argument("before", metavar="A", help=which)
    compare.add_argument("after", metavar="B", help=which)
    compare.add_argument("--json", action="store_true", help="as JSON instead of text")
    compare.set_defaults(run=_diff)

    validate = commands.add_parser("validate", help="check a topology, and that this version can run it")
    validate.add_argument("topology", nargs="?", default=_DEFAULT, help=f"{which} (default: {_DEFAULT})")
    validate.set_defaults(run=_validate)


def _show(args: argparse.Namespace) -> int:
    topology = _resolve(args.topology)
    print(to_json(topology) if args.json else to_toml(topology), end="")
    return 0


def _diff(args: argparse.Namespace) -> int:
    before, after = _resolve_both(args.before, args.after)
    changes = diff(before, after)
    if args.json:
        rows = [
            {"key": c.key, "before": c.shown(c.before), "after": c.shown(c.after), "says": c.says}
            for c in changes
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif not changes:
        print(f"{args.before} and {args.after} are equal")
    else:
        counts = [sum(change.sign == sign for change in changes) for sign in "+~-"]
        print(f"{args.before} -> {args.after}: {counts[0]} added, {counts[1]} changed, {counts[2]} removed")
        print("\n".join(str(change) for change in changes))
    return 0


def _validate(args: argparse.Namespace) -> int:
    topology = _resolve(args.topology)
    check_built(topology)
    from springtide.jobs.transports._addresses import check_url

    if (name := topology.carrier) is not None and (url := topology.nodes[name].url) is not None:
        check_url(topology.nodes[name].kind, url, key=f"nodes.{name}.url")
    counts = {"node": topology.nodes, "cluster": topology.clusters, "database": topology.databases}
    parts = (f"{len(made)} {noun}{'' if len(made) == 1 else 's'}" for noun, made in counts.items())
    print(f"{args.topology}: valid ({', '.join(parts)})")
    if (scaling := topology.worker_scaling) is not None:
        print(
            f"{scaling.min} to {scaling.max} workers: enough for what comes, and for what waits in"
            f" {scaling.time_to_drain:g} s; fewer after {scaling.down_after:g} s"
        )
    return 0


def _resolve(reference: str) -> Topology:
    stage = _stage(reference)
    return stage_topology(stage) if stage is not None else load(Path(reference))


def _resolve_both(a: str, b: str) -> tuple[Topology, Topology]:
    """Both topologies; a stage takes name and app of the file it is compared with, they are not its own."""
    stages = _stage(a), _stage(b)
    files = [load(Path(ref)) for ref, stage in zip((a, b), stages, strict=True) if stage is None]
    own = {"name": files[0].name, "app": files[0].app} if files else {}
    found = [stage_topology(stage, **own) if stage is not None else files.pop(0) for stage in stages]
    return found[0], found[1]


def _stage(reference: str) -> int | None:
    """The number of a stage such as "3" or "stage3", unless a file is called that; None for a path."""
    match = re.fullmatch(r"(?:stage[ _-]?)?([0-9]{1,9})", reference)
    if match is None or Path(reference).exists():
        return None
    number = int(match[1])
    if not 1 <= number <= 7:
        raise ConfigurationError(f"a stage must be between 1 and 7, got {reference}")
    return number
