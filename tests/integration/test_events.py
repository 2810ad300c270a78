"""The log on real PostgreSQL: appended with the transaction, numbered without a gap, causes first."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.events_support import (
    WRITE,
    Listener,
    Other,
    Told,
    facts,
    group,
    lanes,
    log,
    seen,
    tell,
    working,
)  # fmt: skip
from tests.jobs_support import Heard, listening, until

from springtide.clock import SystemClock
from springtide.context import RequestContext, Trace, activate, current
from springtide.db import Bucket, Database, ShardMap
from springtide.errors import ConfigurationError, EventError
from springtide.events import Publisher, event, operating, publish, publish_many
from springtide.events._log import Log
from springtide.events._upkeep import Upkeep
from springtide.events.publish import LANES
from springtide.signals import GroupMeasured, LogKept, LogMeasured

Urls = tuple[str, str]


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with facts(database_urls, tmp_path / "migrations", size=8) as made:
        yield made


@pytest.fixture
async def single(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with facts(database_urls[:1], tmp_path / "migrations", size=12) as made:
        yield made


async def number(database: Database) -> int:
    """Number all that can be seen on the first shard; how many."""
    store = Log(database, "main")
    moved = 0
    while True:
        look = await store.number()
        if look is not None:
            moved += look.moved
            if not look.full:
                return moved


# -- appending -----------------------------------------------------------------------------------------


async def test_every_group_gets_every_event_of_every_shard(database: Database, database_urls: Urls) -> None:
    """Each event once for each group; the positions of both logs are 1 to n."""
    one, two = Listener(), Listener()
    wanted = [f"fact {number}" for number in range(30)]
    async with working(database, database_urls, (group("one"), one), (group("two", [WRITE]), two)):
        await tell(database, *wanted)

        async def handled() -> bool:
            return len(one.calls) == len(await seen(database, "two")) == 30

        await until(handled)
    assert sorted(one.heard) == sorted(two.heard) == sorted(wanted)
    assert {delivery.shard for _, delivery in one.calls} == {"main", "second"}
    for shard in ("main", "second"):
        rows = await log(database, shard)
        assert [row["pos"] for row in rows] == list(range(1, len(rows) + 1))
    assert await operating.check(database) == []


async def test_a_transaction_that_is_rolled_back_leaves_no_event(single: Database) -> None:
    """Neither an exception nor a savepoint undone leaves an event, nor a gap."""
    with pytest.raises(RuntimeError, match="undone"):
        async with single.write("a") as tx:
            await tx.publish(Told("a"))
            raise RuntimeError("undone")
    async with single.write("b") as tx:
        with pytest.raises(RuntimeError, match="undone"):
            async with tx.savepoint() as inner:
                await inner.publish(Told("b"))
                raise RuntimeError("undone")
        kept = await tx.publish(Told("kept"))
    assert await number(single) == 1
    (row,) = await log(single)
    assert (row["pos"], row["id"]) == (1, kept)


async def test_what_cannot_be_published_is_refused_where_it_is(single: Database) -> None:
    class Plain(msgspec.Struct, frozen=True):
        pass

    @event(kind="fact.told", version=2)
    class Told2(msgspec.Struct, frozen=True):
        pass

    single.publish = Publisher(names=["fact.told/1"])
    async with single.write("a") as tx:
        for faulty, key, message in (
            (Plain(), None, "Plain is not declared as an event"),
            (Told2(), None, r"does not publish fact.told/2 \(it publishes: fact.told/1\)"),
            (Told("a"), "", "key must be a string of 1 to"),
            (Told("a"), 7, "key must be a string of 1 to 500 characters without NUL, got 7"),
            (Told("a"), "\0", "without NUL"),
            (Told("a" * 70_000), None, "store what it is about"),
            (Told(object()), None, "an event of kind fact.told cannot be stored as JSON"),  # type: ignore[arg-type]
            (Told, None, r"an event must be a value, such as Told\(...\), got the class"),
        ):
            with pytest.raises(EventError, match=message):
                await tx.publish(faulty, key=key)
            with pytest.raises(EventError, match=message):
                await tx.publish_many([faulty], key=key)
    single.publish = None
    async with single.write("a") as tx:
        with pytest.raises(ConfigurationError, match="without events"):
            await tx.publish(Told("a"))
        await publish(tx, Told("a"))  # needs no composition root
        assert len(await publish_many(tx, [Told("b"), Other("c")])) == 2
    assert await number(single) == 3


async def test_many_at_once_keep_their_order(single: Database) -> None:
    """5,000 events of one transaction, over several statements, numbered by several."""
    async with single.write("a") as tx:
        ids = await tx.publish_many([Told(str(number)) for number in range(5000)], key="k")
    assert await number(single) == 5000
    assert [row["id"] for row in await log(single)] == ids


async def test_events_of_a_bucket_that_is_elsewhere_move_no_lane_there(
    database: Database, database_urls: Urls
) -> None:
    """A log whose buckets another shard has now: a transactional handler cannot commit with its lane. That is
    said, and the lanes of the other shard stay where they are."""
    await tell(database, "a", at=Bucket(3))
    assert database.shards.shard_of(Bucket(3)) == "main"
    shards = ShardMap(["second"] * 512 + ["main"] * 512, epoch=2)
    moved = Database("facts", shards, database.pools, publish=database.publish)
    async with working(moved, database_urls, (group("ears", [WRITE]), Listener())):
        await until(lambda: operating.dead_letters(moved, "ears"))
    (letter,) = await operating.dead_letters(moved, "ears")
    assert "bucket 3 of 'facts' is on 'second' now" in letter.error
    assert await seen(moved) == [] and {row["pos"] for row in await lanes(moved, shard="second")} == {0}


# -- numbering -----------------------------------------------------------------------------------------


async def test_late_commits_are_not_skipped(single: Database, database_urls: Urls) -> None:
    """Eight writers whose transactions commit in another order than they appended, while two workers number
    and handle: every event is handled, once by the transactional group, and no position is missing."""
    dice = random.Random(7)
    ears = Listener()

    async def write(writer: int) -> None:
        for number in range(12):
            async with single.write(f"{writer}/{number}") as tx:
                await tx.publish(Told(f"{writer}/{number}"))
                await tx.fetch("select pg_sleep($1)", dice.uniform(0, 0.03))

    groups = ((group("plain"), ears), (group("ears", [WRITE]), Listener()))
    async with working(single, database_urls[:1], *groups), working(single, database_urls[:1], *groups):
        await asyncio.gather(*(write(writer) for writer in range(8)))

        async def handled() -> bool:
            return len(set(ears.heard)) == len(await seen(single)) == 96

        await until(handled)
    assert len(await seen(single)) == len({row["what"] for row in await seen(single)}) == 96
    assert [row["pos"] for row in await log(single)] == list(range(1, 97))


async def test_effects_come_after_their_causes(single: Database) -> None:
    """Whoever has seen a commit and then appends has the later position, also when both are numbered at once,
    and when an earlier append commits in between."""
    async with single.write("late") as late:
        await late.publish(Told("late"))
        await asyncio.create_task(tell_detached(single, "cause"))
        await asyncio.create_task(tell_detached(single, "effect"))
        assert await number(single) == 2
    await tell(single, "last")
    assert await number(single) == 2
    found = [msgspec.json.decode(row["payload"])["what"] for row in await log(single)]
    assert found == ["cause", "effect", "late", "last"]


async def tell_detached(database: Database, what: str) -> None:
    """Outside of the write that is open in the caller's context."""
    bucket = 5
    await database.pools["main"].execute(
        "insert into facts._event_new (seq, bucket, lane, version, appended_at, id, kind, payload, context)"
        " select case when pg_current_xact_id() is not null then nextval('facts._event_seq') end, $1::int,"
        " $1::int % 16, 1, clock_timestamp(), gen_random_uuid(), 'fact.told', $2::bytea, '{}'",
        bucket,
        msgspec.json.encode(Told(what)),
    )


async def test_an_open_transaction_delays_nothing(single: Database, database_urls: Urls) -> None:
    """One with a number of its own and an old snapshot: what others append meanwhile is handled meanwhile."""
    ears = Listener()
    async with (
        working(single, database_urls[:1], (group(), ears)),
        single.pools["main"].transaction(isolation="repeatable read") as held,
    ):
        await held.fetch("select pg_current_xact_id(), count(*) from facts._event")
        await tell(single, *(str(number) for number in range(20)))
        await until(lambda: len(ears.calls) == 20)


async def test_numbering_does_not_read_again_what_was_numbered(single: Database) -> None:
    """While a transaction is held open nothing can be vacuumed: by the pages that a look touches, one with
    the floor costs as much after 3,000 events as after 500; one from the beginning costs more and more."""
    store, pool = Log(single, "main"), single.pools["main"]

    async def churn(count: int) -> None:
        for _ in range(count // 250):
            async with single.write("a") as tx:
                await tx.publish_many([Told("x")] * 250)
            while (look := await store.number()) is None or look.moved:
                pass

    async def pages(floor: int) -> int:
        """Of the move: the index entries that it passes."""
        async with pool.transaction() as tx:
            await tx.execute("set local enable_seqscan = off")
            await tx.execute("set local enable_bitmapscan = off")
            plan = await tx.fetch_value(
                "explain (analyze, buffers, format json)"
                " select ctid from facts._event_new where seq >= $1 order by seq limit 2000",
                floor,
            )
        assert "_event_new_seq" in str(plan)
        return int(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])

    async with pool.transaction(isolation="repeatable read") as held:
        await held.fetch("select pg_current_xact_id(), count(*) from facts._event")
        found = []
        for count in (500, 2500):
            await churn(count)
            await store.number()
            found.append((await pages(store.floor.value), await pages(1)))
    (floor_before, whole_before), (floor_after, whole_after) = found
    assert floor_after <= floor_before + 5, found
    assert whole_after >= whole_before + 20, found


async def test_a_late_commit_is_found_below_the_floor(single: Database) -> None:
    """Its rows lie below the floor when it commits; the next look goes back for them."""
    store = Log(single, "main")
    appended, go = asyncio.Event(), asyncio.Event()

    async def late() -> None:
        async with single.write("late") as tx:
            await tx.publish(Told("late"))
            appended.set()
            await go.wait()

    task = asyncio.create_task(late())
    await appended.wait()
    for _ in range(4):
        await tell(single, "x")
        await store.number()
    await store.number()
    seq = await single.pools["main"].fetch_value("select last_value from facts._event_seq")
    assert store.floor.value > 1 and store.floor.pending and seq == 5
    assert (await store.number()).moved == 0  # type: ignore[union-attr]
    go.set()
    await task
    look = await store.number()
    assert look is not None and look.moved == 1
    assert len(await log(single)) == 5


async def test_workers_without_events_write_nothing(single: Database) -> None:
    """Looks and claims without news take no transaction number and no lock."""
    store, pool = Log(single, "main"), single.pools["main"]
    await store.register("ears", ["fact.told"], (), "beginning")
    await tell(single, "a")
    for _ in range(3):
        await store.number()
    (lane,) = await store.claim(["ears"], [5.0], ["ears fact.told/1"], 10, "w")
    assert await store.leave(lane, 1, lane.at)
    before = await pool.fetch_value("select pg_snapshot_xmax(pg_current_snapshot())::text")
    for _ in range(5):
        look = await store.number()
        assert look is not None and look.running is None
        assert await store.claim(["ears"], [5.0], ["ears fact.told/1"], 10, "w") == []
    assert await pool.fetch_value("select pg_snapshot_xmax(pg_current_snapshot())::text") == before


async def test_the_bell_wakes_workers(single: Database, database_urls: Urls) -> None:
    """Workers that would poll after a minute handle an event when its transaction has committed."""
    ears = Listener()
    async with working(single, database_urls[:1], (group(), ears), poll=60.0):
        await listening(single)
        for number in range(3):
            await tell(single, str(number))
            await until(lambda number=number: len(ears.calls) == number + 1)


async def test_claims_and_reads_use_the_index(single: Database) -> None:
    """In a log of 20,000 events in two days, a claim and a read touch a few pages."""
    store, pool = Log(single, "main"), single.pools["main"]
    await Upkeep(
        store, [], keep=1e6, keep_at_most=None, every=1, measure_every=1, clock=SystemClock(), sink=Heard()
    )._tend_days()
    await pool.execute(
        "insert into facts._event (pos, at, bucket, lane, version, appended_at, id, kind, payload, context)"
        " select n, now() + n * interval '4 s', 1, n % 16, 1, now(), gen_random_uuid(), 'fact.told', '{}',"
        " '{}'"
        " from generate_series(1, 20000) as n"
    )
    await pool.execute("update facts._event_head set pos = 20000, at = now() + interval '80000 s'")
    await pool.execute("analyze facts._event")
    await store.register("ears", ["fact.told"], (), "now")
    await pool.execute("update facts._event_lane set pos = 19990, at = now() + interval '79000 s'")
    for sql, arguments in (
        (store._claim, (["ears"], [5.0], ["ears fact.told/1"], 10, "w")),
        (store._read, ("ears", 3, 10_000, datetime.now(UTC), ["fact.told"], 100)),
    ):
        async with pool.transaction() as tx:
            for _ in range(7):  # past asyncpg's and PostgreSQL's custom plans
                plan = await tx.fetch_value(f"explain (analyze, buffers, format json) {sql}", *arguments)
        top = plan[0]["Plan"]
        assert "_event_2" not in str(plan) or "Seq Scan" not in _scans(plan, "_event_"), plan
        assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 400, plan


def _scans(plan: Any, prefix: str) -> str:
    """The kinds of scan of the partitions in a plan that were executed and found something."""
    found: list[str] = []

    def walk(node: dict[str, Any]) -> None:
        relation = str(node.get("Relation Name", ""))
        if relation.startswith("_event_2") and node.get("Actual Rows"):
            found.append(str(node["Node Type"]))
        for child in node.get("Plans", []):
            walk(child)

    walk(plan[0]["Plan"])
    return " ".join(found)


# -- context -------------------------------------------------------------------------------------------


async def test_the_trace_goes_on_in_the_handler(single: Database, database_urls: Urls) -> None:
    """Trace and request id are the publisher's, the span is new; the deadline is max_run; no identity."""
    found: list[RequestContext] = []

    async def look(fact: Told, delivery: Any) -> None:
        context = current()
        assert context is not None
        found.append(context)

    trace = Trace("a" * 32, "b" * 16, True)
    async with working(single, database_urls[:1], (group(), Listener(look))):
        with activate(RequestContext(request_id="r1", trace=trace)):
            await tell(single, "a")
        await until(lambda: found)
    (context,) = found
    assert context.request_id == "r1" and context.trace is not None and context.deadline is not None
    assert context.trace.trace_id == "a" * 32 and context.trace.span_id != "b" * 16


# -- retention -----------------------------------------------------------------------------------------


async def test_a_worker_makes_the_days_when_it_begins(single: Database, database_urls: Urls) -> None:
    """Not when its upkeep comes for the first time: what is in the log until then would move under a lock."""
    days = "select count(*) from pg_inherits where inhparent = 'facts._event'::regclass"
    async with working(single, database_urls[:1], (group(), Listener()), upkeep=3600.0):

        async def made() -> bool:
            return bool(await single.pools["main"].fetch_value(days) == 4)

        await until(made)


async def test_days_go_when_all_groups_have_passed_them(single: Database) -> None:
    """Nothing that a group has not passed is dropped, and that is said; unless the log was told to, and then
    that is said. A lane without events in it keeps nothing. Days go in their order: the log has no gap."""
    store, pool, heard = Log(single, "main"), single.pools["main"], Heard()

    def keeper(keep_at_most: float | None = None) -> Upkeep:
        return Upkeep(
            store, ["ears"], keep=86_400.0, keep_at_most=keep_at_most, every=1, measure_every=1,
            clock=SystemClock(), sink=heard,
        )  # fmt: skip

    async def old_day(days: int, lane: int) -> str:
        """An event in a day of its own, so many days ago."""
        day = datetime.now(UTC).date() - timedelta(days=days)
        name = f"_event_{day:%Y%m%d}"
        await pool.execute(
            f"create table facts.{name} partition of facts._event"
            f" for values from ('{day}T00:00:00Z') to ('{day + timedelta(days=1)}T00:00:00Z')"
        )
        await pool.execute(
            "insert into facts._event"
            " (pos, at, bucket, lane, version, appended_at, id, kind, payload, context)"
            " select pos + 1, $1, $2, $2, 1, $1, gen_random_uuid(), 'fact.told', '{}', '{}'"
            " from facts._event_head",
            datetime(day.year, day.month, day.day, 12, tzinfo=UTC),
            lane,
        )
        await pool.execute("update facts._event_head set pos = pos + 1")
        return name

    async def days() -> list[str]:
        rows = await pool.fetch("select inhrelid::regclass::text as name from pg_inherits"
                                " where inhparent = 'facts._event'::regclass")  # fmt: skip
        return [row["name"].removeprefix("facts.") for row in rows]

    await store.register("ears", ["fact.told"], (), "beginning")
    first, second, third = await old_day(9, 3), await old_day(8, 3), await old_day(7, 5)
    await pool.execute("update facts._event_lane set pos = 3 where lane = 5")  # it has passed the third
    await keeper()._tend_days()
    assert {first, second, third} <= set(await days())
    assert await operating.check(single) == []
    assert [(kept.groups, kept.dropped) for kept in heard.of(LogKept)] == [(("ears",), False)]
    await pool.execute("update facts._event_lane set pos = 1 where lane = 3")  # it passes the first
    heard.signals.clear()
    await keeper()._tend_days()
    assert first not in await days() and second in await days()
    await keeper(keep_at_most=7 * 86_400.0)._tend_days()
    assert second not in await days()
    assert [(kept.groups, kept.dropped) for kept in heard.of(LogKept)][-1] == (("ears",), True)
    today = datetime.now(UTC).date()
    assert {f"_event_{today + timedelta(days=n):%Y%m%d}" for n in range(3)} <= set(await days())


async def test_lag_is_told(single: Database, database_urls: Urls) -> None:
    """Events that a group has not passed, their age, and the log's position; nothing once it has."""
    heard, go = Heard(), asyncio.Event()

    async def wait(fact: Told, delivery: Any) -> None:
        await go.wait()

    async with working(single, database_urls[:1], (group(), Listener(wait)), sink=heard):
        await tell(single, "a", "b", "c", at="same")
        await until(lambda: any(lag.waiting == 3 and lag.age > 0 for lag in heard.of(GroupMeasured)))
        go.set()
        heard.signals.clear()
        await until(lambda: any(lag.waiting == 0 and lag.age == 0 for lag in heard.of(GroupMeasured)))
    assert any(depth.position == 3 and depth.waiting == 0 for depth in heard.of(LogMeasured))
    assert LANES == 16 and Bucket(3).number % LANES == 3
