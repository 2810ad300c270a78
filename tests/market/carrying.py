"""How jobs come to tests that run them without a worker: claimed from SQL, or brought by a broker.

Over a broker each job goes the whole way of one that a worker runs: sent, published, received, claimed by its
id, settled. What was received of jobs that are gone (another test's, whose tables were emptied) is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from springtide.errors import TransportUnavailable
from springtide.jobs._sent import Outgoing, Sending
from springtide.jobs._store import Claimed, Store
from springtide.jobs.transports import Message, Transport
from springtide.jobs.transports.seam import line_name
from springtide.platform import Platform

__all__ = ["Claim", "claiming"]

MOST = 1000
WORKER, LEASE = "tests", 60.0
PATIENCE = 120.0
"""Seconds that only tell a slow machine from a broker that has lost what it confirmed."""

Claim = Callable[[Store, Sequence[str]], Awaitable[list[Claimed]]]
"""Claim what is due of these kinds and versions, for the worker `WORKER`."""


@asynccontextmanager
async def claiming(platform: Platform) -> AsyncIterator[Claim]:
    transport = platform._transport()
    if transport is None:
        yield _from_sql
        return
    await transport.start()
    try:
        yield lambda store, names: _carried(transport, Sending(store), names)
    finally:
        await transport.stop()


async def _from_sql(store: Store, names: Sequence[str]) -> list[Claimed]:
    return await store.claim(names, MOST, WORKER, LEASE)


async def _carried(transport: Transport, sending: Sending, names: Sequence[str]) -> list[Claimed]:
    sent = await sending.send(names, [MOST] * 3, MOST)
    if not sent:
        return []
    store = sending.store
    lines = {one: line_name(store.module, store.shard, one) for one in sorted({job.priority for job in sent})}
    async with asyncio.timeout(PATIENCE):
        await _publish(transport, [_message(lines, one) for one in sent])
        return await _receive(transport, sending, names, lines.values(), {one.id for one in sent})


def _message(lines: dict[int, str], one: Outgoing) -> Message:
    return Message(lines[one.priority], one.bucket, one.id, one.turn, one.ordering_key)


async def _publish(transport: Transport, messages: Sequence[Message]) -> None:
    """Until each is confirmed; one that is published twice is received twice, and dropped once."""
    while messages:
        try:
            sure = await transport.publish(messages)
        except TransportUnavailable:
            sure = [False] * len(messages)
        messages = [one for one, confirmed in zip(messages, sure, strict=True) if not confirmed]
        if messages:
            await asyncio.sleep(0.1)


async def _receive(
    transport: Transport,
    sending: Sending,
    names: Sequence[str],
    lines: Collection[str],
    awaited: set[UUID],
) -> list[Claimed]:
    """What comes on these lines, until all that is awaited has come and nobody has locked any of it; in the
    order of enqueueing, as a claim from SQL gives them."""
    jobs: list[Claimed] = []
    while awaited:
        received = await transport.receive(lines, MOST, 1.0)
        if not received:
            continue
        ids = {one.message.id: one.message.bucket for one in received}
        wanted = [(bucket, id) for id, bucket in ids.items()]
        claim = await sending.claim(wanted, names, names, WORKER, LEASE, None)
        assert not claim.parked
        jobs += claim.jobs
        awaited -= ids.keys() - claim.locked
        await transport.ack([one for one in received if one.message.id not in claim.locked])
        await transport.give_back([one for one in received if one.message.id in claim.locked])
    return sorted(jobs, key=lambda one: one.run.id)
