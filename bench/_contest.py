"""market and its twin, side by side: one PostgreSQL, one provider, the same data, the same requests."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench._closed_loop import Call, closed_loop
from bench._market_data import STOCK, Sample, create_twin, fill_market, fill_twin, sample
from bench._pinned import ROOT, Cores, Server
from bench._wrk import Wrk
from bench.twin.auth import Tokens
from market.platform import modules
from market.realworld.viewers import SCOPE
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.platform import Platform

__all__ = ["Contest", "Provider", "Side", "contest"]

KEY, SECRET = "key-of-the-benchmark", "secret-of-the-benchmark-32-bytes"
READERS = 100
DAY = 86_400
DATABASES = ("market", "twin")

TOPOLOGY = """
name = "market"
stage = 1
app = "market.asgi:app"
path = {path}
modules = "market.platform:modules"
[nodes.db]
url = {url}
[telemetry]
log_level = "warning"  # at info it writes a line per request, and the twin has no access log either
"""

STATEMENT = re.compile(r"@(?P<database>\w+) LOG:  (statement|execute [^:]*):")


@dataclass
class Side:
    """One contender: its server, and what it is asked, by endpoint; only tokens differ."""

    name: str
    server: Server
    calls: Mapping[str, Sequence[Call]]


class Contest:
    def __init__(
        self, postgres: EmbeddedPostgres, sides: Sequence[Side], provider: Provider, sample: Sample, wrk: Wrk
    ) -> None:
        self.postgres = postgres
        self.sides = sides
        self.provider = provider
        self.sample = sample
        self.wrk = wrk

    async def statements(self) -> dict[str, dict[str, int]]:
        """side -> endpoint -> statements that one request runs: the least of three (others are at work)."""
        found: dict[str, dict[str, int]] = {side.name: {} for side in self.sides}
        await self._log_statements("all")
        try:
            for number, side in enumerate(self.sides):
                for place, (endpoint, calls) in enumerate(side.calls.items()):
                    numbers = iter(range(-(1000 * number + 10 * place), 1))
                    found[side.name][endpoint] = min(
                        [await self._statements_of(side, calls[0], numbers) for _ in range(3)]
                    )
        finally:
            await self._log_statements("none")
        return found

    async def _statements_of(self, side: Side, call: Call, numbers: Any) -> int:
        before = self.postgres.log.stat().st_size
        await closed_loop(side.server.url, [call], requests=1, connections=1, numbers=numbers)
        await asyncio.sleep(0.05)  # PostgreSQL writes its log a little later than it answers
        with self.postgres.log.open("rb") as log:
            log.seek(before)
            said = log.read().decode(errors="replace")
        return sum(line["database"] == side.name for line in STATEMENT.finditer(said))

    async def _log_statements(self, which: str) -> None:
        await self.postgres.query(f"ALTER SYSTEM SET log_statement = '{which}'")
        await self.postgres.query("SELECT pg_reload_conf()")
        await asyncio.sleep(0.2)


def calls_for(sample: Sample, tokens: Sequence[str], stamp: str) -> dict[str, list[Call]]:
    """What one side is asked. `tokens` are those of the sample's readers; `stamp` makes names unique."""
    signed = [{"Authorization": f"Token {token}"} for token in tokens]
    return {
        "article list": [Call("/api/articles?limit=20")],
        "article": [Call(f"/api/articles/{slug}") for slug in sample.slugs],
        "feed": [Call("/api/articles/feed?limit=20", headers=headers) for headers in signed],
        "listing search": [Call(f"/market/search?q={word}&kind=listing") for word in sample.words],
        "place order": [
            Call(
                "/market/orders",
                "POST",
                {**headers, "Idempotency-Key": f"order-{stamp}-{{n}}"},
                _order(sample, number),
            )
            for number, headers in enumerate(signed)
        ],
        "register": [
            Call(
                "/api/users",
                "POST",
                body=json.dumps(
                    {
                        "user": {
                            "username": f"new{stamp}-{{n}}",
                            "email": f"new{stamp}-{{n}}@example.com",
                            "password": "correct horse battery",
                        }
                    }
                ),
            )
        ],
    }


def _order(sample: Sample, number: int) -> str:
    """Two lines, of two sellers as it falls."""
    chosen = [sample.listings[(2 * number + step) % len(sample.listings)] for step in (0, 1)]
    address = {"name": "Ada Berg", "street": "Main Street 1", "city": "Berlin", "postal_code": "10115"}
    lines = [
        {"listing_id": id, "quantity": 1, "price": {"amount": amount, "currency": currency}}
        for id, amount, currency in chosen
    ]
    return json.dumps({"source": "card_visa", "address": {**address, "country": "DE"}, "lines": lines})


class Provider:
    """The payment provider, a process of its own that answers at once and sends no webhooks."""

    def __init__(self, journal: Path) -> None:
        self.url = ""
        self._journal = journal
        self._port = 0
        self.start()

    def start(self) -> None:
        """With the journal and the address that it had before."""
        command = ["-m", "market.provider", "--port", str(self._port), "--state", str(self._journal)]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env={
                **os.environ, "PYTHONPATH": str(ROOT / "apps"), "PROVIDER_API_KEY": KEY,
                "PROVIDER_WEBHOOK_SECRET": SECRET,
            },
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().decode().split()[-1]
        self._port = int(self.url.rsplit(":", 1)[1])

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@asynccontextmanager
async def contest(
    home: Path,
    postgres: EmbeddedPostgres,
    *,
    users: int,
    listings: int,
    cores: Cores | None = None,
    stock: int = STOCK,
    **of_twin: str,
) -> AsyncIterator[Contest]:
    """Everything filled and started; all of it is ended after the block, and its databases dropped.

    `home` is an empty folder, `postgres` runs; `of_twin` is added to the twin's environment.
    """
    running: list[Server | Provider] = []
    try:
        for database in DATABASES:
            await postgres.ensure_database(database)
        market_url, twin_url = (postgres.url(database) for database in DATABASES)
        topology = home / "springtide.toml"
        topology.write_text(TOPOLOGY.format(path=json.dumps(str(ROOT / "apps")), url=json.dumps(market_url)))
        platform = Platform.from_topology(topology, modules=modules())
        issuer = platform.tokens
        await platform.migrate()
        async with platform:
            await fill_market(platform, users=users, listings=listings, stock=stock)
            chosen = await sample(market_url, READERS)
            tokens = [issuer.issue(id, scopes=[SCOPE], lifetime=DAY) for id in chosen.readers]
        await create_twin(twin_url)
        await fill_twin(market_url, twin_url)
        provider = Provider(home / "provider.journal")
        running.append(provider)
        market = Server(
            "market", "market.asgi:app", cores=cores, path=ROOT / "apps", log=home / "market.log",
            env={
                "SPRINGTIDE_NODE": "app", "SPRINGTIDE_TOPOLOGY": str(topology),
                "SPRINGTIDE_HOME": str(home / ".springtide"), "MARKET_PAYMENTS_URL": provider.url,
                "MARKET_PAYMENTS_KEY": KEY, "MARKET_PAYMENTS_SECRET": SECRET,
            },
        )  # fmt: skip
        running.append(market)
        twin = Server(
            "twin", "bench.twin.asgi:app", cores=cores, path=ROOT, log=home / "twin.log",
            env={
                "TWIN_DATABASE_URL": twin_url, "TWIN_TOKEN_SECRET": SECRET, "TWIN_PROVIDER_URL": provider.url,
                "TWIN_PROVIDER_KEY": KEY, **of_twin,
            },
        )  # fmt: skip
        running.append(twin)
        theirs = Tokens(SECRET, lifetime=DAY)
        stamp = str(int(time.time()))
        sides = [
            Side("market", market, calls_for(chosen, tokens, stamp)),
            Side("twin", twin, calls_for(chosen, [theirs.issue(id) for id in chosen.readers], stamp)),
        ]
        yield Contest(postgres, sides, provider, chosen, Wrk(home))
    finally:
        for one in reversed(running):
            one.stop()
        for database in DATABASES:
            await postgres.query(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
