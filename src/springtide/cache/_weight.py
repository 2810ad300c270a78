"""How many bytes of this process's memory a value takes: itself and all that it is made of.

Bytes in Redis say nothing about that: they are compressed there, and a number of one byte is an object of 32
here. What values share (True, None, members of enums) counts for nothing; what they may share, as texts,
counts for each. So the sum is no less than what is taken.

A type is compiled once, so that a value costs a look at its texts and at what it has many of.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from sys import getsizeof
from typing import Any

from msgspec import inspect

__all__ = ["weigher_of"]

Weigher = Callable[[Any], int]

_FIXED: dict[type[inspect.Type], int] = {
    inspect.NoneType: 0,
    inspect.BoolType: 0,
    inspect.EnumType: 0,
    inspect.LiteralType: 0,
    inspect.IntType: 32,
    inspect.FloatType: 24,
    inspect.DateTimeType: 48,
    inspect.DateType: 32,
    inspect.TimeType: 40,
    inspect.TimeDeltaType: 40,
    inspect.UUIDType: 112,
    inspect.DecimalType: 104,
}
"""Of 64 bits: larger numbers are not kept."""


def weigher_of(wanted: Any) -> Weigher:
    """What says how many bytes a value of this type takes; of a type that `_values` admits."""
    return _weigher(inspect.type_info(wanted), {})


def _weigher(info: inspect.Type, known: dict[type, Weigher]) -> Weigher:
    if (alone := _FIXED.get(type(info))) is not None:
        return lambda _: alone
    if isinstance(info, inspect.StructType | inspect.NamedTupleType):
        return _of_fields(info, known)
    if isinstance(info, inspect.TupleType):
        parts = [_weigher(part, known) for part in info.item_types]
        return lambda value: (
            getsizeof(value) + sum(weigh(one) for weigh, one in zip(parts, value, strict=False))
        )
    if isinstance(info, inspect.VarTupleType | inspect.FrozenSetType):
        if (each := _FIXED.get(type(info.item_type))) is not None:
            return lambda value: getsizeof(value) + each * len(value)
        one = _weigher(info.item_type, known)
        return lambda value: getsizeof(value) + sum(map(one, value))
    if isinstance(info, inspect.UnionType):
        return _of_union(info, known)
    return getsizeof  # texts and bytes


def _of_fields(info: inspect.StructType | inspect.NamedTupleType, known: dict[type, Weigher]) -> Weigher:
    if info.cls in known:
        return known[info.cls]
    made: list[Weigher] = []
    known[info.cls] = lambda value: made[0](value)  # within itself
    fixed = sum(_FIXED.get(type(field.type), 0) for field in info.fields)
    others = [field for field in info.fields if type(field.type) not in _FIXED]
    texts = [field.name for field in others if _is_text(field.type)]
    parts = [
        (attrgetter(field.name), _weigher(field.type, known)) for field in others if field.name not in texts
    ]
    gather = attrgetter(*texts) if len(texts) > 1 else None
    if len(texts) == 1:
        parts.append((attrgetter(texts[0]), getsizeof))

    def weigh(value: Any) -> int:
        total = getsizeof(value) + fixed
        if gather is not None:
            total += sum(map(getsizeof, gather(value)))
        for get, one in parts:
            total += one(get(value))
        return total

    made.append(weigh)
    known[info.cls] = weigh
    return weigh


def _is_text(info: inspect.Type) -> bool:
    """Whether a value has no parts and says its own size; None may stand for it."""
    members = info.types if isinstance(info, inspect.UnionType) else (info,)
    return all(isinstance(one, inspect.StrType | inspect.BytesType | inspect.NoneType) for one in members)


def _of_union(info: inspect.UnionType, known: dict[type, Weigher]) -> Weigher:
    """Of what has parts at most one member is no struct, so that its values are known by their kind."""
    structs: dict[type, Weigher] = {}
    whole: dict[type, Weigher] = {}
    for member in info.types:
        if isinstance(member, inspect.StructType | inspect.NamedTupleType):
            structs[member.cls] = _weigher(member, known)
        elif isinstance(member, inspect.TupleType | inspect.VarTupleType):
            whole[tuple] = _weigher(member, known)
        elif isinstance(member, inspect.FrozenSetType):
            whole[frozenset] = _weigher(member, known)
    by_kind = whole | structs
    return lambda value: by_kind.get(type(value), getsizeof)(value)
