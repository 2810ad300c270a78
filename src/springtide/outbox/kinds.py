"""What is stored as JSON under a kind and a version, and read again by code that may be newer.

The kind is a name in the database, kept when the class is renamed or moved; the version is raised when older
code could not read the struct any more. Upcasts make of the fields of one version those of the next. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

__all__ = ["KIND", "Upcast", "decoder"]

KIND = re.compile(r"[a-z][a-z0-9_]{0,47}(\.[a-z][a-z0-9_]{0,47}){0,3}")
"""1 to 4 words of lower-case letters, digits and _ with dots between."""


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
