"""Recommendations as pages show them; and pages without them, when the module is down or frozen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.market import tiers
from tests.market.harness import Api, Recorder, lifespan, one_shard, settled, topology
from tests.market.test_catalog_api import good, offer, refused, seller, send
from tests.market.working import work
from tests.servers import PostgresServer

from market.application import application, render_error
from market.extras import Extras
from market.faults import Invalid
from market.platform import modules
from market.recommendations.api import Recommendations
from market.users.api import Users
from springtide.errors import DatabaseUnavailable, DeadlineExceeded, ModuleError
from springtide.platform import Platform
from springtide.signals import PartOmitted
from springtide.topology import Cluster, DatabaseSpec, Node


async def bought(api: Api, *listings: dict[str, Any], times: int = 2) -> None:
    recommendations = api.service(Recommendations)
    for _ in range(times):
        number = next(api._numbers)
        ids = [listing["id"] for listing in listings]
        await recommendations.bought(number << 10 | 77, number << 10 | 900, ids)
    await work(api.platform, {"recommendations"})


async def test_what_was_bought_with_a_listing_is_shown_while_it_is_on_sale(api: Api) -> None:
    shop = await seller(api)
    lamp, bulb, cord, draft = [await offer(api, shop, title=title) for title in ("Lamp", "Bulb", "Cord", "X")]
    await bought(api, lamp, bulb, times=3)
    await bought(api, lamp, bulb, cord, draft, times=2)
    draft_of = await offer(api, shop, status="draft")
    gone = {"status": "withdrawn"}
    await good(api, "PATCH", f"/listings/{draft['id']}", gone, by=shop, If_Match="*")
    path = f"/listings/{lamp['id']}/also-bought"
    found = await good(api, "GET", path)
    assert [one["title"] for one in found["items"]] == ["Bulb", "Cord"]
    assert [one["title"] for one in (await good(api, "GET", f"{path}?limit=1"))["items"]] == ["Bulb"]
    first = await send(api, "GET", path)
    again = await send(api, "GET", path, If_None_Match=first.headers["etag"])
    assert again.status_code == 304
    assert await good(api, "GET", f"/listings/{cord['id']}/also-bought") is not None
    await refused(api, 404, "GET", f"/listings/{draft_of['id']}/also-bought")
    await refused(api, 404, "GET", "/listings/12345/also-bought")
    await refused(api, 422, "GET", f"{path}?limit=0")


async def test_whom_people_follow_whom_one_follows(api: Api) -> None:
    """From a click to a suggestion, by the jobs of two modules; and gone at once when followed."""
    names = ("anna", "bert", "carl", "dora", "emil")
    anna, bert, carl, dora, emil = [await api.person(name) for name in names]

    async def suggested(by: Any) -> list[str]:
        items = (await good(api, "GET", "/recommendations/authors", by=by))["items"]
        return [person["username"] for person in items]

    await refused(api, 401, "GET", "/recommendations/authors")
    assert await suggested(anna) == []
    for who, whom in ((anna, "bert"), (bert, "carl"), (bert, "anna"), (dora, "emil"), (carl, "emil")):
        await api.call("POST", f"/profiles/{whom}/follow", by=who, expect=200)
    await work(api.platform)
    assert await suggested(anna) == ["carl"]
    made: Any = api.platform._registry.implementation("recommendations")
    await made.refresh()
    await settled(api.platform)
    assert await suggested(anna) == ["carl", "emil"], "then the most followed, never oneself"
    assert set(await suggested(emil)) == {"anna", "bert", "carl"}
    await api.call("POST", "/profiles/carl/follow", by=anna, expect=200)
    assert await suggested(anna) == ["emil"], "before any job has run"
    await api.call("DELETE", "/profiles/carl/follow", by=anna, expect=200)
    await work(api.platform)
    assert await suggested(anna) == ["carl", "emil"]


async def test_every_way_to_follow_and_unfollow_ends_in_the_last_state(api: Api) -> None:
    """Clicks come faster than jobs, and jobs run in any order: what was clicked last is known in the end."""
    anna, bert = await api.person("anna"), await api.person("bert")
    users = api.service(Users)
    follower, followee = await users.find("anna"), await users.find("bert")
    db = api.platform.database("recommendations")
    made: Any = api.platform._registry.implementation("users")
    for clicks in ("POST", "POST DELETE", "POST POST", "DELETE DELETE", "POST DELETE POST DELETE", "POST"):
        for method in clicks.split():
            await api.call(method, "/profiles/bert/follow", by=anna, expect=200)
        await work(api.platform)
        before = await db.scatter("select following, version from recommendations.fan")
        for job in ({"follower": follower, "followee": followee},) * 2:  # late repetitions
            await made.tell_followed(type("Job", (), job), None)
        await work(api.platform)
        assert await db.scatter("select following, version from recommendations.fan") == before
        assert [row["following"] for row in before] == [clicks.endswith("POST")]
        assert await users.following(follower or 0) == ([followee] if clicks.endswith("POST") else [])
    assert bert.username == "bert"


async def test_a_page_does_without_what_fails_or_is_slow_and_says_so() -> None:
    """Counted with its reason; a mistake of the caller and one of the program are raised."""
    heard: list[Any] = []
    sink = type("Sink", (), {"emit": staticmethod(heard.append)})()
    extras = Extras(sink, timeout=0.01)

    async def failing(error: BaseException) -> list[int]:
        raise error

    async def hanging() -> list[int]:
        await asyncio.Event().wait()
        return [1]

    async def quick() -> list[int]:
        return [1]

    assert await extras.fetch("x", quick()) == [1]
    assert heard == []
    for error in (DatabaseUnavailable("gone"), DeadlineExceeded("late"), TimeoutError()):
        assert await extras.fetch("x", failing(error)) == []
    assert await extras.fetch("x", hanging()) == []
    assert heard == [
        PartOmitted("x", reason)
        for reason in ("DatabaseUnavailable", "DeadlineExceeded", "TimeoutError", "TimeoutError")
    ]
    for error in (Invalid({"limit": ["is wrong"]}), ModuleError("broken"), KeyError("bug")):
        with pytest.raises(type(error)):
            await extras.fetch("x", failing(error))
    with pytest.raises(asyncio.CancelledError):
        await extras.fetch("x", failing(asyncio.CancelledError()))


@one_shard
async def test_pages_live_without_the_database_of_recommendations(
    urls: list[str], home: Path, own_postgres: Callable[..., PostgresServer]
) -> None:
    """Killed, then frozen: 200 and nothing recommended; following works too, and is told when it is back."""
    server = await asyncio.to_thread(own_postgres)
    url = server.url(await asyncio.to_thread(server.create_database))
    shape = topology(urls)
    shape = replace(
        shape,
        nodes={**shape.nodes, "db-apart": Node(name="db-apart", url=url)},
        clusters={**shape.clusters, "apart": Cluster(name="apart", primary="db-apart")},
        databases={
            **shape.databases, "recommendations": DatabaseSpec(name="recommendations", shards=("apart",)),
        },
    )  # fmt: skip
    recorder = Recorder()
    heard: list[PartOmitted] = []
    recorder.emit = lambda signal: heard.append(signal) if isinstance(signal, PartOmitted) else None  # type: ignore[method-assign]
    await Platform(shape, modules=modules(), home=home).migrate()
    platform = Platform(shape, modules=modules(), home=home, sink=recorder, check_calls=True)
    app = platform.wrap(application(platform), render_error=render_error)
    async with lifespan(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://market") as client:
            api = Api(client, platform, recorder)
            shop, other = await seller(api), await api.person("other")
            lamp, bulb = [await offer(api, shop, title=title) for title in ("Lamp", "Bulb")]
            await bought(api, lamp, bulb)
            path = f"/listings/{lamp['id']}/also-bought"
            shown = await good(api, "GET", path)
            assert [one["title"] for one in shown["items"]] == ["Bulb"]
            assert heard == []
            for stop, again in ((server.kill, server.restart), (server.freeze, server.thaw)):
                await asyncio.to_thread(stop)
                heard.clear()
                pages = await asyncio.gather(
                    *(good(api, "GET", path) for _ in range(5)),
                    *(good(api, "GET", "/recommendations/authors", by=other) for _ in range(5)),
                )
                if tiers.cached():  # what is kept may be shown
                    assert all(page["items"] == [] or page == shown for page in pages)
                else:
                    assert [page["items"] for page in pages] == [[]] * 10
                    assert {signal.part for signal in heard} == {"also-bought", "authors"}
                await api.call("POST", f"/profiles/{shop.username}/follow", by=other, expect=200)
                await api.call("DELETE", f"/profiles/{shop.username}/follow", by=other, expect=200)
                await asyncio.to_thread(again)
                async with asyncio.timeout(60):
                    while not (await good(api, "GET", path))["items"]:
                        pass
            await work(platform)
            told = await platform.database("recommendations").scatter(
                "select following, version from recommendations.follow"
            )
            assert [tuple(row) for row in told] == [(False, 4)]
