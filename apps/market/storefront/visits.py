"""Who visits: the session behind a request, and the people whose names its page shows.

A visitor who only looks has no session and causes no write. One is opened with the first form that needs it
(signing in, signing up). All people of a page, the viewer among them, are asked for in one call.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.requests import Request

from market.storefront.rim import store_of
from market.users.api import Profile
from springtide.identity.sessions import Opened
from springtide.web.sessions import Presented, presented

__all__ = ["SignInFirst", "Visit", "handed", "member", "people", "viewer_of", "visit_of", "visitor"]


class SignInFirst(Exception):
    """The page is for people who have signed in."""


@dataclass(slots=True)
class Visit:
    """`presented`: the session, also one that was opened during this request.

    cookies: Set-Cookie headers that the answer must carry.
    people:  whom this request has asked about; the viewer is among them once anybody was asked for.
    """

    presented: Presented | None
    cookies: list[str] = field(default_factory=list)
    people: dict[int, Profile] = field(default_factory=dict)


def visit_of(request: Request) -> Visit:
    visit: Visit | None = getattr(request.state, "visit", None)
    if visit is None:
        found = presented(request) if "springtide.session" in request.scope else None
        visit = request.state.visit = Visit(found)
    return visit


def viewer_of(request: Request) -> int | None:
    """Whose session it is; None for somebody who has not signed in."""
    found = visit_of(request).presented
    return None if found is None else found.session.subject


async def member(request: Request) -> int:
    """Who asks, and has an account. Raises SignInFirst."""
    viewer = viewer_of(request)
    if viewer is None or viewer not in await people(request, ()):
        raise SignInFirst
    return viewer


async def visitor(request: Request) -> Presented:
    """The session behind an answer with a form for somebody not signed in; opened when there is none."""
    visit = visit_of(request)
    if visit.presented is None:
        handed(request, await store_of(request).sessions.open())
    assert visit.presented is not None
    return visit.presented


def handed(request: Request, opened: Opened, *, max_age: float | None = None) -> None:
    """The browser gets this session's cookie with the answer, and the answer's forms are made for it."""
    visit = visit_of(request)
    visit.presented = Presented(opened.session, opened.cookie)
    visit.cookies.append(store_of(request).cookie.set(opened.cookie, max_age=max_age))


async def people(request: Request, ids: Iterable[int]) -> dict[int, Profile]:
    """Everybody in `ids` that has an account, and the viewer; one call for those not known yet."""
    visit, viewer = visit_of(request), viewer_of(request)
    wanted = dict.fromkeys([*ids, *([] if viewer is None else [viewer])])
    missing = [id for id in wanted if id not in visit.people]
    if missing:
        others = missing != [viewer]  # whether the viewer follows them is asked for others alone
        found = await store_of(request).users.profiles(missing, viewer if others else None)
        visit.people.update((profile.id, profile) for profile in found)
    return visit.people
