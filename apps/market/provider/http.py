"""The provider's API. Everything but /control asks for `Authorization: Bearer <key>`.

    POST /charges            Idempotency-Key; {amount, currency, source} -> 201 the charge, 200 if known
    GET  /charges/{id}       -> the charge          GET /charges?key=...  -> the charge of that key
    POST /refunds            Idempotency-Key; {charge, amount, currency}  -> 201, 200
    GET  /refunds?key=...    -> the refund
    POST /cancellations      {key}: an unused key never charges from now on -> {"cancelled": true};
                             a used one answers {"cancelled": false, "charge": {...}}
    GET  /control, PUT /control    how it misbehaves, see `behaviour.py`
    GET  /journal            every charge and refund, for tests and audits

A charge is `succeeded` or `declined` with a `decline_code`. Errors: {"code": ...}; 404 for what is not there,
409 key_cancelled, 422 for what cannot be done, 5xx when nobody can tell what happened.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from market.provider.behaviour import Behaviour
from market.provider.books import Books, Record, Refusal
from market.provider.journal import Journal
from market.provider.webhooks import Deliverer

__all__ = ["Provider"]

MAX_KEY = 200


class NewCharge(msgspec.Struct, forbid_unknown_fields=True):
    amount: int
    currency: str
    source: str


class NewRefund(msgspec.Struct, forbid_unknown_fields=True):
    charge: str
    amount: int
    currency: str


class Cancellation(msgspec.Struct, forbid_unknown_fields=True):
    key: str


class Provider:
    """`app` is the ASGI application; its lifespan runs the webhooks. `journal` must be open."""

    def __init__(
        self, journal: Journal, books: Books, *, api_key: str, secret: str, webhook_url: str | None
    ) -> None:
        self._journal = journal
        self._books = books
        self._api_key = api_key
        self._secret = secret
        self._webhook_url = webhook_url
        self._behaviour = Behaviour()
        self._locks: dict[str, asyncio.Lock] = {}
        self._deliverer: Deliverer | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()
        self.app = Starlette(
            routes=[
                Route("/charges", self._guarded(self._charge), methods=["POST"]),
                Route("/charges", self._guarded(self._charge_by_key), methods=["GET"]),
                Route("/charges/{id}", self._guarded(self._charge_by_id), methods=["GET"]),
                Route("/refunds", self._guarded(self._refund), methods=["POST"]),
                Route("/refunds", self._guarded(self._refund_by_key), methods=["GET"]),
                Route("/cancellations", self._guarded(self._cancel), methods=["POST"]),
                Route("/journal", self._everything, methods=["GET"]),
                Route("/control", self._control, methods=["GET", "PUT"]),
            ],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        if self._webhook_url is None:
            yield
            return
        self._deliverer = Deliverer(
            self._webhook_url, self._secret, self._journal, lambda: self._behaviour, self._books.apply
        )
        try:
            async with asyncio.TaskGroup() as self._tasks:
                jobs = [self._tasks.create_task(self._serve())]
                for event in list(self._books.undelivered.values()):
                    self._later(event)
                yield
                for job in [*jobs, *self._running]:
                    job.cancel()
        finally:
            await self._deliverer.close()

    async def _serve(self) -> None:
        await asyncio.Event().wait()  # keeps the group open while there is nothing to deliver

    def _guarded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            if self._behaviour.down:
                return JSONResponse({"code": "down"}, 503)
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self._api_key}".encode()):
                return JSONResponse({"code": "unauthorized"}, 401)
            behaviour = self._behaviour
            await asyncio.sleep(behaviour.delay.draw())
            if behaviour.fails():
                return JSONResponse({"code": "internal"}, 500)
            try:
                answer = await handler(request)
            except Refusal as refusal:
                answer = JSONResponse({"code": refusal.code}, refusal.status)
            except msgspec.ValidationError as error:
                answer = JSONResponse({"code": "invalid", "detail": str(error)}, 422)
            except msgspec.DecodeError:
                answer = JSONResponse({"code": "malformed"}, 400)
            if request.method == "POST":
                await asyncio.sleep(behaviour.answer_delay.draw())
                if behaviour.loses_answer():
                    return JSONResponse({"code": "internal"}, 500)
            return answer

        return guarded

    async def _charge(self, request: Request) -> Response:
        key = _key(request)
        new = msgspec.json.decode(await request.body(), type=NewCharge)
        _check_amount(new.amount, new.currency)
        async with self._lock(key):
            record = self._books.charging(
                key, msgspec.to_builtins(new), self._behaviour.declines.get(new.source), time.time()
            )
            await self._keep(record)
        return JSONResponse(self._books.charges[key], 200 if record is None else 201)

    async def _refund(self, request: Request) -> Response:
        key = _key(request)
        new = msgspec.json.decode(await request.body(), type=NewRefund)
        _check_amount(new.amount, new.currency)
        async with self._lock(self._books.by_id(new.charge)["key"]):
            record = self._books.refunding(key, msgspec.to_builtins(new), time.time())
            await self._keep(record)
        return JSONResponse(self._books.refunds[key], 200 if record is None else 201)

    async def _cancel(self, request: Request) -> Response:
        key = msgspec.json.decode(await request.body(), type=Cancellation).key
        async with self._lock(key):
            await self._keep(self._books.cancelling(key))
        charge = self._books.charges.get(key)
        return JSONResponse({"cancelled": charge is None, "charge": charge})

    async def _charge_by_id(self, request: Request) -> Response:
        return JSONResponse(self._books.by_id(request.path_params["id"]))

    async def _charge_by_key(self, request: Request) -> Response:
        return _found(self._books.charges, request, "unknown_charge")

    async def _refund_by_key(self, request: Request) -> Response:
        return _found(self._books.refunds, request, "unknown_refund")

    async def _everything(self, request: Request) -> Response:
        return JSONResponse(
            {
                "charges": list(self._books.charges.values()),
                "refunds": list(self._books.refunds.values()),
                "undelivered": len(self._books.undelivered),
            }
        )

    async def _control(self, request: Request) -> Response:
        if request.method == "PUT":
            try:
                self._behaviour = msgspec.json.decode(await request.body(), type=Behaviour)
            except msgspec.MsgspecError as error:
                return JSONResponse({"code": "invalid", "detail": str(error)}, 422)
        return JSONResponse(msgspec.to_builtins(self._behaviour))

    async def _keep(self, record: Record | None) -> None:
        """Journal, apply, and announce; nothing when there is nothing new."""
        if record is None:
            return
        self._behaviour.reach("before_journal")
        await self._journal.append(record)
        self._books.apply(record)
        self._behaviour.reach("after_journal")
        if "event" in record and self._deliverer is not None:
            if self._behaviour.webhook_first:
                await self._deliverer.attempt(record["event"])
                self._behaviour.reach("after_webhook")
            self._later(record["event"], delay=self._behaviour.webhook_delay)

    def _later(self, event: Record, *, delay: float = 0.0) -> None:
        assert self._tasks is not None
        assert self._deliverer is not None
        task = self._tasks.create_task(self._deliverer.deliver(event, delay=delay))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _lock(self, key: str) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())


def _key(request: Request) -> str:
    key = request.headers.get("idempotency-key", "")
    if not 0 < len(key) <= MAX_KEY:
        raise Refusal(422, "idempotency_key_required")
    return key


def _check_amount(amount: int, currency: str) -> None:
    if not 0 < amount <= 1 << 53:
        raise Refusal(422, "amount_invalid")
    if len(currency) != 3 or not currency.isascii() or not currency.isupper():
        raise Refusal(422, "currency_invalid")


def _found(things: dict[str, Record], request: Request, code: str) -> Response:
    thing = things.get(request.query_params.get("key", ""))
    if thing is None:
        raise Refusal(404, code)
    return JSONResponse(thing)
