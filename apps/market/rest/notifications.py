"""The inbox, what is sent beside it, and the link in every mail that stops mails of its kind."""

from __future__ import annotations

from html import escape

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from market.faults import Invalid
from market.notifications import api as notifications
from market.rest.answers import answer, read
from market.rest.bodies import once, read_body, text_of, window
from market.rest.operations import Operation
from market.rest.rim import member, rest_of, somebody

__all__ = ["OPERATIONS"]

TAG = "Notifications"

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Mails from market</title>
<style>
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 36rem; margin: 2rem auto; padding: 0 1rem; }}
  button {{ font: inherit; padding: .5rem 1rem; }}
</style>
<main>
<h1>Mails from market</h1>
{body}
</main>
</html>
"""

ASK = """<p>Stop mails about: <strong>{kind}</strong>?</p>
<form method="post"><button>No more of these mails</button></form>
<p>They will still be in your inbox on market.</p>"""

DONE = """<p>You get no more mails about: <strong>{kind}</strong>.</p>
<p>They are still in your inbox on market, where you can also have the mails back.</p>"""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""The token is in the address: no other site may learn it, no cache keep it."""


class ReadUpTo(msgspec.Struct, frozen=True):
    """The id of the newest notice that was seen: it and all before it are read."""

    up_to: int


class Wanted(msgspec.Struct, frozen=True):
    """The kinds to change; the others stay as they are."""

    items: list[notifications.Preference]


class PushKey(msgspec.Struct, frozen=True):
    """What browsers call `applicationServerKey`, in base64url."""

    key: str


async def get_inbox(request: Request) -> Response:
    viewer = somebody(request)
    limit, after = window(request)
    return read(request, await rest_of(request).notifications.inbox(viewer, limit, after), private=True)


async def mark_read(request: Request) -> Response:
    viewer = somebody(request)
    body = await read_body(request, ReadUpTo)
    return answer(await rest_of(request).notifications.mark_read(viewer, body.up_to, await once(request)))


async def get_preferences(request: Request) -> Response:
    return read(request, await rest_of(request).notifications.preferences(somebody(request)), private=True)


async def set_preferences(request: Request) -> Response:
    somebody(request)
    body = await read_body(request, Wanted)
    viewer = await member(request)
    return answer(await rest_of(request).notifications.prefer(viewer, body.items, await once(request)))


async def get_push_key(request: Request) -> Response:
    return read(request, PushKey(await rest_of(request).notifications.push_key()))


async def subscribe(request: Request) -> Response:
    somebody(request)
    body = await read_body(request, notifications.Subscription)
    viewer = await member(request)
    await rest_of(request).notifications.subscribe(viewer, body, await once(request))
    return Response(status_code=204)


async def unsubscribe(request: Request) -> Response:
    viewer = somebody(request)
    endpoint = text_of(request, "endpoint")
    if endpoint is None:
        raise Invalid({"endpoint": ["is missing"]})
    await rest_of(request).notifications.unsubscribe(viewer, endpoint, await once(request))
    return Response(status_code=204)


async def ask_to_stop(request: Request) -> Response:
    """Changes nothing: programs that look at mails follow their links."""
    kind = await rest_of(request).notifications.mail_stopped_by(request.query_params.get("token", ""))
    return _page(ASK, kind)


async def stop_mail(request: Request) -> Response:
    kind = await rest_of(request).notifications.stop_mail(request.query_params.get("token", ""))
    return _page(DONE, kind)


def _page(body: str, kind: notifications.Kind) -> Response:
    named = escape(notifications.KIND_NAMES[kind])
    return HTMLResponse(PAGE.format(body=body.format(kind=named)), headers=HEADERS)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        id="GetNotifications", method="GET", path="/notifications", endpoint=get_inbox, tag=TAG,
        summary="Your inbox", says="The newest first; `unread` counts the whole inbox.", auth="required",
        answer=notifications.NoticePage, errors=(401,), conditional=True, listed=True,
    ),
    Operation(
        id="ReadNotifications", method="POST", path="/notifications/read", endpoint=mark_read, tag=TAG,
        summary="Mark as read up to an id", says="What was read stays so.", auth="required", body=ReadUpTo,
        answer=notifications.Unread, errors=(401,), idempotent=True,
    ),
    Operation(
        id="GetPreferences", method="GET", path="/notifications/preferences", endpoint=get_preferences,
        tag=TAG, summary="What is sent beside your inbox", auth="required", answer=notifications.Preferences,
        errors=(401,), conditional=True,
    ),
    Operation(
        id="SetPreferences", method="PUT", path="/notifications/preferences", endpoint=set_preferences,
        tag=TAG, summary="Choose what is sent", says="Kinds that are not listed stay as they are.",
        auth="required", body=Wanted, answer=notifications.Preferences, errors=(401,), idempotent=True,
    ),
    Operation(
        id="GetPushKey", method="GET", path="/notifications/push-key", endpoint=get_push_key, tag=TAG,
        summary="The key to subscribe a browser with", answer=PushKey, conditional=True,
    ),
    Operation(
        id="SubscribeBrowser", method="POST", path="/notifications/subscriptions", endpoint=subscribe,
        tag=TAG, summary="Push to this browser",
        says="With what the browser's PushSubscription holds. Of more than ten the oldest makes room.",
        auth="required", body=notifications.Subscription, status=204, errors=(401,), idempotent=True,
    ),
    Operation(
        id="UnsubscribeBrowser", method="DELETE", path="/notifications/subscriptions", endpoint=unsubscribe,
        tag=TAG, summary="No more pushes to this browser", auth="required", status=204, errors=(401,),
        idempotent=True, query=(("endpoint", "the subscription's"),),
    ),
    Operation(
        id="AskToStopMails", method="GET", path="/notifications/unsubscribe", endpoint=ask_to_stop, tag=TAG,
        summary="The page that the link in a mail leads to", says="HTML; changes nothing.", errors=(403,),
        query=(("token", "as the link has it"),),
    ),
    Operation(
        id="StopMails", method="POST", path="/notifications/unsubscribe", endpoint=stop_mail, tag=TAG,
        summary="No more mails of that kind",
        says="By one click, as mail programs send it (RFC 8058), or from the page; the body does not count.",
        errors=(403,), query=(("token", "as the link has it"),),
    ),
)  # fmt: skip
