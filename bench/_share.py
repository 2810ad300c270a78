"""How many session reads replicas serve when they lag a little, and what the token costs.

A thousand sessions, each making one request per second on average at exponential intervals, one of twenty
writes. Each request is a context of its own with the token that the session's last answer carried, as text.
"""

from __future__ import annotations

import asyncio
import functools
import random
import statistics
import time
from typing import Any

from bench._cluster import Cluster
from bench._harness import alternate, drive
from bench.register.app import READ, WRITE
from springtide.context import CausalityToken, Position, RequestContext, activate
from springtide.db import Consistency, Database, bucket_of
from springtide.errors import Unavailable
from springtide.platform import Platform

__all__ = ["replica_share", "token_capture", "token_check_us"]

SESSIONS = 1_000
WRITES = 0.05
LAG = 0.05
WHERE = READ.replace("select ", "select pg_is_in_recovery() as replica, ")


async def replica_share(world: Cluster, platform: Platform, *, seconds: float) -> dict[str, float]:
    """`replica_share_50ms` and what else was counted."""
    database = platform.database("register")
    await world.primary.query(
        "insert into register.entry (bucket, id, version, value)"
        f" select n % 1024, (n + 1) << 10 | n % 1024, 1, '' from generate_series(0, {SESSIONS - 1}) n"
        " on conflict do nothing"
    )
    await world.caught_up()  # a session that has written nothing is promised nobody's writes
    for node in world.replicas:
        node.delay(LAG)
    served = {True: 0, False: 0, None: 0}
    late: list[float] = []
    chance = random.Random(1)
    try:
        async with asyncio.timeout(seconds + 60):
            tokens = [await _begin(database, number) for number in range(SESSIONS)]
            await asyncio.gather(
                *(
                    _session(number, token, database, chance, served, late, seconds)
                    for number, token in enumerate(tokens)
                )
            )
    finally:
        for node in world.replicas:
            node.delay(0.0)
    total = served[True] + served[False]
    print(
        f"{total} session reads at {total / seconds:.0f}/s: {served[True]} by replicas, {served[False]} by"
        f" the primary, {served[None]} refused;"
        f" a request began {sum(late) / len(late) * 1e3:.1f} ms late on average"
    )
    return {
        "replica_share_50ms": round(served[True] / total, 4),
        "replica_share_reads": total,
        "replica_share_refused": served[None],
    }


def _key(number: int) -> int:
    return (number + 1) << 10 | number % 1024


async def _write(database: Database, number: int) -> None:
    key = _key(number)
    async with database.write(key) as tx:
        await tx.fetch_value(WRITE, bucket_of(key), key, f"{number}")


async def _begin(database: Database, number: int) -> str:
    """A session's first write, and its token: who has never written could read anywhere."""
    context = RequestContext()
    with activate(context):
        await _write(database, number)
    return context.causality.encode()


async def _session(
    number: int,
    carried: str,
    database: Database,
    chance: random.Random,
    served: dict[bool | None, int],
    late: list[float],
    seconds: float,
) -> None:
    key = _key(number)
    due = time.monotonic()
    end = due + seconds
    while (due := due + chance.expovariate(1.0)) < end:
        await asyncio.sleep(max(due - time.monotonic(), 0.0))
        late.append(time.monotonic() - due)
        context = RequestContext(causality=CausalityToken.decode(carried))
        with activate(context):
            try:
                if chance.random() < WRITES:
                    await _write(database, number)
                else:
                    row = await database.read(key).fetch_one(WHERE, bucket_of(key), key)
                    served[row["replica"]] += 1
            except Unavailable:
                served[None] += 1
        carried = context.causality.encode()


def token_check_us(platform: Platform, *, rounds: int, calls: int = 20_000) -> float:
    """Microseconds of CPU that it takes to choose a server for a session read by its token: the median."""
    servers = platform.servers["main"]
    token = CausalityToken()
    position = next(one.position for one in servers.replicas if one.position is not None)
    token.observe("main", Position(position.epoch, 1))  # all have it, so that the choice is among all
    if servers.choose(Consistency.SESSION, token).why:
        raise RuntimeError("no replica can be read from: this machine is too busy to measure")
    found = []
    for _ in range(rounds):
        begun = time.process_time()
        for _ in range(calls):
            servers.choose(Consistency.SESSION, token)
        found.append((time.process_time() - begun) / calls)
    return round(statistics.median(found) * 1e6, 2)


async def token_capture(
    with_replicas: Platform, without: Platform, *, rounds: int, writes: int
) -> dict[str, Any]:
    """What a write costs more where there are replicas: microseconds, and statements.

    Both platforms write to the same primary in turns, so many `writes` in each round.
    """

    async def write(platform: Platform, number: int) -> None:
        key = (number % 50 + 1) << 10  # of bucket 0
        with activate(RequestContext()):
            async with platform.database("register").write(key) as tx:
                await tx.fetch_value(WRITE, bucket_of(key), key, str(number))

    async def one(platform: Platform) -> float:
        return await drive(functools.partial(write, platform), total=writes, concurrency=1)

    found = await alternate(
        {"with": functools.partial(one, with_replicas), "without": functools.partial(one, without)},
        rounds=rounds,
    )
    print(found.table("without"))
    pairs = zip(found.seconds["with"], found.seconds["without"], strict=True)
    return {"token_capture_us": round(statistics.median(a - b for a, b in pairs) * 1e6, 1)}
