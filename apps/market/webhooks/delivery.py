"""Deliver one message: call its endpoint, write down what was answered, and say when it is given up.

    2xx                    delivered
    410                    failed, and the endpoint is disabled: it says that it will never listen again;
                           unless it has another address by now, where the message is tried then
    another answer, none   tried again by the job's own backoff, for about three days, not before the time
                           that Retry-After names; then failed

At least once: a worker that is killed between the answer and our note of it sends the message again, under
the same id. No transaction is open while an endpoint is called. An endpoint that has failed for two days is
disabled; what waits for it then is unsent. Its seller is told.

Who listens badly holds nobody else up. An endpoint gets one message at a time (the job's limit key), and one
whose last try failed waits for a place that is apart from those of the others: however many endpoints hang,
those that work find the places free that they had.
"""

from __future__ import annotations

import logging

from market.faults import Invalid
from market.gate import Busy, Gate
from market.moments import moment
from market.notifications.api import REASON_LENGTH, Notice, Notifications
from market.strangers import Answer, Caller, NotPublic, Unreachable, retry_after
from market.webhooks import rules, signing
from market.webhooks.api import MessageState
from market.webhooks.jobs import MAX_PAUSE, Deliver, TellDisabled
from market.webhooks.settings import WebhookSettings
from market.webhooks.store import Parcel, WebhookStore
from springtide.clock import Clock
from springtide.errors import Unavailable
from springtide.jobs import Run

__all__ = ["Deliveries"]

_log = logging.getLogger(__name__)

WELL_AT_ONCE = 2
FAILING_AT_ONCE = 1
PATIENCE = 0.25
"""How many calls a worker has on their way, of endpoints that work and of those whose last try failed, and
the seconds that one more waits for a place. A run that finds none has failed, but is no try."""

GONE = "it answered 410: it is gone"
HOPELESS = "it has failed for two days"
DISABLED = "the endpoint is disabled"


class Deliveries:
    """A lifecycle service because of its client."""

    name = "webhook-deliveries"

    def __init__(
        self, store: WebhookStore, *, notifications: Notifications, settings: WebhookSettings, clock: Clock
    ) -> None:
        self._store = store
        self._notifications = notifications
        self._caller = Caller(timeout=settings.timeout, loopback=settings.loopback)
        self._clock = clock
        self._well = Gate(WELL_AT_ONCE, patience=PATIENCE)
        self._failing = Gate(FAILING_AT_ONCE, patience=PATIENCE)

    async def start(self) -> None:
        await self._caller.start()

    async def stop(self) -> None:
        await self._caller.stop()

    async def deliver(self, job: Deliver, run: Run) -> None:
        parcel = await self._store.parcel(job.seller, job.message)
        if parcel is None or parcel.state != "queued":
            return
        if not parcel.enabled:
            await self._store.untried(job.seller, job.message, "unsent", DISABLED)
            return
        last = run.attempt >= run.max_attempts
        try:
            async with (self._well if parcel.failing_since is None else self._failing).place():
                answer = await self._call(job.message, parcel)
        except Busy:
            note = "no place was free: too much is on its way"
            if last:
                await self._store.untried(job.seller, job.message, "failed", note)
                return
            raise Unavailable(note) from None
        except (NotPublic, Unreachable) as error:
            await self._failed(job, parcel, None, str(error)[:REASON_LENGTH], last=last)
            return
        if 200 <= answer.status < 300:
            at = moment(self._clock)
            await self._store.delivered(job.seller, job.message, parcel, answer.status, at)
        else:
            await self._failed(job, parcel, answer, f"it answered {answer.status}", last=last)

    async def tell_disabled(self, job: TellDisabled) -> None:
        endpoint = await self._store.endpoint(job.seller, job.endpoint)
        if endpoint is None or endpoint.reason is None:
            return  # it is deleted, or its seller has seen it and changed it
        notice = Notice(
            recipient=job.seller,
            kind="webhook_disabled",
            key=f"webhook-{job.endpoint}-{job.version}",
            data={"url": rules.shown_url(endpoint.url), "reason": endpoint.reason},
            link="/selling",
        )
        try:
            await self._notifications.notify(notice)
        except Invalid as error:  # an address that no notice takes: the endpoint itself says why
            _log.error("nobody is told of the disabled webhook %d: %s", job.endpoint, error)

    async def _call(self, message: int, parcel: Parcel) -> Answer:
        """Raises NotPublic, Unreachable."""
        at = moment(self._clock)
        content = parcel.body.encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "market-webhooks/1",
            **signing.headers(f"msg_{message}", int(at.timestamp()), content, parcel.keys(at)),
        }
        return await self._caller.post(parcel.url, content, headers)

    async def _failed(
        self, job: Deliver, parcel: Parcel, answer: Answer | None, note: str, *, last: bool
    ) -> None:
        """Write it down; raises Unavailable when it is to be tried again."""
        at = moment(self._clock)
        status = None if answer is None else answer.status
        async with self._store.write(job.seller) as tx:
            failing = await self._store.failed(tx, job.seller, parcel, at)
            gone = status == 410 and failing is not None
            state: MessageState = "failed" if last or gone else "queued"
            await self._store.tried(tx, job.seller, job.message, state, status, note, at)
            if failing is not None and (gone or rules.is_hopeless(*failing, at)):
                reason = GONE if gone else f"{HOPELESS}, at last: {note}"
                version = await self._store.disable(tx, job.seller, parcel.endpoint, reason, at)
                if version is not None:
                    await tx.enqueue(TellDisabled(job.seller, parcel.endpoint, version))
        if state == "queued":
            after = None if answer is None else retry_after(answer.headers, at, MAX_PAUSE)
            raise Unavailable(note, retry_after=after)
