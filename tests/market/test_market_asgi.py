"""`market.asgi:app`, the entry that an app server imports."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from springtide.errors import ConfigurationError

TOPOLOGY = """
name = "market"
app = "market.asgi:app"
[nodes.db]
url = "postgresql://nobody@127.0.0.1:1/nothing"
[clusters.main]
primary = "db"
[databases.default]
shards = ["main"]
"""


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A topology whose database cannot be reached, named as the runner names it."""
    path = tmp_path / "springtide.toml"
    path.write_text(TOPOLOGY)
    monkeypatch.setenv("SPRINGTIDE_TOPOLOGY", str(path))
    monkeypatch.setenv("SPRINGTIDE_HOME", str(tmp_path / "home"))
    monkeypatch.delitem(sys.modules, "market.asgi", raising=False)
    return path


def test_importing_the_entry_connects_to_nothing(entry: Path) -> None:
    """No loop runs, no server is there, no key is made, and the application is complete all the same."""
    assert callable(importlib.import_module("market.asgi").app)
    assert not (entry.parent / "home").exists()


def test_a_wrong_setting_stops_the_import(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_TOKEN_LIFETIME", "for ever")
    with pytest.raises(ConfigurationError, match="MARKET_TOKEN_LIFETIME must be a number of seconds"):
        importlib.import_module("market.asgi")
