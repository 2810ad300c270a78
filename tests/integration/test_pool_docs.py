"""The examples of docs/pool.md run as they stand there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from springtide.db.pool import Pool

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pool.md"


def example(name: str) -> dict[str, Any]:
    found = re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None, f"docs/pool.md has no example {name}"
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(found[1], f"{PAGE.name}:{name}", "exec"), names)
    return names


async def test_the_pool_works_alone_in_a_fastapi_application(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write a note, read it, miss another; after shutdown a request gets 503 instead of an exception."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    app = example("example")["app"]
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        async with app.router.lifespan_context(app):
            made = await client.post("/notes", params={"text": "hello"})
            assert made.status_code == 201
            assert (await client.get(f"/notes/{made.json()['id']}")).json() == {"id": 1, "text": "hello"}
            assert (await client.get("/notes/99")).status_code == 404
        assert (await client.get("/notes/1")).status_code == 503


async def test_a_context_gives_statements_their_deadline(database_url: str) -> None:
    """As the page shows it, without the rest of the platform."""
    checkout = example("deadline")["checkout"]
    async with Pool(database_url) as pool:
        assert "pg_sleep" in await checkout(pool)


def test_every_option_is_in_the_table_with_its_default() -> None:
    """The page and the signature cannot drift apart."""
    text = PAGE.read_text().partition("## Options")[2]
    for name, parameter in inspect.signature(Pool).parameters.items():
        if name == "dsn":
            continue
        row = next((line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line), None)
        assert row is not None, f"docs/pool.md does not explain {name}"
        default = parameter.default
        if default is not None:
            shown = f'"{default}"' if isinstance(default, str) else str(default)
            assert shown in row, f"docs/pool.md shows another default of {name}: {row}"
