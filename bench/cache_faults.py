"""Is a cached read ever older than its budget, whatever breaks? Three app processes over lagging replicas.

Sessions read and write registers through the cache: cookie, header and bearer clients that hop between the
processes, and a crowd within each process, which does most of the reads. Meanwhile replicas lag, stand still
and are killed, and every fault of bench/_cache_trouble.py is made in turn: Redis killed, frozen, flushed,
full, failed over and slow, the bus cut, silent and late, writers killed between COMMIT and invalidation,
loaders that are slow, raise and are cancelled, steps of wall clocks, stopped processes, transactions that
stay open over a replica's pause, once a primary killed. One process of three is of the application's next
version all the time: half of the values have another shape there.

- `stale_beyond_budget`: reads that were older than the newest version whose COMMIT had been answered more
  than the budget (2 s) before the read began. Must be 0 of `reads`.
- `own_writes_lost`: reads that did not see a write of their own session. `phantoms`: reads of what nobody
  wrote. Both must be 0. `backward_in_one_process`: reads older than what the same process had shown the
  session before; `backward_reads` the same over all processes, which a budget allows and nobody promises.
- `reads_by_http`: those of the clients; the others are the crowds'. `reads_during`: those that began while a
  fault was in force, by fault.
- `failed_reads`: requests to read that failed, by fault in `failed_reads_by`; must be 0. Those while the
  primary of the database is dead are apart (`failed_reads_without_primary`): no cache can help them.
- `stale_with_aside`, `stale_with_lease`: `stale_beyond_budget` of plain cache-aside and of leases through
  the same faults; `own_writes_lost_with_...` likewise. Both must be > 0, or the harness would not see one.
- `faults`: how often each fault was made. What it did and what was felt of it is in the lines before.

Wall clocks are stepped by a preloaded library, not by the machine's clock. `python -m bench.cache_faults
springtide` runs one of the caches alone (springtide, aside, lease).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from bench._cache_fleet import Fleet, Seen, fleet
from bench._cache_trouble import FAILOVER, FAULTS, FEW, LONG, Done, Trouble
from bench._cluster import cluster, until
from bench._drift import Drift
from bench._harness import finish
from bench._redis_world import redis_world

READS = 1_000_000
CACHES = ("aside", "lease", "springtide")
LONGEST = 330.0
"""Seconds after which a course ends, however little was seen; but never before its first cycle."""

AFTERMATH = 1.0
"""Seconds after a fault in which what fails is laid at its door."""


@dataclass(frozen=True)
class Course:
    """Cycles of `faults`, each for about `span` seconds to twice that long and `calm` apart, until so many
    `reads` were seen, but at least `cycles`. failover: the primary is killed once, after the first."""

    faults: Sequence[str]
    span: float
    calm: float
    cycles: int = 1
    reads: int = 0
    failover: bool = False


def course(cache: str, *, quick: bool) -> Course:
    every = [fault for fault in FAULTS if fault != FAILOVER]
    short = [fault for fault in every if fault != LONG]
    if cache == "springtide":
        return Course(short, 0.2, 0.1) if quick else Course(every, 1.0, 1.0, 2, READS, failover=True)
    return Course(FEW if quick else short, 0.35, 0.2)


async def observe(fleet: Fleet, cache: str, course: Course, *, seed: int) -> tuple[Seen, list[Done]]:
    print(f"-- {cache}", flush=True)
    drift = Drift(fleet.world, seed=seed, deadly=True)
    trouble = Trouble(fleet, drift, seed=seed, span=course.span)
    drifting = asyncio.create_task(drift.run())
    try:
        async with fleet.observed(cache, seed=seed) as seen:
            await until(lambda: _true(fleet.saw >= 100), "the first reads")
            troubling = asyncio.create_task(_trouble(fleet, trouble, course))
            await asyncio.wait([troubling, drifting], return_when=asyncio.FIRST_COMPLETED)
            if drifting.done():
                troubling.cancel()
                drifting.result()
            troubling.result()
    finally:
        drifting.cancel()
        await asyncio.gather(drifting, return_exceptions=True)
    print(seen[0].sentence())
    print(f"done to replicas: {dict(sorted(drift.done.items()))}")
    shown: Counter[str] = Counter()
    for wrong in seen[0].verdict.wrong:
        shown[wrong.rule] += 1
        if shown[wrong.rule] <= 5:
            print(f"  {wrong.sentence}; {during(trouble.done, wrong.read.began)}")
    return seen[0], trouble.done


async def _trouble(fleet: Fleet, trouble: Trouble, course: Course) -> None:
    begun, cycles = time.monotonic(), 0

    def enough() -> bool:
        done = cycles >= course.cycles and fleet.saw >= course.reads
        return done or time.monotonic() - begun > LONGEST

    await trouble.cycle(course.faults, calm=course.calm)
    cycles = 1
    if course.failover:
        await trouble.fail_over()
    while not enough():
        await trouble.cycle(course.faults, calm=course.calm, enough=enough)
        cycles += 1


async def _true(found: bool) -> bool:
    return found


def during(done: list[Done], moment: float) -> str:
    """Which fault was in force, or the last before."""
    before = [one for one in done if one.began <= moment]
    if not before:
        return "before all faults"
    last = before[-1]
    since = moment - last.ended
    return f"during {last.fault}" if since < 0 else f"{since:.1f} s after {last.fault}"


def failures(seen: Seen, done: list[Done]) -> Counter[str]:
    """Failed requests to read, by the fault that was in force, and how they failed."""
    found: Counter[str] = Counter()
    for asked, ended, kind in seen.failed:
        if kind.startswith(("GET", "read")):
            at = [one.fault for one in done if one.began <= ended and asked <= one.ended + AFTERMATH]
            found[f"{at[0] if at else 'calm'}: {kind}"] += 1
    return found


async def main(caches: list[str], *, quick: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    begun = time.monotonic()
    async with (
        cluster(replicas=2 if quick else 3) as world,
        redis_world() as redis,
        fleet(world, redis) as registers,
    ):
        for cache in caches:
            seen, done = await observe(registers, cache, course(cache, quick=quick), seed=11)
            figures |= told(cache, seen, done)
    figures["seconds"] = round(time.monotonic() - begun)
    return figures


def told(cache: str, seen: Seen, done: list[Done]) -> dict[str, Any]:
    verdict = seen.verdict
    if cache != "springtide":
        return {
            f"stale_with_{cache}": verdict.counts["beyond budget"],
            f"own_writes_lost_with_{cache}": verdict.counts["own write lost"],
            f"reads_with_{cache}": verdict.reads,
        }
    failed = failures(seen, done)
    reads: Counter[str] = Counter()
    for one in done:
        reads[one.fault] += verdict.during(one.began, one.ended)
    unavoidable = sum(number for kind, number in failed.items() if kind.startswith(FAILOVER))
    return {
        "stale_beyond_budget": verdict.counts["beyond budget"],
        "own_writes_lost": verdict.counts["own write lost"],
        "phantoms": verdict.counts["phantom"],
        "backward_reads": verdict.counts["backward"],
        "backward_in_one_process": verdict.counts["backward in one process"],
        "reads": verdict.reads,
        "reads_by_http": seen.asked,
        "reads_during": dict(reads),
        "writes": verdict.writes,
        "told_to_fail": seen.told,
        "failed_reads": failed.total() - unavoidable,
        "failed_reads_without_primary": unavoidable,
        "failed_reads_by": dict(failed.most_common()),
        "counts": dict(sorted(seen.counts.items())),
        "faults": dict(Counter(one.fault for one in done)),
    }


def wrong(figures: dict[str, Any], least: int) -> list[str]:
    """Why the run proves nothing, or that it proves the cache wrong."""
    found = [
        f"{key} is {figures[key]}, and must be 0"
        for key in ("stale_beyond_budget", "own_writes_lost", "phantoms", "failed_reads")
        if figures.get(key)
    ]
    if figures.get("writes", least) < least / 500 or figures.get("reads", least) < least:
        found.append(f"{figures['reads']} reads and {figures['writes']} writes are too few to say anything")
    found += [
        f"{key} is 0: the harness would not notice a stale read"
        for key in ("stale_with_aside", "stale_with_lease")
        if figures.get(key) == 0
    ]
    return found


if __name__ == "__main__":
    chosen = [argument for argument in sys.argv[1:] if argument in CACHES]
    quick = "--quick" in sys.argv
    result = uvloop.run(main(chosen or list(CACHES), quick=quick))
    sentences = wrong(result, 1_000 if quick else READS)
    for sentence in sentences:
        print(f"WRONG: {sentence}")
    finish(result)
    sys.exit(1 if sentences else 0)
