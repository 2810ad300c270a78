"""The payments module against the real provider process, and what must be true of the two together."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.market.harness import topology

import market
from market.application import application
from market.faults import Refused
from market.money import Money
from market.orders.settings import OrderSettings
from market.payments.api import Payments
from market.payments.settings import PaymentSettings
from market.platform import modules
from springtide.platform import Platform
from springtide.signals import Sink

KEY, SECRET = "key-of-the-tests", "secret-of-the-tests"
CARD = "card_visa"
APPS = str(Path(market.__file__).parent.parent)
_orders = itertools.count(1)


def order(bucket: int | None = None) -> int:
    """A fresh order's id; even ones are on the first of two shards, odd ones on the second."""
    number = next(_orders)
    return number << 10 | ((900 if number % 2 else 100) if bucket is None else bucket)


def euros(amount: int) -> Money:
    return Money(amount, "EUR")


class ProviderProcess:
    """`python -m market.provider`, to be killed and started again with the same journal and port."""

    def __init__(self, state: Path, webhook: str | None) -> None:
        self.state = state
        self.webhook = webhook
        self.url = ""
        self._port = 0
        self._forgotten = {"charges": 0, "refunds": 0}
        self._process: asyncio.subprocess.Process | None = None
        self.http = httpx.AsyncClient(timeout=10, trust_env=False)

    async def start(self) -> None:
        command = ["-m", "market.provider", "--port", str(self._port), "--state", str(self.state)]
        if self.webhook is not None:
            command += ["--webhook", self.webhook]
        environment = {
            **os.environ, "PYTHONPATH": APPS, "PROVIDER_API_KEY": KEY, "PROVIDER_WEBHOOK_SECRET": SECRET,
        }  # fmt: skip
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *command, env=environment, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        self.url = line.split()[-1]
        self._port = int(self.url.rsplit(":", 1)[1])

    async def ended(self) -> int:
        """The exit status, once it has ended."""
        assert self._process is not None
        return await self._process.wait()

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def behave(self, **behaviour: Any) -> None:
        answer = await self.http.put(f"{self.url}/control", json=behaviour)
        assert answer.status_code == 200, answer.text

    async def journal(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get(f"{self.url}/journal")).json()
        return {**found, **{name: found[name][seen:] for name, seen in self._forgotten.items()}}

    async def forget(self) -> None:
        """The journal begins here, for a test that shares the provider with those before it."""
        found = (await self.http.get(f"{self.url}/journal")).json()
        self._forgotten = {name: len(found[name]) for name in self._forgotten}

    def kept(self) -> list[dict[str, Any]]:
        """The records in its file."""
        return [json.loads(line) for line in self.state.read_text().splitlines()]


class World:
    """A payments module, its provider, and the webhooks between them."""

    def __init__(self, platform: Platform, payments: Payments, provider: ProviderProcess, app: Any) -> None:
        self.app = app
        self.platform = platform
        self.payments = payments
        self.provider = provider

    async def reconcile(self) -> None:
        """Until nothing is due any more, as of long after now."""
        later = datetime.now(UTC) + timedelta(hours=3)
        for _ in range(10):
            if (await self.payments.reconcile(later)).asked == 0:
                return
        raise AssertionError("something stays pending")

    async def agree(self) -> bool:
        """Every charge and refund of the provider is ours, settled and booked once; ours are all theirs."""
        journal = await self.provider.journal()
        db = self.platform.database("payments")
        theirs = {
            (c["key"].split("-")[1], c["id"], c["amount"])
            for c in journal["charges"]
            if c["status"] == "succeeded"
        }
        ours = await db.scatter(
            "select order_id, provider_id, amount from payments.charge where state = 'succeeded'"
        )
        assert {(str(o), i, a) for o, i, a in ours} == theirs
        given = {(r["id"], r["amount"]) for r in journal["refunds"]}
        gave = await db.scatter("select provider_id, amount from payments.refund where state = 'succeeded'")
        assert {(i, a) for i, a in gave} == given
        await self.balanced()
        held = sum(a for _, _, a in theirs) - sum(a for _, a in given)
        accounts = {b.account: b.amount for b in await self.payments.balances()}
        assert accounts.get("provider", 0) == held
        assert accounts.get("orders", 0) == -held
        return True

    async def balanced(self) -> None:
        wrong = await self.platform.database("payments").scatter(
            "select order_id, number from payments.entry"
            " group by order_id, number, currency having sum(amount) <> 0"
        )
        assert not wrong


class Inbox:
    """Where the provider sends its webhooks: straight into the module, with a look at each."""

    def __init__(self) -> None:
        self.payments: Payments | None = None
        self.refuse = False
        self.seen: list[tuple[bytes, str, int]] = []
        self.arrived = asyncio.Condition()
        self.app = Starlette(routes=[Route("/hook", self._take, methods=["POST"])])

    async def _take(self, request: Request) -> Response:
        body, signature = await request.body(), request.headers["provider-signature"]
        status = 503
        if self.payments is not None and not self.refuse:
            try:
                await self.payments.receive(body, signature)
                status = 204
            except Refused:
                status = 409
        async with self.arrived:
            self.seen.append((body, signature, status))
            self.arrived.notify_all()
        return Response(status_code=status)

    async def until(self, count: int, status: int = 204) -> None:
        """Until `count` webhooks were answered so."""
        async with asyncio.timeout(20), self.arrived:
            await self.arrived.wait_for(lambda: sum(s == status for _, _, s in self.seen) >= count)


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    server.config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    port = server.servers[0].sockets[0].getsockname()[1]
    serving = asyncio.create_task(server.main_loop())
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving
        await server.shutdown()


@asynccontextmanager
async def world(
    urls: Sequence[str],
    home: Path,
    folder: Path,
    ordering: OrderSettings | None = None,
    sink: Sink | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[World, Inbox]]:
    inbox = Inbox()
    async with listening(inbox.app) as address:
        provider = ProviderProcess(folder / "provider.journal", f"{address}/hook")
        await provider.start()
        given = PaymentSettings(url=provider.url, key=KEY, secret=SECRET, **settings)
        parts = modules(provider=given, ordering=ordering)
        platform = Platform(topology(urls), modules=parts, home=home, sink=sink, check_calls=True)
        app = application(platform)
        await platform.start()
        try:
            payments = platform.service(Payments)
            inbox.payments = payments
            yield World(platform, payments, provider, app), inbox
        finally:
            await provider.kill()
            await provider.http.aclose()
            await platform.stop()
