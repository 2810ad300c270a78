"""Record what became of a step: the flow's new state, its history and the job that comes next, in one write.

Every function here but `go_on` is called inside the write transaction that commits all of it, with the row
as it was read, and answers the row as it is afterwards. A move that is not recorded, because the flow is
elsewhere by now, is told by None: then nothing was written.

Who drives a flow holds its job. While it goes from step to step the flow keeps that job and no other is made;
the move that ends this makes the one that comes next, and drops the one that was held.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from springtide.db import Bucket
from springtide.errors import JobFailed
from springtide.flows._store import Statements
from springtide.flows.flow import Moved, Pause, Step, WaitFor, Workflow
from springtide.outbox.kinds import MAX_KEY_CHARS
from springtide.signals import FlowMoved, Sink

if TYPE_CHECKING:
    from springtide.db import Database, WriteTransaction

__all__ = ["Moves", "data_of", "key_of"]

MAX_CHARS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Aim:
    """Where a move goes: the state and step, and the job that goes on from there (None: nobody does)."""

    state: str
    step: int
    job: str | None = None
    run_at: datetime | None = None
    event: str | None = None
    key: str | None = None
    until: datetime | None = None

    @property
    def passing(self) -> bool:
        """Whether somebody who drives the flow goes on from there."""
        return self.state in ("running", "undoing")


class Moves:
    def __init__(self, module: str, statements: Statements, sink: Sink) -> None:
        self._module = module
        self._statements = statements
        self._sink = sink

    async def begin(
        self,
        tx: WriteTransaction,
        workflow: Workflow[Any],
        id: UUID,
        key: str | None,
        data: Any,
        stored: bytes,
        step: int,
        hold: float,
    ) -> bool:
        """A flow at `step`; False when there is one of this key."""
        aim = await self._aim(tx, workflow, step, data)
        job = await self._enqueue(tx, workflow, tx.bucket, id, 1, aim, hold)
        made = await tx.fetch_value(
            self._statements.start, tx.bucket, id, workflow.kind, workflow.version, key, aim.state, stored,
            aim.event, aim.key, aim.until, job, step,
        )  # fmt: skip
        if made is None:
            await tx.execute(self._statements.drop_job, tx.bucket, job)
        return made is not None

    async def enter(
        self,
        tx: WriteTransaction,
        workflow: Workflow[Any],
        row: Any,
        step: int,
        data: Any,
        *,
        met: bool,
        **how: Any,
    ) -> Any | None:
        """Forward to `step`; to the end when there is none.

        `met`: it waits for an event, and `tx` holds what those who send it lock: then whether it was sent is
        known here, and a job has to look only if it was.
        """
        aim = await self._aim(tx, workflow, step, data, met)
        moved = await self._move(tx, workflow, row, aim, data=data, **how)
        if met and moved is not None and moved["sent"]:
            await self.look_now(tx, workflow, moved)
        return moved

    async def go_on(
        self, database: Database, workflow: Workflow[Any], row: Any, data: Any, attempt: int, held: UUID
    ) -> Any | None:
        """Forward to the next step, of who drives the flow; nobody follows it. A commit of its own."""
        aim = _Aim(state="running", step=row["step"] + 1)
        values = _values(workflow, row, aim, held, data=data, outcome="done", attempt=attempt, held=held)
        moved = await database.write_one(Bucket(row["bucket"]), self._statements.move, *values)
        if moved is not None:
            self._sink.emit(self._said(workflow, row, "done", aim.state))
        return moved

    async def turn(
        self,
        tx: WriteTransaction,
        workflow: Workflow[Any],
        row: Any,
        step: int,
        reason: str | None,
        **how: Any,
    ) -> Any | None:
        """Backward: `step` and all before it are undone; `reason` None: for the one that is known."""
        reason = reason[:MAX_CHARS] if reason is not None else None
        index = workflow.undoing(step)
        aim = _Aim(state="undone", step=0)
        if index is not None:
            aim = _Aim(state="undoing", step=index, job=f"{workflow.steps[index].name}.undo")
        return await self._move(tx, workflow, row, aim, reason=reason, **how)

    async def undone(
        self, tx: WriteTransaction, workflow: Workflow[Any], row: Any, attempt: int, held: UUID | None
    ) -> Any | None:
        """The step that the flow is at is undone."""
        return await self.turn(
            tx, workflow, row, row["step"] - 1, None, outcome="undone", attempt=attempt, held=held
        )

    async def stick(
        self, tx: WriteTransaction, workflow: Workflow[Any], row: Any, error: str, attempt: int
    ) -> Any | None:
        """Undoing it failed for good; its dead letter stays."""
        aim = _Aim(state="stuck", step=row["step"])
        moved = await self._move(tx, workflow, row, aim, outcome="stuck", error=error, attempt=attempt)
        if moved is not None:
            await tx.execute(self._statements.set_job, row["bucket"], row["id"], row["job_id"])
        return moved

    async def resume(self, tx: WriteTransaction, workflow: Workflow[Any], row: Any) -> Any | None:
        """Undo the step again at which it is stuck, as often as the first time; its dead letter goes."""
        if row["job_id"] is not None:
            await tx.execute(self._statements.drop_job, row["bucket"], row["job_id"])
        return await self.turn(tx, workflow, row, row["step"], None, outcome="resumed")

    async def later(
        self, tx: WriteTransaction, workflow: Workflow[Any], row: Any, seconds: float, held: UUID | None
    ) -> Any | None:
        """The step does not know yet: it is asked again."""
        until = await _now(tx) + timedelta(seconds=seconds)
        name = workflow.steps[row["step"]].name
        aim = _Aim(state="waiting", step=row["step"], job=name, until=until, run_at=until)
        return await self._move(tx, workflow, row, aim, outcome=None, held=held)

    async def wait_on(self, tx: WriteTransaction, workflow: Workflow[Any], row: Any) -> Any:
        """Nothing has come: look again when it is time, or when it is sent."""
        id = None
        if row["wait_until"] is not None:
            id = await tx.enqueue(self._go(workflow, row), run_at=row["wait_until"])
        await tx.execute(self._statements.set_job, row["bucket"], row["id"], id)
        return row

    async def look_now(self, tx: WriteTransaction, workflow: Workflow[Any], row: Any) -> None:
        """What the flow waits for was sent; `row` is locked."""
        if row["job_id"] is not None:
            await tx.execute(self._statements.drop_job, row["bucket"], row["job_id"])
        id = await tx.enqueue(self._go(workflow, row))
        await tx.execute(self._statements.set_job, row["bucket"], row["id"], id)

    async def hand_over(
        self, tx: WriteTransaction, workflow: Workflow[Any], bucket: int, id: UUID, held: UUID
    ) -> None:
        """Whoever drove the flow, and held this job of it, does not go on: workers do, from where it is. Also
        from where it is stuck: then this is its dead letter, which was retried."""
        row = await tx.fetch_one(self._statements.lock, bucket, id)
        if row is None or row["job_id"] != held:
            return
        if row["state"] == "stuck":
            await self.resume(tx, workflow, row)
            return
        if row["state"] not in ("running", "undoing"):
            return
        name = workflow.steps[row["step"]].name
        name = name if row["state"] == "running" else f"{name}.undo"
        aim = _Aim(state=row["state"], step=row["step"], job=name)
        job = await self._enqueue(tx, workflow, bucket, id, row["seq"], aim, 0.0)
        await tx.execute(self._statements.set_job, bucket, id, job)
        await tx.execute(self._statements.drop_job, bucket, held)

    def _go(self, workflow: Workflow[Any], row: Any) -> Any:
        return workflow.jobs[workflow.steps[row["step"]].name](row["bucket"], row["id"], row["seq"])

    async def _aim(
        self,
        tx: WriteTransaction,
        workflow: Workflow[Any],
        step: int,
        data: Any,
        met: bool = False,
    ) -> _Aim:
        if step == len(workflow.steps):
            return _Aim(state="done", step=step)
        node = workflow.steps[step]
        if isinstance(node, Step):
            return _Aim(state="running", step=step, job=node.name)
        if isinstance(node, WaitFor):
            return await self._wait(tx, node, step, key_of(node, data), met)
        until = _until(node, data, await _now(tx))
        return _Aim(state="waiting", step=step, job=node.name, until=until, run_at=until)

    async def _wait(self, tx: WriteTransaction, node: WaitFor, step: int, key: str, met: bool) -> _Aim:
        until = None
        if node.timeout is not None:
            until = await _now(tx) + timedelta(seconds=node.timeout)
        job = None if met and until is None else node.name
        return _Aim(
            state="waiting", step=step, job=job, run_at=until if met else None, event=node.event, key=key,
            until=until,
        )  # fmt: skip

    async def _move(
        self,
        tx: WriteTransaction,
        workflow: Workflow[Any],
        row: Any,
        aim: _Aim,
        *,
        outcome: str | None,
        data: Any = None,
        reason: str | None = None,
        error: str | None = None,
        attempt: int = 0,
        held: UUID | None = None,
        hold: float = 0.0,
    ) -> Any | None:
        bucket, id, seq = row["bucket"], row["id"], row["seq"]
        job = held
        if held is None or not aim.passing:
            if held is not None and aim.job is not None:  # it must move now: there will be a job
                there = await tx.fetch_one(self._statements.lock, bucket, id)
                if there is None or there["seq"] != seq or there["job_id"] != held:
                    return None
            job = await self._enqueue(tx, workflow, bucket, id, seq + 1, aim, hold)
        values = _values(
            workflow, row, aim, job, data=data, reason=reason, outcome=outcome, attempt=attempt, error=error,
            held=held,
        )  # fmt: skip
        moved = await tx.fetch_one(self._statements.move, *values)
        if moved is None:
            return None
        if outcome is not None:
            said = self._said(workflow, row, outcome, aim.state)
            tx.on_commit(lambda: self._sink.emit(said))
        if workflow.follow is not None and workflow.followed(aim.state):
            await workflow.follow(tx, _moved(workflow, row, moved, outcome))
        return moved

    async def _enqueue(
        self,
        tx: WriteTransaction,
        workflow: Workflow[Any],
        bucket: int,
        id: UUID,
        seq: int,
        aim: _Aim,
        hold: float,
    ) -> UUID | None:
        if aim.job is None:
            return None
        go = workflow.jobs[aim.job](bucket, id, seq)
        if aim.run_at is not None:
            return await tx.enqueue(go, run_at=aim.run_at)
        return await tx.enqueue(go, delay=hold)

    def _said(self, workflow: Workflow[Any], row: Any, outcome: str, state: str) -> FlowMoved:
        step = _name(workflow, row)
        return FlowMoved(self._module, workflow.kind, workflow.version, str(row["id"]), step, outcome, state)


def _name(workflow: Workflow[Any], row: Any) -> str:
    """The step that a move tells of; backward, `step` of the row is the one that was undone."""
    step: int = min(row["step"], len(workflow.steps) - 1)
    return workflow.steps[step].name


def _values(
    workflow: Workflow[Any],
    row: Any,
    aim: _Aim,
    job: UUID | None,
    *,
    outcome: str | None,
    attempt: int,
    held: UUID | None,
    data: Any = None,
    reason: str | None = None,
    error: str | None = None,
) -> tuple[Any, ...]:
    """Of the statement that moves a flow."""
    return (
        row["bucket"], row["id"], row["seq"], aim.state, aim.step,
        None if data is None else msgspec.json.encode(data), reason, aim.event, aim.key, aim.until, job, held,
        _name(workflow, row), outcome, attempt, error[:MAX_CHARS] if error is not None else None,
    )  # fmt: skip


def data_of(workflow: Workflow[Any], row: Any) -> Any:
    """Raises JobFailed."""
    try:
        return workflow.decode(row["data"])
    except msgspec.MsgspecError as error:
        raise JobFailed(f"the data of a {workflow.name} cannot be read: {error}") from error


def _moved(workflow: Workflow[Any], before: Any, row: Any, outcome: str | None) -> Moved:
    ended = row["ended_at"] is not None
    return Moved(
        flow=UUID(int=row["id"].int),
        key=row["key"],
        data=data_of(workflow, row),
        before=before["state"],
        state=row["state"],
        step=None if ended else workflow.steps[row["step"]].name,
        outcome=outcome,
        reason=row["reason"],
    )


async def _now(tx: WriteTransaction) -> datetime:
    now: datetime = await tx.fetch_value("SELECT clock_timestamp()")
    return now


def key_of(node: WaitFor, data: Any) -> str:
    """Of the event that is waited for. Raises JobFailed."""
    key = node.key(data)
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_CHARS or "\0" in key:
        raise JobFailed(
            f"step {node.name!r}: key must make 1 to {MAX_KEY_CHARS} characters without NUL, got {key!r}"
        )
    return key


def _until(node: Pause, data: Any, now: datetime) -> datetime:
    if node.until is None:
        assert node.seconds is not None
        return now + timedelta(seconds=node.seconds)
    until = node.until(data)
    if until.tzinfo is None:
        raise JobFailed(f"step {node.name!r}: until must make a time with a time zone, got {until!r}")
    return until
