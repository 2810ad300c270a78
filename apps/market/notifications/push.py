"""One push to one browser: encrypted for it (RFC 8291), signed as ours (VAPID, RFC 8292), sent by HTTP.

The endpoint is an address that a stranger gave us: see `market.strangers` for what is called and what is not.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit

import http_ece
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from py_vapid import Vapid02

from market.notifications.api import Subscription
from market.notifications.rules import decoded
from market.notifications.settings import NotificationSettings
from market.strangers import Answer, Caller, NotPublic, Unreachable, retry_after

__all__ = ["MAX_PAYLOAD", "PushFailed", "Pusher", "Sent", "payload"]

MAX_PAYLOAD = 3_000
"""Bytes before encryption; push services take 4,096 with what that adds."""

MAX_RETRY_AFTER = 3_600.0
TOKEN_LIFETIME = 12 * 3600
LIFETIME = 86_400
"""Seconds that a token is good for, and that a push service keeps a push for a browser that is away."""

Sent = Literal["taken", "gone", "refused"]
"""`gone`: nobody listens there any more; `refused`: this push is not wanted, another may be."""


class PushFailed(Exception):
    """Try again; not before `retry_after` seconds if that is known."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class Pusher:
    """`start` opens the client, no connection yet."""

    def __init__(self, settings: NotificationSettings) -> None:
        self._settings = settings
        self._caller = Caller(timeout=settings.push_timeout, loopback=settings.push_loopback)

    async def start(self) -> None:
        await self._caller.start()

    async def stop(self) -> None:
        await self._caller.stop()

    async def send(self, to: Subscription, content: bytes, vapid: Vapid02, *, topic: str, now: float) -> Sent:
        """`topic` (at most 32 characters of base64url) names the push: a second one replaces the first.

        Raises PushFailed.
        """
        parts = urlsplit(to.endpoint)
        claims = {
            "aud": f"{parts.scheme}://{parts.netloc}",
            "exp": int(now) + TOKEN_LIFETIME,
            "sub": self._contact,
        }
        headers = {
            **vapid.sign(claims),
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "TTL": str(LIFETIME),
            "Urgency": "normal",
            "Topic": topic,
        }
        try:
            answer = await self._caller.post(to.endpoint, _encrypted(to, content), headers)
        except NotPublic:
            return "refused"
        except Unreachable as error:
            raise PushFailed(f"{parts.hostname}: {error}") from error
        return _judged(answer, parts.hostname or "", now)

    @property
    def _contact(self) -> str:
        """Whom a push service may write to about our pushes."""
        sender = self._settings.sender
        return f"mailto:{'market@localhost' if sender is None else sender.addr_spec}"


def payload(id: int, kind: str, title: str, body: str, link: str) -> bytes:
    """What the page's service worker gets, as JSON: {id, kind, title, body, link}, the body cut to fit."""
    values = {"id": id, "kind": kind, "title": title, "body": "", "link": link}
    room = MAX_PAYLOAD - len(msgspec.json.encode(values))
    values["body"] = body if len(msgspec.json.encode(body)) - 2 <= room else _cut(body, room)
    return msgspec.json.encode(values)


def _encrypted(to: Subscription, content: bytes) -> bytes:
    encrypted: bytes = http_ece.encrypt(
        content,
        salt=os.urandom(16),
        private_key=ec.generate_private_key(ec.SECP256R1()),
        dh=decoded(to.p256dh, 65),
        auth_secret=decoded(to.auth, 16),
        version="aes128gcm",
    )
    return encrypted


def _judged(answer: Answer, host: str, now: float) -> Sent:
    status = answer.status
    if 200 <= status < 300:
        return "taken"
    if status in (404, 410):
        return "gone"
    if status == 429 or status >= 500:
        after = retry_after(answer.headers, datetime.fromtimestamp(now, UTC), MAX_RETRY_AFTER)
        raise PushFailed(f"{host} answered {status}", after)
    return "refused"


def _cut(body: str, room: int) -> str:
    """The longest beginning whose JSON has at most `room` bytes, three of them for the ellipsis."""
    low, high = 0, min(len(body), max(room, 0))
    while low < high:
        middle = (low + high + 1) // 2
        if len(msgspec.json.encode(body[:middle])) - 2 + 3 <= room:
            low = middle
        else:
            high = middle - 1
    return body[:low] + "…" if low else ""
