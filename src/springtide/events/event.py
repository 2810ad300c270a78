"""What an event is: a frozen struct with a kind and a version, a fact that others may want to know.

    @event(kind="orders.placed")
    class OrderPlaced(msgspec.Struct, frozen=True):
        order_id: int

    Module(..., publishes=[OrderPlaced])

The kind is a name in the log, kept when the class is renamed or moved; the version is raised when older code
could not read the struct any more. A declaration is a value: nothing is registered by import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from springtide.errors import EventError
from springtide.outbox.kinds import KIND

__all__ = ["EventKind", "event", "kind_of"]

S = TypeVar("S", bound=msgspec.Struct)

_ATTRIBUTE = "__springtide_event__"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventKind:
    """Kind and version of an event; made by `event`."""

    kind: str
    version: int

    def __post_init__(self) -> None:
        if not KIND.fullmatch(self.kind):
            raise EventError(
                "an event's kind is 1 to 4 words of lower-case letters, digits and _ with dots between,"
                f" such as orders.placed, got {self.kind!r}"
            )
        if self.version < 1:
            raise EventError(f"event {self.kind}: version must be >= 1, got {self.version}")

    @property
    def name(self) -> str:
        """Kind and version as readers compare them: `orders.placed/1`."""
        return f"{self.kind}/{self.version}"


def event(*, kind: str, version: int = 1) -> Callable[[type[S]], type[S]]:
    """Declare a frozen msgspec struct to be an event. Raises EventError."""
    spec = EventKind(kind=kind, version=version)

    def declare(cls: type[S]) -> type[S]:
        if not issubclass(cls, msgspec.Struct):
            raise EventError(f"event {spec.kind}: an event is a msgspec.Struct, got {cls!r}")
        if not cls.__struct_config__.frozen:
            raise EventError(f"event {spec.kind}: {cls.__name__} must be frozen (frozen=True)")
        setattr(cls, _ATTRIBUTE, spec)
        return cls

    return declare


def kind_of(event: object) -> EventKind:
    """The declaration of an event or of its class. Raises EventError when there is none."""
    cls = event if isinstance(event, type) else type(event)
    spec = cls.__dict__.get(_ATTRIBUTE)  # not inherited: a subclass has other fields
    if not isinstance(spec, EventKind):
        raise EventError(f"{cls.__qualname__} is not declared as an event; put @event(kind=...) above it")
    return spec
