"""The tables of endpoints and messages: the only place with its SQL. All about a seller is on one shard.

Whoever makes messages locks the seller's endpoints first, so what is looked at of a subject (is there a
later one?) stays until the transaction ends. When a message is tried next is the job's to know: it is read
where the job is, by the id that the message keeps of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from msgspec import UNSET

from market.webhooks.api import (
    MAX_QUEUED,
    Endpoint,
    EndpointChanges,
    EndpointPage,
    Message,
    MessagePage,
    MessageState,
    NewEndpoint,
)
from springtide.db import Consistency, Database, Keyset, WriteTransaction, bucket_of, desc
from springtide.db.expiry import delete_in_batches

__all__ = ["NEWEST", "Listening", "Parcel", "WebhookStore"]

NEWEST = Keyset(desc("id"))

ERASED = 500
"""Messages that one transaction deletes."""

_ENDPOINT = "id, url, events, enabled, reason, failing_since, version, created_at, updated_at"

ALONE = "select pg_advisory_xact_lock(hashtextextended('webhooks ' || $1::bigint, 0))"

COUNT = "select count(*) from webhooks.endpoint where bucket = $1 and seller_id = $2"

REGISTER = f"""
insert into webhooks.endpoint (bucket, seller_id, id, url, events, secret, created_at, updated_at)
values ($1, $2, $3, $4, $5, $6, $7, $7)
returning {_ENDPOINT}
"""  # noqa: S608 - constants only, here and below

ENDPOINTS = f"""
select {_ENDPOINT} from webhooks.endpoint where bucket = $1 and seller_id = $2 and {{condition}}
"""  # noqa: S608

ENDPOINT = f"""
select {_ENDPOINT} from webhooks.endpoint where bucket = $1 and seller_id = $2 and id = $3
"""  # noqa: S608

CHANGE = f"""
update webhooks.endpoint
set url = coalesce($4, url),
    events = coalesce($5::text[], events),
    enabled = coalesce($6, enabled),
    reason = case when $6::boolean is null then reason end,
    failures = case when $6 or $4 is not null then 0 else failures end,
    failing_since = case when $6 or $4 is not null then null else failing_since end,
    version = version + 1,
    updated_at = $7
where bucket = $1 and seller_id = $2 and id = $3 and ($8::integer is null or version = $8)
returning {_ENDPOINT}
"""  # noqa: S608

DELETE = "delete from webhooks.endpoint where bucket = $1 and seller_id = $2 and id = $3 returning id"

# Locked as they are chosen: what another run has just deleted is passed over, so fewer than $4 are the last.
ERASE = """
delete from webhooks.delivery
where bucket = $1 and seller_id = $2 and id = any(array(
    select id from webhooks.delivery where bucket = $1 and endpoint_id = $3 limit $4 for update
))
"""

ROTATE = """
update webhooks.endpoint
set previous = secret, previous_until = $5, secret = $4, version = version + 1, updated_at = $6
where bucket = $1 and seller_id = $2 and id = $3
returning id
"""

LISTENING = """
select id, events, created_at from webhooks.endpoint
where bucket = $1 and seller_id = $2 and enabled and events && $3::text[]
order by id
"""

LOCK = f"{LISTENING} for no key update"

# Not when a later one of its subject is there; not to be sent when too much waits already.
MAKE = f"""
insert into webhooks.delivery
    (bucket, seller_id, id, endpoint_id, type, subject, number, body, state, note, created_at)
select $1::smallint, $2::bigint, $3::bigint, $4::bigint, $5::text, $6::text, $7::bigint, $8::text,
    case when waiting.many then 'unsent' else 'queued' end,
    case when waiting.many then 'too many messages were waiting for the endpoint' end,
    $9::timestamptz
from (
    select count(*) >= {MAX_QUEUED} as many from (
        select from webhooks.delivery
        where bucket = $1 and endpoint_id = $4 and state = 'queued'
        limit {MAX_QUEUED}
    ) as queued
) as waiting
where not exists (
    select from webhooks.delivery
    where bucket = $1 and endpoint_id = $4 and subject = $6 and number >= $7
)
returning state
"""  # noqa: S608

ORDERED = "update webhooks.delivery set job_id = $4 where bucket = $1 and seller_id = $2 and id = $3"

# A job that is not there any more, or a dead letter, ended without saying what became of the message.
_MESSAGE = """
select id, endpoint_id, type, subject,
    case when state = 'queued' and coalesce(job_state, 'dead') = 'dead' then 'failed' else state end as state,
    attempts, status, note, created_at, tried_at,
    case when state = 'queued' and job_state in ('ready', 'sent', 'limited', 'parked', 'paused')
        then run_at end as next_at
from webhooks.delivery as message
left join (
    select bucket as job_bucket, id as job_key, state as job_state, run_at from webhooks._job
) as job on (job_bucket = bucket and job_key = job_id)
"""

MESSAGES = f"{_MESSAGE} where bucket = $1 and endpoint_id = $2 and {{condition}}"

MESSAGE = f"""
{_MESSAGE} where bucket = $1 and seller_id = $2 and id = $3 for no key update of message
"""

AGAIN = """
update webhooks.delivery set state = 'queued', note = null, job_id = $4
where bucket = $1 and seller_id = $2 and id = $3
"""

PARCEL = """
select message.type, message.body, message.state, endpoint.id as endpoint, endpoint.url, endpoint.enabled,
    endpoint.secret, endpoint.previous, endpoint.previous_until, endpoint.failing_since
from webhooks.delivery as message, webhooks.endpoint as endpoint
where message.bucket = $1 and message.seller_id = $2 and message.id = $3
    and endpoint.bucket = $1 and endpoint.seller_id = $2 and endpoint.id = message.endpoint_id
"""

TRIED = """
update webhooks.delivery set state = $4, attempts = attempts + 1, status = $5, note = $6, tried_at = $7
where bucket = $1 and seller_id = $2 and id = $3 and state = 'queued'
"""

UNTRIED = """
update webhooks.delivery set state = $4, note = $5
where bucket = $1 and seller_id = $2 and id = $3 and state = 'queued'
"""

# What an address answered says nothing of another one that the endpoint got meanwhile.
WORKS = """
update webhooks.endpoint set failures = 0, failing_since = null
where bucket = $1 and seller_id = $2 and id = $3 and url = $4 and failures > 0
"""

FAILS = """
update webhooks.endpoint set failures = failures + 1, failing_since = coalesce(failing_since, $5)
where bucket = $1 and seller_id = $2 and id = $3 and url = $4
returning failures, failing_since
"""

DISABLE = """
update webhooks.endpoint set enabled = false, reason = $4, version = version + 1, updated_at = $5
where bucket = $1 and seller_id = $2 and id = $3 and enabled
returning version
"""

FORGET = """
delete from webhooks.delivery where (bucket, seller_id, id) in (
    select bucket, seller_id, id from webhooks.delivery
    where created_at < $2 order by created_at limit $1 for update skip locked
)
"""


class Listening(NamedTuple):
    """An endpoint that wants some of what is told."""

    id: int
    events: list[str]
    created_at: datetime


class Parcel(NamedTuple):
    """A message, and where it goes."""

    type: str
    body: str
    state: MessageState
    endpoint: int
    url: str
    enabled: bool
    secret: str
    previous: str | None
    previous_until: datetime | None
    failing_since: datetime | None

    def keys(self, now: datetime) -> list[str]:
        """The secrets that are good, the newest first."""
        if self.previous is None or self.previous_until is None or self.previous_until <= now:
            return [self.secret]
        return [self.secret, self.previous]


class WebhookStore:
    """What jobs and writes go by is read as it is now; what sellers look at may be what their session saw."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def write(self, seller: int) -> AbstractAsyncContextManager[WriteTransaction]:
        return self._db.write(seller)

    async def new_id(self, seller: int) -> int:
        return await self._db.ids.take(seller)

    async def register(
        self,
        tx: WriteTransaction,
        seller: int,
        id: int,
        new: NewEndpoint,
        secret: str,
        most: int,
        at: datetime,
    ) -> Endpoint | None:
        """None when there are `most` already."""
        bucket = bucket_of(seller)
        await tx.fetch(ALONE, seller)
        if await tx.fetch_value(COUNT, bucket, seller) >= most:
            return None
        row = await tx.fetch_one(REGISTER, bucket, seller, id, new.url, list(new.events), secret, at)
        assert row is not None
        return Endpoint(**dict(row))

    async def endpoints(self, seller: int, limit: int, after: str | None) -> EndpointPage:
        """Raises InvalidCursor."""
        step = NEWEST.step(after, limit=limit, first=3)
        sql = f"{ENDPOINTS.format(condition=step.where)} order by {step.order_by} limit ${3 + len(step.args)}"
        rows = await self._db.read(seller).fetch(sql, bucket_of(seller), seller, *step.args, step.fetch)
        page = step.page(rows)
        return EndpointPage(items=[Endpoint(**dict(row)) for row in page.items], next=page.next_cursor)

    async def endpoint(self, seller: int, id: int) -> Endpoint | None:
        row = await self._db.read(seller).fetch_one(ENDPOINT, bucket_of(seller), seller, id)
        return None if row is None else Endpoint(**dict(row))

    async def endpoint_in(self, tx: WriteTransaction, seller: int, id: int) -> Endpoint | None:
        row = await tx.fetch_one(ENDPOINT, bucket_of(seller), seller, id)
        return None if row is None else Endpoint(**dict(row))

    async def change(
        self, tx: WriteTransaction, seller: int, id: int, changes: EndpointChanges, version: int | None,
        at: datetime,
    ) -> Endpoint | None:  # fmt: skip
        """None when there is none of that version."""
        row = await tx.fetch_one(
            CHANGE, bucket_of(seller), seller, id, _or_none(changes.url), _or_none(changes.events),
            _or_none(changes.enabled), at, version,
        )  # fmt: skip
        return None if row is None else Endpoint(**dict(row))

    async def delete(self, tx: WriteTransaction, seller: int, id: int) -> bool:
        return await tx.fetch_value(DELETE, bucket_of(seller), seller, id) is not None

    async def erase(self, seller: int, endpoint: int) -> None:
        """The messages of an endpoint, a few at a time."""
        while True:
            async with self._db.write(seller) as tx:
                done = await tx.execute(ERASE, bucket_of(seller), seller, endpoint, ERASED)
            if int(done.rpartition(" ")[2]) < ERASED:
                return

    async def rotate(
        self, tx: WriteTransaction, seller: int, id: int, secret: str, until: datetime, at: datetime
    ) -> bool:
        return await tx.fetch_value(ROTATE, bucket_of(seller), seller, id, secret, until, at) is not None

    async def listening(self, seller: int, types: Sequence[str]) -> int:
        """How many endpoints want some of these: also one that was registered elsewhere just now."""
        read = self._db.read(seller, consistency=Consistency.STRONG)
        return len(await read.fetch(LISTENING, bucket_of(seller), seller, list(types)))

    async def lock(self, tx: WriteTransaction, seller: int, types: Sequence[str]) -> list[Listening]:
        rows = await tx.fetch(LOCK, bucket_of(seller), seller, list(types))
        return [Listening(row["id"], row["events"], row["created_at"]) for row in rows]

    async def make(
        self, tx: WriteTransaction, seller: int, id: int, endpoint: int, *, type: str, subject: str,
        number: int, body: str, at: datetime,
    ) -> MessageState | None:  # fmt: skip
        """The state of the new message; None when that or later news of the subject are there."""
        state: MessageState | None = await tx.fetch_value(
            MAKE, bucket_of(seller), seller, id, endpoint, type, subject, number, body, at
        )
        return state

    async def ordered(self, tx: WriteTransaction, seller: int, message: int, job: UUID) -> None:
        await tx.execute(ORDERED, bucket_of(seller), seller, message, job)

    async def messages(self, seller: int, endpoint: int, limit: int, after: str | None) -> MessagePage:
        """Raises InvalidCursor."""
        step = NEWEST.step(after, limit=limit, first=3)
        sql = f"{MESSAGES.format(condition=step.where)} order by {step.order_by} limit ${3 + len(step.args)}"
        rows = await self._db.read(seller).fetch(sql, bucket_of(seller), endpoint, *step.args, step.fetch)
        page = step.page(rows)
        return MessagePage(items=[_message(row)[1] for row in page.items], next=page.next_cursor)

    async def message(self, tx: WriteTransaction, seller: int, id: int) -> tuple[int, Message] | None:
        """Its endpoint and what is shown of it."""
        row = await tx.fetch_one(MESSAGE, bucket_of(seller), seller, id)
        return None if row is None else _message(row)

    async def again(self, tx: WriteTransaction, seller: int, id: int, job: UUID) -> None:
        await tx.execute(AGAIN, bucket_of(seller), seller, id, job)

    async def parcel(self, seller: int, id: int) -> Parcel | None:
        read = self._db.read(seller, consistency=Consistency.STRONG)
        row = await read.fetch_one(PARCEL, bucket_of(seller), seller, id)
        return None if row is None else Parcel(*row)

    async def delivered(self, seller: int, id: int, parcel: Parcel, status: int, at: datetime) -> None:
        async with self._db.write(seller) as tx:
            await tx.execute(WORKS, bucket_of(seller), seller, parcel.endpoint, parcel.url)
            await self.tried(tx, seller, id, "delivered", status, None, at)

    async def failed(
        self, tx: WriteTransaction, seller: int, parcel: Parcel, at: datetime
    ) -> tuple[int, datetime] | None:
        """How often the endpoint has failed by now, and since when; None when it is gone or has moved."""
        row = await tx.fetch_one(FAILS, bucket_of(seller), seller, parcel.endpoint, parcel.url, at)
        return None if row is None else (row["failures"], row["failing_since"])

    async def tried(
        self, tx: WriteTransaction, seller: int, id: int, state: MessageState, status: int | None,
        note: str | None, at: datetime,
    ) -> None:  # fmt: skip
        """Write down what became of a try; after its endpoint, whose lock is taken first everywhere."""
        await tx.execute(TRIED, bucket_of(seller), seller, id, state, status, note, at)

    async def untried(self, seller: int, id: int, state: MessageState, note: str) -> None:
        async with self._db.write(seller) as tx:
            await tx.execute(UNTRIED, bucket_of(seller), seller, id, state, note)

    async def disable(
        self, tx: WriteTransaction, seller: int, endpoint: int, reason: str, at: datetime
    ) -> int | None:
        """Its version by this; None when it is disabled already, or gone."""
        version: int | None = await tx.fetch_value(DISABLE, bucket_of(seller), seller, endpoint, reason, at)
        return version

    async def forget(self, before: datetime) -> None:
        """What was made before then."""
        await delete_in_batches(self._db, FORGET, before)


def _message(row: Any) -> tuple[int, Message]:
    fields = dict(row)
    return fields.pop("endpoint_id"), Message(**fields)


def _or_none(value: Any) -> Any:
    return None if value is UNSET else value
