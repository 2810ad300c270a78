"""Run one step of one flow, as the handler of its job.

A run begins by asking where the flow is: one that comes late, because its worker was killed after the
commit or frozen before it, finds the flow elsewhere and does nothing. A step with effect "any" runs outside
of any transaction and is recorded after it; a transactional one runs inside the transaction that records
it, with the flow's row locked. An exception is the job's failure: it is tried again, and after its last
attempt a dead letter, for which `upkeep.py` turns the flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from springtide.db import Bucket, Consistency, Database
from springtide.errors import JobFailed, StepRefused
from springtide.flows._moves import Moves
from springtide.flows._store import Statements
from springtide.flows.flow import Go, Node, Step, StepRun, WaitFor, Workflow
from springtide.jobs import Handler, Run

if TYPE_CHECKING:
    from springtide.db import WriteTransaction

__all__ = ["handlers", "meeting"]


def handlers(
    database: Database, workflows: Sequence[Workflow[Any]], statements: Statements, moves: Moves
) -> list[Handler[Any]]:
    """Those of every step, for the module's worker."""
    made: list[Handler[Any]] = []
    for workflow in workflows:
        for index, node in enumerate(workflow.steps):
            at = _At(database, workflow, index, statements, moves)
            made.append(Handler(workflow.jobs[node.name], at.forward))
            if isinstance(node, Step) and node.undo is not None:
                made.append(Handler(workflow.jobs[f"{node.name}.undo"], at.backward))
    return made


def meeting(schema: str, bucket: int, event: str, key: str) -> str:
    """What an event and the flow that waits for it lock."""
    return f"{schema}._flow_event {bucket} {event} {key}"


class _At:
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
        self._statements = statements
        self._moves = moves
        self._decode = msgspec.json.Decoder(workflow.data).decode

    async def forward(self, implementation: Any, go: Go, run: Run) -> None:
        node = self._node
        if isinstance(node, WaitFor):
            await self._meet(node, go, run)
        elif isinstance(node, Step):
            await self._step(node, implementation, go, run)
        else:
            await self._record(go, run, None)  # the job came when the time had

    async def backward(self, implementation: Any, go: Go, run: Run) -> None:
        node = self._node
        assert isinstance(node, Step) and node.undo is not None
        if node.effect == "any":
            row = await self._find(go, "undoing")
            if row is None:
                return
            await node.undo(implementation, self._data(row), self._run(go, run, None, undo=True))
        async with self._database.write(Bucket(go.bucket)) as tx:
            row = await self._lock(tx, go, "undoing")
            if row is None:
                return
            if node.effect == "transactional":
                await node.undo(implementation, self._data(row), self._run(go, run, tx, undo=True))
            await self._moves.undone(tx, self._workflow, row, run.attempt)

    async def _step(self, node: Step, implementation: Any, go: Go, run: Run) -> None:
        try:
            if node.effect == "any":
                row = await self._find(go, "running")
                if row is not None:
                    value = await node.do(implementation, self._data(row), self._run(go, run, None))
                    await self._record(go, run, value)
                return
            async with self._database.write(Bucket(go.bucket)) as tx:
                row = await self._lock(tx, go, "running")
                if row is not None:
                    value = await node.do(implementation, self._data(row), self._run(go, run, tx))
                    await self._go_on(tx, row, run, value)
        except StepRefused as refusal:
            async with self._database.write(Bucket(go.bucket)) as tx:
                row = await self._lock(tx, go, "running")
                if row is not None:
                    await self._moves.turn(
                        tx, self._workflow, row, self._index - 1, str(refusal),
                        outcome="refused", error=str(refusal), attempt=run.attempt,
                    )  # fmt: skip

    async def _meet(self, node: WaitFor, go: Go, run: Run) -> None:
        """Take the event, be late, or wait on."""
        known = await self._find(go, "waiting")
        if known is None:
            return
        async with self._database.write(Bucket(go.bucket)) as tx:
            event, key = known["wait_event"], known["wait_key"]
            await tx.execute(self._statements.meet, meeting(self._database.schema, go.bucket, event, key))
            row = await self._lock(tx, go, "waiting")
            if row is None:
                return
            payload = await tx.fetch_value(self._statements.take_event, go.bucket, event, key)
            data = self._data(row)
            if payload is not None:
                sent = msgspec.json.decode(payload, type=node.payload)
                await self._go_on(tx, row, run, node.then(data, sent) if node.then else None)
            elif await tx.fetch_value("SELECT clock_timestamp() < $1::timestamptz", row["wait_until"]):
                await self._moves.wait_on(tx, self._workflow, row)
            elif node.late == "go_on":
                await self._go_on(tx, row, run, node.then(data, None) if node.then else None, outcome="late")
            else:
                reason = f"{event} did not come within {node.timeout:g} s"
                await self._moves.turn(
                    tx, self._workflow, row, self._index - 1, reason, outcome="late", attempt=run.attempt
                )

    async def _record(self, go: Go, run: Run, value: Any) -> None:
        async with self._database.write(Bucket(go.bucket)) as tx:
            row = await self._lock(tx, go, "running", "waiting")
            if row is not None:
                await self._go_on(tx, row, run, value)

    async def _go_on(
        self, tx: WriteTransaction, row: Any, run: Run, value: Any, *, outcome: str = "done"
    ) -> None:
        if value is not None and not isinstance(value, self._workflow.data):
            raise JobFailed(
                f"step {self._node.name!r} of {self._workflow.name} must return"
                f" {self._workflow.data.__name__} or None, got {type(value).__name__}"
            )
        data = self._data(row) if value is None else value
        await self._moves.enter(
            tx, self._workflow, row, self._index + 1, data, outcome=outcome, attempt=run.attempt
        )

    async def _find(self, go: Go, state: str) -> Any | None:
        """The flow, if it is where the job wants it."""
        reader = self._database.read(Bucket(go.bucket), consistency=Consistency.STRONG)
        return _there(await reader.fetch_one(self._statements.look, go.bucket, go.flow), go, state)

    async def _lock(self, tx: WriteTransaction, go: Go, *states: str) -> Any | None:
        return _there(await tx.fetch_one(self._statements.lock, go.bucket, go.flow), go, *states)

    def _data(self, row: Any) -> Any:
        try:
            return self._decode(row["data"])
        except msgspec.MsgspecError as error:
            raise JobFailed(f"the data of a {self._workflow.name} cannot be read: {error}") from error

    def _run(self, go: Go, run: Run, tx: WriteTransaction | None, *, undo: bool = False) -> StepRun:
        do_key = f"{self._database.name}:{go.flow}/{self._node.name}"
        return StepRun(
            flow=go.flow,
            key=f"{do_key}/undo" if undo else do_key,
            do_key=do_key,
            attempt=run.attempt,
            max_attempts=run.max_attempts,
            transaction=tx,
        )


def _there(row: Any | None, go: Go, *states: str) -> Any | None:
    return row if row is not None and row["seq"] == go.seq and row["state"] in states else None
