"""Ids that carry their bucket and survive JavaScript: counter << 10 | bucket, below 2**53.

Each bucket has one counter, in the table `_id_counter` of the module's schema on the bucket's shard. A
process takes a block of numbers in one statement that commits by itself, whatever transaction its caller has
open, and then hands them out without asking again. Two processes never get the same number, because the
counter moves before the block is used. A process that stops loses the rest of its blocks: ids ascend within
one process and bucket, and have gaps.

Who has to wait for a block queues on the bucket's lock; when the one who fetches is cancelled, the next in
line fetches. Memory is bounded by 1,024 blocks per database.

Take ids before opening a write: the block is fetched on a connection of its own (with critical priority, so
that it does not wait behind those who wait for an id).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

from springtide.context import Priority
from springtide.db.shards import BUCKET_BITS, BUCKETS, Bucket, Key, ShardMap, bucket_of
from springtide.errors import IdSpaceExhausted

if TYPE_CHECKING:
    from springtide.db.pool import Pool

__all__ = ["MAX_ID", "Ids"]

MAX_ID = (1 << 53) - 1
"""The largest integer that every JSON reader keeps exact."""

MAX_COUNTER = MAX_ID >> BUCKET_BITS


class _Block:
    """The counters from `next` up to, not including, `end` are ours."""

    __slots__ = ("end", "lock", "next")

    def __init__(self) -> None:
        self.next = 0
        self.end = 0
        self.lock = asyncio.Lock()


class Ids:
    """The ids of one database. `block` counters are taken at a time."""

    def __init__(self, schema: str, shards: ShardMap, pools: Mapping[str, Pool], *, block: int = 64) -> None:
        if block < 1:
            raise ValueError(f"block must be >= 1, got {block}")
        self._shards = shards
        self._pools = pools
        self._block = block
        self._blocks: dict[int, _Block] = {}
        self._random = random.Random()  # noqa: S311 - spreads rows over buckets, hides nothing
        self._sql = (
            f"INSERT INTO {schema}._id_counter AS c (bucket, next) VALUES ($1, 1 + $2::bigint)"  # noqa: S608
            " ON CONFLICT (bucket) DO UPDATE SET next = c.next + $2::bigint"
            " WHERE c.next <= $3 RETURNING next - $2::bigint"
        )

    async def take(self, key: Key) -> int:
        """A new id in the bucket of `key`, for a row that lives beside it.

        Raises IdSpaceExhausted when the bucket has none left, and what the pool raises.
        """
        bucket = bucket_of(key)
        block = self._blocks.get(bucket)
        if block is None:
            block = self._blocks[bucket] = _Block()
        if block.next >= block.end:
            async with block.lock:
                if block.next >= block.end:  # nobody before us in the queue has fetched
                    block.next, block.end = await self._reserve(bucket, self._block)
                return self._next(block, bucket)
        return self._next(block, bucket)

    async def take_anywhere(self) -> int:
        """A new id in a bucket chosen at random, for a row that starts a family of its own."""
        return await self.take(Bucket(self._random.randrange(BUCKETS)))

    async def take_many(self, key: Key, count: int) -> list[int]:
        """`count` new ids in the bucket of `key`, ascending, by one statement; for bulk loads."""
        if count < 1:
            raise ValueError(f"count must be >= 1, got {count}")
        bucket = bucket_of(key)
        if count > MAX_COUNTER:
            raise self._exhausted(bucket)
        start, end = await self._reserve(bucket, count, last=MAX_COUNTER - count + 1)
        return [counter << BUCKET_BITS | bucket for counter in range(start, end)]

    def _next(self, block: _Block, bucket: int) -> int:
        counter = block.next
        block.next = counter + 1
        return counter << BUCKET_BITS | bucket

    async def _reserve(self, bucket: int, count: int, *, last: int = MAX_COUNTER) -> tuple[int, int]:
        """The next `count` counters, fewer at the end of the space; none may begin after `last`."""
        pool = self._pools[self._shards.shard_of(Bucket(bucket))]
        async with pool.acquire(priority=Priority.CRITICAL) as connection:
            start = await connection.fetch_value(self._sql, bucket, count, last)
        if start is None:
            raise self._exhausted(bucket)
        return start, min(start + count, MAX_COUNTER + 1)

    def _exhausted(self, bucket: int) -> IdSpaceExhausted:
        return IdSpaceExhausted(f"bucket {bucket} has used every id up to {MAX_ID}")
