"""What must be added, changed and removed to get from one topology to another.

Pure. Passwords never appear; of a password that alone changed, it is said that it changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from springtide.topology.keys import described, redacted_entry
from springtide.topology.kinds import KINDS
from springtide.topology.plain import to_plain
from springtide.topology.spec import Topology

__all__ = ["Change", "diff"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference; `before` None = added, `after` None = removed; a whole table is one change."""

    key: str
    before: object
    after: object
    says: str = ""

    @property
    def sign(self) -> str:
        """+ added, - removed, ~ changed."""
        return "+" if self.before is None else "-" if self.after is None else "~"

    def shown(self, value: object) -> object:
        """`value`, which is that of this key, without passwords."""
        return redacted_entry(self.key.rpartition(".")[2], value)

    def __str__(self) -> str:
        about = f"   # {self.says}" if self.says else ""
        if self.before is None or self.after is None:
            value = self.after if self.before is None else self.before
            return f"{self.sign} {self.key}{_shown(self.shown(value))}{about}"
        if (before := self.shown(self.before)) == (after := self.shown(self.after)):
            return f"~ {self.key}: its password or secret changed{about}"
        return f"~ {self.key}: {_word(before)} -> {_word(after)}{about}"


def diff(before: Topology, after: Topology) -> list[Change]:
    """Every difference in the order of the file's tables; two equal topologies have none."""
    return _changes(type(before), to_plain(before), to_plain(after), "")


def _changes(
    structure: type, old: Mapping[str, object], new: Mapping[str, object], prefix: str
) -> list[Change]:
    found: list[Change] = []
    for field in described(structure):
        was, now = old.get(field.name), new.get(field.name)
        key = prefix + field.name
        if was == now:
            continue
        inner = field.table or field.tables
        if field.tables is not None and inner is not None:
            olds, news = cast(dict[str, object], was), cast(dict[str, object], now)
            for name in dict.fromkeys((*olds, *news)):
                found += _entry(inner, olds.get(name), news.get(name), f"{key}.{name}")
        elif inner is not None:
            found += _entry(inner, was, now, key)
        else:
            says = f"{field.key.says}{f', {field.key.unit}' if field.key.unit else ''}" if field.key else ""
            pairs = {key: (was, now)}
            if field.entries is not None:
                olds, news = cast(dict[str, object], was), cast(dict[str, object], now)
                names = dict.fromkeys((*olds, *news))
                pairs = {f"{key}.{name}": (olds.get(name), news.get(name)) for name in names}
            for changed, (one, other) in pairs.items():
                if one != other:
                    found.append(Change(key=changed, before=one, after=other, says=says))
    return found


def _entry(structure: type, was: object, now: object, key: str) -> list[Change]:
    """The changes of one table: one when it came or went, else those of its keys."""
    if was == now:
        return []
    if was is None or now is None:
        says = (structure.__doc__ or "").partition("\n")[0].rstrip(".")
        present = cast(dict[str, object], now if was is None else was)
        kind = present.get("kind")
        if key.startswith("nodes.") and isinstance(kind, str):
            says = KINDS[kind].says
        return [Change(key=key, before=was, after=now, says=says)]
    return _changes(structure, cast(dict[str, object], was), cast(dict[str, object], now), f"{key}.")


def _shown(value: object) -> str:
    if not isinstance(value, dict):
        return f" = {_word(value)}"
    inner = cast(dict[str, object], value)
    return ": " + ", ".join(f"{name} = {_word(item)}" for name, item in inner.items()) if inner else ""


def _word(value: object) -> str:
    return "absent" if value is None else json.dumps(value, ensure_ascii=False)
