"""Delete what is past its time, in batches that hold no lock for long."""

from __future__ import annotations

from typing import Any

from springtide.db.router import Database
from springtide.errors import SpringtideError

__all__ = ["delete_in_batches"]


async def delete_in_batches(
    database: Database, sql: str, *args: Any, batch: int = 500, max_batches: int = 20
) -> int:
    """Run the DELETE `sql` on every shard until it finds no full batch; how many rows went.

    `sql` deletes at most $1 = `batch` rows, `args` come from $2; it should skip rows that are locked, so
    that several workers may do this at once. At most `max_batches` per shard and call. A shard that is away
    is left for the next call, and its error is raised after the others are done.
    """
    if batch < 1 or max_batches < 1:
        raise ValueError(f"batch and max_batches must be >= 1, got {batch} and {max_batches}")
    deleted = 0
    failed: SpringtideError | None = None
    for pool in database.pools.values():
        try:
            for _ in range(max_batches):
                count = int((await pool.execute(sql, batch, *args)).rpartition(" ")[2])
                deleted += count
                if count < batch:
                    break
        except SpringtideError as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return deleted
