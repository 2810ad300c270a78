"""Pushes to the browser that somebody sits at: on and off over the pages, and never for somebody else."""

from __future__ import annotations

import re

from tests.market.harness import PASSWORD, Api, one_platform, one_shard
from tests.market.pages import Browser, browser
from tests.market.pushing import Browser as Device

from market.notifications.api import KINDS, Notifications
from market.users.api import Users

pytestmark = [one_platform, one_shard]

NOTICES = "/account/notices"
ENDPOINT = "https://push.example.com/send/1"


async def subscribed(api: Api) -> list[tuple[int, str]]:
    """Who is pushed to, and where."""
    rows = await api.platform.database("notifications").scatter(
        "select recipient_id, endpoint from notifications.subscription"
    )
    return sorted((row["recipient_id"], row["endpoint"]) for row in rows)


async def id_of(api: Api, name: str) -> int:
    found = await api.service(Users).find(name)
    assert found is not None
    return found


async def turn_on(who: Browser, endpoint: str = ENDPOINT, *, expect: int = 200, **wrong: str) -> None:
    """What the page's script does."""
    await who.get(NOTICES)
    await who.send("/account/push", Device(endpoint).subscription_json() | wrong, expect=expect)


async def test_a_device_is_turned_on_and_off(api: Api) -> None:
    """The page says what holds; the cookie that names the endpoint is out of reach of scripts."""
    jake = await browser(api).sign_up("Jake")
    section = dict((await jake.get(NOTICES)).tags)["section"]
    assert "hidden" in section, "without a script nothing can be turned on"
    assert section["data-key"] == await api.service(Notifications).push_key()
    answer = await jake.client.post(
        "/account/push", data=jake.page.form("/account/push") | Device(ENDPOINT).subscription_json()
    )
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-push=")
    for part in ("Secure", "HttpOnly", "SameSite=Lax", "Path=/"):
        assert f"; {part}" in cookie
    assert await subscribed(api) == [(await id_of(api, "Jake"), ENDPOINT)]
    section = dict((await jake.get(NOTICES)).tags)["section"]
    assert "hidden" not in section and "data-on" in section
    assert "shows notices as they come" in jake.page.text
    await jake.send("/account/push/remove")
    assert "shows no notices" in jake.page.text
    assert await subscribed(api) == []
    await jake.get(NOTICES)
    assert "__Host-push" not in {cookie.name for cookie in jake.client.cookies.jar}


async def test_an_endpoint_that_is_renewed_replaces_the_one_before(api: Api) -> None:
    jake = await browser(api).sign_up("Jake")
    for path in ("send/1", "send/2", "send/2"):
        await turn_on(jake, f"https://push.example.com/{path}")
    assert await subscribed(api) == [(await id_of(api, "Jake"), "https://push.example.com/send/2")]


async def test_addresses_of_no_push_service_are_refused(api: Api) -> None:
    """422 with the reason, and nothing is kept, in the cookie neither."""
    jake = await browser(api).sign_up("Jake")
    for endpoint in ("http://push.example.com/1", "https://127.0.0.1/1", "https://localhost/1",
                     "https://me@push.example.com/", "javascript:alert(1)", "x" * 3_000, ""):  # fmt: skip
        await turn_on(jake, endpoint, expect=422)
        assert "Please look at this again" in jake.page.text
    await turn_on(jake, p256dh="AAAA", expect=422)
    await turn_on(jake, auth="<b>", expect=422)
    assert await subscribed(api) == []
    assert "shows no notices" in (await jake.get(NOTICES)).text


async def test_a_subscription_needs_a_session_and_its_token(api: Api) -> None:
    """Nobody is subscribed from elsewhere, and a session without an account is led to the form."""
    jake = await browser(api).sign_up("Jake")
    given = Device(ENDPOINT).subscription_json()
    form = (await jake.get(NOTICES)).form("/account/push") | given
    for path in ("/account/push", "/account/push/remove"):
        await browser(api).post(path, form, expect=403)
        await jake.post(path, given, expect=403)
        await jake.post(path, form, expect=403, headers={"Origin": "https://evil.example"})
        stranger = browser(api)
        token = (await stranger.get("/sign-in")).form("/sign-in")["csrf"]
        await stranger.post(path, form | {"csrf": token}, expect=303, follow_redirects=False)
        assert stranger.response is not None
        assert stranger.response.headers["location"].startswith("/sign-in")
    assert await subscribed(api) == []


async def test_signing_out_forgets_this_browser_alone(api: Api) -> None:
    """Also without scripts; the other device of the same person goes on."""
    here, there = await browser(api).sign_up("Jake"), browser(api)
    await there.get("/sign-in")
    await there.send("/sign-in", {"email": "jake@example.com", "password": PASSWORD})
    await turn_on(here)
    await turn_on(there, "https://push.example.com/send/2")
    await here.get("/")
    await here.send("/sign-out")
    assert await subscribed(api) == [(await id_of(api, "Jake"), "https://push.example.com/send/2")]
    assert "shows notices as they come" in (await there.get(NOTICES)).text


async def test_who_signs_in_next_gets_nothing_of_who_was_here_before(api: Api) -> None:
    """After a session that ended by itself; who comes back finds it on."""
    jake = await browser(api).sign_up("Jake")
    await turn_on(jake)
    await browser(api).sign_up("Anna")
    for name, kept in (("jake", True), ("anna", False)):
        session = next(cookie for cookie in jake.client.cookies.jar if cookie.name == "__Host-session")
        jake.client.cookies.delete(session.name, domain=session.domain, path=session.path)
        await jake.get("/sign-in")
        await jake.send("/sign-in", {"email": f"{name}@example.com", "password": PASSWORD})
        assert await subscribed(api) == ([(await id_of(api, "Jake"), ENDPOINT)] if kept else [])
        assert ("shows notices as they come" in (await jake.get(NOTICES)).text) is kept


async def test_a_cookie_that_was_not_set_by_us_is_none(api: Api) -> None:
    """Whatever it holds, pages come and signing out works."""
    for value in ("x", "1.", ".eA", "1.%00", "1.AAAA", "-1.eA", "9" * 30 + ".eA", "1." + "A" * 3_500):
        jake = browser(api)
        jake.client.cookies.set("__Host-push", value, domain="market.test", path="/")
        await jake.get("/sign-up")
        name = f"J{next(api._numbers)}"
        await jake.send("/sign-up", {"username": name, "email": f"{name}@example.com", "password": PASSWORD})
        jake.client.cookies.set("__Host-push", value, domain="market.test", path="/")
        assert "shows no notices" in (await jake.get(NOTICES)).text
        await jake.send("/sign-out")
        assert "You are signed out" in jake.page.text


async def test_each_kind_is_chosen_for_mail_and_push(api: Api) -> None:
    """Both columns are shown as they are, and the whole form counts."""
    jake = await browser(api).sign_up("Jake")
    id, notifications = await id_of(api, "Jake"), api.service(Notifications)
    token = (await jake.get(NOTICES)).form(NOTICES)["csrf"]
    wanted = {"csrf": token, "mail": ["comment"], "push": ["sale", "comment"]}
    assert (await jake.client.post(NOTICES, data=wanted)).status_code == 303
    found = {one.kind: (one.mail, one.push) for one in (await notifications.preferences(id)).items}
    assert found == {kind: (kind == "comment", kind in ("sale", "comment")) for kind in KINDS}
    await jake.get(NOTICES)
    ticked = {(a["name"], a["value"]) for tag, a in jake.page.tags if tag == "input" and "checked" in a}
    assert ticked == {("mail", "comment"), ("push", "sale"), ("push", "comment")}


async def test_the_worker_is_served_at_the_root_and_asked_for_again(api: Api) -> None:
    """Its address never changes, so browsers must ask; pages may load it from this site alone."""
    visitor = browser(api)
    answer = await visitor.client.get("/push-worker.js")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["service-worker-allowed"] == "/"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in answer.headers
    await visitor.get("/")
    assert visitor.response is not None
    assert re.search(r"; worker-src 'self';", visitor.response.headers["content-security-policy"])
