"""The media module's reads over the cache: what a page shows of a medium.

    medium:{id}    a medium, whoever asks: its owner and its purpose are judged by the service after it

Only `shown` reads it: jobs and the sweep decide by rows, and read the database. Signed addresses are made for
each answer and are in no value.
"""

from __future__ import annotations

from collections.abc import Sequence

from market.media.store import MEDIA, MediaStore, Row, row_of
from springtide.cache import Cache
from springtide.db import Database, Queries, WriteTransaction

__all__ = ["CachedMedia"]


class CachedMedia(MediaStore):
    """`MediaStore` with a cache before its reads; writes say what they make stale."""

    def __init__(self, db: Database, cache: Cache) -> None:
        super().__init__(db)
        self._media = cache.define("medium:{id:int}", Row, database=db, load_many=_load_media)

    async def shown(self, ids: Sequence[int]) -> dict[int, Row]:
        return await self._media.get_many(ids)

    def _stale_medium(self, tx: WriteTransaction, id: int) -> None:
        tx.invalidate(self._media, id)


async def _load_media(source: Queries, ids: Sequence[int]) -> dict[int, Row]:
    rows = [row_of(row) for row in await source.fetch(MEDIA, list(ids))]
    return {row.id: row for row in rows if row is not None}
