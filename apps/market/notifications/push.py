"""One push to one browser: encrypted for it (RFC 8291), signed as ours (VAPID, RFC 8292), sent by HTTP.

The endpoint is an address that a stranger gave us. It is called only if every address that its name stands
for now is a public one, and the one that was looked at is the one that is connected to; redirections are not
followed, and nothing of the answer but its head is read. Nobody can make this process talk to its neighbours.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
from typing import Literal
from urllib.parse import urlsplit

import http_ece
import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from py_vapid import Vapid02

from market.notifications.api import Subscription
from market.notifications.rules import decoded
from market.notifications.settings import NotificationSettings

__all__ = ["MAX_PAYLOAD", "PushFailed", "Pusher", "Sent", "is_public", "payload"]

MAX_PAYLOAD = 3_000
"""Bytes before encryption; push services take 4,096 with what that adds."""

MAX_RETRY_AFTER = 3_600.0
TOKEN_LIFETIME = 12 * 3600
LIFETIME = 86_400
"""Seconds that a token is good for, and that a push service keeps a push for a browser that is away."""

Sent = Literal["taken", "gone", "refused"]
"""`gone`: nobody listens there any more; `refused`: this push is not wanted, another may be."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_SECONDS = re.compile(r"[0-9]{1,9}")
_EMBEDDING = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "2002::/16", "2001::/32", "::/96"))
"""IPv6 addresses that stand for IPv4 ones."""


class PushFailed(Exception):
    """Try again; not before `retry_after` seconds if that is known."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class Pusher:
    """`start` opens the client, no connection yet."""

    def __init__(self, settings: NotificationSettings) -> None:
        self._settings = settings
        self._http: httpx.AsyncClient | None = None

    async def start(self) -> None:
        self._http = await asyncio.to_thread(self._client)

    async def stop(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def send(self, to: Subscription, content: bytes, vapid: Vapid02, *, topic: str, now: float) -> Sent:
        """`topic` (at most 32 characters of base64url) names the push: a second one replaces the first.

        Raises PushFailed.
        """
        if self._http is None:
            raise PushFailed("the notifications module is not started")
        parts = urlsplit(to.endpoint)
        claims = {
            "aud": f"{parts.scheme}://{parts.netloc}",
            "exp": int(now) + TOKEN_LIFETIME,
            "sub": self._contact,
        }
        headers = {
            **vapid.sign(claims),
            "Host": parts.netloc,
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "TTL": str(LIFETIME),
            "Urgency": "normal",
            "Topic": topic,
        }
        try:
            async with asyncio.timeout(self._settings.push_timeout):
                address = await self._resolved(parts.hostname or "", parts.port or 443)
                if address is None:
                    return "refused"
                request = self._http.build_request(
                    "POST",
                    httpx.URL(to.endpoint).copy_with(host=address),
                    content=_encrypted(to, content),
                    headers=headers,
                    extensions={"sni_hostname": parts.hostname},
                )
                answer = await self._http.send(request, stream=True)
                await answer.aclose()
        except (TimeoutError, httpx.HTTPError, OSError) as error:
            raise PushFailed(f"{parts.hostname}: {error!r}"[:300]) from error
        return _judged(answer)

    async def _resolved(self, host: str, port: int) -> str | None:
        """An address to connect to; None when the name stands for one that must not be called."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        allowed = all(
            is_public(address) or (self._settings.push_loopback and ipaddress.ip_address(address).is_loopback)
            for address in addresses
        )
        return addresses[0] if addresses and allowed else None

    @property
    def _contact(self) -> str:
        """Whom a push service may write to about our pushes."""
        sender = self._settings.sender
        return f"mailto:{'market@localhost' if sender is None else sender.addr_spec}"

    def _client(self) -> httpx.AsyncClient:
        # Connections are not kept: the pool knows them by address, and one address has many names behind TLS.
        return httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=self._settings.push_timeout,
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=0),
        )


def payload(id: int, kind: str, title: str, body: str, link: str) -> bytes:
    """What the page's service worker gets, as JSON: {id, kind, title, body, link}, the body cut to fit."""
    values = {"id": id, "kind": kind, "title": title, "body": "", "link": link}
    room = MAX_PAYLOAD - len(msgspec.json.encode(values))
    values["body"] = body if len(msgspec.json.encode(body)) - 2 <= room else _cut(body, room)
    return msgspec.json.encode(values)


def is_public(address: str) -> bool:
    """Whether an address is one of the internet at large."""
    found: Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif any(found in network for network in _EMBEDDING):
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


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


def _judged(answer: httpx.Response) -> Sent:
    status = answer.status_code
    if 200 <= status < 300:
        return "taken"
    if status in (404, 410):
        return "gone"
    if status == 429 or status >= 500:
        seconds = _SECONDS.fullmatch(answer.headers.get("retry-after", ""))
        after = None if seconds is None else min(float(seconds[0]), MAX_RETRY_AFTER)
        raise PushFailed(f"{answer.url.host} answered {status}", after)
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
