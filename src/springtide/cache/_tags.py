"""The tags of a value: names under which many values are invalidated at once.

    tags=("org:{org_id}", "kind:{kind}")      arguments of the key, or attributes of the value
    tags=lambda article: [f"author:{article.author_id}"]

What is there can have any tag; of "nothing there" only those are known that the key alone makes.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import msgspec.inspect

from springtide.cache._keys import Pattern
from springtide.cache._names import tag_name

__all__ = ["MAX_TAGS", "Tags"]

MAX_TAGS = 16
"""Tags of one value: each is looked at whenever the value is read."""


class Tags:
    """See the module. Raises ValueError that says which rule a pattern breaks."""

    __slots__ = ("_make", "_patterns", "any", "text")

    def __init__(
        self, tags: Callable[..., Iterable[str]] | Sequence[str], pattern: Pattern, kinds: tuple[type, ...]
    ) -> None:
        self._make: Callable[..., Iterable[str]] | None = None
        self._patterns: list[tuple[Pattern, tuple[int | None, ...]]] = []
        if callable(tags):
            self._make = tags
        elif not isinstance(tags, list | tuple):
            raise ValueError("must be a sequence of patterns, such as ('org:{org_id}',), or a function")
        else:
            if len(tags) > MAX_TAGS:
                raise ValueError(f"must be at most {MAX_TAGS}")
            for text in tags:
                try:
                    parsed = Pattern(text)
                except ValueError as error:
                    raise ValueError(f"must be patterns; {text!r} {error}") from None
                self._patterns.append((parsed, self._places(parsed, pattern, kinds)))
        self.any = bool(tags)
        """Whether a value can have a tag at all."""
        self.text = " ".join(one.text for one, _ in self._patterns) if self._make is None else "function"
        """What tells two definitions apart whose values have other tags, as far as can be told."""

    @staticmethod
    def _places(tag: Pattern, key: Pattern, kinds: tuple[type, ...]) -> tuple[int | None, ...]:
        """For each argument of the tag which argument of the key it is; None: an attribute of the value."""
        places: list[int | None] = []
        for name, kinds_wanted in zip(tag.arguments, tag.kinds, strict=True):
            if name in key.arguments:
                places.append(place := key.arguments.index(name))
                if not set(key.kinds[place]) & set(kinds_wanted):
                    raise ValueError(
                        f"must take what the key gives: {{{name}}} of {tag.text!r} is another type there"
                    )
                continue
            if kinds != (object,) and not all(_has(kind, name) for kind in kinds):
                raise ValueError(
                    "must be made of the key's arguments and the value's attributes;"
                    f" nothing is called {name!r}"
                )
            for kind in kinds:
                if (fault := _fault_of(kind, name, kinds_wanted)) is not None:
                    raise ValueError(
                        f"must be made of numbers and texts: {name!r} is {fault}; use a function"
                    )
            places.append(None)
        return tuple(places)

    def of(self, value: Any, arguments: Sequence[Any]) -> tuple[str, ...]:
        """The tags of `value`, None for "nothing there", under the key that `arguments` make."""
        if not self.any:
            return ()
        if self._make is not None:
            made = () if value is None else tuple(dict.fromkeys(self._make(value)))
            if len(made) > MAX_TAGS or not all(isinstance(tag, str) for tag in made):
                raise TypeError(f"a value has at most {MAX_TAGS} tags, each a text, got {made!r}")
            return tuple(map(tag_name, made))
        found: list[str] = []
        for pattern, places in self._patterns:
            if value is None and None in places:
                continue
            parts = [
                getattr(value, name) if place is None else arguments[place]
                for name, place in zip(pattern.arguments, places, strict=True)
            ]
            if all(part is not None for part in parts):  # an article without an author has no author's tag
                found.append(pattern.key(parts))
        return tuple(dict.fromkeys(found))


def _has(kind: type, name: str) -> bool:
    return hasattr(kind, name) or name in getattr(kind, "__annotations__", {})


def _fault_of(kind: type, name: str, wanted: Sequence[type]) -> str | None:
    """What an attribute is that makes no tag, as far as its struct says."""
    if not issubclass(kind, msgspec.Struct):
        return None
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    for field in info.fields:
        if field.name == name:
            union = isinstance(field.type, msgspec.inspect.UnionType)
            for member in field.type.types if union else (field.type,):  # type: ignore[attr-defined]
                if not _makes_tags(member, wanted):
                    return type(member).__name__.removesuffix("Type").lower()
    return None


def _makes_tags(info: msgspec.inspect.Type, wanted: Sequence[type]) -> bool:
    match info:
        case msgspec.inspect.NoneType():
            return True
        case msgspec.inspect.IntType():
            return int in wanted
        case msgspec.inspect.StrType():
            return str in wanted
        case msgspec.inspect.EnumType(cls=cls):
            return issubclass(cls, tuple(wanted))
        case msgspec.inspect.LiteralType(values=values):
            return all(isinstance(value, tuple(wanted)) for value in values)
        case _:
            return False
