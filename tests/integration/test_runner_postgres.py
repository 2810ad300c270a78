"""The embedded PostgreSQL: made, configured, adopted, stopped, and clear about what went wrong."""

from __future__ import annotations

from collections.abc import Callable

import asyncpg

from tests.servers import PostgresServer


async def test_scram_is_asked_for(postgres: PostgresServer, database_url: str) -> None:
    """A client with a wrong password is turned away, by TCP and by the unix socket."""
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("select 1") == 1
    await connection.close()
    for host in ("127.0.0.1", str(postgres.server.socket_folder)):
        try:
            await asyncpg.connect(
                host=host, port=postgres.port, user="springtide", password="wrong", database="postgres"
            )
        except asyncpg.InvalidPasswordError:
            continue
        raise AssertionError(f"a wrong password was accepted over {host}")


async def test_killed_server_comes_back(own_postgres: Callable[..., PostgresServer]) -> None:
    """Committed rows survive kill -9 of the server, and it comes back on its port."""
    server = own_postgres()
    server.query("create table kept (id int); insert into kept values (1)")
    port = server.port
    server.kill()
    server.restart()
    assert server.port == port
    assert server.query("select id from kept") == "1"


async def test_frozen_server_is_stopped(own_postgres: Callable[..., PostgresServer]) -> None:
    """`freeze` stops every answer, `thaw` resumes."""
    server = own_postgres()
    connection = await asyncpg.connect(server.url())
    server.freeze()
    try:
        await connection.fetchval("select 1", timeout=0.2)
    except TimeoutError:
        pass
    else:
        raise AssertionError("a frozen server answered")
    server.thaw()
    connection.terminate()
