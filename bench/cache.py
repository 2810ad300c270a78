"""The cache beside what Python programs use: what a hit costs, what is kept, what Redis has to do, who loads.

CPU time of this process per hit, ours over theirs, medians of alternating rounds; an object of five fields:

- `l1_hit_vs_cashews`, `l1_hit_vs_aiocache`: a hit in memory, beside their decorators, which do what ours
  does: make the key, look it up, load what is missing. `..._get` beside their bare `get` of a made key, and
  `l1_hit_vs_async_lru`, `..._theine`, `..._dogpile`, which check nothing. `l1_hit_us`: microseconds.
- `l2_hit_vs_cashews`, `l2_hit_vs_aiocache`: a hit in Redis by 20 callers at once, beside their bare `get`;
  `..._alone` by one caller.

Round trips to Redis, wall time, one caller: `fill_vs_plain_set`, `invalidate_vs_plain_del` (DEL + PUBLISH);
`fill_tagged_...` of a class with tags, `invalidate_hot_...` of keys that more than eight transactions have
just invalidated. See bench/_cache_trips.py.

What is kept, of 1,000,000 requests for 200,000 keys (Zipf 0.99): `hit_ratio_over_lru_zipf99_1pct`, ours less
LRU's at a capacity of 1 %; `hit_ratio_over_theine_10pct` at 10 %.

Who loads: `loads_for_100_concurrent_misses` of four processes (the most of several turns), `cancel_survivors`
of 9 when the first of ten waiters is cancelled. `write_behind_lost`: see bench/_write_behind.py.

`python -m bench.cache hits` runs one part alone (hits, trips, ratio, crowd, behind).
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from typing import Any

import uvloop

from bench import _cache_crowd, _cache_hits, _cache_ratio, _cache_trips, _write_behind
from bench._cluster import scratch
from bench._harness import finish
from bench._redis_world import redis_alone
from springtide.ops.runner.postgres import EmbeddedPostgres

PARTS = ("hits", "trips", "ratio", "crowd", "behind")


async def hits(url: str, *, quick: bool) -> dict[str, Any]:
    rounds = 5 if quick else 9
    first = await _cache_hits.first_level(url, rounds=rounds, total=2_000 if quick else 20_000)
    print(f"\na hit in memory, CPU time; {rounds} rounds")
    print(first.table("springtide"))
    figures: dict[str, Any] = {"l1_hit_us": round(first.median("springtide") * 1e6, 2)}
    for peer in first.seconds:
        if peer != "springtide":
            figures[f"l1_hit_vs_{peer}"] = round(first.ratio("springtide", peer), 4)
    for name, callers in (("", 20), ("_alone", 1)):
        total = 1_000 if quick else 10_000
        second = await _cache_hits.second_level(url, rounds=rounds, total=total, concurrency=callers)
        print(f"\na hit in Redis, {callers} caller(s), CPU time of the client; {rounds} rounds of {total}")
        print(second.table("springtide"))
        for peer in second.seconds:
            if peer != "springtide":
                figures[f"l2_hit_vs_{peer}{name}"] = round(second.ratio("springtide", peer), 3)
    return figures


async def trips(url: str, *, quick: bool) -> dict[str, Any]:
    rounds, total = (5, 200) if quick else (15, 1_000)
    found = await _cache_trips.trips(url, rounds=rounds, total=total)
    print(f"\nround trips to Redis, one caller; {rounds} rounds of {total}")
    print(found.table("SET"))
    return {
        "fill_vs_plain_set": round(found.ratio("fill", "SET"), 3),
        "fill_tagged_vs_plain_set": round(found.ratio("fill tagged", "SET"), 3),
        "invalidate_vs_plain_del": round(found.ratio("void", "DEL+PUBLISH"), 3),
        "invalidate_hot_vs_plain_del": round(found.ratio("void hot", "DEL+PUBLISH"), 3),
    }


def ratio(*, quick: bool) -> dict[str, Any]:
    keys = 20_000 if quick else 200_000
    asked = _cache_ratio.requests(100_000 if quick else 1_000_000, keys)
    found = {}
    for share in (0.01, 0.1):
        found[share] = _cache_ratio.hit_ratios(asked, round(keys * share))
        said = ", ".join(f"{name} {value:.4f}" for name, value in found[share].items())
        print(f"\nhit ratio at {share:.0%} of {keys} keys, {len(asked)} requests: {said}")
    return {
        "hit_ratio_over_lru_zipf99_1pct": round(found[0.01]["springtide"] - found[0.01]["lru"], 4),
        "hit_ratio_over_theine_10pct": round(found[0.1]["springtide"] - found[0.1]["theine"], 4),
    }


async def crowd(url: str, *, quick: bool) -> dict[str, Any]:
    loads, answered = await _cache_crowd.crowd(url, turns=2 if quick else 10)
    survivors = await _cache_crowd.cancelled()
    print(f"\n100 callers of 4 processes: <= {loads} load(s), {answered} answered; {survivors} of 9 survive")
    return {"loads_for_100_concurrent_misses": loads, "cancel_survivors": survivors}


async def behind(*, quick: bool) -> dict[str, Any]:
    folder = scratch("springtide-behind-")
    postgres = EmbeddedPostgres("db", home=folder / "postgres")
    try:
        await postgres.start()
        try:
            await postgres.ensure_database("behind")
            kills = 5 if quick else 50
            found = await _write_behind.contest(postgres.url("behind"), folder, kills=kills)
        finally:
            await postgres.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\nwrite-behind under kill -9: {', '.join(f'{what} {number}' for what, number in found.items())}")
    return {
        f"write_behind_{what}": found[what] for what in ("lost", "doubled", "torn", "disordered", "kills")
    }


async def main(parts: list[str], *, quick: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if "ratio" in parts:
        figures |= await asyncio.to_thread(ratio, quick=quick)
    async with redis_alone() as url:
        for name, part in (("hits", hits), ("trips", trips), ("crowd", crowd)):
            if name in parts:
                figures |= await part(url, quick=quick)
    if "behind" in parts:
        figures |= await behind(quick=quick)
    return figures


if __name__ == "__main__":
    chosen = [argument for argument in sys.argv[1:] if argument in PARTS]
    finish(uvloop.run(main(chosen or list(PARTS), quick="--quick" in sys.argv)))
