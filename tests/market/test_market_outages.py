"""A database that is dead or frozen: the API says so in its own shape, in time, and works again after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from tests.market.harness import serving, topology
from tests.servers import PostgresServer

from market.platform import modules
from springtide.platform import Platform


async def test_a_database_that_dies_or_freezes_is_answered_and_survived(
    own_postgres: Callable[..., PostgresServer], home: Path
) -> None:
    server = await asyncio.to_thread(own_postgres)
    urls = [server.url(await asyncio.to_thread(server.create_database))]
    await Platform(topology(urls), modules=modules(), home=home).migrate()
    async with serving(urls, home, request_timeout=3.0) as api:
        jake = await api.person("Jake")
        await api.article(jake, "Kept")
        for stop, again in ((server.kill, server.restart), (server.freeze, server.thaw)):
            await asyncio.to_thread(stop)
            begun = monotonic()
            responses = await asyncio.gather(
                api.client.get("/api/articles"),
                api.client.get("/api/user", headers={"Authorization": f"Token {jake.token}"}),
                api.client.post("/api/users/login", json={"user": {"email": jake.email, "password": "x"}}),
            )
            assert monotonic() - begun < 30  # it ends, although the server does not answer
            for response in responses:
                assert response.status_code in (503, 504), response.text
                assert response.headers["content-type"] == "application/json"
                assert set(response.json()["errors"]) == {"server"}
            await asyncio.to_thread(again)
            assert (await api.titles("/articles"))[0] == ["Kept"]
