"""What every route of the API needs, in one value; a route finds it as `request.app.state.rim`."""

from __future__ import annotations

from starlette.requests import Request

from market.content.api import Content
from market.realworld.composing import Composer
from market.realworld.viewers import Viewers
from market.users.api import Users

__all__ = ["Rim", "rim_of"]


class Rim:
    def __init__(self, *, users: Users, content: Content, viewers: Viewers) -> None:
        self.users = users
        self.content = content
        self.viewers = viewers
        self.composer = Composer(users)


def rim_of(request: Request) -> Rim:
    rim: Rim = request.app.state.rim
    return rim
