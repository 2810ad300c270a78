"""Endpoints of sellers and the messages to them. Nothing here calls an endpoint: jobs do (`delivery.py`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

import msgspec

from market.faults import Conflict, NotFound, Stale
from market.moments import moment
from market.notifications.api import Notifications
from market.webhooks import rules
from market.webhooks.api import (
    KEPT_DAYS,
    MAX_ENDPOINTS,
    MAX_QUEUED,
    OVERLAP_HOURS,
    Endpoint,
    EndpointChanges,
    EndpointPage,
    Message,
    MessagePage,
    NewEndpoint,
    News,
    Registered,
    Secret,
)
from market.webhooks.delivery import Deliveries
from market.webhooks.jobs import Deliver, Erase, TellDisabled
from market.webhooks.settings import WebhookSettings
from market.webhooks.signing import new_secret
from market.webhooks.store import WebhookStore
from springtide.clock import Clock
from springtide.db import WriteTransaction
from springtide.db.idempotency import Answer, Idempotency, Once
from springtide.errors import InvalidCursor
from springtide.jobs import Run
from springtide.services import ModuleContext

__all__ = ["TIDY_EVERY", "WebhookService", "build"]

TIDY_EVERY = 60.0
"""Seconds between two looks for messages that were kept long enough."""

OVERLAP = timedelta(hours=OVERLAP_HOURS)
KEPT = timedelta(days=KEPT_DAYS)

T = TypeVar("T")


def build(context: ModuleContext) -> WebhookService:
    settings = context.settings or WebhookSettings()
    store = WebhookStore(context.db)
    deliveries = Deliveries(
        store, notifications=context.service(Notifications), settings=settings, clock=context.clock
    )
    return WebhookService(
        store,
        deliveries,
        settings=settings,
        keys=Idempotency(context.db, sink=context.sink),
        clock=context.clock,
    )


class WebhookService:
    """Implements `market.webhooks.api.Webhooks`; a lifecycle service because of its client."""

    name = "webhooks"

    def __init__(
        self,
        store: WebhookStore,
        deliveries: Deliveries,
        *,
        settings: WebhookSettings,
        keys: Idempotency,
        clock: Clock,
    ) -> None:
        self._store = store
        self._deliveries = deliveries
        self._settings = settings
        self._keys = keys
        self._clock = clock

    async def start(self) -> None:
        await self._deliveries.start()

    async def stop(self) -> None:
        await self._deliveries.stop()

    async def tell(self, seller: int, news: list[News]) -> None:
        rules.check_news(seller, news)
        now = moment(self._clock)
        fresh = [one for one in news if not rules.is_old(one.at, now)]
        types = list(dict.fromkeys(one.type for one in fresh))
        listening = await self._store.listening(seller, types) if fresh else 0
        if not listening:
            return
        async with self._store.write(seller) as tx:
            for endpoint in await self._store.lock(tx, seller, types):
                for one in fresh:
                    if one.type in endpoint.events and one.at >= endpoint.created_at:
                        id = await self._store.new_id(seller)
                        body = rules.body(one.type, one.at, one.data).decode()
                        state = await self._store.make(
                            tx, seller, id, endpoint.id, type=one.type, subject=one.subject,
                            number=one.number, body=body, at=now,
                        )  # fmt: skip
                        if state == "queued":
                            await self._order(tx, seller, id, endpoint.id, one.subject)

    async def register(self, seller: int, new: NewEndpoint, once: Once | None = None) -> Registered:
        rules.check_new(new, loopback=self._settings.loopback)
        id, secret = await self._store.new_id(seller), new_secret()

        async def effect(tx: WriteTransaction) -> Registered:
            endpoint = await self._store.register(
                tx, seller, id, new, secret, MAX_ENDPOINTS, moment(self._clock)
            )
            if endpoint is None:
                raise Conflict("webhooks", f"are {MAX_ENDPOINTS} already: delete one first")
            return Registered(endpoint=endpoint, secret=secret)

        return await self._once(once, seller, Registered, effect)

    async def endpoints(self, seller: int, limit: int, after: str | None) -> EndpointPage:
        rules.check_limit(limit)
        try:
            return await self._store.endpoints(seller, limit, after)
        except InvalidCursor as error:
            raise rules.no_cursor() from error

    async def endpoint(self, seller: int, id: int) -> Endpoint:
        found = await self._store.endpoint(seller, id) if rules.is_id(id) else None
        if found is None:
            raise NotFound("webhook")
        return found

    async def change(
        self, seller: int, id: int, changes: EndpointChanges, version: int | None, once: Once | None = None
    ) -> Endpoint:
        rules.check_changes(changes, loopback=self._settings.loopback)

        async def effect(tx: WriteTransaction) -> Endpoint:
            await self._must_have(tx, seller, id)
            changed = await self._store.change(tx, seller, id, changes, version, moment(self._clock))
            if changed is None:
                raise Stale("webhook")
            return changed

        return await self._once(once, seller, Endpoint, effect)

    async def delete(self, seller: int, id: int, once: Once | None = None) -> None:
        async def effect(tx: WriteTransaction) -> Done:
            await self._must_have(tx, seller, id)
            if await self._store.delete(tx, seller, id):
                await tx.enqueue(Erase(seller, id))
            return Done()

        await self._once(once, seller, Done, effect)

    async def rotate(self, seller: int, id: int, once: Once | None = None) -> Secret:
        secret = new_secret()

        async def effect(tx: WriteTransaction) -> Secret:
            at = moment(self._clock)
            if not rules.is_id(id) or not await self._store.rotate(tx, seller, id, secret, at + OVERLAP, at):
                raise NotFound("webhook")
            return Secret(secret=secret, previous_until=at + OVERLAP)

        return await self._once(once, seller, Secret, effect)

    async def test(self, seller: int, id: int, once: Once | None = None) -> Message:
        message, at = await self._store.new_id(seller), moment(self._clock)

        async def effect(tx: WriteTransaction) -> Message:
            self._must_listen(await self._must_have(tx, seller, id))
            state = await self._store.make(
                tx, seller, message, id, type="test", subject="test", number=message,
                body=rules.body("test", at, None).decode(), at=at,
            )  # fmt: skip
            if state != "queued":  # or whoever asks again and again would fill the table
                raise Conflict("webhook", f"has {MAX_QUEUED} messages that wait: what comes now is not sent")
            await self._order(tx, seller, message, id, "test")
            return (await self._must_find(tx, seller, message))[1]

        return await self._once(once, seller, Message, effect)

    async def messages(self, seller: int, id: int, limit: int, after: str | None) -> MessagePage:
        rules.check_limit(limit)
        endpoint = await self.endpoint(seller, id)
        try:
            return await self._store.messages(seller, endpoint.id, limit, after)
        except InvalidCursor as error:
            raise rules.no_cursor() from error

    async def send_again(self, seller: int, message: int, once: Once | None = None) -> Message:
        async def effect(tx: WriteTransaction) -> Message:
            endpoint, found = await self._must_find(tx, seller, message)
            self._must_listen(await self._must_have(tx, seller, endpoint))
            if found.state == "queued":
                raise Conflict("message", "is queued already")
            job = await self._enqueue(tx, seller, message, endpoint, found.subject)
            await self._store.again(tx, seller, message, job)
            return (await self._must_find(tx, seller, message))[1]

        return await self._once(once, seller, Message, effect)

    async def deliver(self, job: Deliver, run: Run) -> None:
        await self._deliveries.deliver(job, run)

    async def erase(self, job: Erase, run: Run) -> None:
        await self._store.erase(job.seller, job.endpoint)

    async def tell_disabled(self, job: TellDisabled, run: Run) -> None:
        await self._deliveries.tell_disabled(job)

    async def tidy(self) -> None:
        """For the workers, periodically."""
        await self._store.forget(moment(self._clock) - KEPT)

    async def _order(
        self, tx: WriteTransaction, seller: int, message: int, endpoint: int, subject: str
    ) -> None:
        job = await self._enqueue(tx, seller, message, endpoint, subject)
        await self._store.ordered(tx, seller, message, job)

    async def _enqueue(
        self, tx: WriteTransaction, seller: int, message: int, endpoint: int, subject: str
    ) -> UUID:
        """Behind what the endpoint has not got of the subject yet."""
        return await tx.enqueue(
            Deliver(seller, message), ordering_key=f"{endpoint} {subject}", limit_key=str(endpoint)
        )

    async def _must_have(self, tx: WriteTransaction, seller: int, id: int) -> Endpoint:
        found = await self._store.endpoint_in(tx, seller, id) if rules.is_id(id) else None
        if found is None:
            raise NotFound("webhook")
        return found

    async def _must_find(self, tx: WriteTransaction, seller: int, id: int) -> tuple[int, Message]:
        found = await self._store.message(tx, seller, id) if rules.is_id(id) else None
        if found is None:
            raise NotFound("message")
        return found

    def _must_listen(self, endpoint: Endpoint) -> None:
        if not endpoint.enabled:
            raise Conflict("webhook", "is disabled: enable it first")

    async def _once(
        self, once: Once | None, home: int, shape: type[T], effect: Callable[[WriteTransaction], Awaitable[T]]
    ) -> T:
        """What `effect` answers, or answered when this request came before."""
        if once is None:
            async with self._store.write(home) as tx:
                return await effect(tx)

        async def kept(tx: WriteTransaction) -> Answer:
            return Answer(200, body=msgspec.json.encode(await effect(tx)))

        outcome = await self._keys.run(once, kept, home=home)
        return msgspec.json.decode(outcome.answer.body, type=shape)


class Done(msgspec.Struct, frozen=True):
    """What is kept of an effect that answers nothing."""
