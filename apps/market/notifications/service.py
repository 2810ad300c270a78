"""Tell people things: once each, in the inbox at once, by mail and push afterwards.

What is told, its number in the inbox and the jobs that carry it out are one transaction. Nothing here waits
for a mail server or a push service: that is the jobs' (`delivery.py`), one per mail and per browser.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from market.moments import moment
from market.notifications import rules
from market.notifications.api import (
    Kind,
    MailState,
    Notice,
    NoticePage,
    Preference,
    Preferences,
    Recipient,
    Subscription,
    Told,
    Unread,
)
from market.notifications.delivery import Deliveries
from market.notifications.jobs import SendMail, SendPush
from market.notifications.keys import Keys
from market.notifications.mail import Mailer
from market.notifications.push import Pusher
from market.notifications.settings import NotificationSettings
from market.notifications.store import NotificationStore, Row, Wishes
from market.notifications.texts import people_in, words
from springtide.clock import Clock
from springtide.db import WriteTransaction
from springtide.db.idempotency import Answer, Idempotency, Once
from springtide.errors import InvalidCursor
from springtide.jobs import Run
from springtide.services import ModuleContext

__all__ = ["TIDY_EVERY", "NotificationService", "build"]

TIDY_EVERY = 60.0
"""Seconds between two looks for inboxes that keep too much."""

T = TypeVar("T")


def build(context: ModuleContext) -> NotificationService:
    settings = context.settings or NotificationSettings()
    store = _store(context)
    keys = Keys(store, settings)
    deliveries = Deliveries(
        store, keys, Mailer(settings), Pusher(settings), settings=settings, clock=context.clock
    )
    return NotificationService(
        store,
        keys,
        deliveries,
        settings=settings,
        clock=context.clock,
        once=Idempotency(context.db, sink=context.sink),
    )


def _store(context: ModuleContext) -> NotificationStore:
    if not context.cached:
        return NotificationStore(context.db)
    from market.notifications.cached import CachedNotifications

    return CachedNotifications(context.db, context.cache)


class NotificationService:
    """Implements `market.notifications.api.Notifications`; a lifecycle service because of its clients."""

    name = "notifications"

    def __init__(
        self,
        store: NotificationStore,
        keys: Keys,
        deliveries: Deliveries,
        *,
        settings: NotificationSettings,
        clock: Clock,
        once: Idempotency,
    ) -> None:
        self._store = store
        self._keys = keys
        self._deliveries = deliveries
        self._settings = settings
        self._clock = clock
        self._idempotency = once

    async def start(self) -> None:
        await self._deliveries.start()

    async def stop(self) -> None:
        await self._deliveries.stop()

    async def introduce(self, person: Recipient) -> None:
        rules.check_recipient(person)
        await self._store.introduce(person)

    async def notify(self, notice: Notice) -> None:
        rules.check_notice(notice)
        at, recipient = moment(self._clock), notice.recipient
        async with self._store.write(recipient) as tx:
            number = await self._store.tell(tx, recipient, notice.key, at)
            if number is None:
                return
            wishes = await self._store.wishes(tx, recipient, notice.kind)
            mail = self._mail_of(wishes)
            await self._store.insert(tx, notice, number, mail, at)
            if mail == "queued":
                await tx.enqueue(SendMail(recipient, number))
            if wishes.push:
                for subscription in await self._store.subscriptions(tx, recipient):
                    await tx.enqueue(SendPush(recipient, number, subscription))

    async def inbox(self, recipient: int, limit: int = 20, after: str | None = None) -> NoticePage:
        rules.check_page(recipient, limit)
        try:
            rows, unread, read_to, next = await self._store.inbox(recipient, limit, after)
        except InvalidCursor as error:
            raise rules.no_cursor() from error
        names = await self._store.names(id for row in rows for id in people_in(row.data))
        items = [_told(row, names, read=row.number <= read_to) for row in rows]
        return NoticePage(items=items, unread=unread.count, next=next)

    async def unread(self, recipients: list[int]) -> list[Unread]:
        rules.check_unread(recipients)
        return await self._store.unread(recipients) if recipients else []

    async def mark_read(self, recipient: int, up_to: int, once: Once | None = None) -> Unread:
        rules.check_id("recipient", recipient)
        rules.check_id("up_to", up_to)
        return await self._once(once, recipient, Unread, lambda: self._store.read(recipient, up_to))

    async def preferences(self, recipient: int) -> Preferences:
        email, refusal = await self._store.address(recipient)
        return Preferences(
            items=await self._store.preferences(recipient),
            email=email,
            bouncing=refusal is not None,
            mailing=self._settings.smtp is not None,
        )

    async def prefer(self, recipient: int, wanted: list[Preference], once: Once | None = None) -> Preferences:
        rules.check_preferences(recipient, wanted)

        async def effect() -> Preferences:
            await self._store.prefer(recipient, wanted)
            return await self.preferences(recipient)

        return await self._once(once, recipient, Preferences, effect)

    async def stop_mail(self, token: str) -> Kind:
        recipient, kind = await self._keys.named(token)
        await self._store.stop_mail(recipient, kind)
        return kind

    async def mail_stopped_by(self, token: str) -> Kind:
        return (await self._keys.named(token))[1]

    async def push_key(self) -> str:
        return await self._keys.push_key()

    async def subscribe(self, recipient: int, subscription: Subscription, once: Once | None = None) -> None:
        rules.check_subscription(recipient, subscription, loopback=self._settings.push_loopback)

        async def effect() -> Done:
            await self._store.subscribe(recipient, subscription, moment(self._clock))
            return Done()

        await self._once(once, recipient, Done, effect)

    async def unsubscribe(self, recipient: int, endpoint: str, once: Once | None = None) -> None:
        rules.check_id("recipient", recipient)
        rules.check_endpoint(endpoint)

        async def effect() -> Done:
            await self._store.unsubscribe(recipient, endpoint)
            return Done()

        await self._once(once, recipient, Done, effect)

    async def send_mail(self, job: SendMail, run: Run) -> None:
        await self._deliveries.mail(job)

    async def send_push(self, job: SendPush, run: Run) -> None:
        await self._deliveries.push(job)

    async def tidy(self) -> None:
        """For the workers, periodically."""
        await self._store.tidy(moment(self._clock))

    def _mail_of(self, wishes: Wishes) -> MailState:
        if not wishes.mail:
            return "unwanted"
        if self._settings.smtp is None:
            return "unconfigured"
        return "queued" if wishes.refusal is None else "refused"

    async def _once(
        self, once: Once | None, home: int, shape: type[T], effect: Callable[[], Awaitable[T]]
    ) -> T:
        """What `effect` answers, or answered when this request came before; its writes join the record's."""
        if once is None:
            return await effect()

        async def kept(tx: WriteTransaction) -> Answer:
            return Answer(200, body=msgspec.json.encode(await effect()))

        outcome = await self._idempotency.run(once, kept, home=home)
        return msgspec.json.decode(outcome.answer.body, type=shape)


class Done(msgspec.Struct, frozen=True):
    """What is kept of an effect that answers nothing."""


def _told(row: Row, names: dict[int, str], *, read: bool) -> Told:
    said = words(row.kind, row.data, names)
    return Told(
        id=row.number,
        kind=row.kind,
        title=said.title,
        text="\n".join(said.lines),
        data=row.data,
        link=row.link,
        read=read,
        mail=row.mail,
        created_at=row.created_at,
    )
