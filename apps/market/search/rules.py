"""What a document and a query may be. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from market.checks import Checks, storable
from market.search.api import (
    KINDS,
    MAX_DOCUMENTS,
    MAX_IDS,
    MAX_LIMIT,
    MAX_SUGGESTIONS,
    MAX_TAGS,
    TAG_LENGTH,
    TEXT_LENGTH,
    TITLE_LENGTH,
    Document,
    SearchQuery,
    Versioned,
)

__all__ = ["check_documents", "check_query", "check_removal", "check_suggestion", "check_things"]

MAX_ID = (1 << 53) - 1
MAX_VERSION = (1 << 31) - 1


def check_documents(documents: Sequence[Document]) -> list[Document]:
    """Each thing once, in its highest version. Raises Invalid."""
    checks = Checks()
    if len(documents) > MAX_DOCUMENTS:
        checks.fault("documents", f"are too many (maximum is {MAX_DOCUMENTS})")
    newest: dict[tuple[str, int], Document] = {}
    for document in documents[:MAX_DOCUMENTS]:
        _thing(checks, document.kind, document.id, document.version)
        checks.text("title", document.title, max_length=TITLE_LENGTH)
        checks.text("text", document.text, max_length=TEXT_LENGTH, required=False)
        if len(document.tags) > MAX_TAGS:
            checks.fault("tags", f"are too many (maximum is {MAX_TAGS})")
        for tag in document.tags[:MAX_TAGS]:
            checks.text("tags", tag, max_length=TAG_LENGTH)
        known = newest.get((document.kind, document.id))
        if known is None or known.version < document.version:
            newest[document.kind, document.id] = document
    checks.finish()
    return list(newest.values())


def check_removal(kind: str, id: int, version: int) -> None:
    checks = Checks()
    _thing(checks, kind, id, version)
    checks.finish()


def check_things(kind: str, things: Sequence[Versioned]) -> None:
    checks = Checks()
    if len(things) > MAX_IDS:
        checks.fault("things", f"are too many (maximum is {MAX_IDS})")
    for thing in things[:MAX_IDS]:
        _thing(checks, kind, thing.id, thing.version)
    checks.finish()


def check_query(query: SearchQuery) -> None:
    checks = Checks()
    if not storable(query.text):
        checks.fault("text", "contains characters that cannot be stored")
    if query.kind is not None and query.kind not in KINDS:
        checks.fault("kind", "does not exist")
    if not 1 <= query.limit <= MAX_LIMIT:
        checks.fault("limit", f"must be between 1 and {MAX_LIMIT}")
    checks.finish()


def check_suggestion(text: str, limit: int) -> None:
    checks = Checks()
    if not storable(text):
        checks.fault("text", "contains characters that cannot be stored")
    if not 1 <= limit <= MAX_SUGGESTIONS:
        checks.fault("limit", f"must be between 1 and {MAX_SUGGESTIONS}")
    checks.finish()


def _thing(checks: Checks, kind: str, id: int, version: int) -> None:
    if kind not in KINDS:
        checks.fault("kind", "does not exist")
    if not 0 <= id <= MAX_ID:
        checks.fault("id", "is no id")
    if not 1 <= version <= MAX_VERSION:
        checks.fault("version", f"must be between 1 and {MAX_VERSION}")
