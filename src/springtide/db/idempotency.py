"""Run a request's effect once, however often the request comes: its answer is kept in the same transaction.

A request is `Once`: the digest of who asks for what under which key, and the fingerprint of its body.

    (no row) -> claimed -> finished            claimed -> (no row)  the request failed: the key is free again
                claimed -> claimed by another  the lease ended: its process was killed or is stuck

A claim is a row that commits by itself, before the work, so a duplicate is refused at once and holds no
connection. The answer is written over the claim by the transaction that writes the effect: both are there or
neither, and a request that has lost its claim cannot commit. Leases are measured by the database's clock.

Invariant: of all requests with one digest, at most one transaction that called `finish` commits until the row
expires. A row that is finished never changes. Failures and 5xx answers are never kept.

Why not one transaction with an advisory lock: the work before the effect (a call to another module, a
password hash) would hold a connection, and a client that vanished without closing would hold the lock for
hours.
"""

from __future__ import annotations

import logging
from asyncio import timeout
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from hashlib import blake2b
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import msgspec

from springtide.context import RequestContext, activate, current
from springtide.db import _writing
from springtide.db._idempotency_sql import Sql
from springtide.db._writing import WriteTransaction
from springtide.db.expiry import delete_in_batches
from springtide.db.router import Database
from springtide.db.shards import Bucket, Key, bucket_of
from springtide.errors import (
    CommitUnknown,
    DatabaseUnavailable,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    IdempotencyLost,
    SpringtideError,
    WrongShard,
)
from springtide.signals import IdempotencyChecked, NullSink, Sink

__all__ = ["Answer", "Claim", "Idempotency", "Once", "Outcome", "purge"]

_log = logging.getLogger(__name__)

LEASE = 60.0
"""Seconds, for a request without a deadline."""

LEASE_MARGIN = 5.0
"""Seconds that a lease outlasts the deadline of its request: by then it has ended in one way or another."""

RETRY_AFTER = 1.0
BEGIN_ATTEMPTS = 5
TIDY_TIMEOUT = 2.0
CANCELLED_TIDY_TIMEOUT = 0.2
RESOLVE_TIMEOUT = 15.0
"""Seconds for a request without a deadline: the primary may have died, and the next one knows the answer.
One with a deadline looks until that: whoever comes later meets the lease for `LEASE_MARGIN` more at most."""

_DIGEST_BYTES = 32


class Once(msgspec.Struct, frozen=True):
    """One request, as far as telling duplicates goes; holds no secret, may cross to another module.

    digest:      32 bytes that stand for who asks, for what, under which key.
    fingerprint: 32 bytes that stand for what is asked: the body.
    """

    digest: bytes
    fingerprint: bytes

    def __post_init__(self) -> None:
        if len(self.digest) != _DIGEST_BYTES or len(self.fingerprint) != _DIGEST_BYTES:
            raise ValueError(
                f"digest and fingerprint must have {_DIGEST_BYTES} bytes,"
                f" got {len(self.digest)} and {len(self.fingerprint)}"
            )

    @classmethod
    def of(cls, scope: Iterable[str | bytes], body: Iterable[str | bytes]) -> Once:
        """Hash the parts; where one ends and the next begins counts."""
        return cls(_hash(b"scope", scope), _hash(b"body", body))

    @property
    def id(self) -> UUID:
        """Names this request to third parties: the same for every attempt with the same key and body."""
        return UUID(bytes=blake2b(self.digest + self.fingerprint, digest_size=16).digest(), version=4)

    @property
    def bucket(self) -> Bucket:
        """A home for effects that have no owner yet, such as a registration."""
        return Bucket(bucket_of(self.digest))


class Answer(msgspec.Struct, frozen=True):
    """What is kept: an HTTP status from 200 to 499, header pairs and the body."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class Outcome(NamedTuple):
    """`replayed`: an earlier request had this answer, and nothing was done now."""

    answer: Answer
    replayed: bool


class Claim:
    """The right to finish one request; `answer` is set when an earlier one did. See `Idempotency.claim`."""

    __slots__ = ("_id", "_idempotency", "answer", "committed", "home", "once")

    def __init__(
        self, idempotency: Idempotency, once: Once, home: Key, id: UUID, answer: Answer | None
    ) -> None:
        self._idempotency = idempotency
        self._id = id
        self.once = once
        self.home = home
        self.answer = answer
        self.committed = answer is not None

    async def finish(self, tx: WriteTransaction, answer: Answer) -> None:
        """Keep `answer` with what `tx` has written: a write on the shard of `home`, not nested in another.

        Call it once, at the end of the transaction. Raises IdempotencyLost, so that the transaction rolls
        back, when a duplicate took over; ValueError for an answer that cannot be kept; WrongShard.
        """
        await self._idempotency._finish(self, tx, answer)


class Idempotency:
    """The records of one module's database.

    lease:             seconds after which a claim may be taken over. None means the request's remaining time
                       and `LEASE_MARGIN`, or `LEASE` when it has no deadline.
    retention:         seconds for which an answer is kept at least.
    max_answer_bytes:  a larger answer (headers and body) is refused, and its effect rolled back.
    """

    def __init__(
        self,
        database: Database,
        *,
        lease: float | None = None,
        retention: float = 86_400.0,
        max_answer_bytes: int = 65_536,
        sink: Sink | None = None,
    ) -> None:
        if lease is not None and lease <= 0:
            raise ValueError(f"lease must be > 0 seconds or None, got {lease}")
        if retention <= 0:
            raise ValueError(f"retention must be > 0 seconds, got {retention}")
        if max_answer_bytes < 1:
            raise ValueError(f"max_answer_bytes must be >= 1, got {max_answer_bytes}")
        self.database = database
        self._lease = lease
        self._retention = timedelta(seconds=retention)
        self._max_answer_bytes = max_answer_bytes
        self._sink = sink or NullSink()
        self._sql = Sql(database.schema)

    async def run(
        self, once: Once, effect: Callable[[WriteTransaction], Awaitable[Answer]], *, home: Key
    ) -> Outcome:
        """Call `effect` with a write on the shard of `home`, unless the request was finished before.

        `home` must be the same for every attempt (the user's id, `once.bucket`), never an id made for this
        one. An effect that raises, or answers 5xx, changes nothing and leaves the key free.
        A COMMIT whose outcome is unknown is resolved here when there is time for it.
        Raises IdempotencyInFlight, IdempotencyKeyReused, IdempotencyLost, and what `effect` and the database
        raise; RuntimeError inside an open write of this database.
        """
        async with self.claim(once, home=home) as claim:
            if claim.answer is not None:
                return Outcome(claim.answer, True)
            try:
                async with self.database.write(home) as tx:
                    answer = await effect(tx)
                    if answer.status >= 500:
                        raise _Failed(answer)
                    await claim.finish(tx, answer)
            except _Failed as failed:
                return Outcome(failed.answer, False)
            except CommitUnknown as unknown:
                return Outcome(await self._settle(claim, unknown), False)
            return Outcome(answer, False)

    @asynccontextmanager
    async def claim(self, once: Once, *, home: Key) -> AsyncIterator[Claim]:
        """For work that `run` cannot hold: other modules' calls before, `db.reserving`, several transactions.

        If `claim.answer` is set, answer that and do nothing. Otherwise call `claim.finish(tx, answer)` in the
        transaction of the effect. A block that ends without having committed it frees the key.
        """
        if _writing.innermost(self.database) is not None:
            raise RuntimeError("an idempotency key is claimed before the write is opened, not inside it")
        id = uuid4()
        try:
            claim = await self._begin(once, home, id)
        except (IdempotencyInFlight, IdempotencyKeyReused):
            raise
        except BaseException as error:  # the row may be there although its answer was lost
            await self._release(once, home, id, error)
            raise
        try:
            yield claim
        except BaseException as error:
            if not claim.committed:
                await self._release(once, home, id, error)
            raise
        if not claim.committed:
            await self._release(once, home, id, None)

    async def resolve(self, once: Once, *, home: Key) -> Answer | None:
        """What became of a request whose COMMIT is unknown: its answer, or None when nothing was changed.

        None is final: what was claimed is free, and a transaction that is still open cannot commit any more.
        Waits for a COMMIT that is under way. Raises CommitUnknown when the database cannot tell now.
        """
        return await self._resolve(once, home, None)

    def _seen(self, home: Key) -> None:
        """The caller hears of an effect that another request has committed, nobody knows where in the log."""
        shard = self.database.shards.shard_of(home)
        servers, context = self.database.servers.get(shard), current()
        if context is not None and servers is not None and servers.replicated:
            context.causality.doubt(servers.cluster)
            context.causality.written = True

    async def _begin(self, once: Once, home: Key, id: UUID) -> Claim:
        pool = self.database.pools[self.database.shards.shard_of(home)]
        place = (bucket_of(home), once.digest)
        lease = timedelta(seconds=self._lease_now())
        for _ in range(BEGIN_ATTEMPTS):
            begun = await pool.execute(self._sql.begin, *place, once.fingerprint, id, lease, self._retention)
            if begun == "INSERT 0 1":
                self._note("begun")
                return Claim(self, once, home, id, None)
            row = await pool.fetch_one(self._sql.see, *place)
            if row is None:  # released between the two statements
                continue
            if row["fingerprint"] != once.fingerprint:
                self._note("reused")
                raise IdempotencyKeyReused
            if row["status"] is not None:
                self._note("replayed")
                self._seen(home)
                return Claim(self, once, home, id, _answer(row))
            if not row["abandoned"]:
                break
            taken = await pool.execute(self._sql.take_over, *place, row["claim_id"], id, lease)
            if taken == "UPDATE 1":
                self._note("taken_over")
                return Claim(self, once, home, id, None)
        self._note("in_flight")
        raise IdempotencyInFlight(RETRY_AFTER)

    def _lease_now(self) -> float:
        if self._lease is not None:
            return self._lease
        left = self._time_left(None)
        return LEASE if left is None else left + LEASE_MARGIN

    def _time_left(self, unbounded: float | None) -> float | None:
        """Until the deadline of the request; `unbounded` when it has none."""
        context = current()
        left = context.remaining(self.database.clock.monotonic()) if context is not None else None
        return unbounded if left is None else left

    async def _finish(self, claim: Claim, tx: WriteTransaction, answer: Answer) -> None:
        if tx.database is not self.database or tx.shard != self.database.shards.shard_of(claim.home):
            raise WrongShard(
                f"the answer to a request at home in {claim.home!r} is kept on its own shard of"
                f" {self.database.name!r}, got a write on {tx.shard!r} of {tx.database.name!r}"
            )
        if tx is not tx._root:
            raise ValueError("an answer is kept in the outermost write: a savepoint may be undone alone")
        if not 200 <= answer.status <= 499:
            raise ValueError(f"an answer that is kept has a status from 200 to 499, got {answer.status}")
        size = len(answer.body) + sum(len(name) + len(value) for name, value in answer.headers)
        if size > self._max_answer_bytes:
            raise ValueError(
                f"an answer that is kept has at most {self._max_answer_bytes} bytes, got {size}:"
                " answer with the id of what was made"
            )
        done = await tx.execute(
            self._sql.finish,
            bucket_of(claim.home),
            claim.once.digest,
            claim._id,
            answer.status,
            [list(pair) for pair in answer.headers],
            answer.body,
        )
        if done != "UPDATE 1":
            self._note("lost")
            raise IdempotencyLost(RETRY_AFTER)

        def committed() -> None:
            claim.committed = True

        tx.on_commit(committed)

    async def _settle(self, claim: Claim, unknown: CommitUnknown) -> Answer:
        answer = await self._resolve(claim.once, claim.home, claim._id, unknown)
        claim.committed = True  # decided either way: there is nothing left to free
        if answer is None:
            raise DatabaseUnavailable(
                "the connection was lost and nothing was changed; try again", retry_after=RETRY_AFTER
            ) from unknown
        self._note("resolved")
        return answer

    async def _resolve(
        self, once: Once, home: Key, id: UUID | None, unknown: CommitUnknown | None = None
    ) -> Answer | None:
        """Look under a lock, so that a COMMIT under way has ended; `id` None stands for any claim.

        The look itself commits a change: with that, what it saw is as durable as any acknowledged write.
        """
        place = (bucket_of(home), once.digest)
        try:
            async with timeout(self._time_left(RESOLVE_TIMEOUT)), self.database.write(home) as tx:
                row = await tx.fetch_one(self._sql.lock, *place)
                if row is None or row["fingerprint"] != once.fingerprint:
                    return None
                if row["status"] is not None:
                    await tx.execute(self._sql.confirm, *place)
                    return _answer(row)
                if id is None or row["claim_id"] == id:
                    await tx.execute(self._sql.release, *place, row["claim_id"])
                return None
        except CommitUnknown:
            raise
        except (SpringtideError, asyncpg.PostgresError, TimeoutError) as error:
            if unknown is not None:
                raise unknown from error
            raise CommitUnknown("the database cannot tell now what became of the request") from error

    async def _release(self, once: Once, home: Key, id: UUID, error: BaseException | None) -> None:
        """Free the key, unless it was finished; when that is not possible now, the end of the lease does."""
        seconds = TIDY_TIMEOUT if error is None or isinstance(error, Exception) else CANCELLED_TIDY_TIMEOUT
        pool = self.database.pools[self.database.shards.shard_of(home)]
        try:
            with activate(RequestContext()):  # the request's deadline may have passed already
                async with timeout(seconds):
                    freed = await pool.execute(self._sql.release, bucket_of(home), once.digest, id)
        except (SpringtideError, asyncpg.PostgresError, TimeoutError) as failure:
            _log.warning("an idempotency key is held until its lease ends: %r", failure)
        else:
            if freed != "DELETE 0":
                self._note("released")

    def _note(self, outcome: str) -> None:
        self._sink.emit(IdempotencyChecked(self.database.name, outcome))


class _Failed(Exception):
    """Rolls the effect of a 5xx answer back."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        super().__init__(answer.status)


async def purge(database: Database, *, batch: int = 500, max_batches: int = 20) -> int:
    """Delete records past their retention, in batches; how many there were. See `delete_in_batches`.

    For the background tasks of a module: several workers may call it at once.
    """
    return await delete_in_batches(database, Sql(database.schema).purge, batch=batch, max_batches=max_batches)


def _answer(row: Any) -> Answer:
    headers = tuple((str(name), str(value)) for name, value in row["headers"])
    return Answer(int(row["status"]), headers, bytes(row["body"]))


def _hash(purpose: bytes, parts: Iterable[str | bytes]) -> bytes:
    digest = blake2b(digest_size=_DIGEST_BYTES, person=b"once." + purpose)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()
