"""One run of many jobs of one kind: decode them, call their handler once, judge each by itself.

Each job keeps its lease, its attempts and its end; they share the task, the context (the first one's trace,
the nearest deadline) and, where the effect is transactional, the transaction. A job that cannot be read, or
whose lease was lost, leaves the batch; the others go on. Where a shared transaction cannot end all of its
jobs it is undone, and those that are still ours are handed back at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from springtide.context import activate
from springtide.db import Bucket
from springtide.errors import JobError, JobLost
from springtide.jobs._run import JobRun, Outcome, Unread
from springtide.jobs._store import Ending

__all__ = ["perform"]

RETURNED: Outcome = ("returned", Ending("ready", uncounted=True), None)


class _Undone(Exception):
    """The shared transaction could not end all of its jobs."""


async def perform(runs: Sequence[JobRun]) -> list[Outcome]:
    """The outcome of each run, in their order."""
    task = asyncio.current_task()
    outcomes: dict[JobRun, Outcome] = {}
    jobs = []
    begun: list[JobRun] = []
    for run in runs:
        opened = run.open()
        if isinstance(opened, Unread):
            outcomes[run] = opened.outcome
        elif run.ended_by == "lost":
            outcomes[run] = run.judged(asyncio.CancelledError())
        else:
            jobs.append(opened[0])
            begun.append(run)
    if begun:
        try:
            errors = await _handle(begun, jobs)
        except _Undone:
            for run in begun:
                outcomes[run] = run.judged(JobLost("")) if run.ended_by == "lost" else RETURNED
        except asyncio.CancelledError as error:
            if task is not None and task.cancelling() and all(run.ended_by is None for run in begun):
                raise  # the loop is closing
            reason = next((run.ended_by for run in begun if run.ended_by not in (None, "lost")), None)
            for run in begun:
                run.ended_by = run.ended_by or reason
                outcomes[run] = run.judged(error)
        except Exception as error:
            outcomes |= {run: run.judged(error) for run in begun}
        else:
            outcomes |= {run: run.judged(error) for run, error in zip(begun, errors, strict=True)}
    return [outcomes[run] for run in runs]


async def _handle(runs: list[JobRun], jobs: list[Any]) -> Sequence[BaseException | None]:
    route, context = runs[0].route, runs[0].context
    assert context is not None
    deadlines = [run.context.deadline for run in runs if run.context and run.context.deadline is not None]
    context.deadline = min(deadlines)
    for run in runs[1:]:
        if run.context is not None:
            context.causality.merge(run.context.causality)
    with activate(context):
        if not route.transactional:
            found = await route.method(route.implementation, jobs, [run.view() for run in runs])
            return _each(found, runs)
        async with route.database.write(Bucket(runs[0].claimed.run.bucket)) as tx:
            found = await route.method(route.implementation, jobs, [run.view(tx) for run in runs])
            errors = _each(found, runs)
            done = [run for run, error in zip(runs, errors, strict=True) if error is None]
            if done:
                await _end(done, tx)
            return errors


async def _end(done: list[JobRun], tx: Any) -> None:
    first = done[0]
    ended = await first.store.finish(
        [run.claimed.run for run in done],
        first.lease.worker,
        ordered=any(run.claimed.ordering_key is not None for run in done),
        queries=tx,
    )
    for run in done:
        if run.claimed.run.id not in ended:
            run.ended_by = "lost"
    if len(ended) < len(done):
        raise _Undone


def _each(found: Any, runs: list[JobRun]) -> Sequence[BaseException | None]:
    """What the handler returned, as one answer per job."""
    if found is None:
        return [None] * len(runs)
    if len(found) != len(runs) or not all(e is None or isinstance(e, BaseException) for e in found):
        raise JobError(
            f"the handler of {runs[0].route.kind.name} must return None, or None or an exception for each of"
            f" its {len(runs)} jobs, got {found!r}"
        )
    answers: Sequence[BaseException | None] = found
    return answers
