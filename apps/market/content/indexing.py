"""What of an article is to be found. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from market.search.api import Document

__all__ = ["document"]


def document(id: int, version: int, title: str, description: str, body: str, tags: Sequence[str]) -> Document:
    text = f"{description}\n\n{body}"
    return Document(kind="article", id=id, version=version, title=title, text=text, tags=list(tags))
