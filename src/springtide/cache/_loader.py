"""The call of a class's loader, and whether it gave what it says it gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from springtide.cache.classes import Definition
    from springtide.db import Queries

__all__ = ["loaded"]


async def loaded(
    definition: Definition, source: Queries | None, wanted: Mapping[Any, tuple[Any, ...]]
) -> dict[Any, Any]:
    """What the loader finds for the arguments, by name; None for what is not there.

    source: what it reads from; None for a class without a database. Raises what the loader raises, and
    TypeError when it gives something else than the class's values.
    """
    first = () if source is None else (source,)
    found: dict[Any, Any] = {}
    if definition.load is not None and (len(wanted) == 1 or definition.load_many is None):
        for name, arguments in wanted.items():
            found[name] = await definition.load(*first, *arguments)
    else:
        assert definition.load_many is not None
        single = definition.single
        names = {args[0] if single else args: name for name, args in wanted.items()}
        answer = await definition.load_many(*first, list(names))
        found = {name: answer.get(key) for key, name in names.items()}
    for value in found.values():
        if value is not None and not isinstance(value, definition.kinds):
            raise TypeError(f"the loader of {definition.name} gave {type(value).__name__}: {value!r:.100}")
    return found
