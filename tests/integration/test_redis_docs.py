"""The example of docs/redis.md runs as it stands there."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from tests._redis import RedisServer
from tests._redis_use import HANGS

from springtide.redis import Redis

PAGE = Path(__file__).resolve().parents[2] / "docs" / "redis.md"


def example(name: str) -> dict[str, Any]:
    found = re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None, f"docs/redis.md has no example {name}"
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(found[1], f"{PAGE.name}:{name}", "exec"), names)
    return names


@pytest.mark.needs("redis-server")
async def test_the_example_counts_and_does_without(redis_server: RedisServer) -> None:
    """Visits are counted; where there is no Redis nobody can say, at once."""
    main = example("use")["main"]
    async with asyncio.timeout(HANGS):
        while None in (counts := await main(redis_server.url)):  # a machine so busy that Redis was late
            pass
    assert counts == [counts[0], counts[0] + 1, counts[0] + 2]
    assert await main("redis://127.0.0.1:1") == [None, None, None]


def test_every_option_is_in_the_table_with_its_default() -> None:
    """The page and the signature cannot drift apart."""
    text = PAGE.read_text().partition("## Options")[2]
    for name, parameter in inspect.signature(Redis).parameters.items():
        if name == "url":
            continue
        row = next((line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line), None)
        assert row is not None, f"docs/redis.md does not explain {name}"
        if (default := parameter.default) is not None:
            shown = f'"{default}"' if isinstance(default, str) else str(default)
            assert shown in row, f"docs/redis.md shows another default of {name}: {row}"
