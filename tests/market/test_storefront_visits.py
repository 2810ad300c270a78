"""Who visits: sessions, signing in and out, forgery, ways back, devices."""

from __future__ import annotations

import httpx
import pytest
from tests.market.harness import PASSWORD, Api, forgotten, one_platform, one_shard
from tests.market.pages import BASE, Browser, browser

from market.storefront.pages import PAGES

pytestmark = one_platform

UNSAFE = sorted({page.path for page in PAGES if page.method == "POST"})
PRIVATE = ["/account", "/account/devices", "/feed", "/write", "/selling/listings"]


@pytest.fixture
def visitor(api: Api) -> Browser:
    return browser(api)


async def sessions(api: Api) -> int:
    return int(await api.platform.database("sessions").scatter_sum("select count(*) from sessions.session"))


def cookie_of(one: Browser) -> str:
    (value,) = [cookie.value for cookie in one.client.cookies.jar if cookie.name == "__Host-session"]
    assert value is not None
    return value


async def test_signing_up_in_and_out(visitor: Browser) -> None:
    """One journey: an account and its session, its end, another session; the page says who is signed in."""
    await visitor.sign_up("Jake")
    assert "Your account is ready" in visitor.page.text
    await visitor.get("/account")
    await visitor.send("/sign-out")
    assert "You are signed out" in visitor.page.text
    assert "Jake" not in visitor.page.text
    await visitor.get("/sign-in?next=/account")
    await visitor.send("/sign-in", {"email": "jake@example.com", "password": PASSWORD})
    assert visitor.path == "/account"
    assert visitor.page.form("/account/profile")["username"] == "Jake"


async def test_who_only_looks_writes_nothing(api: Api, visitor: Browser) -> None:
    """A crawler on every page that can be browsed leaves no session and causes no write at all."""
    author = await api.person("Jake")
    slug = (await api.article(author, tagList=["t"]))["slug"]
    api.recorder.statements.clear()
    for path in (
        "/",
        "/browse",
        "/browse/books",
        "/articles",
        "/articles?tag=t",
        f"/articles/{slug}",
        "/people/Jake",
    ):
        await visitor.get(path)
        assert "set-cookie" not in visitor.response.headers, path
    assert await sessions(api) == 0
    for signal in api.recorder.statements:
        assert signal.statement.lstrip().lower().startswith(("select", "with")), signal.statement


async def test_the_cookie_is_safe(visitor: Browser) -> None:
    """Secure, of this host and path alone, out of reach of scripts, not sent along by other sites' forms."""
    await visitor.get("/sign-in")
    header = visitor.response.headers["set-cookie"]
    assert header.startswith("__Host-session=")
    for part in ("Secure", "HttpOnly", "SameSite=Lax", "Path=/"):
        assert f"; {part}" in header
    assert "Domain" not in header


async def test_signing_in_changes_the_cookie(api: Api, visitor: Browser) -> None:
    """Who has planted or seen a visitor's cookie is nobody after the visitor has signed in."""
    await visitor.get("/sign-in")
    planted = cookie_of(visitor)
    await visitor.sign_up("Jake")
    assert cookie_of(visitor) != planted
    thief = browser(api)
    thief.client.cookies.set("__Host-session", planted, domain="market.test", path="/")
    await thief.get("/account", expect=303)
    assert thief.response.headers["location"].startswith("/sign-in")


@one_shard
@pytest.mark.parametrize("path", UNSAFE)
async def test_every_form_proves_where_it_comes_from(api: Api, visitor: Browser, path: str) -> None:
    """403 without a token, with another session's token, and from another site's page with the right one."""
    stranger = await browser(api).sign_up("Stranger")
    foreign = stranger.page.form("/sign-out")["csrf"]
    await visitor.sign_up("Jake")
    own = visitor.page.form("/sign-out")["csrf"]
    address = path.replace("{id}", "1").replace("{slug}", "slug").replace("{username}", "Stranger")
    await visitor.post(address, {}, expect=403)
    await visitor.post(address, {"csrf": foreign}, expect=403)
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        await visitor.post(address, {"csrf": own}, expect=403, headers=headers)
    await browser(api).post(address, {"csrf": own}, expect=403)
    assert "out of date" in visitor.page.text


@one_shard
@pytest.mark.parametrize("path", PRIVATE)
async def test_private_pages_ask_to_sign_in_and_come_back(visitor: Browser, path: str) -> None:
    """A stranger is led to the form and from there to the page; what they see is kept nowhere."""
    await visitor.get(path, expect=303)
    assert visitor.response.headers["location"] == f"/sign-in?next={path.replace('/', '%2F')}"
    await visitor.sign_up("Jake")
    await visitor.get(path, follow_redirects=True)
    assert visitor.response.headers["cache-control"] == "private, no-store"


@one_shard
async def test_signing_in_leads_nowhere_else(visitor: Browser) -> None:
    """`next` of an address or of a form that somebody changed is not followed to another site."""
    await visitor.get("/sign-up?next=//evil.example")
    assert visitor.page.form("/sign-up")["next"] == "/"
    fields = {"username": "Jake", "email": "j@example.com", "password": PASSWORD, "next": "//evil.example"}
    await visitor.send("/sign-up", fields)
    assert str(visitor.response.url).startswith(f"{BASE}/")
    await visitor.get("/sign-in?next=https://evil.example", expect=303)
    assert visitor.response.headers["location"] == "/"


@one_shard
async def test_wrong_passwords_and_taken_names_are_said_beside_the_fields(api: Api, visitor: Browser) -> None:
    """The form comes back with what was typed, without a password; each message is tied to its field."""
    await api.person("Jake")
    await visitor.get("/sign-in")
    await visitor.send("/sign-in", {"email": "jake@example.com", "password": "not this"}, expect=422)
    assert "Wrong e-mail address or password" in visitor.page.text
    assert visitor.page.form("/sign-in")["email"] == "jake@example.com"
    assert "not this" not in visitor.page.html
    await visitor.get("/sign-up")
    fields = {"username": "JAKE", "email": "jake@example.com", "password": "short"}
    await visitor.send("/sign-up", fields, expect=422)
    assert "Must have 8 characters or more" in visitor.page.text
    await visitor.send("/sign-up", fields | {"password": PASSWORD}, expect=409)
    fields_wrong = {a["name"]: a for t, a in visitor.page.tags if t == "input" and a.get("aria-invalid")}
    assert set(fields_wrong) == {"username", "email"}
    ids = {a["id"] for _, a in visitor.page.tags if "id" in a}
    for given in fields_wrong.values():
        assert set(given["aria-describedby"].split()) <= ids
    assert len([a for _, a in visitor.page.tags if "autofocus" in a]) == 1


async def test_a_device_can_be_signed_out_from_another(api: Api) -> None:
    """The list names both; the one that is ended is nobody with its next request, here it goes on."""
    here = await browser(api).sign_up("Jake")
    there = browser(api)
    await there.get("/sign-in")
    await there.send("/sign-in", {"email": "jake@example.com", "password": PASSWORD})
    await here.get("/account/devices")
    assert here.page.text.count("This device") == 1
    assert here.page.text.count("Another device") == 1
    await here.send("/account/devices/revoke")
    assert "That device is signed out" in here.page.text
    await there.get("/account", expect=303)
    await here.get("/account")


@one_shard
async def test_nobody_ends_the_session_of_somebody_else(api: Api) -> None:
    jake, anna = await browser(api).sign_up("Jake"), await browser(api).sign_up("Anna")
    other = browser(api)
    await other.get("/sign-in")
    await other.send("/sign-in", {"email": "jake@example.com", "password": PASSWORD})
    await jake.get("/account/devices")
    form = jake.page.form("/account/devices/revoke")
    await anna.post("/account/devices/revoke", form | {"csrf": anna.page.form("/sign-out")["csrf"]})
    await other.get("/account")


async def test_a_new_password_signs_out_every_other_device(api: Api) -> None:
    """It takes the present one; this browser goes on under another cookie, the others are nobody."""
    here = await browser(api).sign_up("Jake")
    there = browser(api)
    await there.get("/sign-in")
    await there.send("/sign-in", {"email": "jake@example.com", "password": PASSWORD})
    await here.get("/account")
    before = cookie_of(here)
    wanted = {"password": "another long one", "current": "wrong"}
    await here.send("/account/access", wanted, expect=422)
    assert "Is not your password" in here.page.text
    await there.get("/account")
    await here.send("/account/access", wanted | {"current": PASSWORD})
    assert cookie_of(here) != before
    await there.get("/account", expect=303)
    await there.get("/sign-in")
    await there.send("/sign-in", {"email": "jake@example.com", "password": "another long one"})


@one_shard
async def test_a_session_without_an_account_writes_nothing(api: Api, visitor: Browser) -> None:
    """One left over from another database is led to the form instead of writing as nobody."""
    await visitor.sign_up("Jake")
    token = visitor.page.form("/sign-out")["csrf"]
    for pool in api.platform.database("users").pools.values():
        await pool.execute("delete from users.account")
    await forgotten(api.platform)
    await visitor.get("/write", expect=303)
    await visitor.post("/write", {"csrf": token, "title": "T"}, expect=303, follow_redirects=False)
    assert visitor.response.headers["location"].startswith("/sign-in")


@one_shard
async def test_plain_http_is_for_developers_alone(api: Api) -> None:
    """By default the cookie is never sent in the clear."""
    transport = api.client._transport.like()
    async with httpx.AsyncClient(transport=transport, base_url="http://market.test") as plain:
        answer = await plain.get("/sign-in")
        assert "; Secure" in answer.headers["set-cookie"]
        assert (await plain.get("/account")).status_code == 303
