"""Run one step of one flow: as the handler of its job, or for who drives the flow.

A run begins by asking where the flow is: one that comes late, because its worker was killed after the
commit or frozen before it, finds the flow elsewhere and does nothing. A step with effect "any" runs outside
of any transaction and is recorded after it; a transactional one runs inside the transaction that records
it, with the flow's row locked. An exception is the job's failure: it is tried again, and after its last
attempt a dead letter, for which `upkeep.py` turns the flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from springtide.db import Bucket, Consistency, Database
from springtide.errors import JobFailed, StepLater, StepRefused
from springtide.flows._moves import Moves, data_of, key_of
from springtide.flows._store import Statements
from springtide.flows.flow import Go, Node, Step, StepRun, WaitFor, Workflow
from springtide.jobs import Handler, Run

if TYPE_CHECKING:
    from springtide.db import WriteTransaction

__all__ = ["At", "By", "meeting"]


@dataclass(frozen=True, slots=True)
class By:
    """Who runs a step: which attempt it is, and the flow's job, which whoever drives the flow holds."""

    attempt: int
    max_attempts: int
    held: UUID | None = None


def meeting(schema: str, bucket: int, event: str, key: str) -> str:
    """What an event and the flow that waits for it lock."""
    return f"{schema}._flow_event {bucket} {event} {key}"


class At:
    """One step of one workflow in one module."""

    def __init__(
        self,
        database: Database,
        workflow: Workflow[Any],
        index: int,
        statements: Statements,
        moves: Moves,
    ) -> None:
        self._database = database
        self._workflow = workflow
        self._index = index
        self._node: Node = workflow.steps[index]
        behind = workflow.steps[index + 1 : index + 2]
        self._passing = isinstance(next(iter(behind), None), Step) and not workflow.followed("running")
        self._statements = statements
        self._moves = moves

    def handlers(self) -> Sequence[Handler[Any]]:
        """Those of the step, for the module's worker."""
        jobs, node = self._workflow.jobs, self._node
        made = [Handler(jobs[node.name], self.forward)]
        if isinstance(node, Step) and node.undo is not None:
            made.append(Handler(jobs[f"{node.name}.undo"], self.backward))
        return made

    async def forward(self, implementation: Any, go: Go, run: Run) -> None:
        if await self.do(implementation, go, By(run.attempt, run.max_attempts)) is None:
            await self._hand_over(go, run)

    async def backward(self, implementation: Any, go: Go, run: Run) -> None:
        if await self.undo(implementation, go, By(run.attempt, run.max_attempts)) is None:
            await self._hand_over(go, run)

    async def do(self, implementation: Any, go: Go, by: By, known: Any | None = None) -> Any | None:
        """The flow after the step; None: it was elsewhere. `known`: its row, of who drives it: then nobody
        asks again, the move itself finds out whether it still is so."""
        node = self._node
        if isinstance(node, WaitFor):
            return await self._meet(node, go, by)
        if isinstance(node, Step):
            return await self._do(node, implementation, go, by, known)
        return await self._pass(go, by)

    async def undo(self, implementation: Any, go: Go, by: By, known: Any | None = None) -> Any | None:
        """The flow after the step was undone, as `do`."""
        node = self._node
        assert isinstance(node, Step) and node.undo is not None
        if node.effect == "any":
            row = known or await self._find(go, "undoing")
            if row is None:
                return None
            await node.undo(implementation, self._data(row), self._run(go, by, None, undo=True))
        else:
            known = None
        async with self._database.write(Bucket(go.bucket)) as tx:
            row = known or await self._lock(tx, go, by, "undoing")
            if row is None:
                return None
            if node.effect == "transactional":
                await node.undo(implementation, self._data(row), self._run(go, by, tx, undo=True))
            return await self._moves.undone(tx, self._workflow, row, by.attempt, by.held)

    async def _do(self, node: Step, implementation: Any, go: Go, by: By, known: Any | None) -> Any | None:
        try:
            if node.effect == "any":
                row = known or await self._find(go, "running", "waiting")
                if row is None:
                    return None
                value = await node.do(implementation, self._data(row), self._run(go, by, None))
                return await self._record(go, by, value, known, row)
            async with self._database.write(Bucket(go.bucket)) as tx:
                row = await self._lock(tx, go, by, "running", "waiting")
                if row is None:
                    return None
                value = await node.do(implementation, self._data(row), self._run(go, by, tx))
                return await self._go_on(tx, row, by, value)
        except StepRefused as refusal:
            return await self._refuse(go, by, refusal)
        except StepLater as later:
            assert row is not None
            asked = row["wait_until"]
            async with self._database.write(Bucket(go.bucket)) as tx:
                row = await self._lock(tx, go, by, "running", "waiting")
                if row is None:
                    return None
                seconds = later.seconds if row["wait_until"] == asked else 0.0  # woken while it was asked
                return await self._moves.later(tx, self._workflow, row, seconds, by.held)

    async def _refuse(self, go: Go, by: By, refusal: StepRefused) -> Any | None:
        if refusal.data is not None:
            self._check(refusal.data)
        async with self._database.write(Bucket(go.bucket)) as tx:
            row = await self._lock(tx, go, by, "running", "waiting")
            if row is None:
                return None
            return await self._moves.turn(
                tx, self._workflow, row, self._index if refusal.undo else self._index - 1, str(refusal),
                outcome="refused", error=str(refusal), data=refusal.data, attempt=by.attempt, held=by.held,
            )  # fmt: skip

    async def _meet(self, node: WaitFor, go: Go, by: By) -> Any | None:
        """Take the event, be late, or wait on."""
        known = await self._find(go, "waiting")
        if known is None:
            return None
        async with self._database.write(Bucket(go.bucket)) as tx:
            event, key = known["wait_event"], known["wait_key"]
            await tx.execute(self._statements.meet, meeting(self._database.schema, go.bucket, event, key))
            row = await self._lock(tx, go, by, "waiting")
            if row is None:
                return None
            payload = await tx.fetch_value(self._statements.take_event, go.bucket, event, key)
            data = self._data(row)
            if payload is not None:
                sent = msgspec.json.decode(payload, type=node.payload)
                return await self._go_on(tx, row, by, node.then(data, sent) if node.then else None)
            if row["wait_until"] is None or await _early(tx, row):
                return await self._moves.wait_on(tx, self._workflow, row)
            if node.late == "go_on":
                value = node.then(data, None) if node.then else None
                return await self._go_on(tx, row, by, value, outcome="late")
            reason = f"{event} did not come within {node.timeout:g} s"
            return await self._moves.turn(
                tx, self._workflow, row, self._index - 1, reason, outcome="late", attempt=by.attempt
            )

    async def _pass(self, go: Go, by: By) -> Any | None:
        """Go on when it is time; a job that comes before, because somebody had it run now, waits on."""
        async with self._database.write(Bucket(go.bucket)) as tx:
            row = await self._lock(tx, go, by, "waiting")
            if row is None:
                return None
            if await _early(tx, row):
                return await self._moves.wait_on(tx, self._workflow, row)
            return await self._go_on(tx, row, by, None)

    async def _record(
        self, go: Go, by: By, value: Any, known: Any | None, begun: Any | None = None
    ) -> Any | None:
        """`begun`: the flow as the step found it."""
        if known is not None and by.held is not None and self._passing:
            data = self._next(known, value)
            return await self._moves.go_on(self._database, self._workflow, known, data, by.attempt, by.held)
        async with self._database.write(Bucket(go.bucket)) as tx:
            met = begun is not None and await self._meet_next(tx, go, value, begun)
            row = known or await self._lock(tx, go, by, "running", "waiting")
            return None if row is None else await self._go_on(tx, row, by, value, met=met)

    async def _meet_next(self, tx: WriteTransaction, go: Go, value: Any, begun: Any) -> bool:
        """Before the flow is locked: keep the event that it waits for next from being sent meanwhile."""
        index = self._index + 1
        node = self._workflow.steps[index] if index < len(self._workflow.steps) else None
        if not isinstance(node, WaitFor):
            return False
        key = key_of(node, self._next(begun, value))
        await tx.execute(self._statements.meet, meeting(self._database.schema, go.bucket, node.event, key))
        return True

    async def _go_on(
        self,
        tx: WriteTransaction,
        row: Any,
        by: By,
        value: Any,
        *,
        outcome: str = "done",
        met: bool = False,
    ) -> Any | None:
        return await self._moves.enter(
            tx, self._workflow, row, self._index + 1, self._next(row, value), met=met,
            outcome=outcome, attempt=by.attempt, held=by.held,
        )  # fmt: skip

    def _next(self, row: Any, value: Any) -> Any:
        """The data after the step."""
        if value is None:
            return self._data(row)
        self._check(value)
        return value

    def _check(self, value: Any) -> None:
        if not isinstance(value, self._workflow.data):
            raise JobFailed(
                f"step {self._node.name!r} of {self._workflow.name} must return"
                f" {self._workflow.data.__name__} or None, got {type(value).__name__}"
            )

    async def _hand_over(self, go: Go, run: Run) -> None:
        """The flow is elsewhere: it may be that whoever drove it there has died, and this is its only job; or
        that it is stuck, and somebody has retried its dead letter."""
        async with self._database.write(Bucket(go.bucket)) as tx:
            await self._moves.hand_over(tx, self._workflow, go.bucket, go.flow, run.id)

    async def _find(self, go: Go, *states: str) -> Any | None:
        """The flow, if it is where the job wants it."""
        reader = self._database.read(Bucket(go.bucket), consistency=Consistency.STRONG)
        return _there(await reader.fetch_one(self._statements.look, go.bucket, go.flow), go, *states)

    async def _lock(self, tx: WriteTransaction, go: Go, by: By, *states: str) -> Any | None:
        row = _there(await tx.fetch_one(self._statements.lock, go.bucket, go.flow), go, *states)
        return None if row is None or by.held not in (None, row["job_id"]) else row

    def _data(self, row: Any) -> Any:
        return data_of(self._workflow, row)

    def _run(self, go: Go, by: By, tx: WriteTransaction | None, *, undo: bool = False) -> StepRun:
        do_key = f"{self._database.name}:{go.flow}/{self._node.name}"
        return StepRun(
            flow=go.flow,
            key=f"{do_key}/undo" if undo else do_key,
            do_key=do_key,
            attempt=by.attempt,
            max_attempts=by.max_attempts,
            transaction=tx,
        )


def _there(row: Any | None, go: Go, *states: str) -> Any | None:
    return row if row is not None and row["seq"] == go.seq and row["state"] in states else None


async def _early(tx: WriteTransaction, row: Any) -> bool:
    """Whether it is not yet as late as the flow waits for."""
    early: bool = await tx.fetch_value("SELECT clock_timestamp() < $1::timestamptz", row["wait_until"])
    return early
