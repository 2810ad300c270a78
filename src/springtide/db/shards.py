"""Which bucket a key belongs to, and which shard holds the bucket.

A key is an id that carries its bucket in the low ten bits, a text or bytes that is hashed, or a `Bucket`.
The hash is BLAKE2b with 8 bytes of output, read big-endian, modulo 1,024: the same in every process and for
ever, because rows are stored under it. Buckets never change their number; only the map from buckets to
shards does, and each change raises its `epoch`.
Pure: nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

__all__ = ["BUCKETS", "BUCKET_BITS", "Bucket", "Key", "ShardMap", "bucket_of"]

BUCKET_BITS = 10
BUCKETS = 1 << BUCKET_BITS


@dataclass(frozen=True, slots=True)
class Bucket:
    """One of the 1,024 slices, when the caller knows which: 0 <= number < 1024."""

    number: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < BUCKETS:
            raise ValueError(f"a bucket's number must be in [0, {BUCKETS}), got {self.number}")


Key = int | str | bytes | Bucket
"""An id that carries its bucket, a text or bytes to hash, or the bucket itself."""

K = TypeVar("K", int, str, bytes, Bucket)


def bucket_of(key: Key) -> int:
    """The bucket of `key`: `id & 1023` for an id, the stable hash for text (UTF-8) and bytes."""
    if isinstance(key, int):
        if key < 0 or key is True or key is False:
            raise ValueError(f"an id must be an integer >= 0, got {key!r}")
        return key & (BUCKETS - 1)
    if isinstance(key, str):
        key = key.encode()
    if isinstance(key, bytes):
        return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") % BUCKETS
    if isinstance(key, Bucket):
        return key.number
    raise TypeError(f"a key is an int, str, bytes or Bucket, got {type(key).__name__}")


class ShardMap:
    """Every bucket's shard at one `epoch`. Immutable; a move makes a new map with a higher epoch."""

    __slots__ = ("_owner", "epoch", "shards")

    def __init__(self, owners: Sequence[str], *, epoch: int = 1) -> None:
        """`owners[b]` is the name of the shard that holds bucket b; there are exactly 1,024."""
        if len(owners) != BUCKETS:
            raise ValueError(f"a shard map names the owner of each of {BUCKETS} buckets, got {len(owners)}")
        if epoch < 1:
            raise ValueError(f"epoch must be >= 1, got {epoch}")
        self._owner = tuple(owners)
        self.epoch = epoch
        self.shards: tuple[str, ...] = tuple(dict.fromkeys(owners))
        """The shards that hold at least one bucket, in the order of their first one."""

    @classmethod
    def even(cls, shards: Sequence[str], *, epoch: int = 1) -> ShardMap:
        """Consecutive ranges of (almost) equal size: shard i of n holds [i*1024//n, (i+1)*1024//n)."""
        count = len(shards)
        if not 1 <= count <= BUCKETS:
            raise ValueError(f"a database has 1 to {BUCKETS} shards, got {count}")
        if len(set(shards)) != count:
            raise ValueError(f"a shard may be listed once, got {list(shards)}")
        owners: list[str] = []
        for index, shard in enumerate(shards):
            owners += [shard] * ((index + 1) * BUCKETS // count - index * BUCKETS // count)
        return cls(owners, epoch=epoch)

    def shard_of(self, key: Key) -> str:
        return self._owner[bucket_of(key)]

    def buckets_of(self, shard: str) -> list[int]:
        """The buckets that `shard` holds, ascending; empty for a name that the map does not know."""
        return [bucket for bucket, owner in enumerate(self._owner) if owner == shard]

    def group(self, keys: Iterable[K]) -> dict[str, list[K]]:
        """The keys by shard, in the order given; shards without a key are left out."""
        grouped: dict[str, list[K]] = {}
        owner = self._owner
        for key in keys:  # mostly ids, and many of them: what `bucket_of` does with one is done here
            plain = type(key) is int and key >= 0
            shard = owner[key & (BUCKETS - 1)] if plain else self.shard_of(key)  # type: ignore[operator]
            grouped.setdefault(shard, []).append(key)
        return grouped

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardMap) and (self._owner, self.epoch) == (other._owner, other.epoch)

    def __hash__(self) -> int:
        return hash((self._owner, self.epoch))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{shard}: {len(self.buckets_of(shard))}" for shard in self.shards)
        return f"ShardMap(epoch={self.epoch}, {sizes})"
