"""Rows of a report as CSV (RFC 4180) that a spreadsheet opens as what it is. Pure.

In UTF-8 with a byte order mark, because Excel takes a file without one for the country's own encoding. Text
that a spreadsheet would take for a formula (titles are the sellers', but a report is read by others) gets an
apostrophe in front, as OWASP advises; numbers are ours and never negative.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from datetime import datetime
from io import StringIO
from typing import Literal, NamedTuple

from market.moments import iso
from market.money import Money

__all__ = ["BEGINNING", "CONTENT_TYPE", "Row", "lines"]

CONTENT_TYPE = "text/csv"

COLUMNS = ("time", "kind", "order", "listing", "title", "quantity", "price", "amount", "currency")

FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""The last four are = + - @ in full width, which are formulas too."""


class Row(NamedTuple):
    """One listing of a sale, or of what was given back; `price` for one piece in the smallest unit."""

    at: datetime
    kind: Literal["sale", "refund"]
    order: int
    listing: int
    title: str
    quantity: int
    price: int


def lines(rows: Iterable[Row], currency: str) -> bytes:
    return _csv(
        (
            iso(row.at),
            row.kind,
            row.order,
            row.listing,
            _harmless(row.title),
            row.quantity,
            Money(row.price, currency).decimal,
            Money(row.price * row.quantity, currency).decimal,
            currency,
        )
        for row in rows
    )


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) or text.lstrip().startswith(FORMULA) else text


def _csv(rows: Iterable[tuple[object, ...]]) -> bytes:
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


BEGINNING = "\ufeff".encode() + _csv([COLUMNS])
"""What every file begins with: the mark and the names of the columns."""
