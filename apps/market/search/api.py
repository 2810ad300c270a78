"""What the search module offers to the rest of the application: the only part of it that may be imported.

The index is a copy that trails. Whoever owns a thing puts it here after each change, by a job; what is shown
of a hit is asked of the owner, who also decides whether it may be seen. Each hit says from which `version` it
was indexed, so that a page can tell when the thing has changed since.

Puts and removals may come twice and in any order: for each (kind, id) the highest version wins, and of one
version the removal.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from market.faults import Invalid
from springtide.services import raises

__all__ = [
    "KINDS",
    "MAX_DOCUMENTS",
    "MAX_IDS",
    "MAX_LIMIT",
    "MAX_SUGGESTIONS",
    "MAX_TAGS",
    "TAG_LENGTH",
    "TEXT_LENGTH",
    "TITLE_LENGTH",
    "Document",
    "Fragment",
    "Hit",
    "HitPage",
    "Kind",
    "Search",
    "SearchQuery",
    "Versioned",
]

Kind = Literal["article", "listing", "person"]

KINDS: tuple[Kind, ...] = ("article", "listing", "person")

TITLE_LENGTH = 300
TEXT_LENGTH = 250_000
TAG_LENGTH = 64
"""The longest of each, in characters."""

MAX_TAGS = 20
"""Tags of one document."""

MAX_DOCUMENTS = 200
MAX_IDS = 1_000
"""Documents of one `put`; things of one `lacking`."""

MAX_LIMIT = 100
MAX_SUGGESTIONS = 20
"""The longest page of hits; the most suggestions."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be found: of a person, the name as title and what they write about themselves as text.

    `version` only ever grows for one (kind, id). A match in the title counts most, then one in the tags.
    """

    kind: Kind
    id: int
    version: int
    title: str
    text: str
    tags: list[str] = []


class Versioned(msgspec.Struct, frozen=True, kw_only=True):
    """A thing as its owner has it now."""

    id: int
    version: int


class SearchQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Words that must all be there; `"a phrase"`, `-without`, `either OR or`; the last word may be
    unfinished.

    Any text is a query: what is no word is not looked for, and without a word nothing is found. `limit` is 1
    to 100, `after` the cursor of the page before.
    """

    text: str
    kind: Kind | None = None
    limit: int = 20
    after: str | None = None


class Fragment(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of text as it was written, not escaped for anything; `hit` when it is what was looked for."""

    text: str
    hit: bool


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """`title` and `snippet` are of `version`; the fragments of a snippet follow each other without a gap."""

    kind: Kind
    id: int
    version: int
    title: str
    snippet: list[Fragment]


class HitPage(msgspec.Struct, frozen=True, kw_only=True):
    """The best first. `next` is the cursor of the next page, None on the last."""

    items: list[Hit]
    next: str | None


class Search(Protocol):
    """Errors are those of `market.faults`; each method names the ones it raises."""

    @raises(Invalid)
    async def put(self, documents: list[Document]) -> None:
        """Make them findable; a version that is not newer than what is known changes nothing.

        Raises Invalid for what no document can be, and for more than 200.
        """

    @raises(Invalid)
    async def remove(self, kind: Kind, id: int, version: int) -> None:
        """Not to be found any more; only a higher version than `version` can be put again. Raises Invalid."""

    @raises(Invalid)
    async def lacking(self, kind: Kind, things: list[Versioned]) -> list[int]:
        """The ids of those that the index has not, or not in that version: they should be put.

        Raises Invalid for more than 1,000.
        """

    @raises(Invalid)
    async def find(self, query: SearchQuery) -> HitPage:
        """Raises Invalid for a limit, and a cursor of another list."""

    @raises(Invalid)
    async def suggest(self, text: str, limit: int) -> list[str]:
        """Names of people and titles of listings that have the words of `text`, the last one as a beginning.

        Raises Invalid for a limit that is not 1 to 20.
        """
