"""A topology as plain tables (dicts, lists, strings, numbers), and these as TOML or JSON.

Written TOML reads back to an equal topology: what the stage's preset has and the topology lacks is written as
`x = false`. Absent optional keys are left out, everything else is written, defaults too. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from springtide import _toml
from springtide.topology.keys import described, redacted
from springtide.topology.spec import Topology
from springtide.topology.stages import stage_topology

__all__ = ["removed_from", "to_json", "to_plain", "to_toml"]


def to_plain(structure: object) -> dict[str, object]:
    """The keys of `structure` in the order of their declaration."""
    plain: dict[str, object] = {}
    for field in described(type(structure)):
        value = getattr(structure, field.name)
        if value is None or (
            field.name == "max_connections" and getattr(structure, "kind", "") != "postgres"
        ):
            continue
        if field.table is not None:
            plain[field.name] = to_plain(value)
        elif field.tables is not None:
            plain[field.name] = {name: to_plain(item) for name, item in value.items()}
        elif field.entries is not None:
            plain[field.name] = dict(value)
        else:
            plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def removed_from(tables: object, name: str) -> bool:
    """Take `name` out of `tables`; False when it was not there."""
    return isinstance(tables, dict) and tables.pop(name, None) is not None


def to_toml(topology: Topology, *, secrets: bool = False) -> str:
    """The effective topology as a springtide.toml; passwords appear only with `secrets`."""
    plain = to_plain(topology)
    if not secrets:
        plain = cast(dict[str, object], redacted(plain))
    if topology.stage is not None:
        _mark_removed(plain, to_plain(stage_topology(topology.stage)), topology)
    return "\n".join(_lines(plain, ())).strip("\n") + "\n"


def to_json(topology: Topology) -> str:
    """The effective topology as JSON, without passwords."""
    return json.dumps(redacted(to_plain(topology)), indent=2, ensure_ascii=False) + "\n"


def _mark_removed(plain: dict[str, object], preset: Mapping[str, object], topology: Topology) -> None:
    for field in described(type(topology)):
        if field.table is not None and field.name in preset and field.name not in plain:
            plain[field.name] = False
        elif field.tables is not None:
            present = cast(dict[str, object], plain[field.name])
            for name in cast(Mapping[str, object], preset[field.name]):
                present.setdefault(name, False)


def _lines(table: Mapping[str, object], path: tuple[str, ...]) -> list[str]:
    scalars = ((name, value) for name, value in table.items() if not isinstance(value, dict))
    own = [f"{_toml.key(name)} = {_toml.value(value)}" for name, value in scalars]
    lines = []
    tables = {name: value for name, value in table.items() if isinstance(value, dict)}
    if path and (own or not tables):
        lines = ["", f"[{'.'.join(_toml.key(part) for part in path)}]"]
    lines += own
    for name, value in tables.items():
        if value or path:
            lines += _lines(value, (*path, name))
    return lines
