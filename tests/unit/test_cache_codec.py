"""Values as bytes: what was written is read, and what cannot be used is a miss."""

from __future__ import annotations

import enum
import os
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.cache._codec import COMPRESS_FROM, MISSING, Codec


class Color(enum.Enum):
    RED = "red"


class Leaf(msgspec.Struct, frozen=True):
    name: str
    when: datetime | None = None


class Tree(msgspec.Struct, frozen=True):
    id: int
    leaves: tuple[Leaf, ...] = ()
    above: Tree | None = None
    color: Color = Color.RED
    price: Decimal = Decimal("0")
    key: UUID | None = None
    data: bytes = b""


TREES = st.recursive(
    st.builds(Tree, id=st.integers(-(2**63), 2**63 - 1), data=st.binary(max_size=3000)),
    lambda above: st.builds(
        Tree,
        id=st.integers(0, 9),
        leaves=st.lists(
            st.builds(Leaf, name=st.text(), when=st.datetimes(timezones=st.just(UTC)))
        ).map(tuple),
        above=above,
        price=st.decimals(allow_nan=False, allow_infinity=False),
        key=st.uuids(),
    ),
    max_leaves=4,
)  # fmt: skip


@given(TREES)
def test_what_was_written_is_read(tree: Tree) -> None:
    """Any value comes back equal, long ones too; "nothing there" comes back as None."""
    codec = Codec(Tree)
    assert codec.decode(codec.encode(tree)) == tree
    assert codec.decode(codec.encode(None)) is None


@given(st.binary(max_size=200), st.integers(0, 200), st.binary(min_size=1, max_size=3))
def test_bytes_that_are_no_value_are_a_miss(anything: bytes, at: int, garbage: bytes) -> None:
    """Whatever lies in Redis, decoding raises nothing; what decodes is a value of the type."""
    codec = Codec(Tree)
    written = codec.encode(Tree(1, (Leaf("a" * 100),)))
    cut = written[:at] + garbage + written[at:][len(garbage) :]
    for data in (anything, cut, written[:at], codec.encode(Tree(1, data=bytes(5000)))[: at + 9]):
        assert codec.decode(data) is MISSING or isinstance(codec.decode(data), Tree | None)
    assert codec.decode(b"") is MISSING
    assert codec.decode(written[:-1]) is MISSING
    assert codec.decode(bytes((written[0] + 0x10,)) + written[1:]) is MISSING


def test_long_values_are_compressed_where_that_saves() -> None:
    """Text that repeats itself becomes short; noise stays as it is, and so does what is short."""
    codec = Codec(Tree)
    text, noise = Tree(1, data=b"abc" * 2000), Tree(1, data=os.urandom(6000))
    assert len(codec.encode(text)) < 600
    assert 6000 < len(codec.encode(noise)) < 6200
    assert codec.decode(codec.encode(noise)) == noise
    short = Tree(1, data=b"a" * (COMPRESS_FROM // 2))
    assert len(codec.encode(short)) > COMPRESS_FROM // 2


def test_what_unpacks_to_more_than_any_value_is_a_miss() -> None:
    """A few bytes that would become many are not unpacked to the end, and nobody writes them."""
    long = Tree(1, data=bytes(1_000_000))
    packed = Codec(Tree).encode(long)
    small = Codec(Tree, max_bytes=10_000)
    assert len(packed) < 10_000 < len(small.encode(long))
    assert small.decode(packed) is MISSING
    assert Codec(Tree).decode(packed) == long


def versions() -> dict[str, Any]:
    """Declarations of one name that a value must not be read across."""

    def declared(**options: Any) -> Any:
        fields = options.pop("fields")
        return msgspec.defstruct("User", fields, frozen=True, **options)

    plain = [("id", int), ("name", str)]
    return {
        "as it was": declared(fields=plain),
        "a field more": declared(fields=[*plain, ("mail", str, "")]),
        "another type": declared(fields=[("id", int), ("name", bytes)]),
        "another default": declared(fields=[*plain, ("mail", str, "none")]),
        "an optional field": declared(fields=[("id", int), ("name", str | None)]),
        "another name": declared(fields=[("id", int), ("title", str)]),
        "another order": declared(fields=plain[::-1]),
        "an array": declared(fields=plain, array_like=True),
        "a tag": declared(fields=plain, tag="user"),
        "a bound": declared(fields=[("id", Annotated[int, msgspec.Meta(ge=0)]), ("name", str)]),
        "a choice": declared(fields=[("id", int), ("name", Color)]),
        "a tuple": declared(fields=[("id", int), ("name", tuple[str, ...])]),
        "a pair": declared(fields=[("id", int), ("name", tuple[str, str])]),
    }


def test_another_declaration_reads_nothing() -> None:
    """Two versions of an application that declare a value differently miss each other's values, both ways."""
    codecs = {what: Codec(kind) for what, kind in versions().items()}
    assert len({codec.hash for codec in codecs.values()}) == len(codecs)
    old = codecs["as it was"]
    for what, codec in codecs.items():
        assert (codec.decode(old.encode(None)) is MISSING) == (codec is not old), what
    again = versions()["as it was"]
    assert Codec(again).hash == old.hash
    assert Codec(again, salt="org:{id}").hash != old.hash


HASHED = """
import msgspec
from springtide.cache._codec import Codec
class Node(msgspec.Struct, frozen=True):
    at: "tuple[Node, ...]" = ()
    of: frozenset[str] = frozenset({"b", "a", "c"})
    how: dict[str, int] | None = None
print(Codec(Node).hash.hex())
"""


def test_every_process_makes_the_same_hash() -> None:
    """It depends on nothing that differs from process to process, such as the order of a set."""
    hashes = {
        subprocess.run(
            [sys.executable, "-c", HASHED], env={**os.environ, "PYTHONHASHSEED": seed},
            check=True, capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(hashes) == 1


def test_types_that_cannot_be_written_are_refused() -> None:
    """When the class is defined, not when its first value comes."""
    with pytest.raises(TypeError):
        Codec(tuple[int, ...] | frozenset[int])  # which of them is an array of numbers?
    with pytest.raises(ValueError, match="63"):
        Codec(int, max_bytes=63)
