"""What a notice says: one title and some lines of plain text, made from its kind and data. Pure.

Everything that people wrote (names, titles, comments) is made harmless for one line here: no control
characters, no characters that reverse the direction of what follows. Escaping is for whoever renders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from market.notifications.api import Kind

__all__ = ["SOMEBODY", "Words", "one_line", "people_in", "words"]

SOMEBODY = "Somebody"
"""Stands for a name that is not known."""

MAX_SHOWN_TITLES = 20

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


class Words(msgspec.Struct, frozen=True):
    """`action` is what the link is called."""

    title: str
    lines: list[str]
    action: str


def one_line(text: str) -> str:
    return " ".join(_UNSAFE.sub(" ", text).split())


def people_in(data: Mapping[str, str]) -> list[int]:
    """Whose names a notice needs."""
    return [int(data["actor"])] if "actor" in data else []


def words(kind: Kind, data: Mapping[str, str], names: Mapping[int, str]) -> Words:
    """`names`: id -> name of the people in it; who is missing is called SOMEBODY."""
    order = data.get("order", "")
    actor = one_line(names.get(int(data["actor"]), SOMEBODY)) if "actor" in data else SOMEBODY
    if kind == "welcome":
        return Words(
            "Welcome to market", ["Your account is ready. Write, browse, buy and sell."], "Start here"
        )
    if kind == "comment":
        said = [one_line(line) for line in data["excerpt"].splitlines()]
        return Words(
            f"{actor} commented on “{one_line(data['article'])}”",
            [line for line in said if line],
            "Read the comment",
        )
    if kind == "webhook_disabled":
        return Words(
            "A webhook of yours is disabled",
            [
                one_line(data["url"]),
                f"Why: {one_line(data['reason'])}",
                "It gets nothing until you enable it.",
            ],
            "See your shop",
        )
    bought = _titles(data["titles"])
    total = one_line(data.get("total", ""))
    if kind == "order_confirmed":
        return Words(f"Your order {order} is confirmed", [*bought, f"Total: {total}"], "See the order")
    if kind == "order_failed":
        return Words(f"Your order {order} failed", [one_line(data["reason"]), *bought], "See the order")
    if kind == "order_cancelled":
        return Words(f"Your order {order} is cancelled", [*bought, one_line(data["money"])], "See the order")
    if kind == "order_shipped":
        return Words(f"Your order {order} is on its way", bought, "See the order")
    if kind == "sale":
        return Words(f"You sold to {actor}", [*bought, f"Total: {total}", f"Order: {order}"], "See the sale")
    return Words(
        f"{actor} cancelled an order", [*bought, f"Given back: {total}", f"Order: {order}"], "See the sale"
    )


def _titles(text: str) -> list[str]:
    """One line each; of many the first ones and how many more there are."""
    titles = [line for line in map(one_line, text.splitlines()) if line]
    more = len(titles) - MAX_SHOWN_TITLES
    return titles if more <= 0 else [*titles[:MAX_SHOWN_TITLES], f"and {more} more"]
