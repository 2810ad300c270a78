"""Tell the shop what happened: each event is sent, signed, until it is answered by a 2xx.

Attempt n waits min(first * 2**(n-1), most) seconds times a uniform factor in [0.5, 1.5). Every attempt is
signed anew: `Provider-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>">`. Events may arrive
twice, late and in any order; what was not answered before a crash is sent again after it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
import time
from collections.abc import Callable
from typing import Any

import httpx

from market.provider.behaviour import Behaviour
from market.provider.journal import Journal

__all__ = ["Deliverer", "sign"]

_chance = random.SystemRandom()

ATTEMPT_TIMEOUT = 10.0
CONCURRENT = 16


def sign(secret: str, body: bytes, at: int) -> str:
    digest = hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


class Deliverer:
    """`post` from anywhere; runs its tasks in the group it is given."""

    def __init__(
        self,
        url: str,
        secret: str,
        journal: Journal,
        behaviour: Callable[[], Behaviour],
        delivered: Callable[[dict[str, Any]], None],
        *,
        first: float = 0.2,
        most: float = 30.0,
    ) -> None:
        self._url = url
        self._secret = secret
        self._journal = journal
        self._behaviour = behaviour
        self._delivered = delivered
        self._first = first
        self._most = most
        self._slots = asyncio.Semaphore(CONCURRENT)
        self._client = httpx.AsyncClient(timeout=ATTEMPT_TIMEOUT, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def deliver(self, event: dict[str, Any], *, delay: float = 0.0) -> None:
        """Until it was answered as often as the behaviour asks for."""
        await asyncio.sleep(delay)
        answered = attempt = 0
        while answered < self._behaviour().deliveries:
            if await self.attempt(event):
                answered += 1
                continue
            attempt += 1
            pause = min(self._first * 2 ** min(attempt - 1, 30), self._most)
            await asyncio.sleep(pause * _chance.uniform(0.5, 1.5))
        record = {"op": "delivered", "event": event["id"]}
        await self._journal.append(record)
        self._delivered(record)

    async def attempt(self, event: dict[str, Any]) -> bool:
        """One delivery; whether it was answered by a 2xx."""
        if self._behaviour().webhooks_held:
            return False
        body = json.dumps(event, separators=(",", ":")).encode()
        headers = {
            "Content-Type": "application/json",
            "Provider-Signature": sign(self._secret, body, int(time.time())),
        }
        async with self._slots:
            try:
                answer = await self._client.post(self._url, content=body, headers=headers)
            except httpx.HTTPError:
                return False  # counted as unanswered: the next attempt follows
            return answer.is_success
