"""Reads of a cache when something goes wrong half way: arguments, loaders, tags, places in line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from springtide.cache import Cache
from springtide.cache._terms import of_refresh
from springtide.context import Identity, Position, RequestContext, activate, current

HANGS = 30.0
"""Seconds that only tell a slow machine from one that hangs."""


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(HANGS):
        while not condition():
            await asyncio.sleep(0)


async def test_an_argument_that_is_refused_leaves_the_others_of_its_call_free() -> None:
    """What a call had begun to look for before it was refused is found by whoever asks next."""

    async def load(id: int) -> str:
        return f"value {id}"

    cache = Cache("app")
    values = cache.define("value:{id}", str, load=load)
    async with asyncio.timeout(HANGS), cache:
        with pytest.raises(TypeError, match="id must be int or str, got None"):
            await values.get_many([1, None])
        assert await values.get(1) == "value 1"
        assert not values.places[None].flights


async def test_what_waits_for_a_load_is_loaded_past_the_line_whenever_it_was_joined() -> None:
    """A load asks for what somebody else is only looking for in Redis, so that it has no load yet; there is
    one place, and the load that asks has it."""
    cache = Cache("app", max_loads=1)
    asked, go = asyncio.Event(), asyncio.Event()

    async def load_inner(id: int) -> str:
        return f"inner {id}"

    async def load_outer(id: int) -> str:
        asked.set()
        await go.wait()
        return f"outer of {await inner.get(7)}"

    inner = cache.define("inner:{id}", str, load=load_inner)
    outer = cache.define("outer:{id}", str, load=load_outer)
    async with asyncio.timeout(HANGS), cache:
        whole = asyncio.create_task(outer.get(1))
        await asked.wait()
        place = inner.places[None]
        looking = place.open(7, inner.key(7), (7,), cache.clock.monotonic())  # as a read that asks Redis
        go.set()
        await until(lambda: inner.stats.joined == 1)
        assert looking.load is None
        inner._reading._loads.begin(place, [looking], of_refresh(inner.definition.parts), caller=None)
        assert await whole == "outer of inner 7"
        assert cache.admission.waiting == 0
    assert cache.admission.running == 0


async def test_many_by_something_that_is_no_tuple_are_refused() -> None:
    """A text is not two arguments, and a text of keys is not many of them."""

    async def load(*arguments: Any) -> str:
        return "-".join(map(str, arguments))

    cache = Cache("app")
    pairs = cache.define("pair:{a}:{b}", str, load=load)
    ones = cache.define("one:{a}", str, load=load)
    async with asyncio.timeout(HANGS), cache:
        assert await pairs.get_many([("x", 1)]) == {("x", 1): "x-1"}
        for wrong in ("xy", 7, None):
            with pytest.raises(TypeError, match=r"pair:\{a\}:\{b\} takes tuples of a, b, got"):
                await pairs.get_many([wrong])
        with pytest.raises(TypeError, match="one has many keys in a list, got the text 'abc'"):
            await ones.get_many("abc")


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (["one"], "load_many of value must give a mapping, got list"),
        (None, "load_many of value must give a mapping, got NoneType"),
        ({"1": "one", 2: "two"}, "load_many of value gave a value of '1', which it was not asked for"),
        ({1: 1}, "the loader of value gave int: 1"),
    ],
)
async def test_a_batch_loader_that_gives_something_else_is_found_out(answer: Any, fault: str) -> None:
    """Were keys of another type passed over, all of them would be kept as "nothing there"."""

    async def many(ids: Sequence[int]) -> Mapping[int, str]:
        return answer  # type: ignore[no-any-return]

    cache = Cache("app")
    values = cache.define("value:{id}", str, load_many=many)
    async with asyncio.timeout(HANGS), cache:
        with pytest.raises(TypeError) as caught:
            await values.get_many([1, 2])
        assert str(caught.value).startswith(fault)


async def test_a_loader_that_is_not_async_says_so() -> None:
    cache = Cache("app")
    values = cache.define("value:{id}", str, load=lambda id: f"value {id}")
    async with asyncio.timeout(HANGS), cache:
        with pytest.raises(TypeError, match="the loader of value must be an async function"):
            await values.get(1)


async def test_a_load_has_what_is_kept_of_a_client_without_a_token() -> None:
    """What he has written is found by who he is. The load is nobody's, and has it all the same; so has he."""
    recalled: list[int] = []

    async def recall(context: RequestContext) -> None:
        if context.known is None:
            return
        recalled.append(context.known.subject)
        context.causality.observe("main", Position(1, 700))
        context.recall = None

    async def load(id: int) -> int:
        own = current()
        assert own is not None
        assert own.known is None
        if own.recall is not None:
            await own.recall(own)
        seen = own.causality.position("main")
        return 0 if seen is None else seen.lsn

    cache = Cache("app")
    values = cache.define("value:{id}", int, load=load)
    bearer = RequestContext(known=Identity(9, "token"), unproven=set(), recall=recall)
    async with asyncio.timeout(HANGS), cache:
        with activate(bearer):
            assert await values.get(1) == 700
            assert await values.get(2) == 700
        assert bearer.causality.position("main") == Position(1, 700)
        assert recalled == [9]
