"""Reserving the lines of an order, and how that ends, whatever crashes when.

The order's record is the one place where it is decided; what is held of the listings follows it.

    reserving -> reserved -> committed -> returned
        |  |        '------> released
        |  '--------------->
        '-> refused

1. The record is made (`reserving`, with the lines) or found: whoever comes again goes on with that one.
2. Each shard holds its lines, all or none, in one transaction; lines that are held already are passed over.
3. The record becomes `reserved` if nothing stood against it, else `refused`; whoever finds that it was
   decided otherwise meanwhile takes back what it held.
4. Later the record becomes `committed`, `released` or `returned`, and each shard follows.

A crash between two steps leaves a record that says how to go on. The caller's repetition does so at once;
`sweep` does without it: what is held past its time is released unless its record says otherwise, and records
that were decided and not brought to an end are. When order and listings are on one shard, all of it is one
transaction, and there is nothing between the steps.
An order that is released before it was reserved gets a record, too, so that a late reserve finds it.

Invariant: stock is held only under a record, and no longer than its time and one sweep unless it is sold.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, cast

from market.catalog.api import Ended, Line, NotReserved, Reservation, Reserved
from market.catalog.rules import Fault
from market.catalog.stock import Known, Settling, StockStore
from market.checks import Checks
from market.faults import Conflict
from market.moments import moment
from springtide.clock import Clock
from springtide.errors import SpringtideError

__all__ = ["Reservations"]

BATCH = 100
MAX_ROUNDS = 50
"""Orders of one look of the sweep, and looks of one sweep."""

PATIENCE = timedelta(seconds=10)
"""How long a decided record may be under way before the sweep takes it for abandoned."""

SOLD = Settling("held", "committed", "sale", leaves=1, freed=1)
FREED = Settling("held", "released", "", leaves=0, freed=1)
BROUGHT_BACK = Settling("committed", "returned", "return", leaves=-1, freed=0)

FOLLOWING = {"committed": SOLD, "released": FREED, "refused": FREED, "returned": BROUGHT_BACK}
"""State of the record -> what becomes of what is held."""


class Reservations:
    def __init__(self, store: StockStore, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def reserve(self, order_id: int, lines: list[Line], expires_at: datetime) -> Reserved | NotReserved:
        """`lines` are sorted and checked. Raises Invalid when the order has other lines."""
        ids = [line.listing_id for line in lines]
        async with self._together(order_id, ids) as tx:
            known = await self._store.begin(tx, order_id, lines, expires_at, moment(self._clock))
            if known.state in ("reserving", "reserved", "refused"):
                _same(known.lines, lines)
            if known.state == "reserving":
                known = await self._reserve(tx, order_id, known)
            if known.state == "reserved":
                return await self._store.snapshot(tx, order_id, known)
            await self._follow(tx, order_id, known)
        return _not_reserved(order_id, known)

    async def commit(self, order_id: int) -> None:
        known = await self._end(order_id, "committed", ("reserved",))
        if known is None:
            raise Conflict("reservation", "does not exist")
        if known.state != "committed":
            raise Conflict("reservation", f"is {known.state}")

    async def release(self, order_id: int) -> None:
        before = ("reserving", "reserved")
        known = await self._end(order_id, "released", before)
        if known is None:
            known = await self._store.forbid(order_id, moment(self._clock))
            if known.state in before:  # reserved since we looked
                known = await self._end(order_id, "released", before)
        if known is not None and known.state in ("committed", "returned"):
            raise Conflict("reservation", f"is {known.state}")

    async def restock(self, order_id: int) -> None:
        known = await self._store.known(None, order_id)
        if known is not None and known.state == "committed":
            await self._follow(None, order_id, known)  # all of it is sold before any of it comes back
            known = await self._end(order_id, "returned", ("committed",))
        if known is None:
            raise Conflict("reservation", "does not exist")
        if known.state != "returned":
            raise Conflict("reservation", f"is {known.state}")
        await self._follow(None, order_id, known)

    async def states(self, order_ids: Sequence[int]) -> list[Reservation]:
        """In no order."""
        return await self._store.states(order_ids)

    async def sweep(self) -> None:
        """Release what is held past its time, and finish what was decided and left.

        An order that fails (its shard is down) keeps no other from its turn. Raises the first such error.
        """
        failed: SpringtideError | None = None
        for _ in range(MAX_ROUNDS):
            at = moment(self._clock)
            overdue = await self._store.overdue(at, BATCH)
            left = await self._store.unsettled(at - PATIENCE, BATCH)
            for order_id in dict.fromkeys([*overdue, *left]):
                try:
                    await self._finish(order_id, overdue.get(order_id, []), at)
                except SpringtideError as error:
                    failed = failed or error
            if failed is not None:
                raise failed
            if len(overdue) + len(left) == 0:
                return

    async def _reserve(self, tx: Any, order_id: int, known: Known) -> Known:
        """Steps 2 and 3; the record as it is afterwards."""
        at = moment(self._clock)
        if known.expires_at <= at:
            decided = await self._store.decide(tx, order_id, "released", ("reserving",), at)
            return decided or await self._must_know(tx, order_id)
        lines = {line.listing_id: line for line in known.lines}
        faults: list[Fault] = []
        for ids in self._store.by_shard(known.ids):
            faults += await self._store.hold(
                tx, order_id, [lines[id] for id in ids], known.expires_at, take=not faults
            )
        state = "refused" if faults else "reserved"
        decided = await self._store.decide(tx, order_id, state, ("reserving",), at, refusal=faults)
        return decided or await self._overtaken(tx, order_id)

    async def _overtaken(self, tx: Any, order_id: int) -> Known:
        """Somebody else decided: what we held meanwhile has to follow, even if all was settled before."""
        known = await self._must_know(tx, order_id)
        return known if known.state == "reserved" else known._replace(settled=False)

    async def _end(self, order_id: int, state: str, before: Sequence[str]) -> Known | None:
        """Decide, and let every shard follow; the record afterwards, None when there is none."""
        at = moment(self._clock)
        async with self._store.write(order_id) as tx:
            known = await self._store.decide(tx, order_id, state, before, at)
            if known is None:
                known = await self._store.known(tx, order_id)
                if known is not None and known.state in before:  # it was reserved between the two statements
                    decided = await self._store.decide(tx, order_id, state, before, at)
                    known = decided or await self._must_know(tx, order_id)
            if known is not None and self._store.one_shard(order_id, known.ids):
                await self._follow(tx, order_id, known)
                return known
        if known is not None:
            await self._follow(None, order_id, known)
        return known

    async def _follow(self, tx: Any, order_id: int, known: Known) -> None:
        """Bring what is held to where the record says it is; nothing when that is done, or not decided."""
        how = FOLLOWING.get(known.state)
        if how is None or known.settled:
            return
        for ids in self._store.by_shard(known.ids):
            await self._store.settle(tx, order_id, ids, how, moment(self._clock))
        await self._store.settled(tx, order_id, known.state)

    async def _finish(self, order_id: int, overdue: list[int], at: datetime) -> None:
        before = ("reserving", "reserved")
        known = await self._store.decide(None, order_id, "released", before, at, expired=True)
        known = known or await self._store.known(None, order_id)
        if known is None:  # held under no record: nobody can ever decide about it
            for ids in self._store.by_shard(overdue):
                await self._store.settle(None, order_id, ids, FREED, at)
        else:
            await self._follow(None, order_id, known._replace(settled=False))

    async def _must_know(self, tx: Any, order_id: int) -> Known:
        known = await self._store.known(tx, order_id)
        if known is None:
            raise RuntimeError(f"the record of order {order_id} is gone; records are never deleted")
        return known

    @asynccontextmanager
    async def _together(self, order_id: int, ids: Sequence[int]) -> AsyncIterator[Any]:
        """One transaction for everything when one shard has it all, else None."""
        if not self._store.one_shard(order_id, ids):
            yield None
            return
        async with self._store.write(order_id) as tx:
            yield tx


def _same(known: Sequence[Line], lines: Sequence[Line]) -> None:
    checks = Checks()
    if list(known) != list(lines):
        checks.fault("lines", "are not those that this order was reserved with")
    checks.finish()


def _not_reserved(order_id: int, known: Known) -> NotReserved:
    if known.state == "refused":
        return NotReserved(order_id=order_id, faults=known.refusal)
    return NotReserved(order_id=order_id, faults=[Ended(outcome=cast(Any, known.state))])
