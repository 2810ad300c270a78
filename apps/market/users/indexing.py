"""What of a person is to be found. Pure."""

from __future__ import annotations

from market.search.api import Document

__all__ = ["document"]


def document(id: int, version: int, username: str, bio: str | None) -> Document:
    return Document(kind="person", id=id, version=version, title=username, text=bio or "")
