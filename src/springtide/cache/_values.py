"""Which types a cache may keep: values that nobody can change, and that msgspec can write and read.

One value in the first level is handed to every caller. Were it a list, the first caller who appends to it
would change it for all; so a class of such a type is refused when it is defined.
Pure.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Iterator
from typing import Any

from msgspec import inspect

__all__ = ["fault_of", "kinds_of"]

_LEAVES = (
    inspect.BoolType,
    inspect.IntType,
    inspect.FloatType,
    inspect.StrType,
    inspect.BytesType,
    inspect.EnumType,
    inspect.LiteralType,
    inspect.DateTimeType,
    inspect.DateType,
    inspect.TimeType,
    inspect.TimeDeltaType,
    inspect.UUIDType,
    inspect.DecimalType,
)

_PYTHON: dict[type[inspect.Type], type] = {
    inspect.BoolType: bool,
    inspect.IntType: int,
    inspect.FloatType: float,
    inspect.StrType: str,
    inspect.BytesType: bytes,
    inspect.TupleType: tuple,
    inspect.VarTupleType: tuple,
    inspect.FrozenSetType: frozenset,
    inspect.DateTimeType: datetime.datetime,
    inspect.DateType: datetime.date,
    inspect.TimeType: datetime.time,
    inspect.TimeDeltaType: datetime.timedelta,
    inspect.UUIDType: uuid.UUID,
    inspect.DecimalType: decimal.Decimal,
}


def fault_of(wanted: Any) -> str | None:
    """The rule that the type breaks, None when values of it can be kept."""
    try:
        info = inspect.type_info(wanted)
    except (TypeError, NameError) as error:
        return f"must be a type that msgspec can write and read ({error})"
    if isinstance(info, inspect.NoneType) or (isinstance(info, inspect.UnionType) and info.includes_none):
        return "must not include None: None stands for what is not there"
    for part in _parts(info, set()):
        if isinstance(part, inspect.StructType):
            if not part.cls.__struct_config__.frozen:
                name = part.cls.__name__
                return f"must be made of frozen structs: write `class {name}(msgspec.Struct, frozen=True)`"
        elif isinstance(part, inspect.ListType | inspect.SetType | inspect.DictType):
            kind = type(part).__name__.removesuffix("Type").lower()
            instead = {"list": "tuple[X, ...]", "set": "frozenset[X]"}.get(kind, "a frozen struct")
            return f"must not contain a {kind}, which one caller could change for all: use {instead}"
        elif not isinstance(
            part,
            (*_LEAVES, inspect.NoneType, inspect.UnionType, inspect.TupleType, inspect.VarTupleType,
             inspect.FrozenSetType, inspect.NamedTupleType),
        ):  # fmt: skip
            kind = type(part).__name__.removesuffix("Type")
            return f"must be made of frozen structs, numbers, texts, bytes and tuples of them, not {kind}"
    return None


def kinds_of(wanted: Any) -> tuple[type, ...]:
    """The classes that a value may be an instance of; to catch a loader that returns something else."""
    info = inspect.type_info(wanted)
    members = info.types if isinstance(info, inspect.UnionType) else (info,)
    kinds: list[type] = []
    for member in members:
        known = _PYTHON.get(type(member)) or getattr(member, "cls", None)
        if not isinstance(known, type):
            return (object,)
        kinds.append(known)
    return tuple(kinds)


def _parts(info: inspect.Type, seen: set[type]) -> Iterator[inspect.Type]:
    """The type and all that it is made of."""
    if isinstance(info, inspect.StructType | inspect.NamedTupleType):
        if info.cls in seen:
            return
        seen.add(info.cls)
    yield info
    inner: list[inspect.Type] = []
    if isinstance(info, inspect.StructType | inspect.NamedTupleType):
        inner = [field.type for field in info.fields]
    elif isinstance(info, inspect.TupleType):
        inner = list(info.item_types)
    elif isinstance(info, inspect.VarTupleType | inspect.FrozenSetType):
        inner = [info.item_type]
    elif isinstance(info, inspect.UnionType):
        inner = list(info.types)
    for one in inner:
        yield from _parts(one, seen)
