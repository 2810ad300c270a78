"""What one key of springtide.toml may hold: its sentence, its unit and its rule.

A field of a topology structure is `Annotated[type, Key(...)]`. The parser, the constructors, the documentation and
its test all read the same annotation, so a rule is written once.
Pure; knows nothing of TOML or of particular keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Key", "Rule", "above", "at_least", "between", "cidr", "each", "matching", "one_of"]


@dataclass(frozen=True, slots=True)
class Rule:
    """`sentence` says what must hold ("must be >= 1"); `holds` decides it for a value of the right type."""

    sentence: str
    holds: Callable[[object], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key: what it `says`, the `unit` of its value ("" = none), the `rule` beyond its type (None = any)."""

    says: str
    unit: str = ""
    rule: Rule | None = None


def at_least(lowest: float) -> Rule:
    """A finite number not below `lowest`."""
    return Rule(f"must be >= {lowest}", lambda value: _number(value) and float(str(value)) >= lowest)


def above(bound: float) -> Rule:
    """A finite number strictly above `bound`."""
    return Rule(f"must be > {bound}", lambda value: _number(value) and float(str(value)) > bound)


def between(lowest: float, highest: float) -> Rule:
    """A number in the closed range."""
    return Rule(
        f"must be between {lowest} and {highest}",
        lambda value: _number(value) and lowest <= float(str(value)) <= highest,
    )


def one_of(allowed: Sequence[str]) -> Rule:
    """One of a few words."""
    return Rule(f"must be one of {', '.join(allowed)}", lambda value: value in allowed)


def matching(pattern: str, sentence: str) -> Rule:
    """A string that the whole pattern matches; `sentence` says it for people."""
    compiled = re.compile(pattern)
    return Rule(sentence, lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None)


def each(rule: Rule) -> Rule:
    """A list whose every element keeps `rule`."""
    return Rule(
        f"each element {rule.sentence}",
        lambda value: isinstance(value, tuple) and all(rule.holds(element) for element in value),
    )


def cidr() -> Rule:
    """An address or a network in CIDR notation."""
    return Rule('must be an address or network such as "10.0.0.0/8"', _is_network)


def _number(value: object) -> bool:
    finite = isinstance(value, int | float) and not isinstance(value, bool)
    return finite and value not in (float("inf"), float("-inf")) and value == value


def _is_network(value: object) -> bool:
    from ipaddress import ip_network

    try:
        ip_network(str(value), strict=False)
    except ValueError:
        return False
    return True
