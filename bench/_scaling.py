"""Read throughput with three replicas over one, each database node limited to a small share of a processor.

The share is small so that the nodes are the bottleneck, not this machine's cores: each node is shown to have
used what it may. Two platforms take turns, one that knows one replica and one that knows three.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench._cluster import Cluster, Node
from bench._pinned import cpu_seconds
from springtide.context import RequestContext, activate
from springtide.db import Consistency
from springtide.ops.runner.cgroups import Cgroup, Limits, open_group, remove_platform
from springtide.platform import Platform

__all__ = ["LIMIT", "measure"]

LIMIT = 0.15
"""Of one processor, per node."""

OWNERS, PER_OWNER = 50, 4_000
CALLERS_PER_NODE = 8

FILL = f"""
create table register.item as
    select (o - 1) % 1024 as bucket, o as owner, n as price, md5(n::text) as body
    from generate_series(1, {OWNERS}) o, generate_series(1, {PER_OWNER}) n
"""
INDEX = "create index on register.item (owner)"

READ = """
select count(*), sum(price), max(length(body)), pg_is_in_recovery() as replica
    from register.item where owner = $1
"""


@dataclass(frozen=True)
class Round:
    """`rate` reads per second; `used` share of its limit, per node that served; `cost` seconds of its CPU."""

    rate: float
    used: Mapping[str, float]
    cost: float


@contextmanager
def limited(nodes: Sequence[Node]) -> Iterator[None]:
    """Every process of each node in a control group of its own; those that it starts are in it too."""
    platform = f"bench-replicas-{os.getpid()}"
    groups: list[Cgroup] = []
    try:
        for node in nodes:
            group = open_group(platform, node.name, Limits(cpu=LIMIT))
            groups.append(group)
            for _ in range(2):  # again for those that were born meanwhile
                for pid in node.processes():
                    group.add(pid)
        yield
    finally:
        for node in nodes:
            for pid in node.processes():
                _leave(pid)
        for group in groups:
            group.remove()
        remove_platform(platform)


def _leave(pid: int) -> None:
    with open("/sys/fs/cgroup/cpu/cgroup.procs", "w") as outside:
        outside.write(str(pid))


def used_cpu(node: Node) -> float:
    return sum(cpu_seconds(pid) for pid in node.processes())


async def one_round(platform: Platform, nodes: Sequence[Node], *, seconds: float) -> Round:
    """`nodes` are those that serve."""
    database = platform.database("register")
    owners = itertools.cycle(range(1, OWNERS + 1))
    ended = False
    done = 0

    async def caller() -> None:
        nonlocal done
        while not ended:
            with activate(RequestContext()):
                owner = next(owners)
                row = await database.read(owner, consistency=Consistency.SESSION).fetch_one(READ, owner)
            done += row["replica"]  # what fell to the primary is no merit of theirs

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS_PER_NODE * len(nodes)):
            group.create_task(caller())
        await asyncio.sleep(0.3)  # until every node works at its limit
        before, begun, first = [used_cpu(node) for node in nodes], time.monotonic(), done
        await asyncio.sleep(seconds)
        after, took, last = [used_cpu(node) for node in nodes], time.monotonic() - begun, done
        ended = True
    spent = [late - early for early, late in zip(before, after, strict=True)]
    used = {node.name: one / (LIMIT * took) for node, one in zip(nodes, spent, strict=True)}
    return Round((last - first) / took, used, sum(spent) / max(last - first, 1))


async def measure(
    world: Cluster, one: Platform, three: Platform, *, rounds: int, seconds: float
) -> dict[str, Any]:
    """`one` reads from the first replica of `world`, `three` from all of its three."""
    await world.primary.query(FILL)
    await world.primary.query(INDEX)
    await world.primary.query("vacuum analyze register.item")
    await world.caught_up()
    with limited(world.nodes):
        return await _compare(world, one, three, rounds=rounds, seconds=seconds)


async def _compare(
    world: Cluster, one: Platform, three: Platform, *, rounds: int, seconds: float
) -> dict[str, Any]:
    few: list[Round] = []
    many: list[Round] = []
    for number in range(rounds):
        turns = [(one, world.replicas[:1], few), (three, world.replicas, many)]
        for platform, nodes, found in turns if number % 2 == 0 else reversed(turns):
            found.append(await one_round(platform, nodes, seconds=seconds))
        alone, together = (
            ", ".join(f"{name} {share:.0%}" for name, share in found[-1].used.items())
            for found in (few, many)
        )
        print(
            f"round {number + 1}: {few[-1].rate:.0f}/s with one replica (of its limit: {alone}),"
            f" {many[-1].rate:.0f}/s with three ({together}); {many[-1].cost * 1e6:.0f} us of CPU a read"
        )
    ratios = [large.rate / small.rate for small, large in zip(few, many, strict=True)]
    everything = few + many
    busiest = zip(*[list(found.used.values()) for found in many], strict=True)
    return {
        "read_scaling_1_to_3": round(statistics.median(ratios), 2),
        "read_scaling_least_used": round(
            min(
                statistics.median(next(iter(found.used.values())) for found in few),
                *(statistics.median(shares) for shares in busiest),
            ),
            3,
        ),
        "read_scaling_query_us": round(statistics.median(found.cost for found in everything) * 1e6),
    }
