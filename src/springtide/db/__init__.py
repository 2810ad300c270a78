"""The database layer: pools to clusters, and modules' tables over them.

pool          connections to one cluster; who waits for one, and how long
transaction   COMMIT, and what is known about it
shards        which bucket a key belongs to, which shard holds it
router        `Database`: each statement to the shard of its key
ids           ids that carry their bucket
reservations  values that are unique over all buckets
scatter       one statement on every shard, rows merged
keyset        pages behind a cursor
migrate       tables brought to the newest migration on every shard
causality     positions in the write-ahead log
consistency   how fresh a read has to be
members       who may belong to a cluster
servers       who of a cluster answers a read
seeing        reads pinned to one server, and what that server had
"""

from springtide.db._writing import WriteTransaction, open_writes
from springtide.db.consistency import Consistency, reading
from springtide.db.ids import MAX_ID, Ids
from springtide.db.keyset import Column, Keyset, Page, Step, asc, desc
from springtide.db.migrate import MigrationStatus, Migrator
from springtide.db.reservations import Reconciled, Reservations
from springtide.db.router import Database, Queries, Reader, Snapshot
from springtide.db.scatter import ASC, DESC, Direction
from springtide.db.seeing import Seen, Sight
from springtide.db.shards import BUCKETS, Bucket, Key, ShardMap, bucket_of

__all__ = [
    "ASC",
    "BUCKETS",
    "Bucket",
    "Column",
    "Consistency",
    "DESC",
    "Database",
    "Direction",
    "Ids",
    "Key",
    "Keyset",
    "MAX_ID",
    "MigrationStatus",
    "Migrator",
    "Page",
    "Queries",
    "Reader",
    "Reconciled",
    "Reservations",
    "Seen",
    "ShardMap",
    "Sight",
    "Snapshot",
    "Step",
    "WriteTransaction",
    "asc",
    "bucket_of",
    "desc",
    "open_writes",
    "reading",
]
