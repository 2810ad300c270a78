"""The tables of market as its migrations left them: without rows, but for those that migrations wrote.

Which tables those are is noted right after the migrations in the database itself: so a copy of it knows
them too, and nobody has to name a new table.
"""

from __future__ import annotations

import asyncpg

from market.platform import modules

__all__ = ["empty", "empty_servers", "note_migrated"]

NOTE = """
do $$
declare name text;
begin
    create table public.migrated (name text);
    for name in select c.oid::regclass from pg_class as c
        where c.relkind = 'r' and c.relnamespace = any ($schemas$)
    loop
        -- A queue has pages from the beginning, and no rows in them.
        execute format('insert into public.migrated select %L where exists (select from %s)', name, name);
    end loop;
end $$
"""

EMPTY = """
do $$
declare name text;
begin
    -- The ledger refuses deletions, and keys refer to each other; a replica's session asks no trigger.
    perform set_config('session_replication_role', 'replica', true);
    perform set_config('lock_timeout', '10s', true);
    for name in select c.oid::regclass from pg_class as c
        where c.relkind = 'r' and c.relnamespace = any ($schemas$) and pg_relation_size(c.oid) > 0
        and c.relname <> '$kept$' and c.oid::regclass::text not in (select m.name from public.migrated as m)
    loop
        execute 'delete from ' || name;
    end loop;
end $$
"""


def _schemas() -> str:
    return "array[" + ", ".join(f"'{module.name}'::regnamespace" for module in modules()) + "]"


async def note_migrated(connection: asyncpg.Connection) -> None:
    """To be called once, before anything but migrations has written."""
    await connection.execute(NOTE.replace("$schemas$", _schemas()))


async def empty(connection: asyncpg.Connection, *, kept: str = "") -> None:
    """Delete what was written since. Tables called `kept` are left as they are, in whatever schema."""
    await connection.execute(EMPTY.replace("$schemas$", _schemas()).replace("$kept$", kept))


async def empty_servers(urls: list[str]) -> None:
    for url in urls:
        connection = await asyncpg.connect(url)
        try:
            await empty(connection)
        finally:
            await connection.close()
