"""Values that are unique over all buckets: user names, addresses, slugs.

A reservation is a row in the bucket of the value's hash; the entity it belongs to is a row in the bucket of
its id. On one shard one transaction writes both. On two shards no transaction can, so the claim is decided in
one place, on the owner's shard, by a row in `_reservation_outcome` that whoever comes first inserts:

    1  on each value's shard     claimed value   (none) -> pending      own value again   confirmed -> keeping
                                 released value  confirmed -> releasing
    2  on the owner's shard      outcome (claim, committed) and the entity's rows, in ONE transaction
    3  on each value's shard     pending -> confirmed, keeping -> confirmed, releasing -> (none)

Whoever finds a row that is older than `abandoned_after` and has no outcome inserts (claim, not committed). If
that succeeds, the writer can never commit, because step 2 needs the same primary key; if it fails, the
writer had committed. Either way the row is finished according to the outcome, by whoever looks first: the
writer, a competing claim, or `reconcile`. While step 2 is in progress its uncommitted outcome row holds the
others off.

    state      outcome committed    not committed
    pending    confirmed            (none)
    keeping    confirmed            confirmed
    releasing  (none)               confirmed

Invariant: an entity that is committed holds every value it claimed, and no value has two owners.
Outcomes are kept for `retention` and until no row refers to them; a writer that took longer than half of it
between 1 and 2 is refused, so a forgotten outcome cannot be decided again.

Values are compared byte by byte: callers normalise them first (lower case, Unicode form).

One long file, because the steps and those who finish them for others are one argument; the statements are
in `_reservation_sql`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from springtide.context import CausalityToken, RequestContext, activate, current
from springtide.db import _writing
from springtide.db._reservation_sql import Sql, joined
from springtide.db._writing import WriteTransaction
from springtide.db.consistency import Consistency
from springtide.db.shards import Bucket, bucket_of
from springtide.errors import AlreadyReserved, SpringtideError, Unavailable

if TYPE_CHECKING:
    from springtide.db.router import Database

__all__ = ["Reconciled", "Reservations", "Values"]

_log = logging.getLogger(__name__)

Values = Mapping[str, str | Collection[str]]
"""kind -> value, or values."""

FIRST_PAUSE = 0.01
MAX_PAUSE = 0.2
TIDY_TIMEOUT = 2.0
"""Seconds that a writer spends on step 3, or on undoing step 1; what is left then is reconciled later."""

CANCELLED_TIDY_TIMEOUT = 0.2
"""The same for a writer that was cancelled and should be gone soon."""

OUTCOME_WAIT = 0.1
"""Seconds that one who would abort a claim waits for its writer's transaction to end."""

SETTLED = ("confirmed", "keeping")
"""States in which the owner on record holds the value, whatever becomes of the claim."""

BATCH = 200


@dataclass(frozen=True, slots=True)
class _Row:
    """A reservation that its claim has not decided yet. `abandoned`: older than the threshold."""

    bucket: int
    kind: str
    value: str
    owner_id: int
    claim_id: uuid.UUID
    state: str
    abandoned: bool


@dataclass(slots=True)
class Reconciled:
    """What one `reconcile` did: rows finished, rows whose writer is still at work, outcomes forgotten."""

    committed: int = 0
    aborted: int = 0
    busy: int = 0
    forgotten: int = 0


@dataclass(slots=True)
class _Claim:
    owner_id: int
    id: uuid.UUID
    local: list[tuple[str, str]]
    """Claimed on the owner's shard, (kind, value), sorted."""
    local_release: list[tuple[str, str]]
    remote: dict[str, list[tuple[str, str]]]
    """Claimed elsewhere, by shard."""
    remote_release: dict[str, list[tuple[str, str]]]
    began: datetime | None = None
    """The earliest step 1, by the clock of the value's shard."""
    touched: list[str] = field(default_factory=list)
    """Shards on which step 1 may have been sent."""

    @property
    def shards(self) -> list[str]:
        return sorted({*self.remote, *self.remote_release})


class _Contended(Exception):
    """A row is in the hands of another claim; never leaves this module."""

    def __init__(self, row: _Row) -> None:
        self.row = row
        super().__init__(row)


class Reservations:
    """The reservations of one database.

    patience:        seconds that a claim waits for another claim on the same value to be decided.
    abandoned_after: seconds after which an undecided claim is taken from its writer.
    retention:       seconds that outcomes are kept.
    """

    def __init__(
        self,
        database: Database,
        *,
        patience: float = 1.0,
        abandoned_after: float = 10.0,
        retention: float = 86_400.0,
    ) -> None:
        if patience < 0:
            raise ValueError(f"patience must be >= 0 seconds, got {patience}")
        if abandoned_after <= 0:
            raise ValueError(f"abandoned_after must be > 0 seconds, got {abandoned_after}")
        if retention < 10 * abandoned_after:
            raise ValueError(
                f"retention must be >= 10 * abandoned_after, got {retention} < {10 * abandoned_after}"
            )
        self._db = database
        self._patience = patience
        self._abandoned_after = timedelta(seconds=abandoned_after)
        self._retention = timedelta(seconds=retention)
        self._sql = Sql(database.schema)

    @asynccontextmanager
    async def reserving(
        self, owner_id: int, *, claim: Values | None = None, release: Values | None = None
    ) -> AsyncIterator[WriteTransaction]:
        """See `Database.reserving`."""
        if _writing.innermost(self._db) is not None:
            raise RuntimeError(
                "reserving() cannot be used inside an open write: other shards hear of it before that commits"
            )
        give_up = self._db.clock.monotonic() + self._patience
        pause = FIRST_PAUSE
        while True:
            plan = self._plan(owner_id, claim or {}, release or {})
            finished = False
            try:
                await self._prepare(plan)
                async with self._db.write(owner_id) as tx:
                    await self._decide(tx, plan)
                    yield tx
                    finished = True
                break
            except _Contended as contended:
                await self._tidy(plan, False)
                row = contended.row
                if await self._resolve(row) is not None:
                    continue
                if self._db.clock.monotonic() >= give_up:
                    if row.state == "pending":
                        raise AlreadyReserved(row.kind, row.value) from None
                    raise Unavailable(
                        f"{row.kind} {row.value!r} is being changed by another call", retry_after=1.0
                    ) from None
                await self._db.clock.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads tries
                pause = min(pause * 2, MAX_PAUSE)
            except (Exception, asyncio.CancelledError) as error:
                timeout = TIDY_TIMEOUT if isinstance(error, Exception) else CANCELLED_TIDY_TIMEOUT
                # Once COMMIT may have been sent only the outcome knows; before, it cannot have happened.
                await self._tidy(plan, None if finished else False, timeout)
                raise
        await self._tidy(plan, True)

    async def lookup(self, kind: str, value: str, *, consistency: Consistency | None = None) -> int | None:
        """See `Database.lookup`."""
        bucket = bucket_of(value)
        reader = self._db.read(Bucket(bucket), consistency=consistency)
        row = await reader.fetch_one(self._sql.look, bucket, kind, value)
        if row is None or not await self._holds(row["owner_id"], row["claim_id"], row["state"], consistency):
            return None
        owner_id: int = row["owner_id"]
        return owner_id

    async def fetch_held(
        self,
        kind: str,
        value: str,
        sql: str,
        args: Sequence[Any],
        *,
        consistency: Consistency | None = None,
    ) -> Any | None:
        """See `Database.fetch_held`."""
        bucket = Bucket(bucket_of(value))
        both = joined(self._sql.held, sql)
        reader = self._db.read(bucket, consistency=consistency)
        row = await reader.fetch_one(both, bucket.number, kind, value, *args)
        if row is None:
            return None
        owner_id, state = row["_owner_id"], row["_state"]
        shard_of = self._db.shards.shard_of
        if state in SETTLED and shard_of(owner_id) == shard_of(bucket):
            return row if row["_there"] else None
        if not await self._holds(owner_id, row["_claim_id"], state, consistency):
            return None
        owner = self._db.read(owner_id, consistency=consistency)
        return await owner.fetch_one(sql, bucket_of(owner_id), owner_id, *args)

    async def _holds(
        self, owner_id: int, claim_id: uuid.UUID, state: str, consistency: Consistency | None
    ) -> bool:
        """Whether the owner on record holds the value now; asks for the outcome while that is open."""
        if state in SETTLED:
            return True
        owner = self._db.read(owner_id, consistency=consistency)
        committed = await owner.fetch_value(self._sql.outcome, bucket_of(owner_id), claim_id)
        return bool(committed) == (state == "pending")

    async def reconcile(self) -> Reconciled:
        """See `Database.reconcile`."""
        done = Reconciled()
        failed: Unavailable | None = None
        for shard in self._db.shards.shards:
            try:
                await self._reconcile_shard(shard, done)
            except Unavailable as error:  # the others are finished all the same
                failed = failed or error
        if failed is not None:
            raise failed
        for shard in self._db.shards.shards:
            await self._forget(shard, done)
        return done

    def _plan(self, owner_id: int, claim: Values, release: Values) -> _Claim:
        wanted = _pairs(claim)
        dropped = [pair for pair in _pairs(release) if pair not in set(wanted)]
        home = self._db.shards.shard_of(owner_id)

        def split(
            pairs: list[tuple[str, str]],
        ) -> tuple[list[tuple[str, str]], dict[str, list[tuple[str, str]]]]:
            groups: dict[str, list[tuple[str, str]]] = {}
            for kind, value in pairs:
                groups.setdefault(self._db.shards.shard_of(value), []).append((kind, value))
            return groups.pop(home, []), groups

        local, remote = split(wanted)
        local_release, remote_release = split(dropped)
        return _Claim(owner_id, uuid.uuid4(), local, local_release, remote, remote_release)

    async def _prepare(self, plan: _Claim) -> None:
        """Step 1: mark what is claimed and released on the other shards, on all of them at the same time.

        A shard that refuses does not cancel the others: a COMMIT on its way there could arrive after step 1
        was taken back.
        """
        failures: dict[str, Exception] = {}

        async def attempt(shard: str) -> None:
            try:
                await self._prepare_shard(shard, plan)
            except Exception as error:
                failures[shard] = error

        plan.touched += plan.shards
        async with asyncio.TaskGroup() as group:
            for shard in plan.shards:
                group.create_task(attempt(shard))
        if failures:  # who waits for another claim need not, when there is a definite answer
            raised = [failures[shard] for shard in plan.shards if shard in failures]
            raise min(raised, key=lambda error: isinstance(error, _Contended))

    async def _prepare_shard(self, shard: str, plan: _Claim) -> None:
        async with self._db._transaction(shard) as tx:
            began: datetime = await tx.fetch_value("SELECT now()")
            plan.began = began if plan.began is None else min(plan.began, began)
            for kind, value in plan.remote.get(shard, ()):
                await self._mark(tx, plan, kind, value)
            for kind, value in plan.remote_release.get(shard, ()):
                place = (bucket_of(value), kind, value)
                tag = await tx.execute(self._sql.releasing, *place, plan.owner_id, plan.id)
                if tag == "UPDATE 0":
                    self._contend(await self._see(tx, place), plan.owner_id)

    async def _mark(self, tx: Any, plan: _Claim, kind: str, value: str) -> None:
        place = (bucket_of(value), kind, value)
        if await tx.fetch_value(self._sql.insert, *place, plan.owner_id, plan.id, "pending") is not None:
            return
        row = await self._see(tx, place)
        if row is None:  # released between the two statements
            raise _Contended(_Row(*place, plan.owner_id, plan.id, "releasing", abandoned=False))
        if row.state != "confirmed":
            raise _Contended(row)
        if row.owner_id != plan.owner_id:
            raise AlreadyReserved(kind, value)
        await tx.execute(self._sql.keeping, *place, plan.id)

    async def _decide(self, tx: WriteTransaction, plan: _Claim) -> None:
        """Step 2, before the entity's rows: the outcome, and what is claimed on the owner's own shard."""
        if plan.touched:
            tag = await tx.execute(
                self._sql.commit, bucket_of(plan.owner_id), plan.id, plan.began, self._retention / 2
            )
            if tag != "INSERT 0 1":  # somebody took us for dead: start again
                kind, value = next(iter([*plan.remote.values(), *plan.remote_release.values()]))[0]
                raise _Contended(
                    _Row(bucket_of(value), kind, value, plan.owner_id, plan.id, "pending", abandoned=True)
                )
        for kind, value in plan.local:
            place = (bucket_of(value), kind, value)
            owned = await tx.fetch_value(self._sql.insert, *place, plan.owner_id, plan.id, "confirmed")
            if owned is None:
                row = await self._see(tx, place)
                if row is None:
                    raise _Contended(_Row(*place, plan.owner_id, plan.id, "releasing", abandoned=False))
                if row.state != "confirmed":
                    raise _Contended(row)
                if row.owner_id != plan.owner_id:
                    raise AlreadyReserved(kind, value)
        for kind, value in plan.local_release:
            place = (bucket_of(value), kind, value)
            if await tx.execute(self._sql.release, *place, plan.owner_id) == "DELETE 0":
                self._contend(await self._see(tx, place), plan.owner_id)

    def _contend(self, row: _Row | None, owner_id: int) -> None:
        """A value to release that is not ours, or not any more, is let be; one in flight is waited for."""
        if row is not None and row.owner_id == owner_id:
            raise _Contended(row)

    async def _see(self, tx: Any, place: tuple[int, str, str]) -> _Row | None:
        row = await tx.fetch_one(self._sql.see, *place, self._abandoned_after)
        return None if row is None else _Row(*row)

    async def _resolve(self, row: _Row) -> bool | None:
        """Finish `row` by its claim's outcome, which is made if it is abandoned; None: undecided as yet."""
        committed = await self._outcome(row)
        if committed is not None:
            shard = self._db.shards.shard_of(Bucket(row.bucket))
            await self._finish(shard, row.claim_id, committed)
        return committed

    async def _outcome(self, row: _Row) -> bool | None:
        bucket = bucket_of(row.owner_id)
        pool = self._db.pools[self._db.shards.shard_of(Bucket(bucket))]
        committed: bool | None = await pool.fetch_value(self._sql.outcome, bucket, row.claim_id)
        if committed is not None or not row.abandoned:
            return committed
        return await self._abort(bucket, row.claim_id)

    async def _abort(self, bucket: int, claim_id: uuid.UUID) -> bool | None:
        """Decide that the claim is not committed, unless it is decided; the outcome then holds.

        None: its writer is in the transaction that decides at this moment.
        """
        pool = self._db.pools[self._db.shards.shard_of(Bucket(bucket))]
        try:
            async with pool.transaction() as tx:
                await tx.execute(f"SET LOCAL lock_timeout = {int(OUTCOME_WAIT * 1000)}")
                await tx.execute(self._sql.abort, bucket, claim_id)
        except asyncpg.LockNotAvailableError:
            return None
        committed: bool | None = await pool.fetch_value(self._sql.outcome, bucket, claim_id)
        return committed

    async def _finish(self, shard: str, claim_id: uuid.UUID, committed: bool) -> int:
        """Bring every row of the claim on `shard` to what the outcome says; how many there were."""
        first, second = self._sql.committed if committed else self._sql.aborted
        async with self._db._transaction(shard) as tx:
            tags = [await tx.execute(first, claim_id), await tx.execute(second, claim_id)]
        return sum(int(tag.rpartition(" ")[2]) for tag in tags)

    async def _tidy(self, plan: _Claim, committed: bool | None, timeout: float = TIDY_TIMEOUT) -> None:
        """Step 3 when `committed`; take back step 1 when not; ask the outcome when that is not known (None).

        What cannot be done in time is left to others: the caller's own result does not depend on it.
        """
        if not plan.touched:
            return
        try:
            context = current()
            token = context.causality if context is not None else CausalityToken()
            with activate(RequestContext(causality=token)):  # the deadline may have passed already
                async with asyncio.timeout(timeout):
                    if committed is None:
                        committed = await self._abort(bucket_of(plan.owner_id), plan.id)
                    if committed is not None:
                        async with asyncio.TaskGroup() as group:
                            for shard in plan.touched:
                                group.create_task(self._tidy_shard(shard, plan, committed))
        except (SpringtideError, asyncpg.PostgresError, TimeoutError) as error:
            _log.warning("claim %s is left to be reconciled: %r", plan.id, error)

    async def _tidy_shard(self, shard: str, plan: _Claim, committed: bool) -> None:
        try:
            await self._finish(shard, plan.id, committed)
        except (
            SpringtideError,
            asyncpg.PostgresError,
        ) as error:  # the other shards are finished all the same
            _log.warning("claim %s is left to be reconciled on %s: %r", plan.id, shard, error)

    async def _reconcile_shard(self, shard: str, done: Reconciled) -> None:
        place: tuple[int, str, str] = (-1, "", "")
        while True:
            found = await self._db.pools[shard].fetch(
                self._sql.undecided, self._abandoned_after, BATCH, *place
            )
            for record in found:
                row = _Row(*record)
                try:
                    committed = await self._resolve(row)
                except Unavailable as error:  # the owner's shard; rows of other owners need not wait for it
                    _log.warning("claim %s cannot be finished now: %r", row.claim_id, error)
                    committed = None
                if committed is None:
                    done.busy += 1
                elif committed:
                    done.committed += 1
                else:
                    done.aborted += 1
            if len(found) < BATCH:
                return
            place = (found[-1]["bucket"], found[-1]["kind"], found[-1]["value"])

    async def _forget(self, shard: str, done: Reconciled) -> None:
        """Delete outcomes past retention that no row refers to any more."""
        while True:
            old = await self._db.pools[shard].fetch(self._sql.outcomes_before, self._retention, BATCH)
            claims = [row["claim_id"] for row in old]
            used: set[uuid.UUID] = set()
            for other in self._db.shards.shards if claims else ():
                rows = await self._db.pools[other].fetch(self._sql.referred, claims)
                used.update(row["claim_id"] for row in rows)
            free = [claim for claim in claims if claim not in used]
            if free:
                await self._db.pools[shard].execute(self._sql.forget, free)
                done.forgotten += len(free)
            if len(claims) < BATCH or not free:
                return


def _pairs(values: Values) -> list[tuple[str, str]]:
    """(kind, value), sorted, so that two claims never wait for each other in a circle."""
    found: set[tuple[str, str]] = set()
    for kind, value in values.items():
        for one in (value,) if isinstance(value, str) else value:
            if not kind or not one or "\0" in one:
                raise ValueError(f"a reservation needs a kind and a value without NUL, got {kind!r}: {one!r}")
            found.add((kind, one))
    return sorted(found)
