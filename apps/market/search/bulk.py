"""Bulk loading of the search module: many documents into an index that has none of them.

For seeds and imports, which write by COPY; everything else goes through the service. Documents must keep to
`market.search.rules`. COPY sends rows in PostgreSQL's binary form, in which the driver cannot write
vectors: they arrive as text in a table of their own and are moved from there, batch by batch, in the load's
transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from market.search.api import Document
from market.search.service import row_of
from market.search.vectors import FORM
from springtide.db import Database, bucket_of

if TYPE_CHECKING:
    from springtide.ops.load.seeding import BulkLoad

__all__ = ["copy_documents"]

BATCH = 2_000

MOVE = """
with arrived as (
    delete from search.arriving
    returning bucket, kind, id, version, form, title, body, names::tsvector, words::tsvector
)
insert into search.document (bucket, kind, id, version, form, title, body, names, words)
select bucket, kind, id, version, form, title, body, names, words from arrived
"""


async def copy_documents(load: BulkLoad, db: Database, documents: Iterable[Document]) -> None:
    """`documents`, each thing once, BATCH at a time."""
    columns = ["bucket", "form", "kind", "id", "version", "title", "body", "names", "words"]
    waiting = iter(documents)
    while batch := list(islice(waiting, BATCH)):
        rows = ((bucket_of(document.id), FORM, *row_of(document)) for document in batch)
        await load.copy(db, "arriving", columns, rows)
        await load.execute(db, "document", MOVE)
    load.rows.pop("search.arriving", None)
