"""The database layer: pools to clusters, and modules' tables over them.

shards      which bucket a key belongs to, which shard holds it
router      `Database`: each statement to the shard of its key
ids         ids that carry their bucket
scatter     one statement on every shard, rows merged
keyset      pages behind a cursor
causality   positions in the write-ahead log
"""

from springtide.db._writing import WriteTransaction
from springtide.db.consistency import Consistency
from springtide.db.ids import MAX_ID, Ids
from springtide.db.keyset import Column, Keyset, Page, Step, asc, desc
from springtide.db.router import Database, Queries, Reader, Snapshot
from springtide.db.scatter import ASC, DESC, Direction
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
    "Page",
    "Queries",
    "Reader",
    "ShardMap",
    "Snapshot",
    "Step",
    "WriteTransaction",
    "asc",
    "bucket_of",
    "desc",
]
