"""What else may interest somebody, composed of ids from one module and what others know about them."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from market.catalog.api import ListingSummary
from market.recommendations.api import MAX_LIMIT
from market.rest.answers import read
from market.rest.bodies import id_of, window
from market.rest.operations import Operation
from market.rest.rim import anybody, rest_of, somebody

__all__ = ["OPERATIONS", "AlsoBought", "Authors"]

RECOMMENDATIONS = "Recommendations"
PUBLIC = frozenset({"active", "sold_out"})
LIMIT = ("limit", f"how many, 1 to {MAX_LIMIT}; more is taken as {MAX_LIMIT}")


class AlsoBought(msgspec.Struct, frozen=True):
    """Listings on sale, the best first; none when nothing is known, or not in time."""

    items: list[ListingSummary]


class Author(msgspec.Struct, frozen=True):
    id: int
    username: str
    bio: str | None
    image: str | None


class Authors(msgspec.Struct, frozen=True):
    """People, the best first; none when nothing is known, or not in time."""

    items: list[Author]


async def get_also_bought(request: Request) -> Response:
    rest, limit = rest_of(request), _limit(request)
    listing = await rest.catalog.listing(id_of(request, "listing"), anybody(request))
    ids = await rest.extras.fetch("also-bought", rest.recommendations.also_bought([listing.id], MAX_LIMIT))
    found = await rest.catalog.listings(ids)
    on_sale = [one for one in found if one.status == "active"]
    return read(request, AlsoBought(on_sale[:limit]), private=listing.status not in PUBLIC)


async def get_authors(request: Request) -> Response:
    rest, limit = rest_of(request), _limit(request)
    viewer = somebody(request)
    ids = await rest.extras.fetch("authors", rest.recommendations.authors(viewer, limit))
    known = {person.id: person for person in await rest.users.profiles(ids, viewer)}
    found = [known[id] for id in ids if id in known]
    authors = [
        Author(person.id, person.username, person.bio, person.image)
        for person in found
        if not person.following  # `users` knows of a click before any job has run
    ]
    return read(request, Authors(authors), private=True)


def _limit(request: Request) -> int:
    return min(window(request)[0], MAX_LIMIT)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        id="GetAlsoBought", method="GET", path="/listings/{id}/also-bought", endpoint=get_also_bought,
        tag=RECOMMENDATIONS, summary="What buyers of a listing bought as well", auth="optional",
        answer=AlsoBought, errors=(401, 404), conditional=True, query=(LIMIT,),
        says="Made beforehand: it trails the orders by seconds.",
    ),
    Operation(
        id="GetAuthors", method="GET", path="/recommendations/authors", endpoint=get_authors,
        tag=RECOMMENDATIONS, summary="People whom you may want to follow", auth="required", answer=Authors,
        errors=(401,), conditional=True, query=(LIMIT,),
        says="Those followed by people whom you follow, then the most followed; nobody you follow.",
    ),
)  # fmt: skip
