"""A person as others see them: who they are, what they wrote and liked; following."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.content.api import ArticleQuery
from market.faults import NotFound
from market.storefront.articles.reading import LIMIT, articles_page, window
from market.storefront.forms import local, submitted
from market.storefront.rendering import redirect, segment
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import member, viewer_of, visit_of

__all__ = ["PAGES"]


async def profile(request: Request) -> Response:
    store, viewer, number = store_of(request), viewer_of(request), window(request)
    person = await store.users.profile(request.path_params["username"], viewer)
    if person is None:
        raise NotFound("person")
    visit_of(request).people[person.id] = person
    liked = request.query_params.get("show") == "favourites"
    query = ArticleQuery(
        author_id=None if liked else person.id,
        favorited_by=person.id if liked else None,
        limit=LIMIT,
        offset=(number - 1) * LIMIT,
    )
    found = await store.content.articles(query, viewer)
    shop = await store.catalog.shop_of(person.id)
    return await articles_page(
        request, "articles/profile.html", found, number, person=person, liked=liked, shop=shop
    )


async def follow(request: Request) -> Response:
    form, viewer = await submitted(request), await member(request)
    users, username = store_of(request).users, request.path_params["username"]
    mark = users.unfollow if form.text("undo") else users.follow
    person = await mark(viewer, username)
    return redirect(request, local(form.text("back"), f"/people/{segment(person.username)}"))


PAGES = (
    Page("GET", "/people/{username}", profile),
    Page("POST", "/people/{username}/follow", follow),
)
