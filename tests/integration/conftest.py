"""Platforms that have run before, for the tests of the runner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration._platforms import Project, project


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """A home with a fresh database, stopped."""
    with project() as made:
        made.write().run("up", "-d")
        made.run("down")
        yield made.home


@pytest.fixture
def plain(template: Path) -> Iterator[Project]:
    """A project that has run before."""
    with project() as made:
        yield made.write().prepare(template)
