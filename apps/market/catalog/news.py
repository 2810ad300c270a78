"""What a write makes stale, said where it is written; nobody hears it where nothing is kept (`cached.py`)."""

from __future__ import annotations

from typing import Any

__all__ = ["News"]


class News:
    """Each method is called in the open write `tx`, once it is known what it changes."""

    def shop(self, tx: Any, owner: int) -> None:
        """The shop, and with it the name that its listings show."""

    def listing(self, tx: Any, id: int) -> None:
        """What a listing says of itself, its status too."""

    def available(self, tx: Any, id: int) -> None:
        """How many of it can be bought."""

    def on_sale(self, tx: Any, seller: int, *categories: str) -> None:
        """A listing of `seller` has entered or left what is on sale in these categories."""
