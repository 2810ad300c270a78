"""What the routes under /market need, in one value; a route finds it as `request.app.state.rest`.

Who asks is found by the same tokens as under /api. A token of somebody who has no account is 401 where
something would be written for them.
"""

from __future__ import annotations

from starlette.requests import Request

from market.analytics.api import Analytics
from market.catalog.api import Catalog
from market.content.api import Content
from market.dashboard.api import Dashboard
from market.extras import Extras
from market.media.api import Media
from market.notifications.api import Notifications
from market.orders.api import Orders
from market.payments.api import Payments
from market.realworld.answers import Unauthorized
from market.realworld.viewers import Viewers
from market.recommendations.api import Recommendations
from market.rest.uploads import Uploads
from market.search.api import Search
from market.users.api import Users
from market.webhooks.api import Webhooks

__all__ = ["Rest", "anybody", "member", "rest_of", "somebody"]


class Rest:
    def __init__(
        self,
        *,
        users: Users,
        content: Content,
        catalog: Catalog,
        orders: Orders,
        payments: Payments,
        notifications: Notifications,
        recommendations: Recommendations,
        dashboard: Dashboard,
        media: Media,
        search: Search,
        webhooks: Webhooks,
        analytics: Analytics,
        viewers: Viewers,
        extras: Extras,
    ) -> None:
        self.users = users
        self.content = content
        self.catalog = catalog
        self.orders = orders
        self.payments = payments
        self.notifications = notifications
        self.recommendations = recommendations
        self.dashboard = dashboard
        self.media = media
        self.search = search
        self.webhooks = webhooks
        self.analytics = analytics
        self.viewers = viewers
        self.extras = extras
        self.uploads = Uploads()


def rest_of(request: Request) -> Rest:
    rest: Rest = request.app.state.rest
    return rest


def anybody(request: Request) -> int | None:
    """Who asks, None for nobody. Raises Unauthorized for a token that does not pass."""
    return rest_of(request).viewers.optional(request)


def somebody(request: Request) -> int:
    """Who asks. Raises Unauthorized for nobody."""
    return rest_of(request).viewers.required(request)


async def member(request: Request) -> int:
    """Who asks, and has an account. Raises Unauthorized."""
    viewer = somebody(request)
    if not await rest_of(request).users.profiles([viewer], None):
        raise Unauthorized("token", "is invalid")
    return viewer
