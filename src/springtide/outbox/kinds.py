"""What is stored as JSON under a kind and a version, and read again by code that may be newer.

The kind is a name in the database, kept when the class is renamed or moved; the version is raised when older
code could not read the struct any more. Upcasts make of the fields of one version those of the next. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from springtide.errors import SpringtideError

__all__ = ["KIND", "Upcast", "declared", "declaring", "decoder"]

S = TypeVar("S", bound=msgspec.Struct)
K = TypeVar("K")

KIND = re.compile(r"[a-z][a-z0-9_]{0,47}(\.[a-z][a-z0-9_]{0,47}){0,3}")
"""1 to 4 words of lower-case letters, digits and _ with dots between."""


def declaring(
    what: str, kind: str, spec: object, error: type[SpringtideError]
) -> Callable[[type[S]], type[S]]:
    """Declares a struct to be a `what` ("job", "event") of `kind`, which `spec` says more of."""

    def declare(cls: type[S]) -> type[S]:
        if not issubclass(cls, msgspec.Struct):
            raise error(f"{what} {kind}: {_a(what)} is a msgspec.Struct, got {cls!r}")
        if not cls.__struct_config__.frozen:
            raise error(f"{what} {kind}: {cls.__name__} must be frozen (frozen=True)")
        setattr(cls, _attribute(what), spec)
        return cls

    return declare


def declared(what: str, of: object, specs: type[K], error: type[SpringtideError]) -> K:
    """What `declaring` said of a struct or of its class. Raises `error` when there is nothing."""
    cls = of if isinstance(of, type) else type(of)
    spec = cls.__dict__.get(_attribute(what))  # not inherited: a subclass has other fields
    if not isinstance(spec, specs):
        raise error(f"{cls.__qualname__} is not declared as {_a(what)}; put @{what}(kind=...) above it")
    return spec


def _attribute(what: str) -> str:
    return f"__springtide_{what}__"


def _a(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


@dataclass(frozen=True, slots=True)
class Upcast:
    """What is of `version` was stored when it was the newest: `fields` makes of its fields, as JSON has them,
    those of the version after it. It must not look at anything else, so that it gives the same every time."""

    version: int
    fields: Callable[[dict[str, Any]], dict[str, Any]]


def decoder(cls: type[Any], newest: int, upcasts: Sequence[Upcast], version: int) -> Callable[[bytes], Any]:
    """Reads what was stored as `version` of `cls`, whose present one is `newest`.

    What it returns raises msgspec.MsgspecError, UnicodeDecodeError, or what an upcast raises.
    """
    if version == newest:
        return msgspec.json.Decoder(cls).decode
    steps = [upcast.fields for upcast in upcasts if upcast.version >= version]
    fields = msgspec.json.Decoder(dict[str, Any]).decode

    def decode(payload: bytes) -> Any:
        found = fields(payload)
        for step in steps:
            found = step(found)
        return msgspec.convert(found, cls)

    return decode
