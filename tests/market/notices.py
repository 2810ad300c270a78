"""A platform with the notifications module alone, its mailbox, and ways to look at both."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from email.headerregistry import Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.market.carrying import claiming
from tests.market.harness import Recorder, settled, topology

from market.notifications.api import Kind, Notice, Notifications, Recipient
from market.notifications.settings import NotificationSettings, Smtp
from market.platform import modules
from springtide.clock import Clock
from springtide.jobs._run import JobRun, Route
from springtide.jobs._store import Store
from springtide.platform import Platform

SENDER = Address("Market", addr_spec="market@example.com")
_numbers = itertools.count(1)


def somebody(bucket: int | None = None) -> int:
    """A fresh recipient's id; even ones are on the first of two shards, odd ones on the second."""
    number = next(_numbers)
    return number << 10 | ((900 if number % 2 else 100) if bucket is None else bucket)


def comment(recipient: int, actor: int, key: str, **fields: Any) -> Notice:
    data = {"actor": str(actor), "article": "On tides", "excerpt": "Well said", **fields.pop("data", {})}
    return Notice(
        recipient=recipient, kind="comment", key=key, data=data, link="/articles/on-tides", **fields
    )


def notice(recipient: int, kind: Kind, key: str, **data: str) -> Notice:
    return Notice(recipient=recipient, kind=kind, key=key, data=data, link="/orders/5")


def mailing(url: str, **options: Any) -> NotificationSettings:
    """Mail goes to that server; links are https, as they are in production."""
    return NotificationSettings(
        smtp=Smtp.parse(url, None), sender=SENDER, public_url="https://market.example", **options
    )


class World:
    """The module, and the rows and jobs that it made."""

    def __init__(self, platform: Platform, recorder: Recorder) -> None:
        self.platform = platform
        self.recorder = recorder
        self.notifications = platform.service(Notifications)
        self.db = platform.database("notifications")

    async def introduced(self, name: str = "Ann", email: str | None = None, id: int | None = None) -> int:
        """Somebody who can be told; the id."""
        id = somebody() if id is None else id
        person = Recipient(id=id, name=name, email=email or f"person{id}@example.com", version=1)
        await self.notifications.introduce(person)
        return id

    async def jobs(self, where: str = "true") -> list[Any]:
        same = "select bucket, id, kind, payload, attempt, error, enqueued_at, "
        found = await self.db.scatter(
            "select bucket, id, kind, state, attempt, error, run_at, enqueued_at,"
            " statement_timestamp() as now, convert_from(payload, 'UTF8') as payload"
            f" from ({same} state, run_at from notifications._job"
            f" union all {same} 'done', due_at from notifications._job_done) as job where {where}"
        )
        return sorted(found, key=lambda row: row["enqueued_at"])

    async def run_jobs(self) -> int:
        """Run all jobs that are ready, due or not, once each and as a worker would; how many."""
        (module,) = self.platform.modules
        made, ran = self.platform._registry.implementation(module.name), 0
        routes = {handler.kind.name: Route(handler, self.db, made) for handler in module.jobs}
        lease: Any = SimpleNamespace(worker="tests")
        async with claiming(self.platform) as claim:
            for shard, pool in self.db.pools.items():
                store = Store(self.db, shard)
                await pool.execute(
                    "update notifications._job set run_at = statement_timestamp() where state = 'ready'"
                )
                for claimed in await claim(store, list(routes)):
                    route = routes[f"{claimed.kind}/{claimed.version}"]
                    run = JobRun(claimed, route, store, lease, clock=self.platform.clock)
                    _, ending, _ = await run.perform()
                    assert ending is not None
                    assert await store.end(claimed.run, "tests", ending)
                    ran += 1
        return ran

    async def mail_states(self, recipient: int) -> list[str]:
        """Of the notices of an inbox, the newest first, once everybody has what was written."""
        await settled(self.platform)
        return [item.mail for item in (await self.notifications.inbox(recipient)).items]

    @asynccontextmanager
    async def working(self, drain: float = 5.0) -> AsyncIterator[None]:
        """A worker runs the jobs meanwhile."""
        started = []
        try:
            for service in self.platform.background(drain=drain):
                await service.start()
                started.append(service)
            yield
        finally:
            for service in reversed(started):
                await service.stop()


@asynccontextmanager
async def world(
    urls: Sequence[str], home: Path, settings: NotificationSettings, *, clock: Clock | None = None
) -> AsyncIterator[World]:
    recorder = Recorder()
    parts = [module for module in modules(outgoing=settings) if module.name == "notifications"]
    options: dict[str, Any] = {} if clock is None else {"clock": clock}
    platform = Platform(topology(urls), modules=parts, home=home, sink=recorder, check_calls=True, **options)
    async with platform:
        yield World(platform, recorder)
