"""Say to the answer that is being made which values went into it.

Nobody asks unless a `CachingLayer` stands around the application; then an answer may be kept only as long as
the classes of all its values allow, says how old they may be (`Age`), and is purged by their keys and tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from springtide.cache.classes import Definition
from springtide.context import RequestContext
from springtide.provenance import Provenance

__all__ = ["say_old", "tell"]


def tell(
    provenance: Provenance, definition: Definition, arguments: Sequence[Any], value: Any, age: float
) -> None:
    """`value` (None: nothing there) under the key of `arguments` was given out; `age` is how many seconds ago
    it was certainly what the database has."""
    provenance.used(
        definition.name,
        definition.pattern.key(arguments),
        age=max(age, 0.0),
        tags=definition.tagger.of(value, arguments),
        policy=definition.http,
    )


def say_old(context: RequestContext | None) -> None:
    """A value that may be older than the budget went into the answer of `context`."""
    if context is not None and context.provenance is not None:
        context.provenance.outdated()
