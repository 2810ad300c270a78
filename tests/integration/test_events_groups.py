"""Groups: where they begin, in which order they handle, what they do about what fails or cannot be read."""

from __future__ import annotations

import asyncio
import contextvars
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from tests.events_support import (
    HEAR,
    WRITE,
    Listener,
    Other,
    Told,
    facts,
    group,
    insert,
    lanes,
    log,
    seen,
    tell,
    worker,
    working,
)  # fmt: skip
from tests.jobs_support import Heard, until
from tests.sharded import pools

from springtide.clock import SystemClock
from springtide.db import Database
from springtide.db.pool import Pool
from springtide.errors import EventError, EventFailed
from springtide.events import Delivery, EventWorker, Group, On, Upcast, event, operating, publish
from springtide.events._log import Log
from springtide.events._route import Route
from springtide.events._turn import Turn
from springtide.events.publish import lane_of
from springtide.lifecycle import Group as Services
from springtide.outbox.days import Days
from springtide.signals import EventsHandled
from springtide.testing import stress
from springtide.testing.faults import FaultProxy

Urls = tuple[str, str]


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with facts(database_urls[:1], tmp_path / "migrations", size=12) as made:
        yield made


@pytest.fixture
def urls(database_urls: Urls) -> tuple[str, ...]:
    return database_urls[:1]


# -- order ---------------------------------------------------------------------------------------------


async def test_events_of_a_key_are_handled_in_order_and_one_at_a_time(database: Database, urls: Urls) -> None:
    """Two workers, many keys, handlers of uneven length: per key in order, two lanes at once somewhere, and
    never two handlers of one lane at once."""
    dice, order = random.Random(3), defaultdict(list)
    busy: dict[int, int] = defaultdict(int)
    most = 0

    async def act(fact: Told, delivery: Delivery) -> None:
        nonlocal most
        lane = lane_of(delivery.ordering_key, 0)
        busy[lane] += 1
        assert busy[lane] == 1, "two handlers of one lane at once"
        most = max(most, sum(busy.values()))
        await asyncio.sleep(dice.uniform(0, 0.01))
        busy[lane] -= 1
        order[delivery.ordering_key].append(int(fact.what))

    ears = Listener(act)
    async with working(database, urls, (group(), ears)), working(database, urls, (group(), ears)):

        async def write(key: int) -> None:
            for number in range(15):
                await tell(database, str(number), key=f"key {key}", at="same")

        await asyncio.gather(*(write(key) for key in range(10)))
        await until(lambda: sum(map(len, order.values())) >= 150)
    assert all(found == sorted(found) and len(found) == 15 for found in order.values())
    assert most > 1


async def test_batches_are_of_events_that_follow_each_other(database: Database, urls: Urls) -> None:
    """Up to `batch` of one kind, in order, in one transaction; another kind in between ends a batch."""
    sizes: list[int] = []

    class Ears:
        async def many(self, heard: list[Told], deliveries: list[Delivery]) -> None:
            sizes.append(len(heard))
            for fact, delivery in zip(heard, deliveries, strict=True):
                await insert(delivery, fact.what)

        async def other(self, fact: Other, delivery: Delivery) -> None:
            await insert(delivery, fact.what)

    async with database.write("same") as tx:
        await tx.publish_many([Told(str(number)) for number in range(25)])
        await tx.publish(Other("x"))
        await tx.publish(Told("y"))
    handlers = [
        On(Told, Ears.many, effect="transactional", batch=10),
        On(Other, Ears.other, effect="transactional"),
    ]
    async with working(database, urls, (group("ears", handlers), Ears())):
        await until(lambda: count(database, 27))
    assert [row["what"] for row in await seen(database)] == [*map(str, range(25)), "x", "y"]
    assert sizes == [10, 10, 5, 1]


async def count(database: Database, wanted: int, name: str = "ears") -> bool:
    return len(await seen(database, name)) == wanted


async def test_a_batch_that_fails_is_handled_one_by_one(database: Database, urls: Urls) -> None:
    """The one that fails for good is a dead letter, the others are handled once."""
    sizes: list[int] = []

    class Ears:
        async def many(self, heard: list[Told], deliveries: list[Delivery]) -> None:
            sizes.append(len(heard))
            for fact, delivery in zip(heard, deliveries, strict=True):
                await insert(delivery, fact.what)
                if fact.what == "bad":
                    raise ValueError("bad")

    async with database.write("same") as tx:
        await tx.publish_many([Told("a"), Told("bad"), Told("b")])
    handlers = [On(Told, Ears.many, effect="transactional", batch=10)]
    async with working(database, urls, (group("ears", handlers), Ears())):
        await until(lambda: count(database, 2))
    assert [row["what"] for row in await seen(database)] == ["a", "b"]
    (letter,) = await operating.dead_letters(database, "ears")
    assert letter.event.position == 2 and letter.error == "ValueError: bad"
    assert sizes[0] == 3 and set(sizes[1:]) == {1}


async def test_a_group_that_hangs_leaves_the_others_a_slot(database: Database, urls: Urls) -> None:
    """Handlers of one group that never end, in more lanes than the worker has slots: the other group handles
    what is published meanwhile."""
    go = asyncio.Event()

    async def hang(fact: Told, delivery: Delivery) -> None:
        await go.wait()

    async def publishing(name: str) -> None:
        for number in range(20):
            await tell(database, f"{name} {number}", key=f"key {number}")

    slow, quick = Listener(hang), Listener()
    groups = ((group("slow", max_run=60.0), slow), (group("quick"), quick))
    async with working(database, urls, *groups, slots=3) as made:
        await publishing("first")
        await until(lambda: len(slow.calls) >= 2 and len(quick.calls) >= 20)
        await publishing("second")
        await until(lambda: len(quick.calls) >= 40, seconds=20.0)
        assert len(slow.calls) == 2 and made.running >= 2
        go.set()
        await until(lambda: len(slow.calls) == 40)


# -- failing -------------------------------------------------------------------------------------------


async def test_what_fails_is_tried_again_and_holds_its_lane(database: Database, urls: Urls) -> None:
    """Others of its key wait; other keys go on; the effect of a failed try is rolled back."""
    tries: list[int] = []

    async def act(fact: Told, delivery: Delivery) -> None:
        if fact.what == "bad":
            tries.append(delivery.attempt)
            if delivery.attempt < 3:
                raise RuntimeError("not yet")

    heard = Heard()
    ears = Listener(act)
    await tell(database, "bad", "after", key="one", at="same")
    await tell(database, "elsewhere", key="two", at="same")
    async with working(database, urls, (group("ears", [WRITE]), ears), sink=heard):
        await until(lambda: count(database, 3))
    assert tries == [1, 2, 3]
    found = [row["what"] for row in await seen(database)]
    assert found.index("bad") < found.index("after") and len(found) == 3
    outcomes = [(one.outcome, one.attempt) for one in heard.of(EventsHandled) if one.position == 1]
    assert outcomes == [("retry", 1), ("retry", 2), ("done", 3)]


@pytest.mark.parametrize("error", [EventFailed("no"), ValueError("no")])
async def test_a_dead_letter_is_kept_and_can_be_tried_again(
    database: Database, urls: Urls, error: Exception
) -> None:
    """EventFailed at once, others after max_attempts; the lane goes on. `retry` handles it, in its own
    transaction; a dead letter that fails again stays."""
    broken = True

    async def act(fact: Told, delivery: Delivery) -> None:
        if fact.what == "bad" and broken:
            raise error

    await tell(database, "bad", "after", key="one", at="same")
    async with working(database, urls, (group("ears", [WRITE]), Listener(act))):
        await until(lambda: count(database, 1))
        (letter,) = await operating.dead_letters(database, "ears")
        assert letter.attempt == (1 if isinstance(error, EventFailed) else 3)
        assert letter.error == f"{type(error).__name__}: no" and letter.event.key == "one"
        assert await operating.retry(database, "ears") == 1
        await until(lambda: tried(database, letter.attempt + 1))
        broken = False
        assert await operating.retry(database, "ears", position=1, shard="main") == 1
        await until(lambda: count(database, 2))
    assert await operating.dead_letters(database, "ears") == []
    assert [row["what"] for row in await seen(database)] == ["after", "bad"]


async def test_an_event_is_set_aside_while_its_day_is_made(database: Database) -> None:
    """Its row moves from the default partition to that of its day: whoever looks for it meanwhile waits, and
    finds it, so that its group does not pass it without a dead letter."""
    store, pool = Log(database, "main"), database.pools["main"]
    await store.register("ears", ["fact.told"], (), "beginning")
    await tell(database, "a", at="same")
    await store.number()
    (lane,) = await store.claim(["ears"], [60.0], ["ears fact.told/1"], 1, "w")
    (found,) = (await store.read("ears", lane.lane, 0, lane.at, ["fact.told"], 1)).events

    async def waits() -> Any:
        return await pool.fetch_value(
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and wait_event_type = 'Lock'"
        )

    async with pool.transaction() as making:
        await Days(pool, "facts", "_event", "at")._make(found.at.date(), making)
        burying = asyncio.create_task(store.bury(lane, found, attempt=1, error="no", lease=60.0))
        await until(waits)
    assert await burying
    (letter,) = await operating.dead_letters(database, "ears")
    assert letter.event.position == 1


async def test_a_dead_letter_is_tried_again_while_events_keep_coming(database: Database, urls: Urls) -> None:
    """`retry` does not wait for a moment in which nobody publishes."""
    broken = True

    async def act(fact: Told, delivery: Delivery) -> None:
        if fact.what == "bad" and broken:
            raise EventFailed("no")

    async def publishing() -> None:
        while True:
            await tell(database, "more", at="elsewhere")

    async def written() -> bool:
        return "bad" in {row["what"] for row in await seen(database)}

    await tell(database, "bad", at="same")
    async with working(database, urls, (group("ears", [WRITE]), Listener(act)), poll=1.0):
        await until(lambda: operating.dead_letters(database, "ears"))
        broken = False
        busy = asyncio.create_task(publishing())
        try:
            assert await operating.retry(database, "ears", position=1, shard="main") == 1
            await until(written, seconds=20.0)
        finally:
            busy.cancel()
            await asyncio.wait([busy])


async def tried(database: Database, attempt: int) -> bool:
    (letter,) = await operating.dead_letters(database, "ears")
    return letter.attempt == attempt and letter.error.endswith(": no")


async def test_a_lane_may_block_until_somebody_decides(database: Database, urls: Urls) -> None:
    """on_dead="block": nothing goes past it, visibly; `retry` tries it again, `skip` makes a dead letter."""
    calls: list[str] = []

    async def act(fact: Told, delivery: Delivery) -> None:
        calls.append(fact.what)
        if fact.what == "bad":
            raise EventFailed("no")

    await tell(database, "bad", "after", key="one", at="same")
    async with working(database, urls, (group("ears", [WRITE], on_dead="block"), Listener(act))):
        await until(lambda: registered(database, 1))

        async def blocked() -> Any:
            return [lane for lane in await operating.lanes(database, "ears") if lane.blocked]

        (lane,) = await until(blocked)
        assert lane.error == "EventFailed: no" and lane.position == 0 and calls == ["bad"]
        (state,) = await operating.groups(database)
        assert (state.blocked, state.waiting) == (1, 2)
        assert await operating.retry(database, "ears") == 1
        await until(lambda: calls == ["bad", "bad"])
        (lane,) = await until(blocked)
        assert await operating.skip(database, "ears", shard="main", lane=lane.lane) == 1
        await until(lambda: count(database, 1))
        assert await operating.skip(database, "ears", shard="main", lane=lane.lane) is None
    (letter,) = await operating.dead_letters(database, "ears")
    assert letter.error == "skipped by hand: EventFailed: no"


async def test_a_handler_that_takes_too_long_is_cancelled(database: Database, urls: Urls) -> None:
    """At max_run; that counts as a failed try."""
    ends: list[str] = []

    async def act(fact: Told, delivery: Delivery) -> None:
        if delivery.attempt == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

    heard = Heard()
    async with working(database, urls, (group("ears", [WRITE], max_run=0.3), Listener(act)), sink=heard):
        await tell(database, "a")
        await until(lambda: count(database, 1))
    assert ends == ["cancelled"]
    assert [one.outcome for one in heard.of(EventsHandled)] == ["retry", "done"]


async def test_who_lost_the_lane_changes_nothing(database: Database, urls: Urls) -> None:
    """A handler that outlives its lease, because its loop stood still, say: another worker has the lane, and
    what the first has written is rolled back."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def wait(fact: Told, delivery: Delivery) -> None:
        begun.set()
        await go.wait()

    heard = Heard()
    async with working(database, urls, (group("ears", [WRITE]), Listener(wait)), sink=heard, slots=1):
        await tell(database, "a", "b", at="same")
        await begun.wait()
        await database.pools["main"].execute(
            "update facts._event_lane set leased_until = clock_timestamp() - interval '1 s' where worker > ''"
        )
        async with working(database, urls, (group("ears", [WRITE]), Listener())):
            await until(lambda: count(database, 2))
        go.set()
        await until(lambda: heard.of(EventsHandled))
    assert [one.outcome for one in heard.of(EventsHandled)] == ["lost"]
    assert [row["what"] for row in await seen(database)] == ["a", "b"]


async def test_a_lane_that_was_taken_over_is_lost_at_once(database: Database, urls: Urls) -> None:
    """Also before the new holder has moved anything: who held it before cannot move it."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def wait(fact: Told, delivery: Delivery) -> None:
        begun.set()
        await go.wait()

    heard = Heard()
    async with working(database, urls, (group("ears", [WRITE]), Listener(wait)), sink=heard, slots=1):
        await tell(database, "a")
        await begun.wait()
        await database.pools["main"].execute(
            "update facts._event_lane set leased_until = clock_timestamp() - interval '1 s' where worker > ''"
        )
        (lane,) = await Log(database, "main").claim(["ears"], [60.0], ["ears fact.told/1"], 1, "other")
        go.set()
        await until(lambda: heard.of(EventsHandled))
        assert [one.outcome for one in heard.of(EventsHandled)] == ["lost"]
        assert await seen(database) == [] and lane.pos == 0 and lane.attempt == 2


@pytest.mark.parametrize("on_dead", ["pass", "block"])
async def test_what_was_committed_without_an_answer_is_no_dead_letter(
    database: Database, urls: Urls, on_dead: Any
) -> None:
    """The COMMIT of the last try succeeds and its answer is lost: the event was handled, so it is not set
    aside and does not block its lane, and what follows it has all its tries."""
    target, heard, tries = urlsplit(urls[0]), Heard(), list[int]()
    assert target.port is not None

    async def act(fact: Told, delivery: Delivery) -> None:
        tries.append(delivery.attempt)
        if len(tries) == 1:
            proxy.on(b"COMMIT\x00", "cut")

    one = group("ears", [WRITE], max_attempts=1, on_dead=on_dead)
    async with (
        FaultProxy(target=target.port) as proxy,
        pools([urls[0].replace(f":{target.port}", f":{proxy.port}")], size=12) as started,
        working(
            Database("facts", database.shards, started), urls, (one, Listener(act)), sink=heard,
            upkeep=3600.0,  # so that nobody else commits
        ),
    ):  # fmt: skip
        await until(lambda: registered(database, 1))
        await tell(database, "a", "b", at="same")
        await until(lambda: count(database, 2))
    first = heard.of(EventsHandled)[0]
    assert first.outcome == "dead" and first.error.startswith("CommitUnknown")
    assert [row["what"] for row in await seen(database)] == ["a", "b"] and tries == [1, 1]
    assert await operating.dead_letters(database, "ears") == []


async def test_a_worker_that_stops_leaves_its_lanes_at_once(database: Database, urls: Urls) -> None:
    """Stop waits for handlers within `drain`, cancels the others, and their tries do not count."""
    begun = asyncio.Event()
    attempts: list[int] = []

    async def wait(fact: Told, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if len(attempts) == 1:
            begun.set()
            await asyncio.Event().wait()

    ears, one = Listener(wait), group("ears", [WRITE], max_run=60.0)
    await tell(database, "a")
    async with working(database, urls, (one, ears), drain=0.1):
        await begun.wait()
    assert all(row["worker"] is None and row["attempt"] == 0 for row in await lanes(database))
    async with working(database, urls, (one, ears)):
        await until(lambda: count(database, 1))
    assert attempts == [1, 1]


async def test_a_try_of_a_dead_letter_that_a_stop_breaks_off_is_made_by_another(
    database: Database, urls: Urls
) -> None:
    """It does not count, and nobody has to ask for it again."""
    begun, attempts = asyncio.Event(), list[int]()

    async def act(fact: Told, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if len(attempts) == 1:
            raise EventFailed("no")
        if len(attempts) == 2:
            begun.set()
            await asyncio.Event().wait()

    ears, one = Listener(act), group("ears", [WRITE], max_run=60.0)
    await tell(database, "a")
    async with working(database, urls, (one, ears), drain=0.1):
        await until(lambda: operating.dead_letters(database, "ears"))
        assert await operating.retry(database, "ears") == 1
        await begun.wait()
    (letter,) = await operating.dead_letters(database, "ears")
    assert (letter.attempt, letter.error) == (1, "EventFailed: no") and letter.retry_at is not None
    async with working(database, urls, (one, ears)):
        await until(lambda: count(database, 1))
    assert attempts == [1, 2, 2] and await operating.dead_letters(database, "ears") == []


async def turn(database: Database, ears: Listener, *, asked: float) -> Turn:
    """Of the group `ears` at the second try of its first event."""
    store = Log(database, "main")
    await store.register("ears", ["fact.told"], (), "beginning")
    await tell(database, "a", at="same")
    await store.number()
    await database.pools["main"].execute("update facts._event_lane set attempt = 1")
    route = Route(group("ears", [WRITE]), store, database, ears, clock=SystemClock())
    (lane,) = await store.claim(["ears"], [route.lease], route.names, 1, "w")
    return Turn(route, lane, asked=asked, clock=SystemClock(), sink=Heard())


async def test_a_turn_that_begins_nothing_changes_no_count(database: Database) -> None:
    """A worker that stops between its claim and the first call gives back that try alone."""
    ears = Listener()
    made = await turn(database, ears, asked=time.monotonic())
    made.stop()
    await made.run()
    assert ears.calls == []
    assert {row["attempt"] for row in await lanes(database)} == {1}


async def test_a_turn_that_begins_late_goes_on_all_the_same(database: Database) -> None:
    """However long its claim and its first read took, it handles an event before it makes room."""
    ears = Listener()
    made = await turn(database, ears, asked=time.monotonic() - 60.0)
    await made.run()
    assert ears.heard == ["a"] and await count(database, 1)
    assert max(row["pos"] for row in await lanes(database)) == 1


async def test_a_failure_counts_when_it_cannot_be_written_down_at_once(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody keeps the lane's row locked until the statement that says so has run out of time."""
    locked, ended = asyncio.Event(), asyncio.Event()

    async def lock() -> None:
        async with database.pools["main"].transaction() as tx:
            await tx.fetch("select 1 from facts._event_lane for update")
            locked.set()
            await until(lambda: "the turn ends" in caplog.text)
        ended.set()

    async def act(fact: Told, delivery: Delivery) -> None:
        locking.append(asyncio.create_task(lock(), context=contextvars.Context()))
        await locked.wait()
        raise RuntimeError("no")

    locking: list[asyncio.Task[None]] = []
    made = await turn(database, Listener(act), asked=time.monotonic())
    await made.run()
    await locking[0]
    assert ended.is_set()
    assert max(row["attempt"] for row in await lanes(database)) == 2
    assert all(row["worker"] is None for row in await lanes(database))


# -- kinds and versions --------------------------------------------------------------------------------


@event(kind="fact.told", version=2)
class Told2(msgspec.Struct, frozen=True):
    what: str
    loud: bool


class Newer:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def hear(self, fact: Told2, delivery: Delivery) -> None:
        self.heard.append((fact.what, fact.loud))

    async def other(self, fact: Other, delivery: Delivery) -> None:
        self.heard.append(fact.what)


NEW = On(Told2, Newer.hear, upcasts=[Upcast(1, lambda fields: {**fields, "loud": False})])


async def test_a_rolling_deploy_loses_no_version_and_no_kind(database: Database, urls: Urls) -> None:
    """An old worker leaves a lane at a version, or at a wanted kind, that it cannot read, visibly, to a newer
    one; the newer one reads old versions, too. Kinds that nobody of the group wants are passed over."""
    old, new = Listener(), Newer()
    async with working(database, urls, (group("ears", [HEAR]), old)):
        async with database.write("same") as tx:
            await publish(tx, Other("not wanted yet"))
            await publish(tx, Told("old"))
            await publish(tx, Told2("new", True))
            await publish(tx, Told("behind it"))
        await until(lambda: old.heard == ["old"])

        async def waits() -> Any:
            return [lane.needs for lane in await operating.lanes(database, "ears") if lane.needs]

        assert await until(waits) == ["fact.told/2"]
        async with working(database, urls, (group("ears", [NEW, On(Other, Newer.other)]), new)):
            await until(lambda: new.heard == [("new", True), ("behind it", False)])
    async with working(database, urls, (group("ears", [HEAR]), old)):  # rolled back to the old code
        async with database.write("same") as tx:
            await publish(tx, Other("wanted"))
        assert await until(waits) == ["fact.other/1"]
        async with working(database, urls, (group("ears", [NEW, On(Other, Newer.other)]), new)):
            await until(lambda: new.heard[2:] == ["wanted"])
    assert old.heard == ["old"] and await operating.dead_letters(database, "ears") == []
    async with working(database, urls, (group("ears", [HEAR], ignores=["fact.other"]), old)):
        async with database.write("same") as tx:
            await publish(tx, Other("ignored now"))
            await publish(tx, Told("last"))
        await until(lambda: old.heard == ["old", "last"])


async def test_a_kind_may_be_ignored_when_lanes_wait_for_it_already(database: Database, urls: Urls) -> None:
    """A deploy drops the handler of a kind and says so in the next one only: the lanes go on then."""
    ears = Listener()
    async with working(database, urls, (group("ears", [On(Other, Newer.other)]), Newer())):
        await until(lambda: registered(database, 1))
    async with database.write("same") as tx:
        await publish(tx, Other("wanted once"))
        await publish(tx, Told("behind it"))
    async with working(database, urls, (group("ears", [HEAR]), ears)):

        async def waits() -> Any:
            return [lane.needs for lane in await operating.lanes(database, "ears") if lane.needs]

        assert await until(waits) == ["fact.other/1"]
    async with working(database, urls, (group("ears", [HEAR], ignores=["fact.other"]), ears)):
        await until(lambda: ears.heard == ["behind it"])


async def test_what_cannot_be_decoded_is_a_dead_letter(database: Database, urls: Urls) -> None:
    """Trying again cannot help; it is kept, and the lane goes on."""
    await tell(database, "bad", "good", at="same")
    await database.pools["main"].execute(
        "update facts._event_new set payload = '{\"what\": 7}' where payload = $1", b'{"what":"bad"}'
    )
    ears = Listener()
    async with working(database, urls, (group(), ears)):
        await until(lambda: ears.heard == ["good"])
    (letter,) = await operating.dead_letters(database, "ears")
    assert letter.error.startswith("cannot be read as fact.told/1: ValidationError")


# -- positions -----------------------------------------------------------------------------------------


async def test_a_new_group_begins_where_it_says(database: Database, urls: Urls) -> None:
    """At the beginning, now, or at a time; a group that is known stays where it is."""
    async with working(database, urls):
        await tell(database, "one", at="same")
        await until(lambda: logged(database, 1))
        between = (await log(database))[0]["at"]
        await tell(database, "two", at="same")
        await until(lambda: logged(database, 2))
    after = (await log(database))[1]["at"]
    assert after > between
    ears = {name: Listener() for name in ("first", "now", "time")}
    groups = [group("first"), group("now", start="now"), group("time", start=after)]
    async with working(database, urls, *((one, ears[one.name]) for one in groups)):
        await until(lambda: registered(database, 3))
        await tell(database, "three", at="same")
        await until(lambda: all(one.heard[-1:] == ["three"] for one in ears.values()))
    assert [ears[name].heard for name in ("first", "now", "time")] == [
        ["one", "two", "three"], ["three"], ["two", "three"],
    ]  # fmt: skip
    again = Listener()
    async with working(database, urls, (group("now", start="beginning"), again)):
        await tell(database, "four", at="same")
        await until(lambda: again.heard == ["four"])


async def logged(database: Database, wanted: int) -> bool:
    return len(await log(database)) == wanted


async def registered(database: Database, wanted: int) -> bool:
    return len(await operating.groups(database)) == wanted


async def test_replay_from_a_point(database: Database, urls: Urls) -> None:
    """From a position, a time or the beginning: what was passed comes again in order and says so. A handler
    at work meanwhile cannot move the group any more: what it wrote is rolled back."""
    begun, go = asyncio.Event(), asyncio.Event()
    waiting = False

    async def act(fact: Told, delivery: Delivery) -> None:
        if waiting and not go.is_set():
            begun.set()
            await go.wait()

    ears = Listener(act)
    async with working(database, urls, (group("ears", [WRITE]), ears)):
        await tell(database, *"abcd", key="k", at="same")
        await until(lambda: count(database, 4))
        assert await operating.replay(database, "ears", 3) == 16
        await until(lambda: count(database, 6))
        assert ears.heard == ["a", "b", "c", "d", "c", "d"]
        assert [delivery.again for _, delivery in ears.calls] == [False] * 4 + [True] * 2
        waiting = True
        await tell(database, "e", key="k", at="same")
        await begun.wait()
        await operating.replay(database, "ears", "beginning")
        go.set()
        await until(lambda: count(database, 11))
    assert [row["what"] for row in await seen(database)] == [*"abcd", *"cd", *"abcde"]
    for doing in (
        operating.replay(database, "nobody", "now"),
        operating.retry(database, "nobody"),
        operating.skip(database, "nobody", shard="main", lane=0),
        operating.discard(database, "nobody", shard="main", position=1),
        operating.remove(database, "nobody"),
    ):
        with pytest.raises(EventError, match="knows no group 'nobody'"):
            await doing
    for doing in (
        operating.replay(database, "ears", "now", lane=16),
        operating.skip(database, "ears", shard="main", lane=-1),
    ):
        with pytest.raises(EventError, match=r"lane must be 0 to 15, got (16|-1)"):
            await doing
    for start in ("begining", datetime(2026, 11, 26, 9), None):  # noqa: DTZ001 - that is what is wrong
        with pytest.raises(EventError, match=r'ears: start must be "beginning", .* with its zone, got '):
            await operating.replay(database, "ears", start)  # type: ignore[arg-type]
    with pytest.raises(EventError, match="most must be 1 to 1000, got -1"):
        await operating.dead_letters(database, "ears", most=-1)


async def test_pause_resume_and_remove(database: Database, urls: Urls) -> None:
    """A paused group stays where it is and is told to be; a removed one is forgotten."""
    ears = Listener()
    async with working(database, urls, (group(), ears)):
        await tell(database, "a")
        await until(lambda: ears.heard == ["a"])
        assert await operating.pause(database, "ears") == 1
        await tell(database, "b")
        await until(lambda: logged(database, 2))
        (state,) = await operating.groups(database)
        assert state.paused and state.waiting == 1
        assert await operating.resume(database, "ears") == 1
        await until(lambda: ears.heard == ["a", "b"])
    assert await operating.remove(database, "ears") == 1
    assert await operating.groups(database) == []


async def test_who_held_a_lane_of_a_removed_group_has_none_of_the_new_one(
    database: Database, urls: Urls
) -> None:
    """The group is removed while a handler is at work and made again by another worker, whose claims are as
    many: what the first one wrote is rolled back, and it moves nothing."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def wait(fact: Told, delivery: Delivery) -> None:
        begun.set()
        await go.wait()

    async def hold(fact: Told, delivery: Delivery) -> None:
        go.set()
        await until(lambda: heard.of(EventsHandled))

    heard = Heard()
    await tell(database, "a", "b", at="same")
    async with working(database, urls, (group("ears", [WRITE]), Listener(wait)), sink=heard, slots=1):
        await begun.wait()
        assert await operating.remove(database, "ears") == 1
        async with working(database, urls, (group("ears", [WRITE]), Listener(hold))):
            await until(lambda: count(database, 2))
    assert heard.of(EventsHandled)[0].outcome == "lost"
    assert [row["what"] for row in await seen(database)] == ["a", "b"]


# -- life ----------------------------------------------------------------------------------------------


async def test_workers_survive_storms_of_starts_and_stops(database: Database, urls: Urls) -> None:
    """Started and stopped at any moment, nothing is handled twice or left behind."""
    for number in range(10):
        await tell(database, str(number))

    def whole() -> Services:
        pools = {"main": Pool(urls[0], cluster="main", size=6)}
        own = Database("facts", database.shards, pools)
        made = worker(own, urls, [(group("ears", [WRITE]), Listener())], drain=1.0)
        return Services("all", [*pools.values(), made])

    await stress(whole, storms=5, pause=0.05, timeout=60.0)
    async with working(database, urls, (group("ears", [WRITE]), Listener())):
        await until(lambda: count(database, 10))
    assert len({row["what"] for row in await seen(database)}) == 10


MANY = On(Told, Listener.hear_many, batch=2)


def _plain(listener: Listener, event: Told, one: Delivery) -> None:
    raise AssertionError("never called")


def test_groups_that_cannot_work_are_refused() -> None:
    for options, message in (
        ({"name": "Ears"}, "a group's name is"),
        ({"handlers": []}, "handlers must not be empty"),
        ({"handlers": [HEAR, WRITE]}, "two handlers take the event fact.told"),
        ({"start": "soon"}, 'start must be "beginning", "now" or a datetime'),
        ({"max_attempts": 0}, "max_attempts must be >= 1, got 0"),
        (
            {"max_attempts": 1, "handlers": [On(Told, Listener.hear_many, batch=2)]},
            "max_attempts must be >= 2",
        ),
        ({"max_run": 0}, "max_run must be > 0 seconds"),
        ({"max_run": float("inf")}, "max_run must be a finite number of seconds, got inf"),
        ({"max_run": 10**7}, "max_run must be > 0 seconds and at most 604800"),
        ({"backoff": 2, "max_backoff": 1}, "backoff must be <= max_backoff"),
        ({"on_dead": "ignore"}, 'on_dead must be "pass" or "block"'),
        ({"ignores": ["fact.told"]}, "ignores are kinds without a handler"),
    ):
        with pytest.raises(EventError, match=message):
            Group(**{"name": "ears", "handlers": [HEAR], **options})  # type: ignore[arg-type]
    for wrong, message in (
        ({"slots": 2.5}, "events: slots must be a whole number, got 2.5"),
        ({"poll": "a"}, "events: poll must be a finite number of seconds, got 'a'"),
        ({"keep": "7"}, "events: keep must be >= 0 seconds, got '7'"),
        ({"keep_at_most": 1.0}, r"events: keep_at_most must be None or seconds >= keep, got 1\.0"),
    ):
        with pytest.raises(EventError, match=message):
            EventWorker([], dsns={}, **wrong)  # type: ignore[arg-type]
    with pytest.raises(EventError, match=r"method must be async .*, got _plain"):
        On(Told, _plain)  # type: ignore[arg-type]
    with pytest.raises(EventError, match="upcasts must be of each version"):
        On(Told2, Newer.hear, upcasts=[Upcast(2, dict)])
    with pytest.raises(EventError, match="an upcast's version must be >= 1, got 0"):
        On(Told2, Newer.hear, upcasts=[Upcast(0, dict), Upcast(1, dict)])
    with pytest.raises(EventError, match=r"handler of fact\.told/1: batch must be >= 1, got 0"):
        On(Told, Listener.hear_many, batch=0)
