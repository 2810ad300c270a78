"""docs/idempotency.md is true: its examples run as they stand there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import httpx
from tests.sharded import NOTES, notes

from springtide.db.idempotency import Idempotency, Once
from springtide.web.idempotency import KEPT, MAX_KEY_CHARS, MIN_KEY_CHARS

PAGE = (Path(__file__).parents[2] / "docs" / "idempotency.md").read_text("utf-8")


def example(name: str) -> dict[str, Any]:
    found = re.search(rf"```python\n# file: {re.escape(name)}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, f"docs/idempotency.md has no example {name}"
    names: dict[str, Any] = {"__name__": name}
    exec(compile(found[1], name, "exec", dont_inherit=True), names)
    return names


async def test_the_application_of_the_page_adds_a_note_once(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "0001_note.sql").write_text(NOTES)
    app = example("notes.py")["make"](database_url, tmp_path)
    async with (
        app._app.router.lifespan_context(app._app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as http,
    ):
        headers = {"Idempotency-Key": "0b4f6c0e-note"}
        first = await http.post("/users/7/notes", json={"text": "a"}, headers=headers)
        again = await http.post("/users/7/notes", json={"text": "a"}, headers=headers)
        other = await http.post("/users/7/notes", json={"text": "b"}, headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (201, 201, 422)
    assert first.json() == again.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]


async def test_the_registration_of_the_page_registers_once(
    database_urls: tuple[str, str], tmp_path: Path
) -> None:
    register = example("register.py")["register"]
    async with notes(database_urls, tmp_path, size=5) as db:
        keys, once = Idempotency(db), Once.of(("who", "POST", "/", "key"), ("body",))
        first = await register(db, keys, once, "ann")
        assert await register(db, keys, once, "ann") == first
        assert await db.lookup("name", "ann") == int(first.body)


def test_the_figures_of_the_page_are_those_of_the_code() -> None:
    assert f"{MIN_KEY_CHARS} to {MAX_KEY_CHARS} letters" in PAGE
    options = inspect.signature(Idempotency).parameters
    assert options["retention"].default == 24 * 3600 and "24 hours" in PAGE
    assert options["max_answer_bytes"].default == 64 * 1024 and "64 KiB" in PAGE
    listed = PAGE.partition("Kept are ")[2].partition(";")[0].replace("`-", "`Content-")
    assert {name.lower() for name in re.findall(r"`([\w-]+)`", listed)} == KEPT
