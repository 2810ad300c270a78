"""Look at the jobs of all modules on all shards, and step in: what operators and consoles do.

    page, show, overview     look
    retry                    dead, parked, waiting for a time or sent by a transport: ready now
    discard                  out of the queue, into the history, with a reason
    replay                   what is done or dead once more, as a new job with an id of its own
    pause, resume            a kind, or a whole module

Everything that changes jobs takes the same filter as the lists, changes at most `limit` of them, the oldest
first, and says which. `preview` is the choice without the change: all of them begin with it. What is running
is never touched: it ends by itself.

Replay does again what the job has done: with a transactional effect too, because "once" is promised for one
job, and this is another one with another `run.key`.

Ids are of version 7, so their order is that of enqueueing: a page ends with the cursor of the next, over all
modules and shards. Each shard is asked once per call, on its primary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from springtide.db import Database
from springtide.errors import DatabaseError, JobError
from springtide.jobs._operating_sql import Texts
from springtide.jobs._pausing import Pause, Pausing
from springtide.jobs._rows import new_ids
from springtide.jobs._store import BATCH, Store

__all__ = [
    "DISCARDABLE", "MAX_CHANGED", "MAX_PAGE", "REPLAYABLE", "RETRYABLE", "STATES", "Changed", "JobDetails",
    "JobRow", "KindRow", "Page", "Wanted", "discard", "overview", "page", "pause", "preview", "replay",
    "resume", "retry", "show",
]  # fmt: skip

STATES = ("ready", "sent", "running", "held", "limited", "paused", "parked", "dead", "done", "discarded")
ENDED = frozenset({"done", "discarded"})
RETRYABLE = frozenset({"ready", "sent", "parked", "dead"})
DISCARDABLE = frozenset({"ready", "sent", "held", "limited", "paused", "parked", "dead"})
REPLAYABLE = frozenset({"dead", "done", "discarded"})

MAX_PAGE = 1000
MAX_CHANGED = 10_000
MAX_REASON_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which jobs: all that are given must hold; empty means any.

    states:  of `STATES`; empty: all that are in the queue, so neither done nor discarded.
    older, younger: seconds since a job is what it is: since it ended, began, or is due.
    key:     its ordering, limit or unique key.
    """

    ids: Sequence[UUID] = ()
    modules: Collection[str] = ()
    states: Collection[str] = ()
    kinds: Collection[str] = ()
    older: float | None = None
    younger: float | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.states) - set(STATES)):
            raise JobError(f"a job's state is one of {', '.join(STATES)}, got {', '.join(unknown)}")
        for name in ("older", "younger"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds >= 0:
                raise JobError(f"{name} must be >= 0 seconds, got {seconds}")

    @property
    def narrow(self) -> bool:
        """Whether it says anything about the jobs besides their module."""
        asked = (self.ids, self.states, self.kinds, self.key, self.older, self.younger)
        return any(one not in (None, (), []) and (one == 0 or bool(one)) for one in asked)

    def among(self, states: Collection[str]) -> list[str]:
        """The states to look for, where only `states` can be: of what has ended only by ids or by its state.

        Raises JobError when others are asked for.
        """
        if others := sorted(set(self.states) - set(states)):
            raise JobError(f"this is for jobs that are {', '.join(sorted(states))}, not {', '.join(others)}")
        return sorted(self.states or (states if self.ids else set(states) - ENDED))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job in a list; `age` is seconds since it is what it is."""

    module: str
    shard: str
    id: UUID
    bucket: int
    kind: str
    version: int
    state: str
    priority: int
    attempt: int
    max_attempts: int
    enqueued_at: datetime
    due_at: datetime | None
    run_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    deadline: datetime | None
    worker: str | None
    error: str | None
    unique_key: str | None
    ordering_key: str | None
    limit_key: str | None
    trace_id: str | None
    request_id: str | None
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDetails:
    """One job in full. `payload` is what its JSON says, or the text of what is not JSON; `progress` is None
    once it is done or discarded."""

    row: JobRow
    payload: Any
    progress: Any
    result: Any


@dataclass(frozen=True, slots=True)
class Page:
    """`after` is the cursor of the next page, None when there is none."""

    rows: list[JobRow]
    after: UUID | None


@dataclass(frozen=True, slots=True)
class KindRow:
    """How many jobs of a kind there are per state, over all shards; `age`: of the oldest due one.

    Counts are of at most `jobs.MEASURED` rows per shard and state. `kind` None: the whole module is paused.
    """

    module: str
    kind: str | None
    counts: Mapping[str, int] = field(default_factory=dict)
    age: float = 0.0
    paused: Pause | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """What became of one job. `replayed`: the job that this new one does again."""

    module: str
    shard: str
    id: UUID
    kind: str
    version: int
    replayed: UUID | None = None


# -- looking -------------------------------------------------------------------------------------------


async def page(
    databases: Collection[Database], wanted: Wanted, *, limit: int = 100, after: UUID | None = None
) -> Page:
    """The next `limit` jobs in the order of enqueueing, of those that `wanted` says."""
    if not 1 <= limit <= MAX_PAGE:
        raise JobError(f"limit must be 1 to {MAX_PAGE}, got {limit}")
    states = wanted.states or [state for state in STATES if state not in ENDED]
    found = await _everywhere(
        databases, wanted, lambda store: _listed(store, wanted, states, after=after, limit=limit + 1)
    )
    rows = sorted((row for part in found for row in part), key=lambda row: row.id)
    return Page(rows[:limit], rows[limit - 1].id if len(rows) > limit else None)


async def show(databases: Collection[Database], id: UUID) -> JobDetails | None:
    """The job `id`, wherever it is; None when nobody knows it (any more)."""

    async def look(store: Store) -> JobDetails | None:
        rows = await store.pool.fetch(Texts(store.schema).show, id)
        if not rows:
            return None
        payload: Any = bytes(rows[0]["payload"])
        try:
            payload = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            payload = payload.decode("utf-8", "backslashreplace")
        return JobDetails(
            row=_row(store, rows[0]), payload=payload, progress=rows[0]["progress"], result=rows[0]["result"]
        )

    found = await _everywhere(databases, Wanted(), look)
    return next((one for one in found if one is not None), None)


async def overview(databases: Collection[Database], wanted: Wanted) -> list[KindRow]:
    """Per module and kind how many jobs there are in each state; kinds without jobs that are paused, too, and
    modules that are."""

    async def count(store: Store) -> tuple[str, list[Any], list[Pause]]:
        return (
            store.module,
            await store.measure(),
            await Pausing(store.schema).look(store.pool),
        )

    rows: dict[tuple[str, str | None], KindRow] = {}
    for module, found, pauses in await _everywhere(databases, wanted, count):
        by_kind = {one.kind: one for one in pauses}
        for kind in {*(entry.kind for entry in found), *by_kind}:
            rows.setdefault(
                (module, kind), KindRow(module, kind, {}, 0.0, by_kind.get(None) or by_kind.get(kind))
            )
        for entry in found:
            known = rows[module, entry.kind]
            counts = {
                state: known.counts.get(state, 0) + getattr(entry, state)
                for state in ("ready", "sent", "running", "held", "paused", "parked", "dead")
            }
            age = max(known.age, entry.age)
            rows[module, entry.kind] = KindRow(module, entry.kind, counts, age, known.paused)
    chosen = [row for row in rows.values() if not wanted.kinds or row.kind in wanted.kinds]
    return sorted(chosen, key=lambda row: (row.module, row.kind or ""))


# -- stepping in ---------------------------------------------------------------------------------------


async def preview(
    databases: Collection[Database],
    wanted: Wanted,
    states: Collection[str],
    *,
    limit: int,
    attempts: int = 5,
    reason: str = "",
) -> list[JobRow]:
    """What `retry` (states `RETRYABLE`), `discard` (`DISCARDABLE`) or `replay` (`REPLAYABLE`) with the same
    arguments would change, in the order of enqueueing; it refuses what they refuse."""
    if not 1 <= limit <= MAX_CHANGED:
        raise JobError(f"limit must be 1 to {MAX_CHANGED}, got {limit}")
    if not 1 <= attempts <= 1000:
        raise JobError(f"attempts must be 1 to 1000, got {attempts}")
    _check_reason(reason)
    among = wanted.among(states)
    found = await _everywhere(
        databases, wanted, lambda store: _listed(store, wanted, among, after=None, limit=limit)
    )
    return sorted((row for part in found for row in part), key=lambda row: row.id)[:limit]


async def retry(
    databases: Collection[Database], wanted: Wanted, *, limit: int = 100, attempts: int = 5
) -> list[Changed]:
    """Make dead letters, parked jobs, jobs that wait for a time and jobs that a transport has ready now.

    What a transport brings of those is dropped, or finds them sent once more. A dead letter gets `attempts`
    more runs; a deadline that has passed is forgotten. Its ordering key has gone on without it, so it runs
    after those. What no worker knows is parked again.
    """
    chosen = await preview(databases, wanted, RETRYABLE, limit=limit, attempts=attempts)
    return await _change(
        databases, wanted, RETRYABLE, chosen, lambda texts, _: texts.retry, lambda _: (attempts,)
    )


async def discard(
    databases: Collection[Database], wanted: Wanted, *, limit: int = 100, reason: str = ""
) -> list[Changed]:
    """Take jobs that do not run out of the queue; the history keeps them as discarded, with the reason."""
    chosen = await preview(databases, wanted, DISCARDABLE, limit=limit, reason=reason)
    text = f"discarded: {reason or 'by an operator'}"
    return await _change(
        databases, wanted, DISCARDABLE, chosen, lambda texts, _: texts.discard, lambda _: (text,)
    )


async def replay(databases: Collection[Database], wanted: Wanted, *, limit: int = 100) -> list[Changed]:
    """Enqueue what is done, discarded or dead once more, as new jobs with ids of their own.

    The old ones stay as they are. Keys and the trace are kept, deadlines and unique keys are not. Without
    ids or states only dead letters are.
    """
    chosen = await preview(databases, wanted, REPLAYABLE, limit=limit)
    return await _change(
        databases, wanted, REPLAYABLE, chosen,
        lambda texts, state: texts.replay_done if state in ENDED else texts.replay,
        lambda many: (new_ids(many),),
    )  # fmt: skip


async def pause(
    databases: Collection[Database], *, module: str | None = None, kind: str | None = None, reason: str = ""
) -> list[str]:
    """Run no more jobs of `kind` (None: of any) of `module` (None: of every one that has jobs).

    Holds for all workers within some seconds, and until `resume`; what runs ends. Returns `module on shard`.
    """
    _check_reason(reason)

    async def begin(store: Store) -> str:
        pausing = Pausing(store.schema)
        await pausing.begin(store.pool, kind, reason)
        for _ in range(MAX_CHANGED // BATCH):  # the rest is the workers'
            if await pausing.set_aside(store.pool) < BATCH:
                break
        return f"{store.module} on {store.shard}"

    return await _everywhere(databases, Wanted(modules=[module] if module else ()), begin)


async def resume(
    databases: Collection[Database], *, module: str | None = None, kind: str | None = None
) -> list[str]:
    """Undo `pause` of the same module and kind; `module on shard` where it was paused."""

    async def end(store: Store) -> str | None:
        pausing = Pausing(store.schema)
        if not await pausing.end(store.pool, kind):
            return None
        for _ in range(MAX_CHANGED // BATCH):
            if await pausing.put_back(store.pool) < BATCH:
                break
        return f"{store.module} on {store.shard}"

    found = await _everywhere(databases, Wanted(modules=[module] if module else ()), end)
    return [where for where in found if where is not None]


# -- pieces --------------------------------------------------------------------------------------------


def _check_reason(reason: str) -> None:
    if len(reason) > MAX_REASON_CHARS:
        raise JobError(f"a reason has at most {MAX_REASON_CHARS} characters, got {len(reason)}")


def _stores(databases: Collection[Database], wanted: Wanted) -> list[Store]:
    known = {database.name for database in databases}
    if unknown := sorted(set(wanted.modules) - known):
        raise JobError(f"no module {', '.join(unknown)} has jobs (those that do: {', '.join(sorted(known))})")
    return [
        Store(database, shard)
        for database in databases
        if not wanted.modules or database.name in wanted.modules
        for shard in database.pools
    ]


async def _everywhere(databases: Collection[Database], wanted: Wanted, ask: Any) -> list[Any]:
    """Ask each shard of each module, all at once; the first that fails ends it, and is named."""
    stores = _stores(databases, wanted)

    async def named(store: Store) -> Any:
        try:
            return await ask(store)
        except asyncpg.PostgresError as error:
            raise DatabaseError(f"jobs of {store.module} on {store.shard}: {error}") from error

    tasks = [asyncio.ensure_future(named(store)) for store in stores]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _parameters(wanted: Wanted, states: Collection[str], after: UUID | None, limit: int) -> tuple[Any, ...]:
    return (
        list(wanted.ids) or None, list(states), list(wanted.kinds) or None,
        wanted.older, wanted.younger, wanted.key, after, limit,
    )  # fmt: skip


async def _listed(
    store: Store, wanted: Wanted, states: Collection[str], *, after: UUID | None, limit: int
) -> list[JobRow]:
    texts, rows = Texts(store.schema), []
    if queued := [state for state in states if state not in ENDED]:
        rows += await store.pool.fetch(texts.listed, *_parameters(wanted, queued, after, limit))
    if ended := [state for state in states if state in ENDED]:
        rows += await store.pool.fetch(texts.listed_done, *_parameters(wanted, ended, after, limit))
    return [_row(store, row) for row in rows]


async def _change(
    databases: Collection[Database],
    wanted: Wanted,
    states: Collection[str],
    chosen: Sequence[JobRow],
    text: Callable[[Texts, str], str],
    more: Callable[[int], tuple[Any, ...]],
) -> list[Changed]:
    """Change the chosen jobs, shard after shard, a batch at a time; one that has become something else since
    is left as it is. `text`: the statement for jobs of a state."""
    changed: list[Changed] = []
    for store in _stores(databases, wanted):
        texts, ids = Texts(store.schema), dict[str, list[UUID]]()
        for row in chosen:
            if (row.module, row.shard) == (store.module, store.shard):
                ids.setdefault(text(texts, row.state), []).append(row.id)
        for sql, batch in ((sql, some) for sql, found in ids.items() for some in _batches(found)):
            parameters = _parameters(replace(wanted, ids=batch), wanted.among(states), None, len(batch))
            try:
                rows = await store.pool.fetch(sql, *parameters, *more(len(batch)))
            except asyncpg.PostgresError as error:
                raise DatabaseError(f"jobs of {store.module} on {store.shard}: {error}") from error
            changed += [
                Changed(
                    store.module, store.shard, UUID(int=row["id"].int), row["kind"], row["version"],
                    UUID(int=row["replayed"].int) if "replayed" in row else None,
                )
                for row in rows
            ]  # fmt: skip
    return sorted(changed, key=lambda one: one.replayed or one.id)


def _batches(ids: Sequence[UUID]) -> list[Sequence[UUID]]:
    return [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]


def _row(store: Store, row: Any) -> JobRow:
    context = row["context"] if isinstance(row["context"], dict) else {}
    parts = str(context.get("traceparent") or "").split("-")
    same = (
        "bucket", "kind", "version", "state", "priority", "attempt", "max_attempts", "enqueued_at", "due_at",
        "run_at", "started_at", "finished_at", "deadline", "worker", "error", "unique_key", "ordering_key",
        "limit_key", "age",
    )  # fmt: skip
    return JobRow(
        module=store.module, shard=store.shard, id=UUID(int=row["id"].int),
        trace_id=parts[1] if len(parts) == 4 else None, request_id=context.get("request_id") or None,
        **{name: row[name] for name in same},
    )  # fmt: skip
