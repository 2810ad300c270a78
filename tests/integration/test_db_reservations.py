"""A value belongs to one owner over all buckets, whatever dies in the middle."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.sharded import notes

from springtide.db import Database, Reconciled, Reservations, bucket_of
from springtide.errors import AlreadyReserved, PoolClosed, Unavailable

NEAR = next(f"near{n}" for n in range(100) if bucket_of(f"near{n}") < 512)
FAR = next(f"far{n}" for n in range(100) if bucket_of(f"far{n}") >= 512)
OLD_FAR = next(f"old{n}" for n in range(100) if bucket_of(f"old{n}") >= 512)
OWNER, RIVAL, DISTANT = 1 << 10 | 3, 2 << 10 | 5, 1 << 10 | 1000
"""The first two ids are in the first half of the buckets, where NEAR is; the last is where FAR is."""


@pytest.fixture(params=[1, 2])
async def db(
    request: pytest.FixtureRequest, database_urls: tuple[str, str], tmp_path: Path
) -> AsyncIterator[Database]:
    async with notes(database_urls[: request.param], tmp_path, size=10) as database:
        yield quick(database)


@pytest.fixture
async def two(database_urls: tuple[str, str], tmp_path: Path) -> AsyncIterator[Database]:
    async with notes(database_urls, tmp_path, size=10) as database:
        yield quick(database)


def quick(database: Database) -> Database:
    database.reservations = Reservations(database, patience=0.2, abandoned_after=5.0, retention=50.0)
    return database


async def register(db: Database, id: int, **claim: str) -> None:
    async with db.reserving(id, claim=claim) as tx:
        await tx.execute(
            "insert into notes.note (bucket, id, text) values ($1, $2, $3)", id & 1023, id, str(claim)
        )


async def exists(db: Database, id: int) -> bool:
    return bool(
        await db.read(id).fetch_value(
            "select count(*) from notes.note where bucket = $1 and id = $2", id & 1023, id
        )
    )


async def rows(db: Database, table: str = "_reservation") -> list[dict[str, Any]]:
    found = []
    for pool in db.pools.values():
        found += [dict(row) for row in await pool.fetch(f"select * from notes.{table}")]
    return found


async def age(db: Database, seconds: float) -> None:
    """Make everything that is stored `seconds` older."""
    for pool in db.pools.values():
        await pool.execute(f"update notes._reservation set claimed_at = claimed_at - interval '{seconds} s'")
        await pool.execute(f"update notes._reservation_outcome set at = at - interval '{seconds} s'")


async def check(db: Database) -> None:
    """The invariant: nothing is undecided after reconcile, and who exists holds what it claimed."""
    await age(db, 10)
    await db.reconcile()
    for row in await rows(db):
        assert row["state"] == "confirmed"
        assert await db.lookup(row["kind"], row["value"]) == row["owner_id"]


async def test_a_value_is_held_by_who_claimed_it(db: Database) -> None:
    await register(db, OWNER, username=NEAR, email=FAR)
    assert await db.lookup("username", NEAR) == OWNER
    assert await db.lookup("email", FAR) == OWNER
    assert await db.lookup("email", NEAR) is None
    assert all(row["state"] == "confirmed" for row in await rows(db))


NOTE = "select id, text || $3 as text from notes.note where bucket = $1 and id = $2 and text <> '$2'"


async def test_the_row_of_an_owner_is_fetched_by_a_value(db: Database) -> None:
    """On whichever shard either is; nothing for a value that nobody holds, or whose owner has no such row."""
    await register(db, OWNER, username=NEAR, email=FAR)
    async with db.reserving(DISTANT, claim={"username": FAR}):
        pass
    for kind, value in (("username", NEAR), ("email", FAR)):
        row = await db.fetch_held(kind, value, NOTE, "!")
        assert row is not None
        assert row["id"] == OWNER
        assert row["text"].endswith("}!")
    assert await db.fetch_held("email", NEAR, NOTE, "!") is None
    assert await db.fetch_held("username", FAR, NOTE, "!") is None


async def test_a_row_of_an_owner_who_may_not_hold_the_value_is_not_fetched(two: Database) -> None:
    """While a claim from another shard is undecided its outcome decides, as it does for `lookup`."""
    await register(two, OWNER, username=NEAR, email=FAR)
    state = "update notes._reservation set state = $1 where kind = 'email'"
    for pool in two.pools.values():
        await pool.execute(state, "pending")
    assert await two.fetch_held("email", FAR, NOTE, "!") is not None, "its claim is committed"
    for pool in two.pools.values():
        await pool.execute("update notes._reservation_outcome set committed = false")
    assert await two.lookup("email", FAR) is None
    assert await two.fetch_held("email", FAR, NOTE, "!") is None
    for pool in two.pools.values():
        await pool.execute(state, "releasing")
    assert await two.fetch_held("email", FAR, NOTE, "!") is not None, "it was not released"


@pytest.mark.parametrize("taken", [{"username": NEAR}, {"email": FAR}, {"username": NEAR, "email": FAR}])
async def test_a_value_has_one_owner(db: Database, taken: dict[str, str]) -> None:
    """Who claims a value of somebody else is told which, and leaves nothing: no entity, no other value."""
    await register(db, OWNER, **taken)
    with pytest.raises(AlreadyReserved) as refused:
        await register(db, DISTANT, username=NEAR, email=FAR, phone=NEAR + FAR)
    assert taken[refused.value.kind] == refused.value.value
    assert not await exists(db, DISTANT)
    assert await db.lookup("phone", NEAR + FAR) is None
    assert {row["owner_id"] for row in await rows(db)} == {OWNER}


async def test_claiming_again_what_one_holds_succeeds(db: Database) -> None:
    await register(db, OWNER, username=NEAR, email=FAR)
    async with db.reserving(OWNER, claim={"username": NEAR, "email": FAR}):
        pass
    assert await db.lookup("email", FAR) == OWNER
    await check(db)


async def test_a_block_that_raises_claims_and_releases_nothing(db: Database) -> None:
    await register(db, OWNER, username=OLD_FAR)
    with pytest.raises(ZeroDivisionError):
        async with db.reserving(OWNER, claim={"username": FAR, "email": NEAR}, release={"username": OLD_FAR}):
            raise ZeroDivisionError
    assert await db.lookup("username", FAR) is None
    assert await db.lookup("email", NEAR) is None
    assert await db.lookup("username", OLD_FAR) == OWNER
    await register(db, RIVAL, username=FAR, email=NEAR)


async def test_a_renamed_owner_gives_the_old_value_up(db: Database) -> None:
    """After a rename the old value is free for others, several values of one kind at once too."""
    await register(db, OWNER, slug=OLD_FAR)
    async with db.reserving(OWNER, claim={"slug": [FAR, NEAR]}, release={"slug": OLD_FAR}):
        pass
    await register(db, RIVAL, slug=OLD_FAR)
    async with db.reserving(OWNER, release={"slug": [FAR, NEAR, OLD_FAR]}):
        pass
    assert await db.lookup("slug", OLD_FAR) == RIVAL, "what is not one's own is let be"
    assert await db.lookup("slug", FAR) is None
    assert await db.lookup("slug", NEAR) is None


@pytest.mark.parametrize("value", [NEAR, FAR])
async def test_of_a_hundred_claimers_one_wins(db: Database, value: str) -> None:
    """One hundred concurrent claims on a value: one entity exists, and it holds the value."""
    won: list[int] = []

    async def claim(id: int) -> None:
        try:
            await register(db, id, username=value, email=f"{id}@example.com")
        except AlreadyReserved as refused:
            assert refused.value == value
        else:
            won.append(id)

    async with asyncio.TaskGroup() as group:
        for n in range(100):
            group.create_task(claim(n << 10 | n * 10))
    assert len(won) == 1
    assert await db.lookup("username", value) == won[0]
    assert [n << 10 | n * 10 for n in range(100) if await exists(db, n << 10 | n * 10)] == won
    await check(db)
    assert {row["owner_id"] for row in await rows(db)} == set(won)


async def test_values_on_several_shards_are_claimed_at_the_same_time(
    database_urls: tuple[str, str], database_url: str, tmp_path: Path
) -> None:
    """A claim that waits on one shard is made on the others meanwhile; one that is refused on a shard leaves
    nothing on the others."""
    async with notes((*database_urls, database_url), tmp_path, size=5) as three:
        quick(three)
        second = next(f"b{n}" for n in range(100) if three.shards.shard_of(f"b{n}") == "second")
        third = next(f"c{n}" for n in range(100) if three.shards.shard_of(f"c{n}") == "third")
        insert = (
            "insert into notes._reservation (bucket, kind, value, owner_id, claim_id, state, claimed_at)"
            " values ($1, 'username', $2, $3, gen_random_uuid(), 'confirmed', now())"
        )
        async with asyncio.TaskGroup() as group, three.pools["second"].transaction() as rival:
            await rival.execute(insert, bucket_of(second), second, RIVAL)
            claim = group.create_task(refused(three, OWNER, username=second, email=third))
            async with asyncio.timeout(5):
                while not await three.pools["third"].fetch("select from notes._reservation"):
                    await asyncio.sleep(0.005)
            assert not claim.done()
        assert await three.pools["third"].fetch("select from notes._reservation") == []
        await register(three, OWNER, username="free", email=third)


async def refused(db: Database, id: int, **claim: str) -> None:
    with pytest.raises(AlreadyReserved):
        await register(db, id, **claim)


async def test_reserving_inside_a_write_is_refused(db: Database) -> None:
    async with db.write(OWNER):
        with pytest.raises(RuntimeError, match="inside an open write"):
            async with db.reserving(OWNER, claim={"username": NEAR}):
                pass


class Died(BaseException):
    """The process was gone from here on."""


STEPS = ["_prepare", "_decide", "_tidy"]


@pytest.fixture(params=["before", "after"])
def moment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def dying(db: Database, step: str, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the writer vanish before or after `step`: what it would still send is never sent."""
    original: Callable[..., Awaitable[Any]] = getattr(Reservations, step)

    async def die(self: Reservations, *args: Any) -> Any:
        if moment == "after":
            await original(self, *args)
        raise Died

    monkeypatch.setattr(Reservations, step, die)


@pytest.mark.parametrize("step", STEPS)
async def test_a_writer_that_dies_at_any_step_leaves_one_truth(
    two: Database, step: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the step, afterwards the rename happened altogether or not at all, and the rest is free."""
    await register(two, OWNER, username=OLD_FAR)
    with monkeypatch.context() as broken:
        dying(two, step, moment, broken)
        with pytest.raises(Died):
            async with two.reserving(OWNER, claim={"username": FAR}, release={"username": OLD_FAR}) as tx:
                await tx.execute("update notes.note set text = 'renamed'")
    await two.pools["main"].fetch("select 1")
    renamed = await two.read(OWNER).fetch_value("select text = 'renamed' from notes.note")
    assert renamed == (step == "_tidy")
    holds, free = (FAR, OLD_FAR) if renamed else (OLD_FAR, FAR)
    for _ in range(2):
        assert await two.lookup("username", holds) == OWNER
        assert await two.lookup("username", free) is None
        await check(two)
    await register(two, RIVAL, username=free)
    with pytest.raises(AlreadyReserved):
        await register(two, DISTANT, username=holds)


CHILD = """
import asyncio, os, signal, sys
from springtide.db import Database, Reservations, ShardMap
from springtide.db.pool import Pool

step, moment, owner, claim, release, *urls = sys.argv[1:]
original = getattr(Reservations, step)

async def die(self, *args):
    if moment == "after":
        await original(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    pools = {name: Pool(url, cluster=name) for name, url in zip(("main", "second"), urls)}
    for pool in pools.values():
        await pool.start()
    db = Database("notes", ShardMap.even(list(pools)), pools)
    setattr(Reservations, step, die)
    async with db.reserving(int(owner), claim={"username": claim}, release={"username": release}) as tx:
        await tx.execute("update notes.note set text = 'renamed'")

asyncio.run(main())
"""


@pytest.mark.parametrize("step", STEPS)
async def test_a_process_killed_at_any_step_leaves_one_truth(
    two: Database, step: str, moment: str, database_urls: tuple[str, str]
) -> None:
    """kill -9 instead of an exception: the server finds out by itself that nobody is there."""
    await register(two, OWNER, username=OLD_FAR)
    arguments = [step, moment, str(OWNER), FAR, OLD_FAR, *database_urls]
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, *arguments)
    assert await child.wait() == -signal.SIGKILL
    holds, free = (FAR, OLD_FAR) if step == "_tidy" else (OLD_FAR, FAR)
    await age(two, 10)
    while (await two.reconcile()).busy:  # its session is still being closed
        pass
    assert await two.lookup("username", holds) == OWNER
    assert await two.lookup("username", free) is None
    assert await two.read(OWNER).fetch_value("select text = 'renamed' from notes.note") == (step == "_tidy")
    await check(two)
    await register(two, RIVAL, username=free)


async def test_a_competitor_finishes_an_abandoned_claim_itself(
    two: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for reconcile, a dead writer's value is free once its claim is old."""
    with monkeypatch.context() as broken:
        dying(two, "_decide", "before", broken)
        with pytest.raises(Died):
            await register(two, OWNER, username=FAR)
    with pytest.raises(AlreadyReserved):
        await register(two, RIVAL, username=FAR)
    await age(two, 10)
    await register(two, RIVAL, username=FAR)
    assert await two.lookup("username", FAR) == RIVAL


async def test_reconcile_goes_on_when_a_shard_is_away(
    database_urls: tuple[str, str], database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two dead writers' claims on a third shard, the one whose owner's shard answers is finished."""
    away, here = 1 << 10 | 3, 1 << 10 | 500
    values = [value for n in range(100) if bucket_of(value := f"value{n}") > 700]
    async with notes((*database_urls, database_url), tmp_path, size=5) as three:
        quick(three)
        with monkeypatch.context() as broken:
            dying(three, "_decide", "before", broken)
            for owner, value in zip((away, here), sorted(values[:2], key=bucket_of), strict=True):
                with pytest.raises(Died):
                    await register(three, owner, username=value)
        await age(three, 10)
        await three.pools["main"].stop()
        with pytest.raises(PoolClosed):
            await three.reconcile()
        left = await three.pools["third"].fetch("select owner_id from notes._reservation")
        assert [row["owner_id"] for row in left] == [away]
        await three.pools["main"].start()
        assert (await three.reconcile()).aborted == 1
        assert await rows(three) == []


async def test_a_writer_taken_for_dead_never_commits_without_its_value(
    two: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow writer whose claim was taken away starts again, and is told that the value is gone."""
    original = Reservations._decide
    slow = asyncio.Event()
    go = asyncio.Event()

    async def decide(self: Reservations, tx: Any, plan: Any) -> None:
        if plan.owner_id == OWNER and not slow.is_set():
            slow.set()
            await go.wait()
        await original(self, tx, plan)

    monkeypatch.setattr(Reservations, "_decide", decide)
    task = asyncio.create_task(register(two, OWNER, username=FAR))
    await slow.wait()
    await age(two, 10)
    await register(two, RIVAL, username=FAR)
    go.set()
    with pytest.raises(AlreadyReserved):
        await task
    assert not await exists(two, OWNER)
    assert await two.lookup("username", FAR) == RIVAL


async def test_a_writer_at_work_is_not_taken_for_dead(two: Database) -> None:
    """However old its claim, a writer inside its transaction keeps the value: reconcile counts it as busy."""
    async with two.reserving(OWNER, claim={"username": FAR}) as tx:
        await age(two, 100)
        assert (await two.reconcile()).busy == 1
        rival = register(two, RIVAL, username=FAR)
        with pytest.raises(AlreadyReserved):
            await asyncio.create_task(rival, context=contextvars.Context())
        await tx.execute("insert into notes.note (bucket, id) values (3, $1)", OWNER)
    assert await two.lookup("username", FAR) == OWNER


@pytest.mark.parametrize("value", [NEAR, FAR])
async def test_a_value_claimed_again_cannot_be_released_meanwhile(two: Database, value: str) -> None:
    """Two changes of one owner at once: the entity never keeps a value that the other change gives up."""
    await register(two, OWNER, username=value)

    async def give_up() -> None:
        async with asyncio.timeout(0.5), two.reserving(OWNER, release={"username": value}):
            pass

    async with two.reserving(OWNER, claim={"username": value}):
        with pytest.raises((Unavailable, TimeoutError)):
            await asyncio.create_task(give_up(), context=contextvars.Context())
    assert await two.lookup("username", value) == OWNER


async def test_a_cancelled_claim_frees_its_value_soon(two: Database) -> None:
    """Who retries after a cancelled attempt gets the value at once, without waiting for reconcile."""
    inside = asyncio.Event()

    async def claim() -> None:
        async with two.reserving(OWNER, claim={"username": FAR}):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(claim())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await register(two, OWNER, username=FAR)


async def test_a_claim_that_waited_too_long_is_not_decided(
    two: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer frozen for longer than outcomes are kept is refused: its abort may have been forgotten."""
    original = Reservations._prepare
    runs = 0

    async def prepare(self: Reservations, plan: Any) -> None:
        nonlocal runs
        runs += 1
        await original(self, plan)
        if runs == 1:
            await age(two, 60)
            await register(two, RIVAL, username=FAR)
            await age(two, 60)
            assert (await two.reconcile()).forgotten >= 1
            plan.began -= timedelta(seconds=120)

    with monkeypatch.context() as slow:
        slow.setattr(Reservations, "_prepare", prepare)
        with pytest.raises(AlreadyReserved):
            await register(two, OWNER, username=FAR)
    assert not await exists(two, OWNER)


async def test_outcomes_are_forgotten_only_when_nothing_refers_to_them(
    two: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outcome past retention stays while a row that it decides is not finished."""
    await register(two, OWNER, username=FAR)
    assert await two.reconcile() == Reconciled()
    await age(two, 60)
    assert await two.reconcile() == Reconciled(forgotten=1)
    with monkeypatch.context() as broken:
        dying(two, "_tidy", "before", broken)
        with pytest.raises(Died):
            await register(two, RIVAL, username=OLD_FAR)
    await age(two, 60)
    done = Reconciled()
    await two.reservations._forget("main", done)
    assert done.forgotten == 0
    assert await two.reconcile() == Reconciled(committed=1, forgotten=1)
    assert await two.lookup("username", OLD_FAR) == RIVAL


@pytest.mark.parametrize(
    "values", [{"": "x"}, {"username": ""}, {"username": "a\0b"}, {"username": ["a", ""]}]
)
async def test_a_value_that_cannot_be_stored_is_refused(db: Database, values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="without NUL"):
        async with db.reserving(OWNER, claim=values):
            pass


@pytest.mark.parametrize(
    "options", [{"patience": -1}, {"abandoned_after": 0}, {"abandoned_after": 10, "retention": 99}]
)
async def test_options_are_checked(two: Database, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be >"):
        Reservations(two, **options)
