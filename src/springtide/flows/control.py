"""The flows of one module: start them, send them events, cancel and resume them, look at them.

What changes a flow takes an open write of the module's database, and commits with it. A flow lives in the
bucket of the key of the write that started it; events reach the flows of the bucket of their write's key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID, uuid4

import msgspec

from springtide.db import Bucket, Consistency, Database, Key, bucket_of
from springtide.errors import JobError
from springtide.flows._engine import At, By, meeting
from springtide.flows._moves import Moves
from springtide.flows._store import Statements
from springtide.flows.flow import MAX_SECONDS, Step, Workflow
from springtide.jobs import Enqueuer, Handler
from springtide.jobs.enqueue import MAX_PAYLOAD_BYTES
from springtide.outbox.kinds import check_key
from springtide.signals import NullSink, Sink

if TYPE_CHECKING:
    from springtide.db import WriteTransaction

__all__ = ["FlowStatus", "Flows", "StepRecord"]

D = TypeVar("D", bound=msgspec.Struct)

DRIVEN = ("running", "undoing")
"""Not those that wait: who drives a flow does not."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What became of one step: done, refused, failed, late, cancelled, undone, stuck or resumed."""

    seq: int
    step: str
    outcome: str
    attempt: int
    error: str | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowStatus:
    """A flow now. `state`: running, waiting, undoing, stuck, done or undone; `step`: the one that it is at.

    `reason`: why it turned; `waits_for`: the event, or "a time", until `wait_until`; `steps`: its history,
    where it was asked for.
    """

    id: UUID
    bucket: int
    kind: str
    version: int
    key: str | None
    state: str
    step: str | None
    reason: str | None
    waits_for: str | None
    wait_until: datetime | None
    job_id: UUID | None
    data: Any
    started_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    steps: tuple[StepRecord, ...] = ()


class Flows:
    """The workflows of the module whose database this is. Raises JobError when two have one name and version,
    or those of one kind are not kept for the same time.

    keep:     seconds that flows of a kind stay visible after their end.
    handlers: those of the steps' jobs, for the module's worker.
    """

    def __init__(
        self, database: Database, workflows: Sequence[Workflow[Any]], *, sink: Sink | None = None
    ) -> None:
        self.database = database
        self.workflows = {workflow.name: workflow for workflow in workflows}
        if len(self.workflows) < len(workflows):
            raise JobError(f"database {database.name!r} has two workflows of one kind and version")
        self.keep: dict[str, float] = {}
        for workflow in workflows:
            keep = self.keep.setdefault(workflow.kind, workflow.keep)
            if keep != workflow.keep:
                raise JobError(
                    f"workflow {workflow.kind}: keep must be the same in all versions,"
                    f" got {keep} and {workflow.keep}"
                )
        self.statements = Statements(database.schema)
        self.moves = Moves(database.name, self.statements, sink or NullSink())
        self._at = {
            workflow.name: [
                At(database, workflow, index, self.statements, self.moves)
                for index in range(len(workflow.steps))
            ]
            for workflow in workflows
        }
        self.handlers: Sequence[Handler[Any]] = [
            handler for steps in self._at.values() for at in steps for handler in at.handlers()
        ]

    async def start(
        self,
        tx: WriteTransaction,
        workflow: Workflow[D],
        data: D,
        *,
        key: str | None = None,
        at: str | None = None,
        hold: float = 0.0,
    ) -> UUID:
        """A flow that begins when `tx` commits; its id. With a key: the one of this kind and key in the
        bucket of `tx`, if there is one, also one that has ended and is still kept.

        at:   the step that it begins at, None: the first. Those before it count as done: for what was begun
              before there was a workflow.
        hold: seconds for which workers leave it to who started it, and calls `drive` after the commit.
        """
        self._check(workflow.name)
        if not isinstance(data, workflow.data):
            raise JobError(f"a {workflow.kind} carries {workflow.data.__name__}, got {type(data).__name__}")
        check_key("key", key, JobError)
        _check_hold(hold)
        stored = _encoded(workflow.kind, data)
        id = uuid4()
        step = 0 if at is None else _index(workflow, at)
        if not await self.moves.begin(tx, workflow, id, key, data, stored, step, hold):
            known: UUID = await tx.fetch_value(self.statements.of_key, tx.bucket, workflow.kind, key)
            return UUID(int=known.int)
        return id

    async def drive(
        self, key: Key, id: UUID, implementation: Any, *, more: Callable[[], bool] = lambda: True
    ) -> None:
        """Run the steps of a flow here, one after the other, instead of waiting for workers to do so.

        Until it has ended, waits, is moved by somebody else, or `more` says no, which is asked before each
        step. What is left then, workers do; also when this process dies, after the `hold` of the flow.
        `implementation` is the module's. A step has one attempt here: what it raises is raised, and workers
        try again.
        """
        row = await self._row(key, id)
        if row is None or row["job_id"] is None:
            return
        workflow, bucket, held = self._of(row), row["bucket"], row["job_id"]
        try:
            while row is not None and row["state"] in DRIVEN and more():
                row = await self._drive(workflow, row, implementation, held)
        except Exception:
            await self._hand_over(workflow, bucket, id, held)
            raise
        if row is not None and row["state"] in DRIVEN:
            await self._hand_over(workflow, bucket, id, held)

    async def send(self, tx: WriteTransaction, event: str, key: str, payload: Any = None) -> None:
        """The event `event` with `key`, for one flow in the bucket of `tx` that waits for it or will."""
        if tx.isolation != "read committed":
            raise JobError(f"an event is sent in a read committed write, got {tx.isolation!r}")
        check_key("key", key, JobError)
        bucket, stored = tx.bucket, _encoded(event, payload)
        await tx.execute(self.statements.meet, meeting(self.database.schema, bucket, event, key))
        await tx.execute(self.statements.put_event, bucket, event, key, stored)
        found = await tx.fetch(self.statements.waiting, bucket, event, key)
        if jobs := [row["job_id"] for row in found if row["job_id"] is not None]:
            await self._hasten(tx, jobs)
        for idle in (row["id"] for row in found if row["job_id"] is None):
            await self.look_now(tx, idle)

    async def look_now(self, tx: WriteTransaction, id: UUID) -> None:
        """For `send` and upkeep: a flow that waits for an event, and has no job, looks whether it was sent.

        One of a version that this release does not know is left to the upkeep of one that does.
        """
        row = await tx.fetch_one(self.statements.lock, tx.bucket, id)
        if row is None or row["wait_event"] is None or row["job_id"] is not None:
            return
        workflow = self.of(row["kind"], row["version"])
        if workflow is not None:
            await self.moves.look_now(tx, workflow, row)

    async def wake(self, tx: WriteTransaction, id: UUID) -> bool:
        """Ask the step again now at which a flow waits, because it raised StepLater; one that is being asked
        is asked again if it raises that. Whether the flow is at a step."""
        row = await tx.fetch_one(self.statements.lock, tx.bucket, id)
        if row is None or row["state"] not in ("running", "waiting"):
            return False
        if not isinstance(self._of(row).steps[row["step"]], Step):
            return False
        await tx.execute(self.statements.wake, tx.bucket, id)
        if row["state"] == "waiting" and row["job_id"] is not None:
            await self._hasten(tx, [row["job_id"]])
        return True

    async def cancel(
        self,
        tx: WriteTransaction,
        id: UUID,
        reason: str = "cancelled",
        *,
        done: bool = False,
        hold: float = 0.0,
    ) -> bool:
        """Undo the step that the flow is at and all before it; `done`: also of one that is done; `hold`: as
        `start` has it.

        Whether it is being undone now, or was; False when it is done, or unknown.
        """
        _check_hold(hold)
        row = await tx.fetch_one(self.statements.lock, tx.bucket, id)
        if row is None or (row["state"] == "done" and not done):
            return False
        if row["state"] in ("undoing", "stuck", "undone"):
            return True
        workflow = self._of(row)
        if row["job_id"] is not None:
            await tx.execute(self.statements.drop_job, row["bucket"], row["job_id"])
        how: dict[str, Any] = {"outcome": "cancelled", "hold": hold}
        return await self.moves.turn(tx, workflow, row, row["step"], reason, **how) is not None

    async def resume(self, tx: WriteTransaction, id: UUID) -> bool:
        """Try again to undo the step at which a flow is stuck; whether it was."""
        row = await tx.fetch_one(self.statements.lock, tx.bucket, id)
        if row is None or row["state"] != "stuck":
            return False
        return await self.moves.resume(tx, self._of(row), row) is not None

    async def look(self, key: Key, id: UUID) -> FlowStatus | None:
        """A flow that was started in a write of `key`, with its history; None: nobody knows it (any more)."""
        row = await self._row(key, id)
        if row is None:
            return None
        reader = self.database.read(key, consistency=Consistency.STRONG)
        steps = await reader.fetch(self.statements.steps, bucket_of(key), id)
        return self._shown(row, tuple(StepRecord(**step) for step in steps))

    async def find(self, id: UUID) -> FlowStatus | None:
        """As `look`, on all shards."""
        for pool in self.database.pools.values():
            bucket = await pool.fetch_value(self.statements.find, id)
            if bucket is not None:
                return await self.look(Bucket(bucket), id)
        return None

    async def list(
        self, *, kind: str | None = None, state: str | None = None, limit: int = 100
    ) -> list[FlowStatus]:
        """The flows that moved last, on all shards; `state` None: those that have not ended."""
        if limit < 1:
            raise JobError(f"limit must be >= 1, got {limit}")
        found = []
        for pool in self.database.pools.values():
            rows = await pool.fetch(self.statements.list, kind, state, limit)
            found += [self._shown(row, ()) for row in rows]
        found.sort(key=lambda one: one.updated_at, reverse=True)
        return found[:limit]

    def of(self, kind: str, version: int) -> Workflow[Any] | None:
        return self.workflows.get(f"{kind}/{version}")

    def _of(self, row: Any) -> Workflow[Any]:
        self._check(f"{row['kind']}/{row['version']}")
        return self.workflows[f"{row['kind']}/{row['version']}"]

    def _check(self, name: str) -> None:
        if name not in self.workflows:
            known = ", ".join(sorted(self.workflows)) or "none"
            raise JobError(
                f"database {self.database.name!r} has no workflow {name} (it has: {known});"
                " list it in its Module(workflows=...)"
            )

    async def _row(self, key: Key, id: UUID) -> Any | None:
        reader = self.database.read(key, consistency=Consistency.STRONG)
        return await reader.fetch_one(self.statements.look, bucket_of(key), id)

    async def _drive(self, workflow: Workflow[Any], row: Any, implementation: Any, held: UUID) -> Any | None:
        """The flow after one more step; None: it is somebody else's."""
        index, bucket, id = row["step"], row["bucket"], UUID(int=row["id"].int)
        at, step = self._at[workflow.name][index], workflow.steps[index]
        assert isinstance(step, Step)  # the others are waited for
        go = workflow.jobs[step.name](bucket, id, row["seq"])
        async with asyncio.timeout(step.max_run):
            if row["state"] == "running":
                return await at.do(implementation, go, By(1, step.max_attempts, held), row)
            return await at.undo(implementation, go, By(1, step.undo_attempts, held), row)

    async def _hand_over(self, workflow: Workflow[Any], bucket: int, id: UUID, held: UUID) -> None:
        async with self.database.write(Bucket(bucket)) as tx:
            await self.moves.hand_over(tx, workflow, bucket, id, held)

    async def _hasten(self, tx: WriteTransaction, jobs: Sequence[UUID]) -> None:
        await tx.execute(self.statements.hasten, tx.bucket, jobs)
        if isinstance(enqueuer := self.database.enqueue, Enqueuer):
            enqueuer.ring(tx)

    def _shown(self, row: Any, steps: tuple[StepRecord, ...]) -> FlowStatus:
        workflow = self.of(row["kind"], row["version"])
        step = None
        if row["ended_at"] is None and workflow is not None:
            step = workflow.steps[row["step"]].name
        timed = row["state"] == "waiting" and row["wait_until"] is not None
        waits_for = row["wait_event"] or ("a time" if timed else None)
        return FlowStatus(
            id=UUID(int=row["id"].int),
            bucket=row["bucket"],
            kind=row["kind"],
            version=row["version"],
            key=row["key"],
            state=row["state"],
            step=step,
            reason=row["reason"],
            waits_for=waits_for,
            wait_until=row["wait_until"],
            job_id=row["job_id"],
            data=msgspec.json.decode(row["data"]),
            started_at=row["started_at"],
            updated_at=row["updated_at"],
            ended_at=row["ended_at"],
            steps=steps,
        )


def _index(workflow: Workflow[Any], name: str) -> int:
    names = [step.name for step in workflow.steps]
    if name not in names:
        raise JobError(f"workflow {workflow.name} has no step {name!r} (it has: {', '.join(names)})")
    return names.index(name)


def _check_hold(hold: float) -> None:
    if not 0 <= hold <= MAX_SECONDS:
        raise JobError(f"hold must be >= 0 seconds and at most ten years, got {hold}")


def _encoded(what: str, value: Any) -> bytes:
    stored = msgspec.json.encode(value)
    if len(stored) > MAX_PAYLOAD_BYTES:
        raise JobError(
            f"{what} has {len(stored)} bytes, more than {MAX_PAYLOAD_BYTES}: store it and send its id"
        )
    return stored
