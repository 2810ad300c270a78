"""Migrations run once, in order, on every shard, and go on where they were stopped."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sharded import NOTES, pools

import springtide.db
from springtide.db import Migrator
from springtide.db.pool import Pool
from springtide.errors import MigrationError

INDEX = "-- springtide: no-transaction\n"
OWN = [f"springtide:{file.name}" for file in sorted(Path(springtide.db.__file__).parent.glob("sql/*.sql"))]
"""The data layer's own migrations, which come before a module's."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "0001_note.sql").write_text(NOTES)
    yield tmp_path


@pytest.fixture(params=[1, 2])
async def shards(
    request: pytest.FixtureRequest, database_urls: tuple[str, str]
) -> AsyncIterator[dict[str, Pool]]:
    async with pools(database_urls[: request.param], size=5) as started:
        yield started


@pytest.fixture
async def one(database_urls: tuple[str, str]) -> AsyncIterator[dict[str, Pool]]:
    async with pools(database_urls[:1], size=5) as started:
        yield started


def migrator(folder: Path | None, shards: dict[str, Pool], **options: Any) -> Migrator:
    return Migrator("notes", folder, shards, **options)


async def states(folder: Path, shards: dict[str, Pool]) -> dict[str, str]:
    return {s.name: s.state for s in await migrator(folder, shards).status() if s.source == "module"}


async def columns(pool: Pool) -> list[str]:
    rows = await pool.fetch(
        "select column_name from information_schema.columns where table_schema || table_name = 'notesnote'"
    )
    return [row["column_name"] for row in rows]


async def test_pending_files_are_applied_once_on_every_shard(folder: Path, shards: dict[str, Pool]) -> None:
    """The first run applies the data layer's tables and the module's, the second nothing."""
    assert len(await migrator(folder, shards).pending()) == (len(OWN) + 1) * len(shards)
    applied = await migrator(folder, shards).apply()
    assert applied == [f"notes/{name} on {shard}" for shard in shards for name in (*OWN, "0001_note.sql")]
    assert await migrator(folder, shards).apply() == []
    assert await migrator(folder, shards).pending() == []
    (folder / "0002_more.sql").write_text("alter table notes.note add column more text;")
    assert await migrator(folder, shards).apply() == [f"notes/0002_more.sql on {shard}" for shard in shards]
    for pool in shards.values():
        assert "more" in await columns(pool)


async def test_status_changes_nothing(folder: Path, shards: dict[str, Pool]) -> None:
    """On an empty database everything is pending, and asking leaves no trace."""
    assert set((await states(folder, shards)).values()) == {"pending"}
    for pool in shards.values():
        assert await pool.fetch_value("select to_regnamespace('springtide') is null")


async def test_concurrent_starts_run_each_file_once(folder: Path, shards: dict[str, Pool]) -> None:
    """Eight processes start at the same time: one of them applies, none fails."""
    (folder / "0002_row.sql").write_text("insert into notes.note (bucket, id) values (0, 1);")
    runs = await asyncio.gather(*[migrator(folder, shards).apply() for _ in range(4)])
    assert sum(len(run) for run in runs) == (len(OWN) + 2) * len(shards)


async def test_a_fleet_that_is_half_migrated_is_completed(folder: Path, shards: dict[str, Pool]) -> None:
    first = next(iter(shards))
    await migrator(folder, {first: shards[first]}).apply()
    applied = await migrator(folder, shards).apply()
    assert applied == [
        f"notes/{name} on {shard}" for shard in shards if shard != first for name in (*OWN, "0001_note.sql")
    ]


async def test_a_file_that_fails_leaves_nothing_and_names_its_line(
    folder: Path, one: dict[str, Pool]
) -> None:
    """The file is undone altogether, earlier files stay, and a corrected one is applied by the next run."""
    bad = folder / "0002_bad.sql"
    bad.write_text(
        "alter table notes.note add column more text;\n\nalter table notes.note add column more text;"
    )
    with pytest.raises(MigrationError, match=r"notes/0002_bad.sql on main.* failed: .*already exists"):
        await migrator(folder, one).apply()
    assert "more" not in await columns(one["main"])
    bad.write_text("alter table notes.note add column more text;\nselect 1 frm notes.note;")
    with pytest.raises(MigrationError, match=r"notes/0002_bad.sql on main, line 2 failed: syntax error"):
        await migrator(folder, one).apply()
    bad.write_text("alter table notes.note add column more text;")
    assert await migrator(folder, one).apply() == ["notes/0002_bad.sql on main"]


async def test_a_changed_file_is_refused(folder: Path, one: dict[str, Pool]) -> None:
    """The message names the file and both checksums; nothing later is applied."""
    await migrator(folder, one).apply()
    path = folder / "0001_note.sql"
    was = (await migrator(folder, one).status())[-1].checksum[:12]
    path.write_text(NOTES + "-- one more comment\n")
    now = (await migrator(folder, one).status())[-1].checksum[:12]
    (folder / "0002_more.sql").write_text("alter table notes.note add column more text;")
    for call in (migrator(folder, one).apply, migrator(folder, one).pending):
        with pytest.raises(MigrationError, match=rf"0001_note.sql on main was changed .*was {was}, is {now}"):
            await call()
    assert "more" not in await columns(one["main"])
    path.write_bytes(NOTES.replace("\n", "\r\n").encode())
    await migrator(folder, one).apply()
    assert "more" in await columns(one["main"]), "line ends alone are no change"


async def test_what_the_database_knows_and_the_folder_does_not_is_refused(
    folder: Path, one: dict[str, Pool]
) -> None:
    """Older code must not migrate a newer database; its servers may start on it."""
    later = folder / "0002_more.sql"
    later.write_text("alter table notes.note add column more text;")
    await migrator(folder, one).apply()
    later.unlink()
    with pytest.raises(MigrationError, match=r"0002_more.sql on main is applied but not in the folder"):
        await migrator(folder, one).apply()
    assert await migrator(folder, one).pending() == []
    assert await states(folder, one) == {"0001_note.sql": "applied", "0002_more.sql": "unknown"}


async def test_renamed_and_skipped_files_are_refused(folder: Path, one: dict[str, Pool]) -> None:
    (folder / "0002_more.sql").write_text("alter table notes.note add column more text;")
    await migrator(folder, one).apply()
    (folder / "0002_more.sql").rename(folder / "0002_other.sql")
    with pytest.raises(MigrationError, match=r"0002_other.sql on main was applied under another name"):
        await migrator(folder, one).apply()
    (folder / "0002_other.sql").rename(folder / "0002_more.sql")
    await one["main"].execute("delete from springtide.migration where source = 'module' and number = 1")
    with pytest.raises(MigrationError, match=r"0001_note.sql on main is not applied although a later one is"):
        await migrator(folder, one).apply()


async def test_a_long_transaction_does_not_make_traffic_queue_behind_a_migration(
    folder: Path, one: dict[str, Pool]
) -> None:
    """While a reader holds the table, the migration gives way again and again; other readers get through."""
    await migrator(folder, one).apply()
    (folder / "0002_more.sql").write_text("alter table notes.note add column more text;")
    pool = one["main"]
    async with pool.transaction() as long:
        await long.fetch("select id from notes.note")
        run = asyncio.create_task(migrator(folder, one, lock_timeout=0.1).apply())
        waiting = "select count(*) from pg_locks where not granted and relation = 'notes.note'::regclass"
        for _ in range(2):  # it waits, gives up, waits again
            while not await pool.fetch_value(waiting):
                pass
            await asyncio.wait_for(pool.fetch("select id from notes.note"), 5)
        assert not run.done()
    assert await run == ["notes/0002_more.sql on main"]


async def test_a_lock_that_never_comes_ends_the_run_with_a_reason(folder: Path, one: dict[str, Pool]) -> None:
    await migrator(folder, one).apply()
    (folder / "0002_more.sql").write_text("alter table notes.note add column more text;")
    async with one["main"].transaction() as long:
        await long.fetch("select id from notes.note")
        with pytest.raises(MigrationError, match=r"got no lock in 2 tries of 0.05 s.*pg_stat_activity"):
            await migrator(folder, one, lock_timeout=0.05, lock_attempts=2).apply()
    assert await migrator(folder, one).apply() == ["notes/0002_more.sql on main"]


async def test_who_waits_for_another_process_gives_up_with_a_reason(
    folder: Path, one: dict[str, Pool]
) -> None:
    from springtide.db.migrate import LOCK_KEY

    async with one["main"].acquire() as other:
        await other.fetch_value("select pg_advisory_lock($1)", LOCK_KEY)
        with pytest.raises(MigrationError, match=r"another process has been migrating main for 0.1 s"):
            await migrator(folder, one, wait=0.1).apply()


async def valid(pool: Pool, index: str) -> bool | None:
    value: bool | None = await pool.fetch_value(
        "select indisvalid from pg_index where indexrelid = to_regclass('notes.' || $1)", index
    )
    return value


async def test_indexes_are_built_concurrently_and_statement_by_statement(
    folder: Path, shards: dict[str, Pool]
) -> None:
    (folder / "0002_index.sql").write_text(
        INDEX
        + "create index concurrently note_text on notes.note (text);\n"
        + "alter table notes.note add column more text;\n"
        + "create unique index concurrently note_more on notes.note (bucket, more);\n"
        + "drop index concurrently notes.note_text;\n"
    )
    await migrator(folder, shards).apply()
    for pool in shards.values():
        assert await valid(pool, "note_text") is None
        assert await valid(pool, "note_more") is True
    assert await migrator(folder, shards).apply() == []


async def test_an_index_left_invalid_is_built_again(folder: Path, one: dict[str, Pool]) -> None:
    """A failed concurrent build leaves an invalid index; once its cause is gone the next run completes it."""
    await migrator(folder, one).apply()
    pool = one["main"]
    await pool.execute("insert into notes.note (bucket, id, text) values (0, 1, 'x'), (0, 2, 'x')")
    (folder / "0002_index.sql").write_text(
        INDEX
        + "alter table notes.note add column more text;\n"
        + "create unique index concurrently note_text on notes.note (bucket, text);\n"
        + "insert into notes.note (bucket, id, text) values (5, 5, 'once');"
    )
    with pytest.raises(MigrationError, match="could not create unique index"):
        await migrator(folder, one).apply()
    assert await valid(pool, "note_text") is False
    assert (await states(folder, one))["0002_index.sql"] == "partial"
    await pool.execute("delete from notes.note where id = 2")
    assert await migrator(folder, one).apply() == ["notes/0002_index.sql on main"]
    assert await valid(pool, "note_text") is True
    assert await pool.fetch_value("select count(*) from notes.note where text = 'once'") == 1


@pytest.mark.parametrize("done", ["create index concurrently note_text on notes.note (text)", "drop"])
async def test_a_statement_done_but_not_recorded_is_not_done_twice(
    folder: Path, one: dict[str, Pool], done: str
) -> None:
    """Killed between an index and its record, the next run takes the finished index as it is."""
    await migrator(folder, one).apply()
    pool = one["main"]
    file = folder / "0002_index.sql"
    if done == "drop":
        await pool.execute("create index note_text on notes.note (text)")
        file.write_text(INDEX + "drop index concurrently notes.note_text;\nselect 1;")
    else:
        file.write_text(INDEX + f"{done};\nselect 1;")
    async with pool.transaction() as long:  # whatever it is, it cannot finish now
        await long.execute("lock table notes.note in access exclusive mode")
        run = asyncio.create_task(migrator(folder, one).apply())
        state = "select statements_done from springtide.migration where name = '0002_index.sql'"
        while await pool.fetch_value(state) != 0:
            pass
        run.cancel()
        await asyncio.wait([run])
    await pool.execute("drop index if exists notes.note_text")
    if done != "drop":
        await pool.execute(done.replace("concurrently ", ""))
    assert await migrator(folder, one).apply() == ["notes/0002_index.sql on main"]
    assert await valid(pool, "note_text") is (None if done == "drop" else True)


CHILD = """
import asyncio, sys
from pathlib import Path
import springtide.db
from springtide.db import Migrator
from springtide.db.pool import Pool

async def main():
    async with Pool(sys.argv[2], cluster="main") as pool:
        await Migrator("notes", Path(sys.argv[1]), {"main": pool}).apply()

asyncio.run(main())
"""


@pytest.mark.parametrize("header", ["", INDEX])
async def test_a_migrator_killed_in_the_middle_is_followed_by_another(
    folder: Path, one: dict[str, Pool], database_urls: tuple[str, str], header: str
) -> None:
    """kill -9 during a statement: the next run waits for the dead one's session and completes the file."""
    await migrator(folder, one).apply()
    pool = one["main"]
    (folder / "0002_slow.sql").write_text(
        header
        + "insert into notes.note (bucket, id) values (0, 1);\n"
        + "select pg_sleep(1);\n"
        + "insert into notes.note (bucket, id) values (0, 2);\n"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, str(folder), database_urls[0])
    sleeping = (
        "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()"
    )
    while not await pool.fetch_value(sleeping):
        pass
    child.send_signal(signal.SIGKILL)
    await child.wait()
    assert await migrator(folder, one).apply() == ["notes/0002_slow.sql on main"]
    assert await pool.fetch_value("select array_agg(id order by id) from notes.note") == [1, 2]


async def test_a_module_without_a_folder_gets_the_data_layers_tables(one: dict[str, Pool]) -> None:
    assert await migrator(None, one).apply() == [f"notes/{name} on main" for name in OWN]


@pytest.mark.parametrize("options", [{"lock_timeout": 0}, {"lock_attempts": 0}, {"wait": -1}])
def test_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Migrator("notes", None, {}, **options)


def test_a_module_is_named_like_a_schema() -> None:
    with pytest.raises(ValueError, match="Notes"):
        Migrator("Notes", None, {})
