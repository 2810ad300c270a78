"""Jobs as an application uses them. mypy --strict reads this file; nothing runs it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, assert_type
from uuid import UUID

import msgspec

from springtide.context import Priority
from springtide.db import Database, WriteTransaction
from springtide.errors import JobFailed
from springtide.jobs import (
    Enqueuer,
    Handler,
    JobStatus,
    Queue,
    Run,
    Upcast,
    Worker,
    enqueue,
    enqueue_many,
    job,
    kind_of,
    look,
    result,
)
from springtide.lifecycle import Service
from springtide.outbox import Bell
from springtide.services import Module, ModuleContext


@job(kind="users.welcome", version=2, max_attempts=5, max_run=10.0, priority=Priority.BULK)
class Welcome(msgspec.Struct, frozen=True):
    user_id: int


class Users(Protocol):
    async def register(self, email: str) -> int: ...


class UserService:
    def __init__(self, context: ModuleContext) -> None:
        self._db = context.db

    async def register(self, email: str) -> int:
        async with self._db.write(email) as tx:
            id = await tx.enqueue(Welcome(1), delay=5.0, priority=Priority.CRITICAL, unique_key="1")
            assert_type(id, UUID)
            assert_type(await enqueue(tx, Welcome(user_id=2), run_at=datetime.now(UTC)), UUID)
            ids = await tx.enqueue_many([Welcome(1), Welcome(2)], ordering_key="a", deadline=60.0)
            assert_type(ids, list[UUID])
            assert_type(await enqueue_many(tx, [Welcome(1)], limit_key="a"), list[UUID])
        found = await look(self._db, email, id)
        assert_type(found, JobStatus | None)
        await result(self._db, email, id, timeout=1.0)
        return 1

    async def welcome_many(self, jobs: list[Welcome], runs: list[Run]) -> list[Exception | None]:
        await runs[0].progress(len(jobs))
        return [None for _ in jobs]

    async def welcome(self, job: Welcome, run: Run) -> None:
        assert_type(job.user_id, int)
        assert_type(run.key, str)
        assert_type(run.tx, WriteTransaction)
        raise JobFailed("no such user")


HANDLER = Handler(Welcome, UserService.welcome, effect="transactional")
assert_type(HANDLER, Handler[Welcome])
MANY = Handler(
    Welcome, UserService.welcome_many, batch=10, wait=0.1, upcasts=[Upcast(1, lambda fields: fields)]
)
assert_type(MANY, Handler[Welcome])
assert_type(kind_of(Welcome(1)).version, int)

MODULE = Module("users", migrations=Path("migrations"), provides=Users, factory=UserService, jobs=[HANDLER])


def alone(database: Database, service: UserService) -> Service:
    database.enqueue = Enqueuer(names=["users.welcome/2"], bell=Bell())
    queue = Queue(database=database, handlers=[HANDLER], implementation=service)
    return Worker([queue], dsns={"main": "postgresql://"}, slots=5, drain=1.0)
