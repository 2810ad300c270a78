"""The types of events say what is right."""

from __future__ import annotations

from pathlib import Path

from tests.typing.test_typing import _mypy

HERE = Path(__file__).parent


def test_the_public_api_is_typed() -> None:
    """Using it as documented is accepted by mypy --strict."""
    assert _mypy(HERE / "use_of_events.py") == []
