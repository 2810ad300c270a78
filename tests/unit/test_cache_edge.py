"""What an answer over HTTP learns of the cached values in it."""

from __future__ import annotations

import math

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from springtide.cache import Cache, HttpPolicy
from springtide.context import RequestContext, activate
from springtide.errors import CacheDefinitionError
from springtide.provenance import Provenance
from springtide.testing.clock import ManualClock
from springtide.web.caching import CachingLayer, cacheable

PUBLIC = HttpPolicy(public=True, edge_max_age=30)


class User(msgspec.Struct, frozen=True):
    id: int
    org: int


async def load(id: int) -> User | None:
    return User(id, id % 2) if id < 100 else None


class Site:
    """`/?id=7` answers with a user; `/?id=7&cart=1` uses a value of a class without a policy beside it."""

    def __init__(self, route: HttpPolicy | None = None) -> None:
        self.cache = Cache("app")
        self.users = self.cache.define(
            "user:{id}", User, load=load, tags=("org:{org}",), budget=32, http=PUBLIC
        )
        self.carts = self.cache.define("cart:{id}", User, load=load)
        routes = [Route("/", cacheable(route)(self._answer))]
        self.app = CachingLayer(Starlette(routes=routes))

    async def _answer(self, request: Request) -> Response:
        id = int(request.query_params["id"])
        user = await self.users.get(id)
        if "many" in request.query_params:
            await self.users.get_many([1, 2])
        if "cart" in request.query_params:
            await self.carts.get(id)
        return JSONResponse(msgspec.to_builtins(user))

    async def ask(self, query: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with self.cache, httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(f"/?{query}")


async def test_an_answer_has_the_policy_keys_and_tags_of_its_values() -> None:
    """By whatever way the values were read, also where there is nothing."""
    answer = await Site().ask("id=7&many=1")
    assert answer.headers["cache-control"] == "public, max-age=0, s-maxage=30"
    assert answer.headers["surrogate-key"].split() == ["user:7", "org:1", "user:1", "user:2", "org:0"]
    answer = await Site().ask("id=500")
    assert answer.json() is None and answer.headers["surrogate-key"] == "user:500"


async def test_a_value_whose_class_says_nothing_makes_the_answer_private() -> None:
    """Its budget has no part for a shared cache, so none may keep it."""
    for route in (None, PUBLIC):
        answer = await Site(route).ask("id=7&cart=1")
        assert answer.headers["cache-control"] == "private, no-cache"


async def test_a_route_cannot_say_more_than_the_class() -> None:
    """An hour at the edge becomes what the class's budget has room for."""
    answer = await Site(HttpPolicy(public=True, max_age=3600)).ask("id=7")
    assert answer.headers["cache-control"] == "public, max-age=0, s-maxage=30"


async def test_a_loader_does_not_depend_on_who_asks() -> None:
    """It runs in a context of its own: what it looks at there is nobody's."""
    cache = Cache("app")
    users = cache.define("user:{id}", User, load=load, http=HttpPolicy())
    context = RequestContext(provenance=Provenance())
    async with cache:
        with activate(context):
            assert await users.get(7) == User(7, 1)
    assert context.provenance is not None
    assert context.provenance.personal is None and context.provenance.keys == ["user:7"]


def test_the_edge_is_part_of_the_budget() -> None:
    """A definition whose edge would keep values longer than the budget is refused, and shows the sum."""
    cache = Cache("app")
    with pytest.raises(CacheDefinitionError, match=r"edge     kept by shared caches \(http\)"):
        cache.define("user:{id}", User, load=load, http=PUBLIC)
    with pytest.raises(CacheDefinitionError, match="http must be an HttpPolicy or None, got http = 30"):
        cache.define("user:{id}", User, load=load, http=30)  # type: ignore[arg-type]


def slow(clock: ManualClock, seconds: float, http: HttpPolicy) -> CachingLayer:
    """A site whose one value takes `seconds` to load, and as many to be written down."""
    cache = Cache("app", clock=clock)

    async def load(id: int) -> User:
        await clock.advance(seconds)
        return User(id, 1)

    users = cache.define("user:{id}", User, load=load, budget=32, hard_timeout=60, http=http)

    async def answer(request: Request) -> Response:
        user = await users.get(7)
        await clock.advance(float(request.query_params.get("writes", 0)))
        return JSONResponse(msgspec.to_builtins(user))

    return CachingLayer(Starlette(routes=[Route("/", cacheable()(answer))]), clock=clock)


async def asked(app: CachingLayer, query: str = "") -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        return await client.get(f"/?{query}")


async def test_the_age_counts_from_when_the_load_began() -> None:
    """The snapshot is as old as the load is long, and older by what the answer takes after it."""
    answer = await asked(slow(ManualClock(), 0.25, PUBLIC))
    replica = 32 - 0.5 - 30  # what the budget leaves for where it is loaded from
    assert float(answer.headers["age"]) == math.ceil(replica + 0.25)
    assert "public" in answer.headers["cache-control"]
    answer = await asked(slow(ManualClock(), 0.25, PUBLIC), "writes=9")
    assert float(answer.headers["age"]) == math.ceil(replica + 0.25 + 9)


@pytest.mark.parametrize("http", [PUBLIC, HttpPolicy(max_age=30)])
async def test_what_took_longer_to_load_than_its_budget_has_room_for_is_kept_by_nobody(
    http: HttpPolicy,
) -> None:
    """A write may have invalidated it meanwhile, and the purge of that came before the answer."""
    answer = await asked(slow(ManualClock(), 4.0, http))
    assert answer.headers["cache-control"] == "private, no-cache"
