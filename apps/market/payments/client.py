"""The provider's HTTP API as calls with three outcomes: an answer, a refusal for certain, or OutcomeUnknown.

A call takes no more time than the request that makes it has left (and `call_timeout`), its connections are
bounded, and it is never repeated here: who repeats, and when, is decided where it is recorded.
Time spent is the request's Part.CALL. Nothing here decides what an answer means.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal, TypeVar

import httpx
import msgspec

from market.money import Money
from market.payments.settings import PaymentSettings
from springtide.clock import Clock
from springtide.context import Part, current
from springtide.errors import Unavailable
from springtide.lifecycle import StartStop
from springtide.telemetry import tracing

__all__ = [
    "KeyCancelled",
    "OutcomeUnknown",
    "ProviderCharge",
    "ProviderClient",
    "ProviderRefund",
    "RefusedByProvider",
]

T = TypeVar("T")

MAX_CONNECTIONS = 32
CONNECT_TIMEOUT = 2.0

SHARE = 0.6
"""Of the time that is left, what a call with an effect may take: then its outcome can still be asked for."""

RESERVE = 0.25
"""Seconds kept back for writing the outcome down."""


class OutcomeUnknown(Exception):
    """The provider may have done it or not: no answer in time, or one that says nothing."""


class KeyCancelled(Exception):
    """The key was cancelled before it was used: it has not charged and never will."""


class RefusedByProvider(Exception):
    """It was understood and not done, for certain; `code` says why."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


class ProviderCharge(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    key: str
    amount: int
    currency: str
    status: Literal["succeeded", "declined"]
    decline_code: str | None = None


class ProviderRefund(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    key: str
    charge: str
    amount: int
    currency: str
    status: Literal["succeeded"]


class Cancelled(msgspec.Struct, frozen=True):
    charge: ProviderCharge | None


class Fault(msgspec.Struct, frozen=True):
    code: str


class ProviderClient:
    """A lifecycle service: `start` opens the client, no connection yet."""

    def __init__(self, settings: PaymentSettings, *, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._http: httpx.AsyncClient | None = None
        self._life = StartStop("payment-provider", self._open, self._close)

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def charge(self, key: str, amount: Money, source: str) -> ProviderCharge:
        """Raises OutcomeUnknown, KeyCancelled, RefusedByProvider."""
        body = {"amount": amount.amount, "currency": amount.currency, "source": source}
        return _decoded(await self._call("POST", "/charges", body, key=key), ProviderCharge)

    async def find_charge(self, key: str) -> ProviderCharge | None:
        """None when there is none yet: one that is under way may still come. Raises OutcomeUnknown."""
        answer = await self._call("GET", "/charges", params={"key": key})
        return None if answer.status_code == 404 else _decoded(answer, ProviderCharge)

    async def refund(self, key: str, charge: str, amount: Money) -> ProviderRefund:
        """Raises OutcomeUnknown, RefusedByProvider."""
        body = {"charge": charge, "amount": amount.amount, "currency": amount.currency}
        return _decoded(await self._call("POST", "/refunds", body, key=key), ProviderRefund)

    async def find_refund(self, key: str) -> ProviderRefund | None:
        answer = await self._call("GET", "/refunds", params={"key": key})
        return None if answer.status_code == 404 else _decoded(answer, ProviderRefund)

    async def cancel(self, key: str) -> ProviderCharge | None:
        """The charge that `key` has made; None: it never will make one. Raises OutcomeUnknown."""
        return _decoded(await self._call("POST", "/cancellations", {"key": key}), Cancelled).charge

    def ensure_configured(self) -> None:
        if self._settings.url is None:
            raise Unavailable("no payment provider is configured: set MARKET_PAYMENTS_URL and _KEY")

    async def _open(self) -> None:
        # In a thread: the certificates that TLS needs are read from a file.
        self._http = await asyncio.to_thread(self._make)

    async def _close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    def _make(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self._settings.url or "",
            headers={"Authorization": f"Bearer {self._settings.key}"},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
            trust_env=False,
        )

    async def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        key: str | None = None,
        params: dict[str, str] | None = None,
    ) -> httpx.Response:
        self.ensure_configured()
        if self._http is None:
            raise Unavailable("the payments module is not started")
        context, started = current(), self._clock.monotonic()
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = key
        if context is not None and context.trace is not None:
            headers.update(tracing.headers(context.trace.child()))
        request = self._http.build_request(
            method,
            path,
            content=None if body is None else msgspec.json.encode(body),
            params=params,
            headers=headers,
        )
        try:
            async with asyncio.timeout(self._budget(SHARE if method == "POST" else 1.0)):
                return await self._http.send(request)
        except (TimeoutError, httpx.HTTPError) as error:
            raise OutcomeUnknown(f"{method} {path}: {error!r}") from error
        finally:
            if context is not None:
                context.ledger.add(Part.CALL, self._clock.monotonic() - started, f"payments {method} {path}")

    def _budget(self, share: float) -> float:
        context = current()
        left = None if context is None else context.remaining(self._clock.monotonic())
        if left is None:
            return self._settings.call_timeout
        return max(min(self._settings.call_timeout, (left - RESERVE) * share), 0.0)


def _decoded(answer: httpx.Response, type: type[T]) -> T:
    status = answer.status_code
    try:
        if status in (200, 201):
            return msgspec.json.decode(answer.content, type=type)
        if status in (400, 409, 422):
            code = msgspec.json.decode(answer.content, type=Fault).code
            if code == "key_cancelled":
                raise KeyCancelled
            if code != "key_reused":  # then there is something under the key, and nobody here knows what
                raise RefusedByProvider(code)
    except msgspec.MsgspecError as error:
        raise OutcomeUnknown(f"the answer of status {status} cannot be read: {error}") from error
    raise OutcomeUnknown(f"the provider answered {status}")
