"""What of a listing is to be found, while it is on sale or sold out. Pure."""

from __future__ import annotations

from market.search.api import Document

__all__ = ["document"]


def document(id: int, version: int, title: str, description: str, category: str) -> Document:
    return Document(kind="listing", id=id, version=version, title=title, text=description, tags=[category])
