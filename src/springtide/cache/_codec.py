"""A value as bytes: one byte of format and flags, eight of its type, then msgpack.

The type's hash is made of what msgspec says about it (names, order, types, constraints, defaults), so two
versions of an application that declare it differently read each other's values as if they were not there, and
so do two Python versions agree. Bytes of another format, of another type or that cannot be decoded are a
miss, never an error.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
from msgspec import inspect

__all__ = ["MISSING", "Codec", "Missing", "schema_hash"]

V = TypeVar("V")

FORMAT = 0x10
NEGATIVE = 0x01
COMPRESSED = 0x02

COMPRESS_FROM = 1024
"""Bytes of msgpack from which zlib is tried."""

MUST_SAVE = 0.9
"""What compression has to come down to, as a part of the bytes, to be worth undoing at every read."""

UNPACKS = 16
"""How many times `max_bytes` a compressed value may become: a reader's memory has a bound."""


class Missing(enum.Enum):
    """What a decoder says of bytes that are no value of its type."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING


class Codec(Generic[V]):
    """Values of one class. `V` is its declared type; None is a value too: "there is nothing there".

    salt: what else decides whether a kept value can be used, such as its tags' patterns. max_bytes: what is
    longer is not kept. Raises TypeError when msgspec cannot read and write the type.
    """

    __slots__ = ("_decode", "_encode", "_none", "_plain", "hash", "max_bytes")

    def __init__(self, type: Any, *, salt: str = "", max_bytes: int = 1 << 20) -> None:
        if max_bytes < 64:
            raise ValueError(f"max_bytes must be at least 64, got {max_bytes}")
        self.max_bytes = max_bytes
        self.hash = schema_hash(inspect.type_info(type), salt)
        self._plain = bytes((FORMAT,)) + self.hash
        self._none = bytes((FORMAT | NEGATIVE,)) + self.hash
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(type).decode

    def encode(self, value: V | None) -> bytes:
        """Its bytes; the caller asks whether they are more than `max_bytes`."""
        if value is None:
            return self._none
        body = self._encode(value)
        if COMPRESS_FROM <= len(body) <= UNPACKS * self.max_bytes:
            small = zlib.compress(body, 1)
            if len(small) <= len(body) * MUST_SAVE:
                return bytes((FORMAT | COMPRESSED,)) + self.hash + small
        return self._plain + body

    def copied(self, value: V) -> V:
        """What whoever reads its bytes gets. Raises what msgspec does for what cannot be written, or not be
        read as this type."""
        return cast(V, self._decode(self._encode(value)))

    def decode(self, data: bytes) -> V | Missing | None:
        """The value, None for "nothing there", MISSING for anything that cannot be used."""
        try:
            if data[:9] == self._plain:
                return cast(V, self._decode(memoryview(data)[9:]))
            if data[1:9] != self.hash:
                return MISSING
            if data[0] == FORMAT | NEGATIVE:
                return None
            if data[0] == FORMAT | COMPRESSED:
                unpacking = zlib.decompressobj()
                body = unpacking.decompress(data[9:], UNPACKS * self.max_bytes)
                return cast(V, self._decode(body)) if unpacking.eof else MISSING
        except (msgspec.DecodeError, ValueError, OverflowError, RecursionError, zlib.error):
            pass
        return MISSING


def schema_hash(info: inspect.Type, salt: str = "") -> bytes:
    """Eight bytes for a type and `salt`, the same in every process and Python version."""
    return blake2b("\n".join((*_described(info, {}), salt)).encode(), digest_size=8).digest()


def _described(node: Any, known: dict[Any, int]) -> Iterator[str]:
    """Lines that say what a type is. A class within itself is known by its place among those met before."""
    if node is msgspec.NODEFAULT or node is msgspec.UNSET:
        yield "-"
    elif isinstance(node, inspect.Type | inspect.Field):
        cls = getattr(node, "cls", None)
        if cls is not None and cls in known:
            yield f"again {known[cls]}"
            return
        if cls is not None:
            known[cls] = len(known)
        yield type(node).__name__
        for name in node.__struct_fields__:
            yield f".{name}"
            yield from _described(getattr(node, name), known)
    elif isinstance(node, tuple | list):
        yield f"{len(node)}:"
        for part in node:
            yield from _described(part, known)
    elif isinstance(node, type) and issubclass(node, enum.Enum):
        yield node.__name__
        yield from (f"{member.name}={member.value!r}" for member in node)
    elif isinstance(node, str | int | float | bool | None | bytes):
        yield repr(node)
    elif callable(node):
        yield getattr(node, "__qualname__", type(node).__qualname__)
    else:
        yield _default(node)


def _default(value: Any) -> str:
    """A default that is an object of some kind."""
    try:
        return type(value).__name__ + msgspec.json.encode(value, order="deterministic").decode()
    except (TypeError, ValueError):
        return type(value).__name__
