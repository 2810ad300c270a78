"""Search under /market: what the index finds, shown as its owners have it now.

The index trails. So each hit is looked up where the thing lives, all of one kind in one call: what is
deleted, withdrawn or a draft by now is left out, and what has changed since it was indexed says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from market.catalog.api import ListingSummary
from market.faults import Invalid
from market.rest.answers import read
from market.rest.bodies import text_of, window
from market.rest.operations import Operation
from market.rest.rim import Rest, anybody, rest_of
from market.search.api import KINDS, MAX_SUGGESTIONS, Fragment, Hit, Kind, SearchQuery

__all__ = ["OPERATIONS"]

TAG = "Search"

PUBLIC = frozenset({"active", "sold_out"})


class FoundArticle(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="article"):
    """`author` is the username, None when nobody has that account any more."""

    id: int
    slug: str
    title: str
    description: str
    tags: list[str]
    author: str | None
    favorites: int
    favorited: bool
    created_at: datetime
    updated_at: datetime
    snippet: list[Fragment]
    updating: bool


class FoundListing(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="listing"):
    listing: ListingSummary
    snippet: list[Fragment]
    updating: bool


class FoundPerson(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="person"):
    id: int
    username: str
    bio: str | None
    image: str | None
    following: bool
    snippet: list[Fragment]
    updating: bool


Found = FoundArticle | FoundListing | FoundPerson


class FoundPage(msgspec.Struct, frozen=True):
    """The best first. A page may have less than `limit`, even nothing, and yet a next one.

    `updating`: the thing has changed since it was indexed; found and snippet are of what it was.
    """

    items: list[Found]
    next: str | None


class Suggestions(msgspec.Struct, frozen=True):
    items: list[str]


async def find(request: Request) -> Response:
    viewer = anybody(request)
    limit, after = window(request)
    query = SearchQuery(text=text_of(request, "q") or "", kind=_kind(request), limit=limit, after=after)
    page = await rest_of(request).search.find(query)
    items = await _shown(rest_of(request), page.items, viewer)
    return read(request, FoundPage(items, page.next), private=viewer is not None)


async def suggest(request: Request) -> Response:
    limit, _ = window(request)
    text = text_of(request, "q") or ""
    items = await rest_of(request).search.suggest(text, min(limit, MAX_SUGGESTIONS))
    return read(request, Suggestions(items))


async def _shown(rest: Rest, hits: Sequence[Hit], viewer: int | None) -> list[Found]:
    ids: dict[Kind, list[int]] = {kind: [hit.id for hit in hits if hit.kind == kind] for kind in KINDS}
    articles = await rest.content.summaries(ids["article"], viewer) if ids["article"] else []
    listings = await rest.catalog.listings(ids["listing"]) if ids["listing"] else []
    wanted = {*ids["person"], *(article.author_id for article in articles)}
    people = {person.id: person for person in await rest.users.profiles(sorted(wanted), viewer)}
    by_id = {article.id: article for article in articles}
    on_sale = {listing.id: listing for listing in listings if listing.status in PUBLIC}
    shown: list[Found] = []
    for hit in hits:
        if hit.kind == "article" and (article := by_id.get(hit.id)) is not None:
            author = people.get(article.author_id)
            shown.append(
                FoundArticle(
                    id=article.id,
                    slug=article.slug,
                    title=article.title,
                    description=article.description,
                    tags=article.tags,
                    author=None if author is None else author.username,
                    favorites=article.favorites,
                    favorited=article.favorited,
                    created_at=article.created_at,
                    updated_at=article.updated_at,
                    snippet=hit.snippet,
                    updating=article.version > hit.version,
                )
            )
        elif hit.kind == "listing" and (listing := on_sale.get(hit.id)) is not None:
            updating = listing.version > hit.version
            shown.append(FoundListing(listing=listing, snippet=hit.snippet, updating=updating))
        elif hit.kind == "person" and (person := people.get(hit.id)) is not None:
            shown.append(
                FoundPerson(
                    id=person.id,
                    username=person.username,
                    bio=person.bio,
                    image=person.image,
                    following=person.following,
                    snippet=hit.snippet,
                    updating=person.version > hit.version,
                )
            )
    return shown


def _kind(request: Request) -> Kind | None:
    kind = text_of(request, "kind")
    if kind is not None and kind not in KINDS:
        raise Invalid({"kind": [f"must be one of {', '.join(KINDS)}"]})
    return kind


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        id="Search", method="GET", path="/search", endpoint=find, tag=TAG,
        summary="Find articles, listings and people, the best first", auth="optional", answer=FoundPage,
        errors=(401,), conditional=True, listed=True,
        query=(
            ("q", 'words that must all be there; `"a phrase"`, `-without`, `one OR other`'),
            ("kind", "only `article`, `listing` or `person`"),
        ),
        says="Any text is a query; without a word nothing is found. The last word may be unfinished, and"
        " people are found under a slightly misspelt name. How many there are is not counted. A snippet is"
        " plain text in pieces, those that were looked for with `hit`.",
    ),
    Operation(
        id="Suggest", method="GET", path="/search/suggest", endpoint=suggest, tag=TAG,
        summary="Names of people and titles of listings, while somebody types", answer=Suggestions,
        conditional=True,
        query=(
            ("q", "what was typed: whole words, the last one unfinished"),
            ("limit", f"how many; more than {MAX_SUGGESTIONS} is taken as {MAX_SUGGESTIONS}"),
        ),
    ),
)  # fmt: skip
