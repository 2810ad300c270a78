"""Pages by the values of the last row seen, instead of by OFFSET.

A page is `LIMIT n + 1` behind the cursor in the order of the columns; the row too many says that there is a
next page and is not shown. Each row that exists during the whole walk is seen exactly once, whatever is
inserted or deleted meanwhile, if the columns are NOT NULL, do not change, and are unique together (end with
the id). The cost of a page does not depend on how far down it is, given an index in that order.

A cursor is opaque to clients: version, a fingerprint of the columns, their values. It is not signed: it says
only where to go on, and the statement's own conditions decide what may be seen. Values are checked for
their type and range, so a forged cursor raises InvalidCursor here and never an error in the database.
Text sorts by its UTF-8 bytes (the databases' C.UTF-8 collation).
Pure: nothing here does I/O.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from hashlib import blake2b
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec

from springtide.db._names import identifier
from springtide.db.scatter import ASC, DESC, Direction
from springtide.errors import InvalidCursor

__all__ = ["Column", "Keyset", "Page", "Step", "asc", "desc"]

VERSION = 1
MAX_CURSOR_BYTES = 2048

T = TypeVar("T")
U = TypeVar("U")
ColumnType = type[int] | type[str] | type[float] | type[bool] | type[datetime] | type[UUID] | type[Decimal]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the order: `name` as the rows have it, `expression` as the statement writes it."""

    name: str
    direction: Direction
    type: ColumnType
    expression: str

    def __post_init__(self) -> None:
        identifier(self.name)
        if self.direction not in (ASC, DESC):
            raise ValueError(f"a direction is 'asc' or 'desc', got {self.direction!r}")
        if self.type not in _TO_WIRE:
            known = ", ".join(kind.__name__ for kind in _TO_WIRE)
            raise ValueError(f"the type of {self.name!r} must be one of {known}, got {self.type!r}")


def asc(name: str, type: ColumnType = int, *, expression: str | None = None) -> Column:
    """A column that ascends. `expression` when the statement needs more than the name, such as `a.id`."""
    return Column(name, ASC, type, expression or name)


def desc(name: str, type: ColumnType = int, *, expression: str | None = None) -> Column:
    """A column that descends."""
    return Column(name, DESC, type, expression or name)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """`next_cursor` is None on the last page."""

    items: list[T]
    next_cursor: str | None

    def map(self, make: Callable[[T], U]) -> Page[U]:
        return Page([make(item) for item in self.items], self.next_cursor)


class Keyset:
    """An order to page through; make it once per statement.

    `Keyset(desc("created_at", datetime), desc("id"))`
    """

    def __init__(self, *columns: Column) -> None:
        if not columns:
            raise ValueError("a keyset has at least one column")
        names = [column.name for column in columns]
        if len(set(names)) != len(names):
            raise ValueError(f"a column may be listed once, got {names}")
        self.columns = columns
        text = ";".join(f"{c.name} {c.direction} {c.type.__name__}" for c in columns)
        self._fingerprint = blake2b(text.encode(), digest_size=4).hexdigest()

    @property
    def order(self) -> list[tuple[str, Direction]]:
        """For `Database.scatter`."""
        return [(column.name, column.direction) for column in self.columns]

    @property
    def order_by(self) -> str:
        return ", ".join(f"{column.expression} {column.direction.upper()}" for column in self.columns)

    def step(self, cursor: str | None, *, limit: int, first: int = 1) -> Step:
        """The page behind `cursor` (None: the first page); the keyset's parameters count from `$first`.

        Raises InvalidCursor; ValueError for a limit below 1.
        """
        if limit < 1:
            raise ValueError(f"limit must be >= 1, got {limit}")
        if first < 1:
            raise ValueError(f"parameters count from $1, got ${first}")
        args = () if cursor is None else self.decode(cursor)
        return Step(self, limit, self._behind(first) if args else "true", args)

    def encode(self, row: Mapping[str, Any]) -> str:
        """The cursor that points behind `row`. Raises ValueError when a column is missing or NULL."""
        values: list[Any] = [VERSION, self._fingerprint]
        for column in self.columns:
            try:
                value = row[column.name]
            except KeyError:
                raise ValueError(f"the rows lack column {column.name!r} of the keyset") from None
            if not isinstance(value, column.type):
                kind = column.type.__name__
                raise ValueError(f"column {column.name!r} of a keyset is {kind} and NOT NULL, got {value!r}")
            values.append(_TO_WIRE[column.type](value))
        return base64.urlsafe_b64encode(msgspec.json.encode(values)).rstrip(b"=").decode()

    def decode(self, cursor: str) -> tuple[Any, ...]:
        """The values that `cursor` holds, one per column. Raises InvalidCursor."""
        if len(cursor) > MAX_CURSOR_BYTES:
            raise InvalidCursor("the cursor is too long")
        try:
            raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), b"-_", validate=True)
            values = msgspec.json.decode(raw)
        except (UnicodeEncodeError, binascii.Error, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidCursor("the cursor is malformed") from error
        if not isinstance(values, list) or len(values) != len(self.columns) + 2 or values[0] != VERSION:
            raise InvalidCursor("the cursor is malformed")
        if values[1] != self._fingerprint:
            raise InvalidCursor("the cursor belongs to another list")
        try:
            return tuple(
                _FROM_WIRE[column.type](value) for column, value in zip(self.columns, values[2:], strict=True)
            )
        except (ValueError, TypeError, OverflowError, InvalidOperation) as error:
            raise InvalidCursor("the cursor holds a value that its column cannot have") from error

    def _behind(self, first: int) -> str:
        """A condition for the rows after the parameters: a row comparison when all columns go one way."""
        left = [column.expression for column in self.columns]
        marks = [_mark(column, first + index) for index, column in enumerate(self.columns)]
        signs = ["<" if column.direction == DESC else ">" for column in self.columns]
        if len(set(signs)) == 1:
            return f"({', '.join(left)}) {signs[0]} ({', '.join(marks)})"
        terms = []
        for index, sign in enumerate(signs):
            same = [f"{left[before]} = {marks[before]}" for before in range(index)]
            terms.append(" AND ".join([*same, f"{left[index]} {sign} {marks[index]}"]))
        return "(" + " OR ".join(f"({term})" for term in terms) + ")"


@dataclass(frozen=True, slots=True)
class Step:
    """What a statement needs for one page: `where`, `args`, `order_by`, `fetch` (rows to ask for)."""

    keyset: Keyset
    limit: int
    where: str
    args: tuple[Any, ...]

    @property
    def order_by(self) -> str:
        return self.keyset.order_by

    @property
    def fetch(self) -> int:
        return self.limit + 1

    def page(self, rows: Sequence[T]) -> Page[T]:
        """The page made of the `fetch` rows, or fewer, that the statement gave; rows are mappings."""
        items = list(rows[: self.limit])
        more = len(rows) > self.limit
        last: Any = items[-1] if items else None
        return Page(items, self.keyset.encode(last) if more else None)


def _mark(column: Column, number: int) -> str:
    """The parameter, wide enough for every value a cursor may hold, whatever the column's width is."""
    wide = _WIDE.get(column.type)
    return f"${number}" if wide is None else f"cast(${number} as {wide})"


def _whole(value: Any) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"not a 64-bit integer: {value!r}")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or "\0" in value:
        raise ValueError(f"not a text: {value!r}")
    value.encode()
    return value


def _real(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"not a finite number: {value!r}")
    return float(value)


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"not a boolean: {value!r}")
    return value


def _decimal(value: Any) -> Decimal:
    number = Decimal(_text(value))
    if not number.is_finite() or abs(number.adjusted()) > 1000:
        raise ValueError(f"not a finite number: {value!r}")
    return number


def _microseconds(value: datetime) -> int:
    if value.tzinfo is None:
        raise ValueError(f"a time in a keyset must know its zone, got {value!r}")
    return (value - _EPOCH) // _MICROSECOND


_WIDE: dict[type, str] = {int: "bigint", float: "double precision"}

_TO_WIRE: dict[type, Callable[[Any], Any]] = {
    int: _whole,
    str: _text,
    float: _real,
    bool: _truth,
    datetime: _microseconds,
    UUID: str,
    Decimal: str,
}
_FROM_WIRE: dict[type, Callable[[Any], Any]] = {
    int: _whole,
    str: _text,
    float: _real,
    bool: _truth,
    datetime: lambda value: _EPOCH + _whole(value) * _MICROSECOND,
    UUID: lambda value: UUID(_text(value)),
    Decimal: _decimal,
}
