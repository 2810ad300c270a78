"""The README's example runs as it stands there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import httpx
import pytest

README = Path(__file__).parents[2] / "README.md"


async def test_the_layers_work_alone_in_an_existing_application(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example answers, its answer says where the time went, and its pool ends with it."""
    blocks = re.findall(r"^```python file=(\S+)\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    assert [name for name, _ in blocks] == ["service.py"]
    file = tmp_path / "service.py"
    file.write_text(blocks[0][1])
    monkeypatch.setenv("DATABASE_URL", database_url)
    spec = importlib.util.spec_from_file_location("readme_service", file)
    assert spec is not None and spec.loader is not None
    service = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(service)
    transport = httpx.ASGITransport(app=service.app)
    async with (
        service.lifespan(service.api),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        reply = await client.get("/answer")
        assert reply.json() == {"answer": 42}
        assert "sql;dur=" in reply.headers["server-timing"]
    assert service.pool.stats().size == 0


def test_every_page_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert [link for link in links if not (README.parent / link).exists()] == []
