"""The rows of changes that wait to be applied: every statement, and rows from and to values.

The order of a key's rows is that of `seq`, which the server gives: a put that was acknowledged before another
began has the lower one. Rows that become visible late (a long transaction) belong to puts that overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import msgspec

from springtide.db.shards import bucket_of

__all__ = ["Changed", "Rows", "Sql", "lock_of"]

T = TypeVar("T")

Changed = int | str
"""What is changed: an id that carries its bucket, or a text. Also the key that says which shard."""


class Sql:
    """The statements on one schema; made once, so that they are prepared once."""

    def __init__(self, schema: str) -> None:
        table = f"{schema}._behind"
        self.put = f"""
            INSERT INTO {table} (name, bucket, key, value)
            SELECT $1, n.bucket, n.key, n.value
            FROM unnest($2::smallint[], $3::text[], $4::bytea[]) AS n (bucket, key, value)
        """  # noqa: S608 - the schema is an identifier checked by Database, here and below
        self.pending = f"""
            SELECT b.key, b.value FROM {table} AS b
            WHERE b.name = $1 AND b.bucket = $2 AND b.key = $3 ORDER BY b.seq
        """  # noqa: S608
        self.waiting = f"""
            SELECT count(*) FROM (SELECT FROM {table} AS b WHERE b.name = $1 LIMIT $2) AS waiting
        """  # noqa: S608
        self.lock = "SELECT pg_try_advisory_xact_lock($1)"
        found = f"""
            DELETE FROM {table} AS b USING taken AS t
            WHERE b.name = $1 AND b.bucket = t.bucket AND b.key = t.key AND b.seq = t.seq
            RETURNING b.bucket, b.key, b.seq, b.value,
                greatest(extract(epoch FROM clock_timestamp() - b.put_at), 0)::float8 AS waited
        """  # noqa: S608
        # After a place in the order of the index, so that a pass sees every key once, whatever is being put.
        self.take = f"""
            WITH taken AS MATERIALIZED (
                SELECT w.bucket, w.key, w.seq FROM {table} AS w
                WHERE w.name = $1 AND (w.bucket, w.key, w.seq) > ($2::smallint, $3::text, $4::bigint)
                    AND w.key <> ALL ($5::text[])
                ORDER BY w.bucket, w.key, w.seq LIMIT $6
            ) {found}
        """  # noqa: S608
        self.take_keys = f"""
            WITH taken AS MATERIALIZED (
                SELECT w.bucket, w.key, w.seq FROM {table} AS w
                JOIN unnest($2::smallint[], $3::text[]) AS n (bucket, key)
                    ON w.bucket = n.bucket AND w.key = n.key
                WHERE w.name = $1
                ORDER BY w.bucket, w.key, w.seq LIMIT $4
            ) {found}
        """  # noqa: S608


class Rows(Generic[T]):
    """Rows of one kind of change from and to values of `type`."""

    def __init__(self, name: str, type: type[T], merge: Callable[[T, T], T]) -> None:
        self.name = name
        self.merge = merge
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(type).decode
        self._key = msgspec.json.Decoder(int | str).decode

    def check(self, value: T) -> int:
        """How many bytes a value has; raises what msgspec does when it could not be read back."""
        encoded = self._encode(value)
        self._decode(encoded)
        return len(encoded)

    def text(self, key: Changed) -> str:
        return self._encode(key).decode()

    def name_of(self, key: Changed) -> tuple[str, int, str]:
        return self.name, bucket_of(key), self.text(key)

    def names_of(self, keys: Iterable[Changed]) -> tuple[str, list[int], list[str]]:
        listed = list(keys)
        return self.name, list(map(bucket_of, listed)), list(map(self.text, listed))

    def encode(self, changes: Mapping[Changed, T]) -> tuple[str, list[int], list[str], list[bytes]]:
        """Arguments of `Sql.put`."""
        return *self.names_of(changes), [self._encode(value) for value in changes.values()]

    def keys(self, rows: Iterable[Any]) -> list[Changed]:
        """The keys of rows, each once."""
        return list(dict.fromkeys(self._key(row["key"]) for row in rows))

    def decode(self, rows: Iterable[Any]) -> dict[Changed, T]:
        """The values of rows, which come in their order, merged by key."""
        merged: dict[Changed, T] = {}
        for row in rows:
            key, value = self._key(row["key"]), self._decode(row["value"])
            merged[key] = self.merge(merged[key], value) if key in merged else value
        return merged


def lock_of(schema: str, name: str) -> int:
    """The advisory lock that one flush at a time holds; 64 bits, signed."""
    digest = blake2b(f"{schema}\0{name}".encode(), digest_size=8, person=b"behind").digest()
    return int.from_bytes(digest, "big", signed=True)
