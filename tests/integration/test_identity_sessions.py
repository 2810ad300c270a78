"""Sessions: what is revoked or replaced is gone for the next request, over one shard and two."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.jobs_support import Heard
from tests.sharded import pools

from springtide.context import Identity
from springtide.db import Database, Migrator, ShardMap, bucket_of
from springtide.errors import DatabaseUnavailable, SessionEnded
from springtide.identity.sessions import MIGRATIONS, Opened, Sessions
from springtide.signals import SessionChanged
from springtide.testing import StatementGuard

ROWS = "select count(*) from sessions.session"


@pytest.fixture(params=[1, 2], ids=["one shard", "two shards"])
async def db(request: pytest.FixtureRequest, database_urls: tuple[str, str]) -> AsyncIterator[Database]:
    async with pools(database_urls[: request.param], size=8) as started:
        await Migrator("sessions", MIGRATIONS, started).apply()
        yield Database("sessions", ShardMap.even(list(started)), started)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def sessions(db: Database, heard: Heard) -> Sessions:
    return Sessions(db, sink=heard)


def events(heard: Heard) -> list[str]:
    return [signal.event for signal in heard.of(SessionChanged)]


async def run(db: Database, sql: str) -> None:
    for pool in db.pools.values():
        await pool.execute(sql)


async def test_a_cookie_finds_its_session_until_it_is_revoked(sessions: Sessions, heard: Heard) -> None:
    """And nothing else does."""
    opened = await sessions.open(7, ["write", "read"])
    found = await sessions.find(opened.cookie)
    assert found == opened.session
    assert found.identity == Identity(7, "session", frozenset({"read", "write"}))
    assert await sessions.revoke(opened.cookie)
    assert await sessions.find(opened.cookie) is None
    assert not await sessions.revoke(opened.cookie)
    assert events(heard) == ["opened", "revoked", "unknown"]


async def test_only_hashes_are_stored(db: Database, sessions: Sessions) -> None:
    """Neither the cookie nor a part of it is in the table, and a row lies in the bucket of its hash."""
    opened = [await sessions.open(number) for number in range(20)]
    rows = [dict(row) for row in await db.scatter("select * from sessions.session")]
    text = repr(rows)
    for one in opened:
        data = base64.urlsafe_b64decode(one.cookie)
        assert len(data) == 48
        for secret in (data, data[:16], data[16:]):
            assert repr(secret)[2:-1] not in text
        assert one.cookie not in repr(one)
    assert len({one.cookie for one in opened}) == 20
    assert all(row["bucket"] == bucket_of(bytes(row["id"])) for row in rows)
    for shard, pool in db.pools.items():
        held = await pool.fetch("select bucket from sessions.session")
        assert {row["bucket"] for row in held} <= set(db.shards.buckets_of(shard))
        assert held


@pytest.mark.parametrize(
    "cookie",
    ["", "x", "A" * 64, "A" * 63, "A" * 65, "é" * 64, "=" * 64, "A" * 63 + "=", "\0" * 64, "' or 1=1"],
)
async def test_hostile_cookies_find_nothing(sessions: Sessions, cookie: str) -> None:
    await sessions.open(1)
    assert await sessions.find(cookie) is None
    assert not await sessions.revoke(cookie)
    with pytest.raises(SessionEnded):
        await sessions.rotate(cookie, 1)


async def test_the_locator_alone_proves_nothing(sessions: Sessions) -> None:
    """The right row with another secret is no session, and cannot be revoked."""
    opened = await sessions.open(1)
    forged = opened.cookie[:22] + "A" * 42
    assert forged != opened.cookie
    assert await sessions.find(forged) is None
    assert not await sessions.revoke(forged)
    assert await sessions.find(opened.cookie) is not None


async def test_a_login_replaces_the_cookie_and_a_planted_one_gains_nothing(sessions: Sessions) -> None:
    """Within the grace the old cookie is still the visitor that it was, never the user."""
    visitor = await sessions.open()
    user = await sessions.login(visitor.cookie, 7, ["write"])
    assert user.cookie != visitor.cookie
    assert user.session.handle == visitor.session.handle
    old = await sessions.find(visitor.cookie)
    assert old is not None
    assert (old.subject, old.scopes, old.identity, old.retiring) == (None, (), None, True)
    assert old.signed_in_at is None
    new = await sessions.find(user.cookie)
    assert new is not None
    assert (new.subject, new.scopes, new.retiring) == (7, ("write",), False)


async def test_after_the_grace_the_old_cookie_is_refused_and_counted(
    db: Database, sessions: Sessions, heard: Heard
) -> None:
    visitor = await sessions.open()
    user = await sessions.login(visitor.cookie, 7)
    await run(db, "update sessions.session set previous_until = now()")
    assert await sessions.find(visitor.cookie) is None
    assert not await sessions.revoke(visitor.cookie)
    assert await sessions.find(user.cookie) is not None
    assert events(heard) == ["opened", "rotated", "replaced"]


async def test_no_grace_when_asked_for_none_or_when_the_user_changes(
    db: Database, sessions: Sessions
) -> None:
    strict = Sessions(db, grace=0)
    visitor = await strict.open()
    await strict.login(visitor.cookie, 7)
    assert await strict.find(visitor.cookie) is None
    ann = await sessions.open(1)
    await sessions.rotate(ann.cookie, 2)
    assert await sessions.find(ann.cookie) is None


async def test_a_step_up_keeps_old_rights_for_the_old_cookie(sessions: Sessions) -> None:
    user = await sessions.open(7, ["read"])
    admin = await sessions.rotate(user.cookie, 7, ["admin"])
    old, new = await sessions.find(user.cookie), await sessions.find(admin.cookie)
    assert old is not None and new is not None
    assert (old.subject, old.scopes, new.scopes) == (7, ("read",), ("admin",))
    third = await sessions.rotate(admin.cookie, 7)
    assert await sessions.find(user.cookie) is None  # two rotations ago
    assert await sessions.find(third.cookie) is not None


async def test_of_twenty_rotations_at_once_one_wins(sessions: Sessions) -> None:
    """The others hear that the session has ended; as logins they open sessions of their own."""
    visitor = await sessions.open()
    results = await asyncio.gather(
        *(sessions.rotate(visitor.cookie, number) for number in range(20)), return_exceptions=True
    )
    won = [result for result in results if isinstance(result, Opened)]
    assert len(won) == 1
    assert all(isinstance(result, SessionEnded) for result in results if result is not won[0])
    visitor = await sessions.open()
    logins = await asyncio.gather(*(sessions.login(visitor.cookie, number) for number in range(20)))
    found = await asyncio.gather(*(sessions.find(one.cookie) for one in logins))
    assert [session.subject for session in found if session is not None] == list(range(20))
    assert len({one.session.handle for one in logins}) == 20


async def test_readers_during_a_rotation_are_never_thrown_out(sessions: Sessions) -> None:
    """Whenever a request comes, its cookie is the new one or has its grace."""
    visitor = await sessions.open()
    rotation = asyncio.create_task(sessions.rotate(visitor.cookie, 7))
    seen = []
    while not rotation.done():
        seen.append(await sessions.find(visitor.cookie))
    seen.append(await sessions.find(visitor.cookie))
    assert all(session is not None and session.subject is None for session in seen)


async def test_revoking_all_of_a_subject_misses_no_rotation(db: Database, sessions: Sessions) -> None:
    """After it no cookie of the subject works, also none that a rotation under way has made."""
    for _ in range(5):
        opened = [await sessions.open(7) for _ in range(6)]
        other = await sessions.open(8)
        results = await asyncio.gather(
            *(sessions.rotate(one.cookie, 7) for one in opened[:3]),
            sessions.revoke_all(7),
            *(sessions.rotate(one.cookie, 7) for one in opened[3:]),
            return_exceptions=True,
        )
        rotated = [result for result in results if isinstance(result, Opened)]
        for one in [*opened, *rotated]:
            assert await sessions.find(one.cookie) is None
        assert await sessions.find(other.cookie) is not None
    assert await db.scatter_sum(f"{ROWS} where subject = 7") == 0


async def test_a_user_sees_and_ends_own_sessions_only(sessions: Sessions) -> None:
    """By handles, which prove nothing; `keep` spares the one that asks."""
    mine = [await sessions.open(7) for _ in range(4)]
    theirs = await sessions.open(8)
    listed = await sessions.list_of(7)
    assert {session.handle for session in listed} == {one.session.handle for one in mine}
    for handle in (theirs.session.handle, "zz", "", "00"):
        assert not await sessions.revoke_handle(7, handle)
    assert await sessions.find(theirs.cookie) is not None
    assert await sessions.revoke_handle(7, mine[0].session.handle)
    assert await sessions.revoke_all(7, keep=mine[1].cookie) == 2
    assert [session.handle for session in await sessions.list_of(7)] == [mine[1].session.handle]
    assert await sessions.find(mine[1].cookie) is not None


async def test_a_session_ends_idle_or_old(db: Database, sessions: Sessions) -> None:
    """By the database's clock; use prolongs it, never past its absolute end."""
    opened = await sessions.open(7)
    session = opened.session
    assert (session.expires_at - session.created_at).total_seconds() == 7 * 86_400
    assert (session.ends_at - session.created_at).total_seconds() == 86_400 + 60
    await run(
        db, "update sessions.session set seen_at = now() - interval '61 s', ends_at = now() + interval '1 h'"
    )
    assert await sessions.find(opened.cookie) is not None
    prolonged = await sessions.find(opened.cookie)
    assert prolonged is not None and prolonged.ends_at > session.ends_at
    await run(
        db,
        "update sessions.session set seen_at = now() - interval '61 s', expires_at = now() + interval '1 h'",
    )
    await sessions.find(opened.cookie)
    last = await sessions.find(opened.cookie)
    assert last is not None and last.ends_at == last.expires_at
    await run(db, "update sessions.session set ends_at = now()")
    assert await sessions.find(opened.cookie) is None
    assert not await sessions.revoke(opened.cookie)
    with pytest.raises(SessionEnded):
        await sessions.rotate(opened.cookie, 7)


async def test_being_seen_is_written_once_a_minute(db: Database, sessions: Sessions) -> None:
    """Fifty requests at once write once, and fresh ones not at all."""
    opened = await sessions.open(7)
    versions = "select xmin::text || ctid::text from sessions.session"
    before = await db.scatter(versions)
    await asyncio.gather(*(sessions.find(opened.cookie) for _ in range(50)))
    assert await db.scatter(versions) == before
    await run(
        db,
        "update sessions.session set seen_at = now() - interval '61 s';"
        " create table sessions.seen (at timestamptz);"
        " create function sessions.note() returns trigger language plpgsql as"
        " 'begin insert into sessions.seen values (now()); return new; end';"
        " create trigger note after update on sessions.session for each row execute function sessions.note()",
    )
    await asyncio.gather(*(sessions.find(opened.cookie) for _ in range(50)))
    assert await db.scatter_sum("select count(*) from sessions.seen") == 1


async def test_what_has_ended_is_deleted(db: Database, sessions: Sessions, heard: Heard) -> None:
    """On every shard; what lives stays."""
    for number in range(30):
        await sessions.open(number)
    await run(db, "update sessions.session set ends_at = now() - interval '1 s' where subject < 25")
    await sessions.purge()
    assert await db.scatter_sum(ROWS) == 5
    await sessions.purge()
    assert [s.count for s in heard.of(SessionChanged) if s.event == "expired"] == [25]


async def test_a_shard_that_is_away_is_told(db: Database, sessions: Sessions) -> None:
    """revoke_all ends what it can reach, then raises: who asked must ask again."""
    for number in range(20):
        await sessions.open(7 if number else 8)
    last = list(db.pools)[-1]
    await db.pools[last].stop()
    with pytest.raises(Exception) as caught:
        await sessions.revoke_all(7)
    assert isinstance(caught.value, DatabaseUnavailable) or "not running" in str(caught.value)
    for name, pool in db.pools.items():
        if name != last:
            assert await pool.fetch_value(f"{ROWS} where subject = 7") == 0
    await db.pools[last].start()
    await sessions.revoke_all(7)
    assert await db.scatter_sum(f"{ROWS} where subject = 7") == 0


async def test_no_statement_reads_the_whole_table(db: Database, sessions: Sessions) -> None:
    """By cookie through the primary key, by subject and by end through their indexes."""
    sql = sessions._sql
    id, hour = bytes(32), timedelta(hours=1)
    async with db.pools["main"].transaction() as tx:
        await tx.execute("set local enable_seqscan = off")
        for statement, args, index in (
            (sql.find, (1, id, hour), "session_pkey"),
            (sql.touch, (1, id, hour, hour), "session_pkey"),
            (sql.revoke_all, (1, id), "session_subject"),
            (sql.list_of, (1,), "session_subject"),
            (sql.purge, (10,), "session_end"),
        ):
            plan = "\n".join(row[0] for row in await tx.fetch(f"explain {statement}", *args))
            assert index in plan and "Seq Scan" not in plan, plan


async def test_every_statement_keeps_to_its_schema(sessions: Sessions) -> None:
    with StatementGuard() as guard:
        opened = await sessions.login((await sessions.open()).cookie, 7)
        await sessions.find(opened.cookie)
        await sessions.list_of(7)
        await sessions.revoke_all(7)
        await sessions.purge()
    assert guard.faults() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"idle": 0}, "got 0"),
        ({"idle": 10.0, "lifetime": 5.0}, r"got 10.0 and 5.0"),
        ({"grace": 61}, "got 61"),
        ({"touch": 0}, "got 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    database = Database("sessions", ShardMap.even(["main"]), {"main": None})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=message):
        Sessions(database, **options)


async def test_rights_are_checked(sessions: Sessions) -> None:
    for subject, scopes in (
        (-1, []),
        (None, ["a"]),
        (1, ["a b"]),
        (1, [""]),
        (1, [str(n) for n in range(51)]),
    ):
        with pytest.raises(ValueError, match="got"):
            await sessions.open(subject, scopes)
