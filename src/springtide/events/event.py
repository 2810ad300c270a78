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
from springtide.outbox.kinds import KIND, check_counts, declared, declaring, is_named

__all__ = ["EventKind", "event", "kind_of"]

S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventKind:
    """Kind and version of an event; made by `event`."""

    kind: str
    version: int

    def __post_init__(self) -> None:
        if not is_named(KIND, self.kind):
            raise EventError(
                "an event's kind is 1 to 4 words of lower-case letters, digits and _ with dots between,"
                f" such as orders.placed, got {self.kind!r}"
            )
        check_counts(f"event {self.kind}", EventError, version=self.version)

    @property
    def name(self) -> str:
        """Kind and version as readers compare them: `orders.placed/1`."""
        return f"{self.kind}/{self.version}"


def event(*, kind: str, version: int = 1) -> Callable[[type[S]], type[S]]:
    """Declare a frozen msgspec struct to be an event. Raises EventError."""
    return declaring("event", kind, EventKind(kind=kind, version=version), EventError)


def kind_of(event: object) -> EventKind:
    """The declaration of an event or of its class. Raises EventError when there is none."""
    return declared("event", event, EventKind, EventError)
