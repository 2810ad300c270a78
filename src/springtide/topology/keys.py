"""What one key of springtide.toml may hold: its sentence, its unit and its rule.

A field of a topology structure is `Annotated[type, Key(...)]`. The parser, the constructors, `show`, the
documentation and its test all read the same annotation, so a rule is written once.
Pure; knows nothing of TOML or of particular keys.
"""

from __future__ import annotations

import functools
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from ipaddress import ip_network
from typing import cast
from urllib.parse import urlsplit

from springtide.errors import TopologyError, TopologyFault

__all__ = [
    "Field",
    "Key",
    "Rule",
    "above",
    "at_least",
    "between",
    "check",
    "described",
    "each",
    "entries",
    "matching",
    "network",
    "nothing_or_at_least",
    "one_of",
    "broken",
    "redacted",
    "redacted_entry",
    "type_sentence",
]

_PASSWORD_IN_URL = re.compile(r"//([^:/@\s]*):(.*)@", re.DOTALL)
_SECRET_NAME = re.compile(r"(?!secrets$).*(password|passwd|secret|token|key)", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"\{[^{}]+\}")
_SECRET_PARAMETER = re.compile(r"([?&][^=&]*(?:password|passwd|secret|token|key)[^=&]*=)[^&]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rule:
    """`sentence` says what must hold ("must be >= 1"); `holds` decides it for a value of the right type.

    `element` is the rule of each element of a list and of each value of a table, `name` that of each name of
    a table; None for anything else.
    """

    sentence: str
    holds: Callable[[object], bool]
    element: Rule | None = None
    name: Rule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of the file.

    `says` what it is for, `unit` of its value ("" = none), `rule` beyond its type (None = any value),
    `kinds`: the value names nodes, each of one of these kinds (None = it names no node).
    """

    says: str
    unit: str = ""
    rule: Rule | None = None
    kinds: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a structure as the parser sees it.

    Exactly one of `scalar` (str, int, float, bool), `listed` (a list of strings), `entries` (named values of
    this type), `table` (one structure) and `tables` (named structures) describes its type. `key` is None for
    structures.
    """

    name: str
    key: Key | None = None
    scalar: type | None = None
    listed: bool = False
    entries: type | None = None
    table: type | None = None
    tables: type | None = None
    optional: bool = False
    required: bool = False
    default: object = None


def at_least(lowest: float) -> Rule:
    """A finite number not below `lowest`."""
    return Rule(f"must be >= {lowest}", lambda value: _finite(value, lambda number: number >= lowest))


def nothing_or_at_least(lowest: int) -> Rule:
    """0, or a number not below `lowest`."""
    return Rule(
        f"must be 0 or >= {lowest}",
        lambda value: _finite(value, lambda number: number == 0 or number >= lowest),
    )


def above(bound: float) -> Rule:
    """A finite number strictly above `bound`."""
    return Rule(f"must be > {bound}", lambda value: _finite(value, lambda number: number > bound))


def between(lowest: float, highest: float) -> Rule:
    """A number in the closed range."""
    return Rule(
        f"must be between {lowest} and {highest}",
        lambda value: _finite(value, lambda number: lowest <= number <= highest),
    )


def one_of(allowed: Sequence[str]) -> Rule:
    """One of a few words."""
    return Rule(f"must be one of {', '.join(allowed)}", lambda value: value in allowed)


def matching(pattern: str, sentence: str) -> Rule:
    """A string that the whole pattern matches; `sentence` says it for people."""
    compiled = re.compile(pattern)
    return Rule(sentence, lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None)


def each(rule: Rule) -> Rule:
    """A list whose every element keeps `rule` and that names nothing twice."""

    def holds(value: object) -> bool:
        if not isinstance(value, tuple):
            return False
        return len(set(value)) == len(value) and all(rule.holds(element) for element in value)

    return Rule(f"each element {rule.sentence}, none twice", holds, rule)


def entries(name: Rule, value: Rule, *, least: int = 0) -> Rule:
    """A table of at least `least` entries, whose names keep one rule and whose values keep another."""

    def holds(given: object) -> bool:
        if not isinstance(given, Mapping) or len(given) < least:
            return False
        return all(map(name.holds, given)) and all(map(value.holds, given.values()))

    some = f"; at least {least}" if least else ""
    return Rule(f"each name {name.sentence}; each value {value.sentence}{some}", holds, value, name)


def network() -> Rule:
    """An address, a network in CIDR notation without bits after its prefix, or "unix"."""
    return Rule('must be an address, "unix" or a network such as "10.0.0.0/8"', _is_network)


def redacted(value: object) -> object:
    """`value` with every password or secret parameter of a URL in it replaced by ***."""
    if isinstance(value, str):
        return _SECRET_PARAMETER.sub(r"\1***", _PASSWORD_IN_URL.sub(r"//\1:***@", value))
    if isinstance(value, Mapping):
        return {name: redacted_entry(name, inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redacted(inner) for inner in value)
    return value


def redacted_entry(name: object, value: object) -> object:
    """`redacted`, stricter under the key `url`, where even what is no proper URL may hold a password, and
    under a name that sounds like a secret's, where only a placeholder is shown. (`secrets` lists names.)"""
    if name == "url" and isinstance(value, list | tuple):
        return [redacted_entry(name, inner) for inner in value]
    if not isinstance(value, str):
        return redacted(value)
    if isinstance(name, str) and _SECRET_NAME.match(name):
        return value if _PLACEHOLDER.fullmatch(value) else "***"
    if name != "url":
        return redacted(value)
    hidden = str(redacted(value))
    try:
        odd = "@" in value and "***" not in hidden and not urlsplit(value).netloc.partition("@")[0].isalnum()
    except ValueError:
        odd = True
    return "***" if odd else hidden


def type_sentence(field: Field) -> str:
    """The rule that a value of the wrong type breaks."""
    if field.table is not None or field.tables is not None:
        return "must be a table"
    if field.listed:
        return "must be a list of strings"
    if field.entries is not None:
        return f"must be a table of {'strings' if field.entries is str else 'integers'}"
    names = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
    return f"must be {names[field.scalar or str]}"


def fits(field: Field, value: object) -> bool:
    """Is the type right (not the rule)? true is no integer, an integer is a number."""
    if value is None:
        return field.optional
    if field.listed:
        return isinstance(value, tuple) and all(isinstance(element, str) for element in value)
    if field.entries is not None:
        return isinstance(value, Mapping) and all(type(inner) is field.entries for inner in value.values())
    if field.scalar is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if field.scalar is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, field.scalar or str)


def broken(field: Field, value: object) -> str | None:
    """The sentence of the type or rule that a scalar or list breaks; None when it keeps them."""
    if not fits(field, value):
        return type_sentence(field)
    if value is None or field.key is None or field.key.rule is None or field.key.rule.holds(value):
        return None
    return field.key.rule.sentence


def check(structure: object) -> None:
    """Raise TopologyError with every scalar of `structure` that breaks its type or rule."""
    faults = []
    for field in described(type(structure)):
        if field.key is not None:
            value = getattr(structure, field.name)
            if (sentence := broken(field, value)) is not None:
                shown = redacted_entry(field.name, value)
                faults.append(TopologyFault(None, field.name, shown, sentence))
    if faults:
        raise TopologyError(type(structure).__name__, faults)


def described(structure: type) -> tuple[Field, ...]:
    """The fields of a structure that the file can set, in order: those with a Key and structures."""
    return _cached(structure)


def _describe(structure: type) -> tuple[Field, ...]:
    hints = typing.get_type_hints(structure, include_extras=True)
    found = []
    for declared in fields(structure):
        hint, key, optional = hints[declared.name], None, False
        if typing.get_origin(hint) is typing.Annotated:
            hint, key = typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            optional = True
            (hint,) = [part for part in typing.get_args(hint) if part is not types.NoneType]
        tables = typing.get_args(hint)[1] if typing.get_origin(hint) is Mapping else None
        entries = tables if tables in (str, int) else None
        tables = None if entries else tables
        table = hint if hasattr(hint, "__dataclass_fields__") else None
        if key is None and table is None and tables is None:
            continue
        default = None if declared.default is MISSING else declared.default
        if entries and declared.default_factory is not MISSING:
            default = declared.default_factory()
        found.append(
            Field(
                name=declared.name,
                key=key,
                scalar=hint if hint in (str, int, float, bool) else None,
                listed=typing.get_origin(hint) is tuple,
                entries=entries,
                table=table,
                tables=tables,
                optional=optional,
                required=declared.default is MISSING and declared.default_factory is MISSING,
                default=default,
            )
        )
    return tuple(found)


_cached = cast(Callable[[type], tuple[Field, ...]], functools.cache(_describe))


def _finite(value: object, holds: Callable[[float], bool]) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (isinstance(value, int) or math.isfinite(value)) and holds(value)


def _is_network(value: object) -> bool:
    try:
        ip_network(str(value))
    except ValueError:
        return value == "unix"
    return True
