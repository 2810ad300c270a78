"""Carry out what was told: one mail, one push, and write down what became of it.

Both are at-least-once: a worker that is killed after the mail server took a mail and before that is written
down sends it again, with the same Message-ID. Whatever can end otherwise, ends here: sent, not wanted any
more, refused. The rest is tried again by the jobs' own backoff, so a mail server that is away for an hour
costs an hour and loses nothing.
"""

from __future__ import annotations

import logging
import random
from datetime import timedelta
from hashlib import blake2b
from urllib.parse import quote

from market.gate import Busy, Gate
from market.moments import moment
from market.notifications.api import KIND_NAMES
from market.notifications.jobs import SendMail, SendPush
from market.notifications.keys import Keys
from market.notifications.letters import Post, Unmailable, composed, mailable, message_id
from market.notifications.mail import Mailer, MailRefused, TryAgain
from market.notifications.push import Pusher, PushFailed, payload
from market.notifications.settings import NotificationSettings
from market.notifications.store import Letter, NotificationStore
from market.notifications.texts import one_line, people_in, words
from springtide.clock import Clock
from springtide.errors import JobFailed, Unavailable

__all__ = ["STOP_PATH", "Deliveries"]

_log = logging.getLogger(__name__)

STOP_PATH = "/market/notifications/unsubscribe"

AT_ONCE = 3
PATIENCE = 0.25
"""How many mails, and how many pushes, a worker has on their way; seconds that one more waits for a place."""

MAX_ASIDE, MAX_WAITS = 60.0, 1_440
"""The longest pause, in seconds, before a job that stepped aside looks again; and how often it does so, about
a day long. From then on finding no place is a failed try, and those are counted."""

PUSHABLE = timedelta(days=1)


class Deliveries:
    """A lifecycle service because of its clients."""

    name = "deliveries"

    def __init__(
        self,
        store: NotificationStore,
        keys: Keys,
        mailer: Mailer,
        pusher: Pusher,
        *,
        settings: NotificationSettings,
        clock: Clock,
    ) -> None:
        self._store = store
        self._keys = keys
        self._mailer = mailer
        self._pusher = pusher
        self._settings = settings
        self._clock = clock
        self._mails = Gate(AT_ONCE, patience=PATIENCE)
        self._pushes = Gate(AT_ONCE, patience=PATIENCE)

    async def start(self) -> None:
        await self._mailer.start()
        await self._pusher.start()

    async def stop(self) -> None:
        await self._pusher.stop()

    async def mail(self, job: SendMail) -> None:
        """A mail whose tries are used up stays queued, so that its dead letter can be made ready again."""
        letter = await self._store.letter(job.recipient, job.number)
        if letter is None or letter.state != "queued":
            return
        if self._settings.smtp is None:
            await self._store.settle_mail(job.recipient, job.number, "unconfigured")
            return
        if not letter.wanted:
            await self._store.settle_mail(job.recipient, job.number, "unwanted")
            return
        if letter.refusal is not None:
            await self._store.settle_mail(job.recipient, job.number, "refused")
            return
        if letter.name is None or letter.email is None:
            raise Unavailable(f"recipient {job.recipient} is not introduced yet")
        try:
            post = await self._post(job, letter, letter.name, letter.email)
            async with self._mails.place():
                await self._mailer.send(post)
        except Busy:
            _still_patient(job.waits)
            async with self._store.write(job.recipient) as tx:
                later = SendMail(job.recipient, job.number, job.waits + 1)
                await tx.enqueue(later, delay=_aside(job.waits), unique_key=f"{job.recipient}.{job.number}")
        except Unmailable as error:
            await self._refuse(job, letter.email, str(error), address=True)
        except MailRefused as error:
            await self._refuse(job, letter.email, str(error), address=error.address)
        except TryAgain as error:
            raise Unavailable(f"the mail was not taken: {error}") from error
        else:
            await self._store.settle_mail(job.recipient, job.number, "sent")

    async def push(self, job: SendPush) -> None:
        parcel = await self._store.parcel(job.recipient, job.number, job.subscription)
        if parcel is None or not parcel.wanted or moment(self._clock) - parcel.created_at > PUSHABLE:
            return
        names = await self._store.names(people_in(parcel.data))
        said = words(parcel.kind, parcel.data, names)
        content = payload(job.number, parcel.kind, said.title, "\n".join(said.lines), parcel.link)
        topic = blake2b(f"{job.recipient}.{job.number}".encode(), digest_size=16).hexdigest()
        vapid = await self._keys.vapid()
        try:
            async with self._pushes.place():
                sent = await self._pusher.send(
                    parcel.subscription, content, vapid, topic=topic, now=self._clock.now()
                )
        except Busy:
            _still_patient(job.waits)
            async with self._store.write(job.recipient) as tx:
                later = SendPush(job.recipient, job.number, job.subscription, job.waits + 1)
                key = f"{job.recipient}.{job.number}.{job.subscription}"
                await tx.enqueue(later, delay=_aside(job.waits), unique_key=key)
            return
        except PushFailed as error:
            raise Unavailable(str(error), retry_after=error.retry_after) from error
        if sent == "gone":
            await self._store.unsubscribe(job.recipient, parcel.subscription.endpoint)
        elif sent == "refused":
            raise JobFailed("the push service does not take it")

    async def _post(self, job: SendMail, letter: Letter, name: str, email: str) -> Post:
        """Raises Unmailable."""
        sender = self._settings.sender
        assert sender is not None
        names = await self._store.names(people_in(letter.data))
        token = await self._keys.token(job.recipient, letter.kind)
        return composed(
            words(letter.kind, letter.data, names),
            name=one_line(name),
            to=mailable(name, email),
            sender=sender,
            kind=KIND_NAMES[letter.kind],
            link=self._settings.link(letter.link),
            stop=self._settings.link(f"{STOP_PATH}?token={quote(token)}"),
            id=message_id(job.recipient, job.number, letter.created_at, sender.domain),
            at=letter.created_at,
        )

    async def _refuse(self, job: SendMail, email: str, why: str, *, address: bool) -> None:
        """It ends here, written down as refused: a dead letter could only be refused again."""
        _log.warning("mail to recipient %d is refused: %s", job.recipient, why)
        async with self._store.write(job.recipient):
            if address:
                await self._store.refused(job.recipient, email, why)
            await self._store.settle_mail(job.recipient, job.number, "refused")


def _still_patient(waits: int) -> None:
    if waits >= MAX_WAITS:
        raise Unavailable(f"no place was free {waits} times: too much is on its way for these workers")


def _aside(waits: int) -> float:
    """Seconds, longer each time, spread so that those who stepped aside together do not return together."""
    return min(2.0 ** min(waits, 10), MAX_ASIDE) * random.uniform(0.5, 1.5)  # noqa: S311 - spreads retries
