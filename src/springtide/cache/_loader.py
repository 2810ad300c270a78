"""The call of a class's loader, and whether it gave what it says it gives."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import isawaitable
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
            found[name] = await _awaited(definition, definition.load(*first, *arguments))
    else:
        assert definition.load_many is not None
        single = definition.single
        names = {args[0] if single else args: name for name, args in wanted.items()}
        answer = await _awaited(definition, definition.load_many(*first, list(names)))
        if not isinstance(answer, Mapping):
            raise TypeError(
                f"load_many of {definition.name} must give a mapping, got {type(answer).__name__}:"
                f" {answer!r:.100}"
            )
        found = {name: answer.get(key) for key, name in names.items()}
        for key in answer:
            if key not in names:
                raise TypeError(
                    f"load_many of {definition.name} gave a value of {key!r:.100}, which it was not asked for"
                )
    for value in found.values():
        if value is not None and not definition.fits(value):
            raise TypeError(f"the loader of {definition.name} gave {type(value).__name__}: {value!r:.100}")
    return found


async def _awaited(definition: Definition, answer: Any) -> Any:
    if not isawaitable(answer):
        raise TypeError(
            f"the loader of {definition.name} must be an async function, got {answer!r:.100} from it"
        )
    return await answer
