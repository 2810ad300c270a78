"""What every page needs, in one value; a page finds it as `request.app.state.storefront`.

Names and places of categories are part of the program, so they are asked for once and kept; their counts are
not. Nothing else is kept between requests.
"""

from __future__ import annotations

from typing import NamedTuple

from starlette.requests import Request

from market.catalog.api import Catalog, Category
from market.content.api import Content
from market.dashboard.api import Dashboard
from market.extras import Extras
from market.media.api import Media
from market.notifications.api import Notifications
from market.orders.api import Orders
from market.recommendations.api import Recommendations
from market.rest.uploads import Uploads
from market.search.api import Search
from market.storefront.events.hub import Hub
from market.storefront.markdown import Markdown
from market.users.api import Users
from springtide.identity.cookies import SessionCookie
from springtide.identity.sessions import SessionService

__all__ = ["Place", "Store", "store_of"]


class Place(NamedTuple):
    """A category or department by name; `parent` is its department's slug."""

    slug: str
    name: str
    parent: str | None


class Store:
    """`extras`: parts that a page can do without. `development`: offers the provider's test cards."""

    def __init__(
        self,
        *,
        users: Users,
        content: Content,
        catalog: Catalog,
        orders: Orders,
        notifications: Notifications,
        search: Search,
        recommendations: Recommendations,
        dashboard: Dashboard,
        media: Media,
        sessions: SessionService,
        extras: Extras,
        uploads: Uploads,
        hub: Hub,
        cookie: SessionCookie,
        development: bool,
    ) -> None:
        self.users = users
        self.content = content
        self.catalog = catalog
        self.orders = orders
        self.notifications = notifications
        self.search = search
        self.recommendations = recommendations
        self.dashboard = dashboard
        self.media = media
        self.sessions = sessions
        self.extras = extras
        self.uploads = uploads
        self.hub = hub
        self.cookie = cookie
        self.development = development
        self.markdown = Markdown()
        self._places: dict[str, Place] = {}

    async def places(self) -> dict[str, Place]:
        """Every department and category by its slug, each department before its own."""
        if not self._places:
            self.learn(await self.catalog.categories())
        return self._places

    def learn(self, categories: list[Category]) -> None:
        """Keep the names of categories that were asked for with their counts."""
        self._places = {one.slug: Place(one.slug, one.name, one.parent) for one in categories}


def store_of(request: Request) -> Store:
    store: Store = request.app.state.storefront
    return store
