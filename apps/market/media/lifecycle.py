"""What ends by itself: media that nothing refers to, documents past their days, blobs without a row.

Run by the workers, several may at once. `expire` deletes what is past its time. `revive` gives videos that
wait for ffmpeg to the workers again, where this one has it. `sweep` looks through the blobs, a few buckets at
a time, and deletes those that are older than an hour and that no row names: what a crash left between a blob
and its row, or between a row and the end of its blobs. A name is never used twice, so a blob that no row
names after an hour is never named again. What was only half-written is as old and goes as well.

    python -m market.media.lifecycle

prints the rules for a bucket of S3, as `aws s3api put-bucket-lifecycle-configuration` takes them. Uploads
that were cut off on their way into a bucket go by them alone; for reports they are a second net.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from market.media import rules
from market.media.api import DOCUMENT_DAYS
from market.media.jobs import Render
from springtide.db import BUCKETS

if TYPE_CHECKING:
    from market.media.service import MediaService

__all__ = ["EXPIRE_EVERY", "REVIVE_EVERY", "SWEEP_EVERY", "Sweeper", "bucket_rules", "expire", "revive"]

EXPIRE_EVERY = 60.0
REVIVE_EVERY = 60.0
SWEEP_EVERY = 60.0

BATCH = 100
MAX_BATCHES = 50
"""Media that are looked up at once, and how often one pass of `expire` does it."""

SWEPT_BUCKETS = 4
"""Buckets per pass: all 1,024 take about four hours."""

ORPHAN_AGE = timedelta(hours=1)
"""Many times what may lie between a blob and its row: a request's deadline, a job's max_run."""


async def expire(media: MediaService) -> None:
    now = media.now()
    for _ in range(MAX_BATCHES):
        expired = await media.rows.expired(now, BATCH)
        for id in expired:
            async with media.rows.write(id) as tx:
                row = await media.rows.lock(tx, id)
                if row is not None and row.expires_at is not None and row.expires_at <= now:
                    await media.forget(tx, row)
        if len(expired) < BATCH:
            return


async def revive(media: MediaService) -> None:
    waiting = await media.rows.waiting(BATCH)
    if not waiting or not await media.has_video_tools():
        return
    for id in waiting:
        async with media.rows.write(id) as tx:
            if await media.rows.resume(tx, id, media.now()):
                await tx.enqueue(Render(id))


class Sweeper:
    """Goes round all buckets; where it begins is by chance, so that several workers share the work."""

    def __init__(self, first: int) -> None:
        self._next = first % BUCKETS

    async def sweep(self, media: MediaService, buckets: int = SWEPT_BUCKETS) -> int:
        """How many blobs and other remains were deleted."""
        before = media.now() - ORPHAN_AGE
        deleted = await media.blobs.clear_scratch(before)
        for _ in range(buckets):
            bucket, self._next = self._next, (self._next + 1) % BUCKETS
            for area in rules.AREAS:
                deleted += await _sweep(media, f"{area}/{bucket:04}/", before)
        return deleted


async def _sweep(media: MediaService, prefix: str, before: datetime) -> int:
    deleted, batch = await media.blobs.clear_halves(prefix, before), dict[str, int]()
    async for found in media.blobs.under(prefix):
        id = rules.medium_of(found.path)
        if id is not None and found.modified_at < before:
            batch[found.path] = id
        if len(batch) == BATCH:
            deleted += await _delete_orphans(media, batch)
            batch = {}
    return deleted + await _delete_orphans(media, batch)


async def _delete_orphans(media: MediaService, batch: dict[str, int]) -> int:
    rows = await media.rows.media(sorted(set(batch.values())))
    named = {blob.path for row in rows.values() for blob in row.blobs}
    orphans = [path for path in batch if path not in named]
    for path in orphans:
        await media.blobs.delete(path)
    return len(orphans)


def bucket_rules() -> dict[str, Any]:
    """As the S3 API takes them: uploads that were cut off go after a day, reports after we deleted them."""
    return {
        "Rules": [
            {
                "ID": "market-reports",
                "Status": "Enabled",
                "Filter": {"Prefix": "reports/"},
                "Expiration": {"Days": int(DOCUMENT_DAYS) + 2},
            },
            {
                "ID": "market-cut-off-uploads",
                "Status": "Enabled",
                "Filter": {"Prefix": ""},
                "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
            },
        ]
    }


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(bucket_rules()), indent=2).decode() + "\n")
