"""What a write makes stale in caches: collected in it, written down with it, told after it.

`tx.invalidate` only remembers. Just before COMMIT all of it goes into the module's `_invalidation` in one
INSERT of the same transaction: it is there if and only if the write is. After COMMIT the cache is told by the
writer itself (`Invalidations.void`), which is the fast path; the row is for the relay, should that fail or
its process be gone. Whoever applies a row tells the same thing under the same number, so twice is once.

A row names its transaction (`xid`, which means something within one history alone), one class, and a JSON
array of the fields of it, `PART` at most: a key or a tag, as the cache spells them.

A COMMIT with an unknown outcome is told too, because it may have succeeded. Of one that has not, the cache
then holds a number that will never commit. That is harmless: such a number blocks fills only as long as a
snapshot lists it as running (on a standby: until xmin has passed it), and then counts as seen, rightly, for
there is nothing of it to see. What it costs is one load. And of one that commits late, after the cache has
forgotten the number, the row is visible from then on and the relay tells it anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from springtide.db.seeing import EPOCH, Seen, seen_of

if TYPE_CHECKING:
    from springtide.db._writing import WriteTransaction
    from springtide.db.transaction import Transaction

__all__ = ["MAX_FIELDS", "PART", "Fields", "Invalidations", "Recorded", "count", "record"]

MAX_FIELDS = 10_000
"""Keys and tags that one transaction may invalidate."""

PART = 500
"""Fields of one row."""

Fields = dict[str, dict[str, None]]
"""Class -> its fields, each once, in the order in which they were named."""

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Recorded:
    """A transaction as its invalidations were written down: its number, and what it could see then.

    `seen.epoch` is the history that `xid` belongs to. The transaction itself is running in it.
    """

    xid: int
    seen: Seen


class Invalidations(Protocol):
    """The cache, as writes see it: the seam to the layer above, filled by the composition root."""

    def fields_of(
        self, tx: WriteTransaction, cls: Any, key: tuple[Any, ...], tags: Sequence[str]
    ) -> tuple[str, Iterable[str]]:
        """The name of the class and the fields that a key (or none) and tags are; none where nothing is kept
        by anybody. Raises for what `cls` has not, or what is not on the transaction's shard."""

    async def void(
        self, tx: WriteTransaction, recorded: Recorded, fields: Mapping[str, Sequence[str]]
    ) -> None:
        """The transaction has committed, or may have: nobody may find these fields any more. Called in the
        context of the write's caller, who waits for it until the deadline; it must end by itself."""


def count(known: Fields, more: Fields) -> int:
    """How many fields both are together."""
    found = sum(map(len, known.values()))
    for cls, named in more.items():
        before = known.get(cls)
        found += len(named) if before is None else sum(field not in before for field in named)
    return found


async def record(tx: Transaction, cluster: str, schema: str, fields: Fields) -> Recorded:
    """Write `fields` down as the last statement of `tx`, on a primary."""
    classes: list[str] = []
    parts: list[str] = []
    for cls, named in fields.items():
        rest = iter(named)
        while part := list(islice(rest, PART)):
            classes.append(cls)
            parts.append(_encode(part).decode())
    row = await tx.fetch_one(_insert(schema), classes, parts)
    assert row is not None
    return Recorded(int(row["xid"]), seen_of(cluster, row))


def _insert(schema: str) -> str:
    return f"""
        WITH written AS (
            INSERT INTO {schema}._invalidation (xid, class, fields, written_at)
            SELECT pg_current_xact_id(), class, fields, clock_timestamp()
            FROM unnest($1::text[], $2::text[]) AS given (class, fields)
        )
        SELECT pg_current_xact_id()::text AS xid, pg_current_snapshot()::text AS snapshot,
            false AS recovering, {EPOCH}
    """  # noqa: S608 - the schema is an identifier
