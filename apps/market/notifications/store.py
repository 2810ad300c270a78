"""The tables of the notifications module: the only place with its SQL. All about a recipient is on one shard.

Whoever adds to an inbox locks its row first, so its numbers are given without gaps in the order of the
commits: nobody who has seen a number finds a smaller one appear later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from market.notifications.api import (
    KEPT,
    KINDS,
    MAX_SUBSCRIPTIONS,
    Kind,
    MailState,
    Notice,
    Preference,
    Recipient,
    Subscription,
    Unread,
)
from springtide.db import ASC, DESC, Database, Keyset, WriteTransaction, bucket_of, desc
from springtide.db.expiry import delete_in_batches

__all__ = ["NAMES", "NEWEST", "Letter", "NotificationStore", "Parcel", "Row", "Wishes"]

NEWEST = Keyset(desc("number"))

FULLEST = [("kept", DESC), ("recipient_id", ASC)]
MAX_TRIMMED = 1_000
"""How many inboxes one round trims: those that keep the most."""

SECRETS = 0
"""The bucket of the keys that are everybody's."""

INTRODUCE = """
insert into notifications.recipient as known (bucket, id, name, email, version)
values ($1, $2, $3, $4, $5)
on conflict (bucket, id) do update
set name = excluded.name,
    email = excluded.email,
    version = excluded.version,
    refusal = case when known.email = excluded.email then known.refusal end
where known.version < excluded.version
"""

# The planner takes bucket and id for independent and would rather read the whole table than look up hundreds;
# a subquery of one row cannot be mistaken.
NAMES = """
select recipient.id, recipient.name
from unnest($1::bigint[]) as wanted (id)
cross join lateral (
    select id, name from notifications.recipient
    where bucket = (wanted.id & 1023)::smallint and id = wanted.id
    limit 1
) as recipient
"""

TELL = """
insert into notifications.told (bucket, recipient_id, key, told_at) values ($1, $2, $3, $4)
on conflict (bucket, recipient_id, key) do nothing
returning key
"""

NUMBER = """
insert into notifications.inbox as known (bucket, recipient_id, newest) values ($1, $2, 1)
on conflict (bucket, recipient_id) do update set newest = known.newest + 1
returning newest
"""

WISHES = """
select
    (select refusal from notifications.recipient where bucket = $1 and id = $2) as refusal,
    coalesce((select mail from notifications.preference
        where bucket = $1 and recipient_id = $2 and kind = $3), true) as mail,
    coalesce((select push from notifications.preference
        where bucket = $1 and recipient_id = $2 and kind = $3), true) as push
"""

SUBSCRIPTIONS = """
select id from notifications.subscription where bucket = $1 and recipient_id = $2 order by id
"""

INSERT_NOTICE = """
insert into notifications.notice (bucket, recipient_id, number, kind, data, link, mail, created_at)
values ($1, $2, $3, $4, $5, $6, $7, $8)
"""

INBOX = """
select number, kind, data, link, mail, created_at
from notifications.notice
where bucket = $1 and recipient_id = $2 and number > $3 and {condition}
"""

COUNTERS = """
select newest, greatest(read_to, dropped_to) as read_to, dropped_to
from notifications.inbox
where bucket = $1 and recipient_id = $2
"""

UNREAD = """
select inbox.recipient_id, inbox.newest, greatest(inbox.read_to, inbox.dropped_to) as read_to
from unnest($1::bigint[]) as wanted (id)
cross join lateral (
    select recipient_id, newest, read_to, dropped_to from notifications.inbox
    where bucket = (wanted.id & 1023)::smallint and recipient_id = wanted.id
    limit 1
) as inbox
"""

READ = """
update notifications.inbox set read_to = greatest(read_to, least($3, newest))
where bucket = $1 and recipient_id = $2
returning newest, greatest(read_to, dropped_to) as read_to
"""

LETTER = """
select notice.kind, notice.data, notice.link, notice.mail as state, notice.created_at,
    recipient.name, recipient.email, recipient.refusal, coalesce(preference.mail, true) as wanted
from notifications.notice
left join notifications.recipient on recipient.bucket = $1 and recipient.id = $2
left join notifications.preference
    on preference.bucket = $1 and preference.recipient_id = $2 and preference.kind = notice.kind
where notice.bucket = $1 and notice.recipient_id = $2 and notice.number = $3
"""

SETTLE_MAIL = """
update notifications.notice set mail = $4
where bucket = $1 and recipient_id = $2 and number = $3 and mail = 'queued'
"""

REFUSED = "update notifications.recipient set refusal = $4 where bucket = $1 and id = $2 and email = $3"

TRUST = """
update notifications.recipient set refusal = null where bucket = $1 and id = $2 and refusal is not null
"""

PARCEL = """
select notice.kind, notice.data, notice.link, notice.created_at,
    subscription.endpoint, subscription.p256dh, subscription.auth, coalesce(preference.push, true) as wanted
from notifications.notice
join notifications.subscription
    on subscription.bucket = $1 and subscription.recipient_id = $2 and subscription.id = $4
left join notifications.preference
    on preference.bucket = $1 and preference.recipient_id = $2 and preference.kind = notice.kind
where notice.bucket = $1 and notice.recipient_id = $2 and notice.number = $3
"""

ADDRESS = "select email, refusal from notifications.recipient where bucket = $1 and id = $2"

PREFERENCES = """
select kind, mail, push from notifications.preference where bucket = $1 and recipient_id = $2
"""

PREFER = """
insert into notifications.preference (bucket, recipient_id, kind, mail, push) values ($1, $2, $3, $4, $5)
on conflict (bucket, recipient_id, kind) do update set mail = excluded.mail, push = excluded.push
"""

STOP_MAIL = """
insert into notifications.preference (bucket, recipient_id, kind, mail, push) values ($1, $2, $3, false, true)
on conflict (bucket, recipient_id, kind) do update set mail = false
"""

SUBSCRIBE = """
insert into notifications.subscription (bucket, recipient_id, id, endpoint, p256dh, auth, subscribed_at)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (bucket, recipient_id, endpoint) do update
set p256dh = excluded.p256dh, auth = excluded.auth, subscribed_at = excluded.subscribed_at
"""

MAKE_ROOM = """
delete from notifications.subscription
where bucket = $1 and recipient_id = $2 and id in (
    select id from notifications.subscription
    where bucket = $1 and recipient_id = $2
    order by subscribed_at desc, id desc
    offset $3
)
"""

UNSUBSCRIBE = """
delete from notifications.subscription where bucket = $1 and recipient_id = $2 and endpoint = $3
"""

KEEP_KEY = """
insert into notifications.secret (bucket, name, value) values ($1, $2, $3)
on conflict (bucket, name) do nothing
"""

KEY = "select value from notifications.secret where bucket = $1 and name = $2"

FULL = """
select recipient_id, newest - dropped_to as kept from notifications.inbox where newest - dropped_to > 500
"""

DROP = """
update notifications.inbox set dropped_to = greatest(dropped_to, newest - $3)
where bucket = $1 and recipient_id = $2
returning dropped_to
"""

DELETE_NOTICES = """
delete from notifications.notice
where bucket = $1 and recipient_id = $2 and number <= $3 and (mail <> 'queued' or created_at < $4)
"""

FORGET = """
delete from notifications.told where (bucket, recipient_id, key) in (
    select bucket, recipient_id, key from notifications.told
    where told_at < $2
    order by told_at
    limit $1
    for update skip locked
)
"""

REMEMBERED = timedelta(days=30)
"""How long a cause is known to have been told: longer than jobs are retried, and time to replay dead ones."""

MAILABLE = timedelta(days=3)
"""A notice whose mail is queued stays that long, also in a full inbox: longer than its mail is tried."""


class Wishes(NamedTuple):
    """`refusal` is why the address takes no mail."""

    refusal: str | None
    mail: bool
    push: bool


class Row(NamedTuple):
    number: int
    kind: Kind
    data: dict[str, str]
    link: str
    mail: MailState
    created_at: datetime


class Letter(NamedTuple):
    """A notice as its mail needs it; name and email are None before the recipient was introduced."""

    kind: Kind
    data: dict[str, str]
    link: str
    state: MailState
    created_at: datetime
    name: str | None
    email: str | None
    refusal: str | None
    wanted: bool


class Parcel(NamedTuple):
    """A notice as the push to one browser needs it."""

    kind: Kind
    data: dict[str, str]
    link: str
    created_at: datetime
    subscription: Subscription
    wanted: bool


class NotificationStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    def write(self, recipient: int) -> AbstractAsyncContextManager[Any]:
        """Everything in the block is one transaction: this class's methods join it."""
        return self._db.write(recipient)

    async def introduce(self, person: Recipient) -> None:
        id = person.id
        async with self._db.write(id) as tx:
            await tx.execute(INTRODUCE, bucket_of(id), id, person.name, person.email, person.version)
            self._stale_name(tx, id)

    async def names(self, ids: Iterable[int]) -> dict[int, str]:
        """Of those who are known."""
        wanted = sorted(set(ids))
        return dict(await self._db.fetch_many(NAMES, wanted)) if wanted else {}

    async def tell(self, tx: Any, recipient: int, key: str, at: datetime) -> int | None:
        """The number of a new notice; None when the key was told before."""
        bucket = bucket_of(recipient)
        if await tx.fetch_value(TELL, bucket, recipient, key, at) is None:
            return None
        number: int = await tx.fetch_value(NUMBER, bucket, recipient)
        self._stale_inbox(tx, recipient)
        return number

    async def wishes(self, tx: Any, recipient: int, kind: Kind) -> Wishes:
        return Wishes(*await tx.fetch_one(WISHES, bucket_of(recipient), recipient, kind))

    async def subscriptions(self, tx: Any, recipient: int) -> list[int]:
        return [row[0] for row in await tx.fetch(SUBSCRIPTIONS, bucket_of(recipient), recipient)]

    async def insert(self, tx: Any, notice: Notice, number: int, mail: MailState, at: datetime) -> None:
        await tx.execute(
            INSERT_NOTICE, bucket_of(notice.recipient), notice.recipient, number, notice.kind,
            msgspec.json.encode(notice.data).decode(), notice.link, mail, at,
        )  # fmt: skip

    async def inbox(
        self, recipient: int, limit: int, after: str | None
    ) -> tuple[list[Row], Unread, int, str | None]:
        """Rows, counters, up to which number they are read, cursor. Raises InvalidCursor."""
        bucket = bucket_of(recipient)
        step = NEWEST.step(after, limit=limit, first=5)
        sql = INBOX.format(condition=step.where) + f" order by {step.order_by} limit $4"
        async with self._db.read(recipient) as seen:
            found = await seen.fetch_one(COUNTERS, bucket, recipient)
            newest, read_to, dropped_to = (0, 0, 0) if found is None else found
            rows = await seen.fetch(sql, bucket, recipient, dropped_to, step.fetch, *step.args)
        page = step.page(rows)
        unread = Unread(recipient=recipient, count=newest - read_to, newest=newest)
        return [_row(row) for row in page.items], unread, read_to, page.next_cursor

    async def unread(self, recipients: Sequence[int]) -> list[Unread]:
        found = {row[0]: row for row in await self._db.fetch_many(UNREAD, sorted(set(recipients)))}
        answer = []
        for id in recipients:
            _, newest, read_to = found.get(id, (id, 0, 0))
            answer.append(Unread(recipient=id, count=newest - read_to, newest=newest))
        return answer

    async def read(self, recipient: int, up_to: int) -> Unread:
        async with self._db.write(recipient) as tx:
            row = await tx.fetch_one(READ, bucket_of(recipient), recipient, up_to)
            self._stale_inbox(tx, recipient)
        newest, read_to = (0, 0) if row is None else row
        return Unread(recipient=recipient, count=newest - read_to, newest=newest)

    async def letter(self, recipient: int, number: int) -> Letter | None:
        row = await self._db.read(recipient).fetch_one(LETTER, bucket_of(recipient), recipient, number)
        return None if row is None else Letter(**{**row, "data": _data(row["data"])})

    async def settle_mail(self, recipient: int, number: int, state: MailState) -> None:
        """What became of a queued mail."""
        async with self._db.write(recipient) as tx:
            await tx.execute(SETTLE_MAIL, bucket_of(recipient), recipient, number, state)
            self._stale_inbox(tx, recipient)

    async def refused(self, recipient: int, email: str, why: str) -> None:
        """The address takes no mail, unless it is another one by now."""
        async with self._db.write(recipient) as tx:
            await tx.execute(REFUSED, bucket_of(recipient), recipient, email, why)

    async def parcel(self, recipient: int, number: int, subscription: int) -> Parcel | None:
        row = await self._db.read(recipient).fetch_one(
            PARCEL, bucket_of(recipient), recipient, number, subscription
        )
        if row is None:
            return None
        return Parcel(
            kind=row["kind"],
            data=_data(row["data"]),
            link=row["link"],
            created_at=row["created_at"],
            subscription=Subscription(endpoint=row["endpoint"], p256dh=row["p256dh"], auth=row["auth"]),
            wanted=row["wanted"],
        )

    async def address(self, recipient: int) -> tuple[str | None, str | None]:
        """The e-mail address and why it takes no mail."""
        row = await self._db.read(recipient).fetch_one(ADDRESS, bucket_of(recipient), recipient)
        return (None, None) if row is None else (row["email"], row["refusal"])

    async def preferences(self, recipient: int) -> list[Preference]:
        """Of every kind."""
        rows = await self._db.read(recipient).fetch(PREFERENCES, bucket_of(recipient), recipient)
        said = {row["kind"]: row for row in rows}
        return [
            Preference(kind=kind, mail=said[kind]["mail"], push=said[kind]["push"])
            if kind in said
            else Preference(kind=kind, mail=True, push=True)
            for kind in KINDS
        ]

    async def prefer(self, recipient: int, wanted: Sequence[Preference]) -> None:
        """Who wants mails says that the address takes them."""
        async with self._db.write(recipient) as tx:
            if any(item.mail for item in wanted):
                await tx.execute(TRUST, bucket_of(recipient), recipient)
            for item in sorted(wanted, key=lambda item: item.kind):  # one order, so nobody deadlocks
                await tx.execute(PREFER, bucket_of(recipient), recipient, item.kind, item.mail, item.push)

    async def stop_mail(self, recipient: int, kind: Kind) -> None:
        async with self._db.write(recipient) as tx:
            await tx.execute(STOP_MAIL, bucket_of(recipient), recipient, kind)

    async def subscribe(self, recipient: int, given: Subscription, at: datetime) -> None:
        bucket, id = bucket_of(recipient), await self._db.ids.take(recipient)
        async with self._db.write(recipient) as tx:
            await tx.execute(SUBSCRIBE, bucket, recipient, id, given.endpoint, given.p256dh, given.auth, at)
            await tx.execute(MAKE_ROOM, bucket, recipient, MAX_SUBSCRIPTIONS)

    async def unsubscribe(self, recipient: int, endpoint: str) -> None:
        async with self._db.write(recipient) as tx:
            await tx.execute(UNSUBSCRIBE, bucket_of(recipient), recipient, endpoint)

    async def secret(self, name: str, value: bytes) -> bytes:
        """The kept secret of that name; `value` is kept when there is none yet."""
        known = await self._db.read(SECRETS).fetch_value(KEY, SECRETS, name)
        if known is None:
            async with self._db.write(SECRETS) as tx:
                await tx.execute(KEEP_KEY, SECRETS, name, value)
                known = await tx.fetch_value(KEY, SECRETS, name)
        return bytes(known)

    async def tidy(self, now: datetime) -> None:
        """Trim inboxes that keep too much, forget what was told long ago. Several may do it at once."""
        for row in await self._db.scatter(FULL, order=FULLEST, limit=MAX_TRIMMED):
            await self._trim(row["recipient_id"], now)
        await delete_in_batches(self._db, FORGET, now - REMEMBERED)

    async def _trim(self, recipient: int, now: datetime) -> None:
        bucket = bucket_of(recipient)
        async with self._db.write(recipient) as tx:
            dropped_to = await tx.fetch_value(DROP, bucket, recipient, KEPT)
            await tx.execute(DELETE_NOTICES, bucket, recipient, dropped_to, now - MAILABLE)
            self._stale_inbox(tx, recipient)

    # What a write makes stale; here nothing is kept, so there is nothing to tell (`cached.py`).

    def _stale_inbox(self, tx: WriteTransaction, recipient: int) -> None:
        """The counters or the notices."""

    def _stale_name(self, tx: WriteTransaction, id: int) -> None:
        """What somebody is called."""


def _row(row: Any) -> Row:
    return Row(**{**row, "data": _data(row["data"])})


def _data(text: str) -> dict[str, str]:
    return msgspec.json.decode(text, type=dict[str, str])
