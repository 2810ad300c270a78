"""The examples in docs/web.md and docs/telemetry.md run."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from springtide.errors import PoolTimeout
from springtide.web.asgi import Layers

DOCS = Path(__file__).parents[2] / "docs"


def examples(page: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": page}
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec", dont_inherit=True), names)
    return names


WEB = examples("web.md")


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


async def test_the_application_of_the_web_page_answers() -> None:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(WEB["app"]), base_url="http://t")  # type: ignore[arg-type]
    assert (await http.get("/hello")).text == "hello"


async def test_its_renderer_renders() -> None:
    async def broken(scope: object, receive: object, send: object) -> None:
        raise PoolTimeout("x")

    app = Layers(broken, render_error=WEB["render_error"])  # type: ignore[arg-type]
    answer = await httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t").get("/")
    assert answer.json() == {
        "errors": {"body": ["The service cannot take this request now; try again later."]}
    }


@pytest.mark.usefixtures("_logging_as_before")
def test_the_examples_of_the_telemetry_page_run() -> None:
    examples("telemetry.md")
