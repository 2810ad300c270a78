"""What a module answers instead of doing what it was asked. Every module uses these six and no others.

    Refused
    ├── Invalid     values break rules: field -> what is wrong with it
    ├── Taken       a value that must be unique belongs to somebody else
    ├── NotFound    there is no such thing
    ├── Forbidden   it exists and belongs to somebody else
    ├── Conflict    it exists, and its state does not allow this
    └── Stale       it has changed since the caller looked

They are answers, not accidents: the rim turns each into one status and one body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["Conflict", "Forbidden", "Invalid", "NotFound", "Refused", "Stale", "Taken"]


class Refused(Exception):
    """The root; `errors` maps a field or a kind of thing to sentences about it."""

    def __init__(self, errors: Mapping[str, Sequence[str]]) -> None:
        self.errors = {name: list(sentences) for name, sentences in errors.items()}
        super().__init__("; ".join(f"{name} {', '.join(said)}" for name, said in self.errors.items()))


class Invalid(Refused):
    """Values break rules; `errors` names every field that does."""


class Taken(Refused):
    """Every field in `fields` has a value that must be unique and is somebody else's."""

    def __init__(self, *fields: str) -> None:
        super().__init__({field: ["has already been taken"] for field in fields})


class NotFound(Refused):
    """There is no `thing` like that."""

    def __init__(self, thing: str) -> None:
        super().__init__({thing: ["not found"]})


class Forbidden(Refused):
    """The `thing` exists, and the caller may not do this to it."""

    def __init__(self, thing: str) -> None:
        super().__init__({thing: ["forbidden"]})


class Conflict(Refused):
    """The `thing` exists, and its state does not allow this; `sentence` says which state."""

    def __init__(self, thing: str, sentence: str) -> None:
        super().__init__({thing: [sentence]})


class Stale(Refused):
    """The `thing` has another version than the one that the caller wanted to change."""

    def __init__(self, thing: str) -> None:
        super().__init__({thing: ["has changed meanwhile"]})
