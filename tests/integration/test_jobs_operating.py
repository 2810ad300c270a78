"""What operators see and do: lists over shards, retry, discard, replay, pause; the check before a deploy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from tests.jobs_support import (
    DO,
    DO_ONCE,
    Deed,
    Doer,
    Heard,
    add,
    deeds,
    reach,
    rows,
    states,
    until,
    working,
)
from tests.sharded import pools

from springtide.db import Database, ShardMap
from springtide.errors import JobError, JobFailed
from springtide.jobs import Handler, Run, Upcast, checking, job, look, operating, result
from springtide.jobs._store import Ending, Store
from springtide.jobs.operating import KindRow, Wanted
from springtide.ops import _jobs_showing as showing
from springtide.signals import JobsMeasured

Urls = tuple[str, str]
KINDS = ["deed.do/1"]


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls, tmp_path / "migrations", size=8) as made:
        yield made


@pytest.fixture
async def lone(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls[:1], tmp_path / "migrations", size=8) as made:
        yield made


async def bury(database: Database, *, error: str = "no") -> list[UUID]:
    """All jobs that are ready become dead letters; their ids."""
    buried = []
    for shard in database.pools:
        store = Store(database, shard)
        for claimed in await store.claim(KINDS, 100, "w", 30.0):
            assert await store.end(claimed.run, "w", Ending("dead", error=error))
            buried.append(UUID(int=claimed.run.id.int))
    return sorted(buried)


async def record(deed: Deed, run: Run) -> None:
    await run.tx.execute(
        "insert into deeds.effect (bucket, what, job) values ($1, $2, $3)", run.tx.bucket, deed.what, run.key
    )


async def effects(database: Database) -> int:
    return len(await database.scatter("select what from deeds.effect"))


# -- looking -------------------------------------------------------------------------------------------


async def test_pages_go_through_all_shards_in_the_order_of_enqueueing(database: Database) -> None:
    """Every job is on exactly one page, and pages are sorted over all shards."""
    ids = [await add(database, str(number)) for number in range(23)]
    seen: list[UUID] = []
    after: UUID | None = None
    while True:
        found = await operating.page([database], Wanted(), limit=5, after=after)
        assert len(found.rows) <= 5
        seen += [row.id for row in found.rows]
        if (after := found.after) is None:
            break
    assert seen == sorted(ids)
    assert {row.shard for row in (await operating.page([database], Wanted())).rows} == set(database.pools)


async def test_a_filter_chooses_by_state_kind_key_and_age(database: Database) -> None:
    for number in range(4):
        await add(database, str(number))
    dead = await bury(database)
    held = await add(database, "x", ordering_key="a key")

    async def found(**filter: object) -> list[UUID]:
        return [row.id for row in (await operating.page([database], Wanted(**filter))).rows]  # type: ignore[arg-type]

    assert await found(states=["dead"]) == dead
    assert await found(key="a key") == [held]
    assert await found(kinds=["deed.other"]) == []
    assert await found(older=3600.0) == []
    assert set(await found(younger=3600.0)) == {*dead, held}
    assert await found(ids=[held]) == [held]
    with pytest.raises(JobError, match=r"one of ready, sent.*got lost"):
        Wanted(states=["lost"])
    with pytest.raises(JobError, match="no module elsewhere"):
        await operating.page([database], Wanted(modules=["elsewhere"]))


async def test_a_job_is_shown_in_full_wherever_it_is(database: Database) -> None:
    """In the queue and in the history, with its payload; and nothing for an id that nobody knows."""
    id = await add(database, "a")
    found = await operating.show([database], id)
    assert found is not None
    assert (found.payload, found.row.state, found.row.attempt) == ({"what": "a"}, "ready", 0)
    for shard in database.pools:
        store = Store(database, shard)
        claimed = await store.claim(KINDS, 5, "w", 30.0)
        await store.finish([one.run for one in claimed], "w")
    found = await operating.show([database], id)
    assert found is not None
    assert (found.payload, found.row.state, found.row.attempt) == ({"what": "a"}, "done", 1)
    assert await operating.show([database], UUID(int=7)) is None


async def test_the_overview_adds_up_over_shards(database: Database) -> None:
    for number in range(6):
        await add(database, str(number))
    await bury(database)
    for number in range(3):
        await add(database, str(number))
    (row,) = await operating.overview([database], Wanted())
    assert (row.module, row.kind, row.paused) == ("deeds", "deed.do", None)
    assert {state: jobs for state, jobs in row.counts.items() if jobs} == {"ready": 3, "dead": 6}


# -- stepping in ---------------------------------------------------------------------------------------


async def test_a_dead_letter_is_retried(database: Database, database_urls: Urls) -> None:
    """It runs, and has more runs than the one; the preview said which."""
    id = await add(database, "a")
    await bury(database)
    (shown,) = await operating.preview([database], Wanted(ids=[id]), operating.RETRYABLE, limit=10)
    assert (shown.id, shown.state) == (id, "dead")
    assert await states(database) == ["dead"]
    (changed,) = await operating.retry([database], Wanted(ids=[id]), attempts=7)
    assert changed.id == id
    (row,) = await rows(database)
    assert (row["attempt"], row["max_attempts"]) == (1, 8)
    doer = Doer()
    async with working(database, database_urls, [DO], doer):
        await reach(database, "done")
    assert [run.attempt for _, run in doer.calls] == [2]


async def test_a_run_that_was_given_up_cannot_end_the_retried_one(lone: Database) -> None:
    """The rescued run of the same worker lives on; what it says about its end is not believed."""
    await add(lone, "a")
    store = Store(lone, "main")
    (old,) = await store.claim(KINDS, 1, "w", 30.0)
    await store.end(old.run, "w", Ending("dead", error="no"))
    await operating.retry([lone], Wanted(states=["dead"]))
    (new,) = await store.claim(KINDS, 1, "w", 30.0)
    assert not await store.end(old.run, "w", Ending("done"))
    assert await store.end(new.run, "w", Ending("done"))


async def test_what_was_retried_is_above_the_floor_of_every_claim(lone: Database) -> None:
    """A worker whose floor has risen past the time at which the job was due finds it at once."""
    await add(lone, "a")
    await bury(lone)
    store = Store(lone, "main")
    for _ in range(3):
        await store.read()
    await until(lambda: _risen(store))
    await operating.retry([lone], Wanted(states=["dead"]))
    assert len(await store.claim(KINDS, 5, "w", 30.0)) == 1


async def _risen(store: Store) -> bool:
    await store.read()
    (row,) = await store.pool.fetch("select max(run_at) as last from deeds._job")
    return all(floor > row["last"] for floor in store.cursor.floors)


async def test_at_most_limit_jobs_change(database: Database) -> None:
    for number in range(9):
        await add(database, str(number))
    await bury(database)
    assert len(await operating.retry([database], Wanted(states=["dead"]), limit=4)) == 4
    assert sorted(await states(database)) == ["dead"] * 5 + ["ready"] * 4
    with pytest.raises(JobError, match="limit must be 1 to 10000, got 0"):
        await operating.retry([database], Wanted(), limit=0)
    with pytest.raises(JobError, match="for jobs that are dead, parked, ready, sent, not done, running"):
        await operating.retry([database], Wanted(states=["dead", "done", "running"]))
    with pytest.raises(JobError, match=r"for jobs that are .*, not running"):
        await operating.discard([database], Wanted(states=["running"]))
    with pytest.raises(JobError, match="for jobs that are dead, discarded, done, not ready"):
        await operating.replay([database], Wanted(states=["ready"]))


async def test_what_is_changed_is_what_the_preview_showed(database: Database, database_urls: Urls) -> None:
    """The same jobs in the same order over all shards and states, where the limit leaves some as they are."""
    done = [await add(database, str(number)) for number in range(4)]
    async with working(database, database_urls, [DO], Doer()):
        await reach(database, *["done"] * 4)
    for number in range(12):
        await add(database, str(number))
    dead = await bury(database)
    for act, of, wanted, ids in (
        (operating.replay, operating.REPLAYABLE, Wanted(kinds=["deed.do"]), dead[:6]),
        (operating.replay, operating.REPLAYABLE, Wanted(states=["dead", "done"]), [*done, *dead[:2]]),
        (operating.retry, operating.RETRYABLE, Wanted(states=["dead"]), dead[:6]),
        (operating.discard, operating.DISCARDABLE, Wanted(states=["dead"]), dead[6:]),
    ):
        shown = await operating.preview([database], wanted, of, limit=6)
        changed = await act([database], wanted, limit=6)
        assert [row.id for row in shown] == [one.replayed or one.id for one in changed] == ids


async def test_a_preview_refuses_what_the_change_refuses(lone: Database) -> None:
    """Before anything is chosen: the preview of a command that cannot be is no list of jobs."""
    for asked in (
        operating.retry([lone], Wanted(), attempts=5000),
        operating.preview([lone], Wanted(), operating.RETRYABLE, limit=1, attempts=5000),
    ):
        with pytest.raises(JobError, match="attempts must be 1 to 1000, got 5000"):
            await asked
    for asked in (
        operating.discard([lone], Wanted(), reason="x" * 600),
        operating.preview([lone], Wanted(), operating.RETRYABLE, limit=1, reason="x" * 600),
    ):
        with pytest.raises(JobError, match="a reason has at most 500 characters, got 600"):
            await asked


async def test_running_jobs_are_left_alone(lone: Database) -> None:
    id = await add(lone, "a")
    await Store(lone, "main").claim(KINDS, 1, "w", 30.0)
    for act in (operating.retry, operating.discard, operating.replay):
        assert await act([lone], Wanted(ids=[id])) == []
    assert await states(lone) == ["running"]


async def test_a_discarded_job_is_in_the_history_and_lets_the_next_of_its_key_go(
    lone: Database, database_urls: Urls
) -> None:
    first = await add(lone, "k", ordering_key="k", delay=1000.0)
    second = await add(lone, "k", ordering_key="k")
    doer = Doer()
    async with working(lone, database_urls[:1], [DO], doer):
        await reach(lone, "ready", "held")
        (gone,) = await operating.discard([lone], Wanted(ids=[first]), reason="asked for twice")
        await until(lambda: _is(lone, second, "done"))
    assert gone.id == first
    assert len(doer.calls) == 1
    found = await look(lone, "k", first)
    assert found is not None
    assert (found.state, found.error) == ("discarded", "discarded: asked for twice")
    with pytest.raises(JobFailed, match="asked for twice"):
        await result(lone, "k", first, timeout=1.0)


async def _is(database: Database, id: UUID, state: str) -> bool:
    found = await operating.show([database], id)
    return found is not None and found.row.state == state


async def test_replay_is_a_new_job_whose_effects_happen_again(
    database: Database, database_urls: Urls
) -> None:
    """What is done is done once more, by a job with an id and key of its own; the old one stays done."""
    doer = Doer(record)
    id = await add(database, "a")
    async with working(database, database_urls, [DO_ONCE], doer):
        await reach(database, "done")
        (new,) = await operating.replay([database], Wanted(ids=[id]))
        await reach(database, "done", "done")
    assert new.replayed == id != new.id
    assert await effects(database) == 2
    assert len({run.key for _, run in doer.calls}) == 2


async def test_replay_by_kind_alone_takes_only_dead_letters(database: Database, database_urls: Urls) -> None:
    async with working(database, database_urls, [DO], Doer()):
        await add(database, "done")
        await reach(database, "done")
    dead = await add(database, "dead")
    await bury(database)
    (new,) = await operating.replay([database], Wanted(kinds=["deed.do"]))
    assert new.replayed == dead
    assert sorted(await states(database)) == ["dead", "done", "ready"]


# -- pause ---------------------------------------------------------------------------------------------


async def test_a_paused_kind_waits_and_goes_on_after_a_restart_and_resume(
    database: Database, database_urls: Urls
) -> None:
    """Running workers stop claiming it, new workers do not begin with it, and all of it is done after."""
    heard, doer = Heard(), Doer()
    async with working(database, database_urls, [DO], doer, sink=heard) as first:
        assert len(await operating.pause([database], kind="deed.do", reason="their mail is down")) == 2
        await until(lambda: all(m.stopped for m in heard.of(JobsMeasured)[-2:]) and heard.of(JobsMeasured))
        for number in range(6):
            await add(database, str(number))
        await reach(database, *["paused"] * 6)
        await until(lambda: sum(m.paused for m in heard.of(JobsMeasured)[-2:]) == 6)
        assert first.running == 0
    async with working(database, database_urls, [DO], doer, sink=heard):
        heard.signals.clear()
        await until(lambda: len(heard.of(JobsMeasured)) > 3)
        assert doer.calls == []
        (row,) = await operating.overview([database], Wanted())
        assert row.paused is not None
        assert (row.paused.reason, row.counts["paused"]) == ("their mail is down", 6)
        assert len(await operating.resume([database], kind="deed.do")) == 2
        await reach(database, *["done"] * 6)
    assert await operating.resume([database], kind="deed.do") == []


async def test_a_paused_module_begins_nothing(database: Database, database_urls: Urls) -> None:
    await operating.pause([database], module="deeds")
    doer = Doer()
    await add(database, "a")
    async with working(database, database_urls, [DO], doer):
        await reach(database, "paused")
        await operating.resume([database], module="deeds")
        await reach(database, "done")


async def test_a_pause_is_shown_where_no_job_is(database: Database) -> None:
    """Of a whole module on a line of its own, of a kind on that of the kind; both until they are resumed."""
    await operating.pause([database], module="deeds", reason="maintenance")
    await operating.pause([database], kind="deed.do")
    whole, of_kind = await operating.overview([database], Wanted())
    assert (whole.module, whole.kind, whole.counts, of_kind.kind) == ("deeds", None, {}, "deed.do")
    assert whole.paused is not None and (whole.paused.kind, whole.paused.reason) == (None, "maintenance")
    assert "deeds   all kinds" in (shown := showing.kinds([whole, of_kind])) and "maintenance" in shown
    await operating.resume([database], module="deeds")
    (row,) = await operating.overview([database], Wanted())
    assert row == KindRow("deeds", "deed.do", {}, 0.0, row.paused)
    await operating.resume([database], kind="deed.do")
    assert await operating.overview([database], Wanted()) == []


async def test_a_delayed_job_keeps_its_time_through_a_pause(lone: Database) -> None:
    await add(lone, "a", delay=1000.0)
    (before,) = await rows(lone)
    await operating.pause([lone], kind="deed.do")
    assert await states(lone) == ["paused"]
    await operating.resume([lone], kind="deed.do")
    (after,) = await rows(lone)
    assert (after["state"], after["run_at"]) == ("ready", before["run_at"])


# -- before a deploy -----------------------------------------------------------------------------------


@job(kind="deed.do", version=2)
class Newer(msgspec.Struct, frozen=True):
    what: str
    where: str


class NewDoer:
    def __init__(self) -> None:
        self.calls: list[str] = []

    async def do(self, job: Newer, run: Run) -> None:
        self.calls.append(job.what)


def nowhere(fields: dict[str, str]) -> dict[str, str]:
    return {**fields, "where": "nowhere"}


async def whats(database: Database, *handlers: Handler, **options: int | None) -> list[tuple[str, int]]:  # type: ignore[type-arg]
    report = await checking.check({database: handlers}, **options)
    return sorted((finding.what, finding.jobs) for finding in report.findings)


async def test_check_says_what_the_new_code_cannot_run(lone: Database) -> None:
    """No handler, no upcast, and payloads that do not decode; nothing when all can be run."""
    for number in range(7):
        await add(lone, str(number))
    assert await whats(lone, DO) == []
    assert await whats(lone) == [("no handler", 7)]
    assert await whats(lone, Handler(Newer, NewDoer.do)) == [("no upcast", 7)]
    assert await whats(lone, Handler(Newer, NewDoer.do, upcasts=[Upcast(1, nowhere)])) == []
    unable = Upcast(1, dict)
    assert await whats(lone, Handler(Newer, NewDoer.do, upcasts=[unable])) == [("unreadable", 7)]


async def test_check_reads_as_many_payloads_as_it_is_told(lone: Database) -> None:
    for number in range(7):
        await add(lone, str(number))
    handler = Handler(Newer, NewDoer.do, upcasts=[Upcast(1, dict)])
    assert await whats(lone, handler, payloads=3) == [("unreadable", 3)]
    assert await whats(lone, handler, payloads=0) == []
    assert await whats(lone, handler, payloads=None) == [("unreadable", 7)]


async def test_dead_letters_keep_no_deploy(lone: Database) -> None:
    await add(lone, "a")
    await bury(lone)
    report = await checking.check({lone: []})
    assert [finding.what for finding in report.findings] == ["no handler"]
    assert report.ready
    await add(lone, "b")
    assert not (await checking.check({lone: []})).ready


async def test_a_dead_letter_that_cannot_be_read_keeps_no_deploy(lone: Database) -> None:
    """It died of being unreadable, and is counted apart from what waits of its kind, read or not."""
    spoil = "update deeds._job set payload = '{\"what\": 7}'"
    await add(lone, "bad")
    await lone.pools["main"].execute(spoil)
    await bury(lone)
    await add(lone, "good")
    report = await checking.check({lone: [DO]})
    assert [(one.what, one.jobs, one.dead) for one in report.findings] == [("unreadable", 1, 1)]
    assert report.ready
    await lone.pools["main"].execute(spoil)
    report = await checking.check({lone: [DO]})
    assert [(one.what, one.jobs, one.dead) for one in report.findings] == [("unreadable", 2, 1)]
    assert not report.ready


async def test_check_before_the_first_deploy_finds_nothing(database_urls: Urls) -> None:
    """On databases that nothing was ever migrated on."""
    async with pools(database_urls) as started:
        empty = Database("deeds", ShardMap.even(list(started)), started)
        report = await checking.check({empty: [DO]})
    assert report.ready and report.queued == 0


async def test_check_finds_jobs_of_a_module_that_is_gone(lone: Database) -> None:
    await add(lone, "a")
    same = "source, number, name, checksum, statements_done, applied_at"
    await lone.pools["main"].execute(
        f"insert into springtide.migration (module, {same})"
        f" select 'gone', {same} from springtide.migration where module = 'deeds'"
    )
    await lone.pools["main"].execute("create schema gone")
    await lone.pools["main"].execute("create table gone._job as select * from deeds._job")
    report = await checking.check({lone: [DO]})
    assert [(one.module, one.what, one.jobs) for one in report.findings] == [("gone", "no module", 1)]
    assert not report.ready


async def test_a_rolling_deploy_drops_no_kind_that_one_side_does_not_know(
    database: Database, database_urls: Urls
) -> None:
    """Old and new workers side by side, both enqueued for: what is known to one of them alone is done by it,
    and what the new one brought waits, parked, while only the old one lives."""
    old, new = Doer(), NewDoer()
    newer = Handler(Newer, NewDoer.do, upcasts=[Upcast(1, nowhere)])

    async def both(count: int) -> None:
        for number in range(count):
            key = str(number)
            async with database.write(key) as tx:
                await tx.enqueue(Deed(key))
                await tx.enqueue(Newer(key, "here"))

    async with working(database, database_urls, [DO], old):
        await both(20)
        await until(lambda: _counts(database, done=20, parked=20))
        async with working(database, database_urls, [newer], new):
            await both(20)
            await until(lambda: _counts(database, done=80))
        await both(20)
        await until(lambda: _counts(database, done=100, parked=20))
    async with working(database, database_urls, [newer], new):
        await until(lambda: _counts(database, done=120))
    assert len(old.calls) + len(new.calls) == 120


async def _counts(database: Database, **wanted: int) -> bool:
    found = await states(database)
    return {state: found.count(state) for state in set(found)} == wanted
