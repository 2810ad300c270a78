"""Notifications over HTTP: /market/notifications."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from tests.market.harness import Api, Person, one_platform, one_shard
from tests.market.pushing import Browser

from market.notifications.api import Notice, Notifications
from market.users.api import Users

pytestmark = one_platform


async def send(api: Api, method: str, path: str, json: Any = None, **options: Any) -> httpx.Response:
    """A request under /market; every refusal has the shape of RFC 9457."""
    by: Person | None = options.pop("by", None)
    headers = {} if by is None else {"Authorization": f"Bearer {by.token}"}
    headers |= options.pop("headers", {})
    if json is not None:
        options["json"] = json
    response = await api.client.request(method, f"/market/notifications{path}", headers=headers, **options)
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == response.status_code
    return response


async def told(api: Api, *keys: str) -> Person:
    """Somebody with a notice for each key."""
    person = await api.person()
    id = await api.service(Users).find(person.username)
    assert id is not None
    for key in keys:
        data = {"actor": str(id), "article": "On tides", "excerpt": "Well said"}
        notice = Notice(recipient=id, kind="comment", key=key, data=data, link="/articles/on-tides")
        await api.service(Notifications).notify(notice)
    return person


async def test_an_inbox_is_read_in_pages(api: Api) -> None:
    ann, bob = await told(api, "1", "2", "3"), await told(api)
    page = (await send(api, "GET", "?limit=2", by=ann)).json()
    assert [item["id"] for item in page["items"]] == [3, 2]
    assert page["unread"] == 3
    assert page["items"][0]["mail"] == "unconfigured"
    rest = (await send(api, "GET", f"?limit=2&after={page['next']}", by=ann)).json()
    assert ([item["id"] for item in rest["items"]], rest["next"]) == ([1], None)
    assert (await send(api, "GET", "", by=bob)).json()["items"] == []
    response = await send(api, "GET", "", by=ann)
    assert "private" in response.headers["cache-control"]
    again = await send(api, "GET", "", by=ann, headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304


async def test_reading_counts_once_per_key(api: Api) -> None:
    """The repetition of a request gets the answer of the first, whatever came meanwhile."""
    ann = await told(api, "1", "2")
    headers = {"Idempotency-Key": "read-to-one"}
    first = await send(api, "POST", "/read", {"up_to": 1}, by=ann, headers=headers)
    assert first.json()["count"] == 1
    await send(api, "POST", "/read", {"up_to": 2}, by=ann)
    assert (await send(api, "POST", "/read", {"up_to": 1}, by=ann, headers=headers)).json() == first.json()
    other = await send(api, "POST", "/read", {"up_to": 2}, by=ann, headers=headers)
    assert other.status_code == 422
    assert (await send(api, "GET", "", by=ann)).json()["unread"] == 0
    assert (await send(api, "POST", "/read", {"up_to": 0}, by=ann)).json()["errors"] == {
        "up_to": ["is no id"]
    }


async def test_preferences_change_what_is_listed(api: Api) -> None:
    ann = await told(api)
    wanted = [{"kind": "comment", "mail": False, "push": True}]
    changed = (await send(api, "PUT", "/preferences", {"items": wanted}, by=ann)).json()
    said = {item["kind"]: (item["mail"], item["push"]) for item in changed["items"]}
    assert said.pop("comment") == (False, True)
    assert set(said.values()) == {(True, True)}
    assert (await send(api, "GET", "/preferences", by=ann)).json() == changed
    for items in ([], wanted * 2, [{"kind": "weather", "mail": True, "push": True}], [{"kind": "sale"}]):
        response = await send(api, "PUT", "/preferences", {"items": items}, by=ann)
        assert (response.status_code, list(response.json()["errors"])) == (422, ["items"])


@one_shard
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""), ("POST", "/read"), ("GET", "/preferences"), ("PUT", "/preferences"),
        ("POST", "/subscriptions"), ("DELETE", "/subscriptions"),
    ],
)  # fmt: skip
async def test_nobody_reads_or_changes_anything(api: Api, method: str, path: str) -> None:
    assert (await send(api, method, path)).status_code == 401


@one_shard
async def test_subscriptions_come_and_go(api: Api) -> None:
    """The key is one that browsers take; the endpoint must be a push service's."""
    ann, browser = await told(api), Browser("https://push.example.com/x")
    key = (await send(api, "GET", "/push-key")).json()["key"]
    assert len(key) == 87
    body = browser.subscription_json()
    headers = {"Idempotency-Key": "subscribe-1"}
    for _ in range(2):
        response = await send(api, "POST", "/subscriptions", body, by=ann, headers=headers)
        assert response.status_code == 204
    query = "select endpoint from notifications.subscription"
    assert len(await api.platform.database("notifications").scatter(query)) == 1
    for endpoint in (
        "http://push.example.com/x", "https://127.0.0.1/x", "https://localhost/x", "https://10.0.0.5/x",
        "https://[::1]/x", "https://user@push.example.com/", "https://push.example.com:22/", "https://printer/",
        "https://2130706433/", "https://push.example.com\\@evil/", "ftp://push.example.com/", "x" * 3000, "",
        f"https://{'a' * 64}.example.com/",
    ):  # fmt: skip
        refused = await send(api, "POST", "/subscriptions", {**body, "endpoint": endpoint}, by=ann)
        assert (refused.status_code, list(refused.json()["errors"])) == (422, ["endpoint"]), endpoint
    for field in ("p256dh", "auth"):
        for value in ("", "!", "A" * 87, "é"):
            refused = await send(api, "POST", "/subscriptions", {**body, field: value}, by=ann)
            assert (refused.status_code, list(refused.json()["errors"])) == (422, [field]), value
    assert (await send(api, "DELETE", "/subscriptions", by=ann)).status_code == 422
    gone = await send(api, "DELETE", "/subscriptions", by=ann, params={"endpoint": body["endpoint"]})
    assert gone.status_code == 204
    assert await api.platform.database("notifications").scatter(query) == []


async def test_the_link_in_a_mail_stops_mails_of_its_kind(api: Api) -> None:
    """Looking at it changes nothing; one click, as a mail program sends it, does."""
    ann = await told(api)
    id = await api.service(Users).find(ann.username)
    token = await _token(api, id)
    page = await send(api, "GET", "/unsubscribe", params={"token": token})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "Comments on your articles" in page.text
    assert '<form method="post">' in page.text
    assert (page.headers["referrer-policy"], page.headers["cache-control"]) == ("no-referrer", "no-store")
    assert await _mails_about(api, ann) == {"comment": True, "sale": True}
    form = {"List-Unsubscribe": "One-Click"}
    done = await send(api, "POST", "/unsubscribe", params={"token": token}, data=form)
    assert done.status_code == 200
    assert await _mails_about(api, ann) == {"comment": False, "sale": True}
    await send(api, "POST", "/unsubscribe", params={"token": token})
    assert await _mails_about(api, ann) == {"comment": False, "sale": True}


async def test_only_our_own_links_stop_mails(api: Api) -> None:
    """A token says whose mails of which kind; no part of it can be changed."""
    ann, bob = await told(api), await told(api)
    users = api.service(Users)
    token = await _token(api, await users.find(ann.username))
    bobs = await users.find(bob.username)
    _, kind, mac = token.split(".")
    last = "A" if mac[20] != "A" else "B"
    for forged in (
        f"{bobs}.{kind}.{mac}", token.replace("comment", "sale"), token[:-1], "", "x", f"{token}=",
        token.replace(mac, mac[:20] + last + mac[21:]), f"99999999999999999.comment.{mac}",
    ):  # fmt: skip
        for method in ("GET", "POST"):
            response = await send(api, method, "/unsubscribe", params={"token": forged})
            assert response.status_code == 403, forged
    assert await _mails_about(api, bob) == {"comment": True, "sale": True}


async def _token(api: Api, id: int | None) -> str:
    """As a mail has it."""
    assert id is not None
    keys = api.platform._registry.implementation("notifications")._keys
    token: str = await keys.token(id, "comment")
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", token)
    return token


async def _mails_about(api: Api, by: Person) -> dict[str, bool]:
    items = (await send(api, "GET", "/preferences", by=by)).json()["items"]
    return {item["kind"]: item["mail"] for item in items if item["kind"] in ("comment", "sale")}
