"""Begin many handlers with few tasks.

Most handlers end in the turn of the loop that began them, and a task of its own costs more than such a
handler does. So one task begins the jobs of a row one after the other. The first one that waits keeps the
task, as if it had been alone in it from the start; another row goes on with the rest.

Each job is driven inside a `contextvars.Context` of its own from its first step to its last: what a handler
sets there, the next one does not see. `asyncio.current_task()` is the row's task, which may be cancelled
while a job has it: that cancellation is the job's, so a row that was cancelled takes no other job.

waiting in a row -> has the task -> ended.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any, Generic, TypeVar

from springtide.jobs._run import JobRun, Outcome

__all__ = ["Row", "Step"]

T = TypeVar("T")


class Step(Generic[T]):
    """Awaitable: drives `body` inside `context`; calls `waits` just before it waits for the first time."""

    __slots__ = ("_body", "_context", "_waits")

    def __init__(
        self, body: Coroutine[Any, Any, T], context: contextvars.Context, waits: Callable[[], None]
    ) -> None:
        self._body = body
        self._context = context
        self._waits = waits

    def __await__(self) -> Generator[Any, Any, T]:
        run, body = self._context.run, self._body
        try:
            waited = run(body.send, None)
        except StopIteration as end:
            value: T = end.value
            return value
        self._waits()
        while True:
            try:
                answer = yield waited
            except BaseException as error:
                call: Callable[[Any], Any] = body.throw
                given: Any = error
            else:
                call, given = body.send, answer
            try:
                waited = run(call, given)
            except StopIteration as end:
                value = end.value
                return value


class Row:
    """Jobs that one task performs one after the other until one of them waits.

    ended: called with each job's outcome.
    rest:  called with those that another row has to perform.
    """

    def __init__(
        self,
        runs: Iterable[JobRun],
        *,
        ended: Callable[[JobRun, Outcome], None],
        rest: Callable[[deque[JobRun]], None],
        empty: contextvars.Context,
    ) -> None:
        self.left = deque(runs)
        self.now: JobRun | None = None
        """The one that has the task. It still has it when the row broke on it."""
        self._ended = ended
        self._rest = rest
        self._empty = empty
        self._task: asyncio.Task[None] | None = None

    async def perform(self) -> None:
        self._task = task = asyncio.current_task()
        assert task is not None
        ended, left = self._ended, self.left
        while left:
            self.now = run = left.popleft()
            if run.ended_by is not None:  # before its first step
                outcome = run.judged(asyncio.CancelledError())
            else:
                run.task = task
                outcome = await Step(run.perform(), self._empty.copy(), self._give_away)
                run.task = None  # whoever cancels it from here on must not meet another one
            ended(run, outcome)
            self.now = None
            if left and task.cancelling():  # a handler has cancelled its own task and did not wait after that
                self._give_away()

    def _give_away(self) -> None:
        run, task = self.now, self._task
        if run is not None and task is not None:
            task.set_name(f"job {run.route.kind.name}")
        if self.left:
            left = self.left.copy()
            self.left.clear()
            self._rest(left)
