"""What keeps the flows of one module in order, every few seconds in every worker.

Failed: a step whose job is a dead letter has failed for good. Forward, the flow turns and the dead letter
goes, its error is in the flow's history; backward, the flow is stuck and the dead letter stays until it is
resumed. So it is for a job that somebody discarded. Look: a flow without a job whose event was sent by a
release that does not know it gets one. Forget: flows that have ended, after their workflow's `keep`, and
events that nobody took. Measure: how many flows are in each state.
Flows of versions that this release does not know are left alone.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from springtide.clock import Clock, SystemClock
from springtide.context import Priority, RequestContext, activate
from springtide.db import Bucket
from springtide.errors import JobFailed
from springtide.flows._store import BATCH
from springtide.flows.control import Flows
from springtide.flows.flow import Step
from springtide.lifecycle import Periodic
from springtide.signals import FlowsMeasured, NullSink, Sink

__all__ = ["FlowUpkeep"]

_log = logging.getLogger(__name__)

TIMEOUT = 10.0

LEFT = 60.0
"""Seconds between two looks for flows whose job is gone, and for what is to be forgotten."""

MAX_ROUNDS = 20


class FlowUpkeep:
    """A lifecycle service.

    every:       seconds between two looks for steps that failed for good (jittered).
    measure:     seconds between two measurements.
    keep_events: seconds that an event waits for a flow to take it.
    """

    def __init__(
        self,
        flows: Flows,
        *,
        every: float = 3.0,
        measure: float = 15.0,
        keep_events: float = 7 * 86_400.0,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        self._flows = flows
        self._measure_every = measure
        self._keep_events = keep_events
        self._clock = clock or SystemClock()
        self._sink = sink or NullSink()
        self._measured = self._left = float("-inf")
        self._jobs = [handler.kind.kind for handler in flows.handlers]
        self._kinds = sorted({workflow.kind for workflow in flows.workflows.values()})
        self.name = f"flows of {flows.database.name}"
        self._task = Periodic(self.name, self.tend, every=every, clock=self._clock, sink=sink)

    @property
    def state(self) -> str:
        return self._task.state

    async def start(self) -> None:
        await self._task.start()

    async def stop(self) -> None:
        await self._task.stop()

    async def tend(self) -> None:
        """One look."""
        deadline = self._clock.monotonic() + TIMEOUT
        with activate(RequestContext(deadline=deadline, priority=Priority.CRITICAL)):
            await self._fail(self._flows.statements.failed, self._jobs)
            if self._clock.monotonic() - self._left >= LEFT:
                await self._fail(self._flows.statements.left, self._kinds)
                await self._look()
                await self._forget()
                self._left = self._clock.monotonic()
            if self._clock.monotonic() - self._measured >= self._measure_every:
                await self._measure()
                self._measured = self._clock.monotonic()

    async def _fail(self, sql: str, names: list[str]) -> None:
        for pool in self._flows.database.pools.values():
            for found in await pool.fetch(sql, names):
                try:
                    await self._judge(found)
                except JobFailed as error:  # its data cannot be read, and who follows it needs them
                    _log.error("flow %s cannot be undone: %s", found["id"], error)
                except Exception:  # of who follows it: that keeps no other flow from its end
                    _log.exception("flow %s cannot be undone now", found["id"])

    async def _judge(self, found: Any) -> None:
        flows, bucket = self._flows, found["bucket"]
        async with flows.database.write(Bucket(bucket)) as tx:
            row = await tx.fetch_one(flows.statements.lock, bucket, found["id"])
            workflow = flows.of(row["kind"], row["version"]) if row is not None else None
            if row is None or row["seq"] != found["seq"] or workflow is None or row["ended_at"] is not None:
                return
            error, attempt = found["error"] or "", found["attempt"]
            name = f"{workflow.name} {row['id']}, step {workflow.steps[row['step']].name}"
            if row["state"] in ("undoing", "stuck"):
                if await flows.moves.stick(tx, workflow, row, error, attempt) is not None:
                    _log.error("flow %s is stuck, it cannot be undone: %s", name, error)
                return
            if row["job_id"] is not None:
                await tx.execute(flows.statements.drop_job, bucket, row["job_id"])
            # a wait has no effect that would have to be undone
            step = row["step"] if isinstance(workflow.steps[row["step"]], Step) else row["step"] - 1
            how: dict[str, Any] = {"outcome": "failed", "error": error, "attempt": attempt}
            if await flows.moves.turn(tx, workflow, row, step, error, **how) is not None:
                _log.warning("flow %s failed, it is undone: %s", name, error)

    async def _look(self) -> None:
        names = list(self._flows.workflows)
        for pool in self._flows.database.pools.values():
            for found in await pool.fetch(self._flows.statements.unseen, names):
                async with self._flows.database.write(Bucket(found["bucket"])) as tx:
                    await self._flows.look_now(tx, found["id"])

    async def _forget(self) -> None:
        statements = self._flows.statements
        for pool in self._flows.database.pools.values():
            for kind, seconds in self._flows.keep.items():
                for _ in range(MAX_ROUNDS):
                    if int((await pool.execute(statements.forget, kind, seconds)).split()[-1]) == 0:
                        break
            for _ in range(MAX_ROUNDS):
                gone = await pool.execute(statements.forget_events, self._keep_events)
                if int(gone.split()[-1]) < BATCH:
                    break

    async def _measure(self) -> None:
        for shard, pool in self._flows.database.pools.items():
            counts: dict[str, Counter[str]] = {kind: Counter() for kind in self._kinds}
            for row in await pool.fetch(self._flows.statements.measure):
                counts.setdefault(row["kind"], Counter())[row["state"]] = row["flows"]
            for kind, states in counts.items():
                self._sink.emit(
                    FlowsMeasured(
                        self._flows.database.name, shard, kind, states["running"], states["waiting"],
                        states["undoing"], states["stuck"],
                    )
                )  # fmt: skip
