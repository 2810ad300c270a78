"""The notifications module's reads over the cache: what somebody sees who opens the inbox.

    inbox:{recipient}    the counters and the newest notices
    name:{id}            what somebody is called in notices

Whose notice it is decides the key, and nobody else is given it. What mails, pushes and trimming decide by is
the database's, and so are further pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from market.notifications.api import Kind, MailState, Unread
from market.notifications.store import NAMES, NEWEST, NotificationStore, Row
from springtide.cache import Cache
from springtide.db import Database, Queries, WriteTransaction, bucket_of

__all__ = ["HEAD", "CachedNotifications"]

HEAD = 50
"""Notices that are kept of an inbox; a longer page is the database's."""

INBOX = """
select inbox.newest, greatest(inbox.read_to, inbox.dropped_to) as read_to,
    notice.number, notice.kind, notice.data, notice.link, notice.mail, notice.created_at
from notifications.inbox
left join lateral (
    select number, kind, data, link, mail, created_at from notifications.notice
    where bucket = $1 and recipient_id = $2 and number > inbox.dropped_to
    order by number desc
    limit $3
) as notice on true
where inbox.bucket = $1 and inbox.recipient_id = $2
order by notice.number desc
"""


class _Notice(msgspec.Struct, frozen=True):
    number: int
    kind: Kind
    data: str
    link: str
    mail: MailState
    created_at: datetime


class _Inbox(msgspec.Struct, frozen=True):
    newest: int
    read_to: int
    notices: tuple[_Notice, ...]


class CachedNotifications(NotificationStore):
    """`NotificationStore` with a cache before what is shown; writes say what they make stale."""

    def __init__(self, db: Database, cache: Cache) -> None:
        super().__init__(db)
        self._inboxes = cache.define("inbox:{recipient:int}", _Inbox, database=db, load=_load_inbox)
        self._names = cache.define("name:{id:int}", str, database=db, load_many=_load_names)

    async def inbox(
        self, recipient: int, limit: int, after: str | None
    ) -> tuple[list[Row], Unread, int, str | None]:
        if after is not None or limit >= HEAD:
            return await super().inbox(recipient, limit, after)
        kept = await self._inboxes.get(recipient) or _Inbox(0, 0, ())
        rows: list[dict[str, Any]] = [
            {"number": notice.number, "notice": notice} for notice in kept.notices[: limit + 1]
        ]
        page = NEWEST.step(None, limit=limit).page(rows)
        unread = Unread(recipient=recipient, count=kept.newest - kept.read_to, newest=kept.newest)
        return [_row(row["notice"]) for row in page.items], unread, kept.read_to, page.next_cursor

    async def names(self, ids: Iterable[int]) -> dict[int, str]:
        return await self._names.get_many(sorted(set(ids)))

    def _stale_inbox(self, tx: WriteTransaction, recipient: int) -> None:
        tx.invalidate(self._inboxes, recipient)

    def _stale_name(self, tx: WriteTransaction, id: int) -> None:
        tx.invalidate(self._names, id)


def _row(notice: _Notice) -> Row:
    fields = {name: getattr(notice, name) for name in _Notice.__struct_fields__}
    return Row(**{**fields, "data": msgspec.json.decode(notice.data, type=dict[str, str])})


async def _load_inbox(source: Queries, recipient: int) -> _Inbox:
    rows = await source.fetch(INBOX, bucket_of(recipient), recipient, HEAD)
    if not rows:
        return _Inbox(0, 0, ())
    fields = _Notice.__struct_fields__
    notices = [row for row in rows if row["number"] is not None]
    return _Inbox(
        rows[0]["newest"],
        rows[0]["read_to"],
        tuple(_Notice(**{name: row[name] for name in fields}) for row in notices),
    )


async def _load_names(source: Queries, ids: Sequence[int]) -> dict[int, str]:
    return dict(await source.fetch(NAMES, list(ids)))
