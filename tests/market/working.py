"""The jobs of a platform run to the end without a worker and without waiting: delayed ones are due now.

Where a broker carries jobs, it carries these (carrying.py). The steps of workflows are jobs, too, but for
what waits for an event or a time: that comes when it comes.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Collection, Iterable
from typing import Any

import msgspec
from tests.market.carrying import Claim, claiming
from tests.market.harness import settled

from springtide.context import RequestContext, activate
from springtide.db import Bucket, Database
from springtide.flows import Step
from springtide.jobs import Run
from springtide.jobs._store import Claimed, Ending, Store
from springtide.jobs.job import Handler, kind_of
from springtide.platform import Platform

ROUNDS = 50

AT_ONCE = 6
"""Fewer than a pool has connections: none of them waits for one longer than it may, on a busy machine too."""


async def together(calls: Iterable[Awaitable[Any]]) -> None:
    """All of `calls`, AT_ONCE at a time, in their order. The first error is raised when all have ended."""
    waiting = iter(calls)

    async def some() -> None:
        for call in waiting:
            await call

    ended = await asyncio.gather(*(some() for _ in range(AT_ONCE)), return_exceptions=True)
    for error in ended:
        if error is not None:
            raise error


async def work(platform: Platform, modules: Collection[str] | None = None) -> int:
    """Run the jobs of `modules` (None: of all), and those that they enqueue; how many. Errors are raised."""
    done = 0
    async with claiming(platform) as claim:
        for _ in range(ROUNDS):
            ran = await _round(platform, modules, claim)
            if not ran:
                await settled(platform)  # what jobs have written is no client's own
                return done
            done += ran
    raise AssertionError(f"jobs go on after {done} of them")


async def _round(platform: Platform, modules: Collection[str] | None, claim: Claim) -> int:
    ran = 0
    for module in platform.modules:
        if not module.jobs or (modules is not None and module.name not in modules):
            continue
        database = platform.database(module.name)
        made = platform._registry.implementation(module.name)
        handlers = {handler.kind.name: handler for handler in platform.handlers(module)}
        waits = [
            kind_of(workflow.jobs[step.name]).kind
            for workflow in module.workflows
            for step in workflow.steps
            if not isinstance(step, Step)
        ]
        for shard, pool in database.pools.items():
            store = Store(database, shard)
            await pool.execute(
                f"update {database.schema}._job set run_at = statement_timestamp()"
                " where state = 'ready' and kind <> all($1)",
                waits,
            )
            for claimed in await claim(store, list(handlers)):
                handler = handlers[f"{claimed.kind}/{claimed.version}"]
                await run(database, store, handler, made, claimed)
                ran += 1
    return ran


async def run(database: Database, store: Store, handler: Handler[Any], made: Any, claimed: Claimed) -> None:
    """As a worker would, but whatever the handler raises is raised."""
    job = msgspec.json.decode(claimed.payload, type=handler.job)
    one = Run(
        id=claimed.run.id,
        key=f"{store.module}:{claimed.run.id}",
        attempt=claimed.run.attempt,
        max_attempts=claimed.max_attempts,
        enqueued_at=claimed.enqueued_at,
    )
    context = RequestContext()
    if claimed.position is not None:
        context.causality.cover(store.shard, claimed.position)
    with activate(context):
        if handler.effect == "any":
            await handler.method(made, job, one)
            assert await store.end(claimed.run, "tests", Ending("done"))
            return
        async with database.write(Bucket(claimed.run.bucket)) as tx:
            await handler.method(made, job, dataclasses.replace(one, transaction=tx))
            assert await store.end(claimed.run, "tests", Ending("done"), tx)
