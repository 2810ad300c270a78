"""Record what became of a step: the flow's new state, its history and the job that comes next, in one write.

Every function here is called inside the write transaction that commits all of it, with the row as it was
read. A move that is not recorded, because the flow is elsewhere by now, is told by False: then nothing was
written.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from springtide.errors import JobFailed
from springtide.flows._store import Statements
from springtide.flows.flow import Pause, Step, WaitFor, Workflow
from springtide.signals import FlowMoved, Sink

if TYPE_CHECKING:
    from springtide.db import WriteTransaction

__all__ = ["Moves"]

MAX_CHARS = 2000
MAX_KEY_CHARS = 500


class Moves:
    def __init__(self, module: str, statements: Statements, sink: Sink) -> None:
        self._module = module
        self._statements = statements
        self._sink = sink

    async def enter(
        self, tx: WriteTransaction, workflow: Workflow[Any], row: Any, step: int, data: Any, **how: Any
    ) -> bool:
        """Forward to `step`; to the end when there is none."""
        if step == len(workflow.steps):
            return await self._move(tx, workflow, row, "done", step, data=data, **how)
        node = workflow.steps[step]
        if isinstance(node, Step):
            return await self._move(tx, workflow, row, "running", step, data=data, job=node.name, **how)
        now: datetime = await tx.fetch_value("SELECT clock_timestamp()")
        if isinstance(node, WaitFor):
            return await self._move(
                tx, workflow, row, "waiting", step, data=data, job=node.name, event=node.event,
                key=_key(node, data), until=now + timedelta(seconds=node.timeout), **how,
            )  # fmt: skip
        until = _until(node, data, now)
        return await self._move(
            tx, workflow, row, "waiting", step, data=data, job=node.name, until=until, run_at=until, **how
        )

    async def turn(
        self,
        tx: WriteTransaction,
        workflow: Workflow[Any],
        row: Any,
        step: int,
        reason: str | None,
        **how: Any,
    ) -> bool:
        """Backward: `step` and all before it are undone; `reason` None: for the one that is known."""
        reason = reason[:MAX_CHARS] if reason is not None else None
        index = workflow.undoing(step)
        if index is None:
            return await self._move(tx, workflow, row, "undone", 0, reason=reason, **how)
        job = f"{workflow.steps[index].name}.undo"
        return await self._move(tx, workflow, row, "undoing", index, job=job, reason=reason, **how)

    async def undone(self, tx: WriteTransaction, workflow: Workflow[Any], row: Any, attempt: int) -> bool:
        """The step that the flow is at is undone."""
        return await self.turn(tx, workflow, row, row["step"] - 1, None, outcome="undone", attempt=attempt)

    async def stick(
        self, tx: WriteTransaction, workflow: Workflow[Any], row: Any, error: str, attempt: int
    ) -> bool:
        """Undoing it failed for good; its dead letter stays."""
        moved = await self._move(
            tx, workflow, row, "stuck", row["step"], outcome="stuck", error=error, attempt=attempt
        )
        if moved:
            await tx.execute(self._statements.set_job, row["bucket"], row["id"], row["job_id"])
        return moved

    async def begin(self, tx: WriteTransaction, workflow: Workflow[Any], row: Any, data: Any) -> None:
        """The first step of a flow that was inserted just now."""
        await self.enter(tx, workflow, row, 0, data, outcome=None)

    async def wait_on(self, tx: WriteTransaction, workflow: Workflow[Any], row: Any) -> None:
        """Nothing has come: look again when it is late, or when it is sent."""
        go = workflow.jobs[workflow.steps[row["step"]].name](row["bucket"], row["id"], row["seq"])
        id = await tx.enqueue(go, run_at=row["wait_until"])
        await tx.execute(self._statements.set_job, row["bucket"], row["id"], id)

    async def _move(
        self,
        tx: WriteTransaction,
        workflow: Workflow[Any],
        row: Any,
        state: str,
        step: int,
        *,
        outcome: str | None,
        data: Any = None,
        job: str | None = None,
        event: str | None = None,
        key: str | None = None,
        until: datetime | None = None,
        run_at: datetime | None = None,
        reason: str | None = None,
        error: str | None = None,
        attempt: int = 0,
    ) -> bool:
        bucket, id = row["bucket"], row["id"]
        stored = None if data is None else msgspec.json.encode(data)
        seq = await tx.fetch_value(
            self._statements.move, bucket, id, row["seq"], state, step, stored, reason, event, key, until
        )
        if seq is None:
            return False
        if outcome is not None:
            # backward, `step` of the row is the one that was undone
            name = workflow.steps[min(row["step"], len(workflow.steps) - 1)].name
            await tx.execute(
                self._statements.record, bucket, id, row["seq"], name, outcome, attempt,
                error[:MAX_CHARS] if error is not None else None,
            )  # fmt: skip
            self._tell(tx, workflow, row, name, outcome, state)
        if job is not None:
            made = await tx.enqueue(workflow.jobs[job](bucket, id, seq), run_at=run_at)
            await tx.execute(self._statements.set_job, bucket, id, made)
        return True

    def _tell(
        self, tx: WriteTransaction, workflow: Workflow[Any], row: Any, step: str, outcome: str, state: str
    ) -> None:
        moved = FlowMoved(self._module, workflow.kind, workflow.version, str(row["id"]), step, outcome, state)
        tx.on_commit(lambda: self._sink.emit(moved))


def _key(node: WaitFor, data: Any) -> str:
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
