"""Seeded people: accounts, who follows whom, who is told by mail. A few are followed by many.

Everybody's password is PASSWORD, kept as one hash that was made beforehand (Argon2id with the platform's own
parameters and a fixed salt: fit for invented people only); the e-mail address is `username@example.com`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from datetime import datetime, timedelta

from market.notifications.bulk import BulkRecipient
from market.search.api import Document
from market.seeding.chance import YEAR, Plan, counted
from market.seeding.words import FIRST, LAST, NOUNS, PLACES, QUALITIES
from market.users import bulk
from springtide.db import BUCKETS, Database
from springtide.ops.load.seeding import IdBlocks

__all__ = ["HASHED", "PASSWORD", "People", "address", "username"]

PASSWORD = "springtide"  # noqa: S105 - of invented people, printed after every seeding
HASHED = "$argon2id$v=19$m=19456,t=2,p=1$c3ByaW5ndGlkZS1zZWVkcw$PihBH9XXGHBSf4qny66BQSAbnyaNxvjT6dPWxArXB/0"

FOLLOWS = 8
ROWS = 29.0
"""About how many rows one user makes: an account with two reservations, a recipient, a document; seven and a
half follows, which the recommendations have from both ends, and what those count."""


class People:
    """User number i has the id `ids[i]` and joined as the i-th, in the year before the last."""

    def __init__(self, plan: Plan, ids: array[int]) -> None:
        self.plan = plan
        self.ids = ids

    @classmethod
    async def drawn(cls, plan: Plan, db: Database) -> People:
        """Over all buckets by chance."""
        rng = plan.random("buckets")
        buckets = array("H", (rng.randrange(BUCKETS) for _ in range(plan.users)))
        blocks = await IdBlocks.take(db, counted(buckets))
        return cls(plan, array("q", (blocks.next(bucket) for bucket in buckets)))

    @property
    def rows(self) -> int:
        """About how many there will be."""
        return int(ROWS * self.plan.users)

    def name(self, number: int) -> str:
        return username(number, self.plan.seed)

    def joined(self, number: int) -> datetime:
        return self.plan.moment(2 * YEAR, YEAR, number, self.plan.users)

    def accounts(self) -> Iterator[bulk.BulkAccount]:
        rng = self.plan.random("accounts")
        for number, id in enumerate(self.ids):
            name = self.name(number)
            bio = None
            if rng.random() < 0.8:
                bio = f"{rng.choice(QUALITIES).capitalize()} {rng.choice(NOUNS)} {rng.choice(PLACES)}."
            yield bulk.BulkAccount(id, name, address(name), HASHED, bio, None, self.joined(number))

    def recipients(self) -> Iterator[BulkRecipient]:
        for number, id in enumerate(self.ids):
            name = self.name(number)
            yield BulkRecipient(id, name, address(name), 1)

    def follows(self) -> Iterator[bulk.BulkFollow]:
        rng, users = self.plan.random("follows"), self.plan.users
        popular = self.plan.popularity(users, s=0.8, label="people")
        for number, follower in enumerate(self.ids):
            at = self.joined(number)
            wanted = min(int(rng.expovariate(1 / FOLLOWS)), users - 1)
            chosen = dict.fromkeys(popular.draw(rng) for _ in range(wanted))
            chosen.pop(number, None)
            for followee in chosen:
                at += timedelta(hours=rng.randrange(1, 100))
                yield bulk.BulkFollow(follower, self.ids[followee], at)

    def documents(self) -> Iterator[Document]:
        return map(bulk.document_of, self.accounts())


def username(number: int, seed: int) -> str:
    """`mina.tanaka`, from the 4,000th on `mina.tanaka2` and so on; different for different numbers."""
    size = len(FIRST) * len(LAST)
    again, place = divmod(number, size)
    # A fixed shuffle: multiplying by a number that has no factor in common with the size visits all.
    first, last = divmod((place * 2_741 + seed) % size, len(LAST))
    return f"{FIRST[first]}.{LAST[last]}{again + 1 if again else ''}"


def address(name: str) -> str:
    """Nobody's: the domain is reserved for examples."""
    return f"{name}@example.com"
