"""Templates to pages. All are read on import and compiled when the application is built; all is escaped.

`page` adds what the frame around every page shows: who is signed in, the token of the forms, a sentence about
what was just done. A page for somebody who is signed in is theirs alone and is kept nowhere.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from market.moments import iso
from market.money import CURRENCIES, Money
from market.storefront.files import ADDRESSES
from market.storefront.forms import Form, new_key
from market.storefront.pictures import face, placeholder
from market.storefront.rim import store_of
from market.storefront.said import SAID
from market.storefront.visits import people, viewer_of, visit_of

__all__ = ["environment", "page", "redirect", "write"]

HERE = Path(__file__).parent

KEPT_NOWHERE = "private, no-store"
ASK_AGAIN = "no-cache"

NBSP = "\u00a0"


_SOURCES = {
    (path.parent.parent.relative_to(HERE) / path.name).as_posix(): path.read_text()
    for path in sorted(HERE.rglob("templates/*.html"))
}
"""`area/name.html` is `area/templates/name.html`; the shared ones have no area."""


@functools.cache
def environment() -> Environment:
    """With every template compiled; built once."""
    made = Environment(
        loader=DictLoader(_SOURCES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    made.filters.update(money=money, day=day, at=at, iso=iso, count=count, query=query, segment=segment)
    made.globals.update(
        static=ADDRESSES, face=face, placeholder=placeholder, new_key=new_key, SAID=SAID,
        decimals=CURRENCIES,
    )  # fmt: skip
    for name in _SOURCES:
        made.get_template(name)
    return made


async def page(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """The page that `template` makes of `values`, inside the frame."""
    viewer = viewer_of(request)
    visit = visit_of(request)
    known = await people(request, ()) if viewer is not None else {}
    html = write(
        template,
        **{"form": Form(), "errors": {}, "photos": {}} | values,
        viewer=known.get(viewer) if viewer is not None else None,
        csrf=visit.presented.csrf if visit.presented is not None else None,
        unread=await _unread(request, viewer) if viewer is not None else 0,
        done=request.query_params.get("done"),
        here=_here(request),
    )
    response = Response(html, status, media_type="text/html")
    response.headers["Cache-Control"] = KEPT_NOWHERE if visit.presented is not None else ASK_AGAIN
    response.headers["Vary"] = "Cookie"
    return _with_cookies(request, response)


async def _unread(request: Request, viewer: int) -> int:
    """For the badge; 0 when it does not come in time."""
    store = store_of(request)
    found = await store.extras.fetch("unread", store.notifications.unread([viewer]))
    return found[0].count if found else 0


def write(template: str, **values: Any) -> str:
    return environment().get_template(template).render(**values)


def redirect(request: Request, target: str, *, done: str | None = None) -> Response:
    """To another page, with GET; `done` names a sentence of `said.SAID` that is shown there."""
    if done is not None:
        target += ("&" if "?" in target else "?") + urlencode({"done": done})
    response = RedirectResponse(target, HTTPStatus.SEE_OTHER)
    response.headers["Cache-Control"] = KEPT_NOWHERE
    return _with_cookies(request, response)


def _with_cookies(request: Request, response: Response) -> Response:
    for cookie in visit_of(request).cookies:
        response.headers.append("set-cookie", cookie)
    return response


def _here(request: Request) -> str:
    """Where to come back to after signing in: this page, if it can be asked for with GET."""
    if request.method not in ("GET", "HEAD"):
        return "/"
    asked = [(name, value) for name, value in request.query_params.multi_items() if name != "done"]
    path = quote(request.url.path)
    return f"{path}?{urlencode(asked)}" if asked else path


def money(amount: Money) -> Markup:
    """`EUR 1,250.00`, not broken into lines."""
    whole, dot, part = amount.decimal.lstrip("-").partition(".")
    sign = "\N{MINUS SIGN}" if amount.amount < 0 else ""
    return Markup(f'<span class="money">{sign}{amount.currency}{NBSP}{int(whole):,}{dot}{part}</span>')  # noqa: S704 - a code and digits


def day(moment: datetime) -> Markup:
    return Markup(f'<time datetime="{iso(moment)}">{moment.day} {moment:%B %Y}</time>')  # noqa: S704 - digits and a month


def at(moment: datetime) -> Markup:
    """To the minute, in UTC, which the page's script turns into the reader's time."""
    text = f"{moment.day} {moment:%B %Y, %H:%M} UTC"
    return Markup(f'<time datetime="{iso(moment)}" class="moment">{text}</time>')  # noqa: S704 - digits and a month


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 comment`, `1,200 comments`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def query(values: Mapping[str, object]) -> str:
    """The part of an address behind the question mark, without what is empty."""
    return urlencode({name: value for name, value in values.items() if value not in (None, "")})


def segment(text: str) -> str:
    """A part of a path."""
    return quote(text, safe="")
