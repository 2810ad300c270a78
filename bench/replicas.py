"""Reads over three replicas: is any of them stale, how many do replicas serve, and what does it bring?

- `stale_session_reads`, `backward_reads`: of `session_reads` by cookie, header and bearer clients that hop
  between three app processes, while the replicas' lag is driven between 0 and 5 s (delayed replay, paused
  replay, SIGSTOP), replicas are killed by kill -9 and started again, and the primary is killed and replaced
  once. Judged by `springtide.testing.history`; `lost_or_phantom` are its other rules. All must be 0.
- `stale_with_window`, `stale_with_none`: the same lag, without deaths, in two naive systems, one that reads
  from the primary for 2 s after a session's write, and one that reads anywhere; `backward_with_...` likewise.
  Both must be > 0, or the harness would not see a stale read.
- `replica_share_50ms`: share of session reads that replicas serve: 1,000 sessions, a request per second each,
  5 % writes, 50 ms lag.
- `token_check_us`: choosing a server for a session read by its token, in CPU time. `token_capture_us`: what a
  write costs more because its position is read after COMMIT (one round trip; who did not write makes none).
- `read_scaling_1_to_3`: read throughput with three replicas over one, every node limited to 0.15 of a core;
  `read_scaling_least_used` is the share of its limit that the least busy of them used. Needs root.
- `pgbouncer_...`: connections and throughput through PgBouncer beside direct ones; see bench/_pooling.py.

`python -m bench.replicas staleness` runs one part alone (staleness, share, scaling, pooling).
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import Any

import uvloop

from bench import _pooling, _scaling
from bench._cluster import Cluster, cluster
from bench._harness import finish
from bench._registers import platform_over
from bench._share import replica_share, token_capture, token_check_us
from bench._staleness import Seen, fleet
from springtide.platform import Platform

PARTS = ("staleness", "share", "scaling", "pooling")


async def staleness(*, quick: bool) -> dict[str, Any]:
    reads, naive = (4_000, 1_000) if quick else (200_000, 20_000)
    seen: dict[str, Seen] = {}
    async with cluster(replicas=3) as world, fleet(world, processes=2 if quick else 3) as register:
        for pin, least, seconds, failovers in (
            ("none", naive, 1.0 if quick else 10.0, 0),
            ("window", naive, 6.0 if quick else 30.0, 0),
            ("token", reads, 4.0 if quick else 30.0, 1),
        ):
            seen[pin] = await register.observe(
                pin,
                reads=least,
                seconds=seconds,
                sessions=120,
                clients=1 if quick else 2,
                seed=7,
                failovers=failovers,
            )
            print(seen[pin].sentence(pin))
    token = seen["token"]
    for violation in token.violations[:20]:
        print(f"  {violation.rule}: {violation.sentence}")
    return {
        "stale_session_reads": token.count("read-your-writes"),
        "backward_reads": token.count("monotonic-reads"),
        "lost_or_phantom": len(token.others),
        "session_reads": token.reads,
        "session_writes": token.writes,
        "failed_reads": sum(n for kind, n in token.failed.items() if kind.startswith("GET")),
        "failed_writes": sum(n for kind, n in token.failed.items() if kind.startswith("POST")),
    } | {
        f"{kind}_with_{pin}": seen[pin].count(rule)
        for pin in ("window", "none")
        for kind, rule in (("stale", "read-your-writes"), ("backward", "monotonic-reads"))
    }


async def calm(parts: list[str], *, quick: bool) -> dict[str, Any]:
    """The parts that need replicas which nothing is done to, over the same ones."""
    figures: dict[str, Any] = {}
    async with cluster(replicas=3, quorum=False) as world, AsyncExitStack() as stack:
        known = (world.replicas, world.replicas[:1], [])
        entered = [stack.enter_async_context(platform_over(world, replicas)) for replicas in known]
        three, one, none = await asyncio.gather(*entered)
        if "share" in parts:
            print("-- share", flush=True)
            figures |= await share(world, three, none, quick=quick)
        if "scaling" in parts:
            print("-- scaling", flush=True)
            figures |= await _scaling.measure(world, one, three, rounds=5, seconds=0.5 if quick else 8.0)
    return figures


async def share(world: Cluster, three: Platform, none: Platform, *, quick: bool) -> dict[str, Any]:
    return {
        "token_check_us": token_check_us(three, rounds=9),
        **await token_capture(three, none, rounds=9, writes=60 if quick else 200),
        **await replica_share(world, three, seconds=3.0 if quick else 60.0),
    }


def faults(figures: dict[str, Any]) -> list[str]:
    """Why the run proves nothing, or that it proves the platform wrong."""
    found = [
        f"{key} is {figures[key]}, and must be 0"
        for key in ("stale_session_reads", "backward_reads", "lost_or_phantom")
        if figures.get(key)
    ]
    found += [
        f"{key} is 0: the harness would not notice a stale read"
        for key in ("stale_with_window", "stale_with_none")
        if figures.get(key) == 0
    ]
    if figures.get("read_scaling_least_used", 1.0) < 0.85:
        found.append("a node was not at its limit: what three of them bring was not measured")
    if figures.get("replica_share_refused", 0) > figures.get("replica_share_reads", 0) / 1000:
        found.append("more than a thousandth of the requests were refused and are in no share")
    return found


async def main(parts: list[str], *, quick: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if "staleness" in parts:
        print("-- staleness", flush=True)
        figures |= await staleness(quick=quick)
    if "share" in parts or "scaling" in parts:
        figures |= await calm(parts, quick=quick)
    if "pooling" in parts:
        print("-- pooling", flush=True)
        figures |= await _pooling.measure(quick)
    return figures


if __name__ == "__main__":
    chosen = [argument for argument in sys.argv[1:] if argument in PARTS]
    found = uvloop.run(main(chosen or list(PARTS), quick="--quick" in sys.argv))
    wrong = faults(found)
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    finish(found)
    sys.exit(1 if wrong else 0)
