"""The module's own keys: what signs the links in mails, and what signs pushes (VAPID, RFC 8292).

Each is made on first use and kept in the module's table, so that every process has the same; the VAPID key
may be given by the settings instead. They are read once per process.

A link's token is `<recipient>.<kind>.<mac>`, the mac HMAC-SHA256 over the rest: it can do one thing, stop
mails of that kind to that recipient, and it never expires, as the mail that it is in does not.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from hashlib import sha256
from typing import cast

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from py_vapid import Vapid02

from market.faults import Forbidden
from market.notifications.api import KINDS, Kind
from market.notifications.rules import MAX_ID
from market.notifications.settings import NotificationSettings
from market.notifications.store import NotificationStore

__all__ = ["Keys"]

_TOKEN = re.compile(r"([1-9][0-9]{0,15})\.([a-z_]{1,32})\.([A-Za-z0-9_-]{43})")


class Keys:
    def __init__(self, store: NotificationStore, settings: NotificationSettings) -> None:
        self._store = store
        self._settings = settings
        self._signing: bytes | None = None
        self._vapid: Vapid02 | None = None

    async def token(self, recipient: int, kind: Kind) -> str:
        return f"{recipient}.{kind}.{await self._mac(f'{recipient}.{kind}')}"

    async def named(self, token: str) -> tuple[int, Kind]:
        """Whose mails of which kind a token stops. Raises Forbidden for one that is not ours."""
        found = _TOKEN.fullmatch(token)
        if found is None or found[2] not in KINDS or int(found[1]) > MAX_ID:
            raise Forbidden("token")
        if not hmac.compare_digest(found[3], await self._mac(f"{found[1]}.{found[2]}")):
            raise Forbidden("token")
        return int(found[1]), cast(Kind, found[2])

    async def vapid(self) -> Vapid02:
        if self._vapid is None:
            raw = self._settings.push_key or await self._store.secret("push", _new_private_key())
            key = ec.derive_private_key(int.from_bytes(raw, "big"), ec.SECP256R1())
            self._vapid = Vapid02(key)
        return self._vapid

    async def push_key(self) -> str:
        public = (await self.vapid()).public_key.public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        return _encoded(public)

    async def _mac(self, text: str) -> str:
        if self._signing is None:
            self._signing = await self._store.secret("links", secrets.token_bytes(32))
        return _encoded(hmac.new(self._signing, b"stop-mail." + text.encode(), sha256).digest())


def _new_private_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value.to_bytes(32, "big")


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
