"""`springtide db advise`: what the statements say about indexes and code.

Exit code: 0 nothing to advise, 3 there are findings, 1 it went wrong (a database does not answer), 2 it is
configured wrongly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path
from typing import Any

from springtide.errors import ConfigurationError
from springtide.ops.advise.advisor import DAY, Settings, advise
from springtide.ops.advise.findings import Advice, text
from springtide.ops.runner.home import Home
from springtide.topology.spec import Topology

__all__ = ["FINDINGS", "add_command", "run"]

FINDINGS = 3


def add_command(commands: Any) -> Any:
    command = commands.add_parser(
        "advise", help="indexes and statements to change, with evidence and SQL; 3 when there are some"
    )
    command.add_argument("--url", help="look at this database instead of the platform's")
    command.add_argument(
        "--statements", type=Path, metavar="DIR", help="snapshots of processes to read with --url"
    )
    command.add_argument(
        "--replica", action="append", metavar="URL",
        help="with --url: a replica of it, asked for its use of indexes; once for each",
    )  # fmt: skip
    command.add_argument("--cluster", metavar="C", help="this cluster alone")
    command.add_argument(
        "--min-gain", type=float, default=0.3, metavar="PART",
        help="advise an index that saves at least this part of a statement's cost (default 0.3)",
    )  # fmt: skip
    command.add_argument(
        "--unused-after", type=float, default=7.0, metavar="DAYS",
        help="call an index unused after this many days of counting (default 7)",
    )  # fmt: skip
    command.set_defaults(run=run)
    return command


def run(args: argparse.Namespace) -> int:
    settings = Settings(min_gain=args.min_gain, unused_after=args.unused_after * DAY)
    if args.statements is not None and args.url is None:
        raise ConfigurationError(
            "--statements goes with --url: a platform's snapshots are found by themselves"
        )
    if args.replica and args.url is None:
        raise ConfigurationError("--replica goes with --url: a platform's replicas are found by themselves")
    advices = asyncio.run(_one(args, settings) if args.url else _platform(args, settings))
    if args.json:
        print(json.dumps([advice.plain() for advice in advices], indent=2))
    else:
        print(text(advices))
    return FINDINGS if any(advice.findings for advice in advices) else 0


async def _one(args: argparse.Namespace, settings: Settings) -> list[Advice]:
    cluster = args.cluster or "main"
    return [
        await advise(
            args.url,
            cluster=cluster,
            statements=args.statements,
            replicas=args.replica or (),
            settings=settings,
        )
    ]


async def _platform(args: argparse.Namespace, settings: Settings) -> list[Advice]:
    from springtide.platform import Platform

    home = Home.beside(args.file)
    home.use_environment()
    topology = Platform.from_topology(args.file, modules=()).topology
    known = sorted(topology.clusters)
    if args.cluster is not None and args.cluster not in known:
        raise ConfigurationError(
            f"--cluster: there is no cluster {args.cluster!r} (those there are: {known})"
        )
    found: list[Advice] = []
    for cluster in [args.cluster] if args.cluster else known:
        spec = topology.clusters[cluster]
        nodes = [topology.nodes[name] for name in (spec.primary, *spec.replicas)]
        here = all(node.supervised for node in nodes)
        found.append(
            await advise(
                topology.cluster_url(cluster),
                cluster=cluster,
                statements=home.run / "statements",
                replicas=[_address(topology, cluster, name) for name in spec.replicas],
                cores=os.cpu_count() if here else None,
                settings=settings,
            )
        )
    return found


def _address(topology: Topology, cluster: str, node: str) -> str:
    """Of a replica; "" when it has none yet."""
    try:
        return topology.cluster_url(cluster, node)
    except ConfigurationError:
        return ""
