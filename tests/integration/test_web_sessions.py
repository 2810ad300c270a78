"""Sessions over HTTP: identity, cookies and forms, as a browser and as an attacker would use them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request, Response
from tests.sharded import pools

from springtide.context import current
from springtide.db import Database, Migrator, ShardMap
from springtide.errors import DatabaseUnavailable, SessionEnded
from springtide.identity.cookies import SessionCookie, csrf_token
from springtide.identity.sessions import MIGRATIONS, Session, Sessions
from springtide.services.sessions import sessions_module
from springtide.web.asgi import Layers
from springtide.web.sessions import Presented, SessionLayer, check_csrf, presented

ORIGIN = {"origin": "https://shop"}


def application(sessions: Any, cookie: SessionCookie) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def home(found: Annotated[Presented | None, Depends(presented)]) -> dict[str, Any]:
        context = current()
        identity = context.identity if context is not None else None
        return {
            "subject": identity.subject if identity else None,
            "scheme": identity.scheme if identity else None,
            "csrf": found.csrf() if found else None,
        }

    @app.post("/visit")
    async def visit(response: Response) -> None:
        opened = await sessions.open()
        response.headers.append("set-cookie", cookie.set(opened.cookie))

    @app.post("/login")
    async def login(
        response: Response, subject: int, found: Annotated[Presented | None, Depends(check_csrf)]
    ) -> None:
        opened = await sessions.login(found.cookie if found else None, subject, ["write"])
        response.headers.append("set-cookie", cookie.set(opened.cookie, max_age=sessions.lifetime))

    @app.post("/logout")
    async def logout(response: Response, found: Annotated[Presented | None, Depends(check_csrf)]) -> None:
        assert found is not None
        await sessions.revoke(found.cookie)
        response.headers.append("set-cookie", cookie.clear())

    @app.post("/ended")
    async def ended() -> None:
        raise SessionEnded("over")

    @app.post("/form")
    async def form(request: Request, found: Annotated[Presented | None, Depends(check_csrf)]) -> str:
        return (await request.body()).decode()

    return app


@pytest.fixture
async def sessions(database_urls: tuple[str, str]) -> AsyncIterator[Sessions]:
    async with pools(database_urls, size=5) as started:
        await Migrator("sessions", MIGRATIONS, started).apply()
        yield Sessions(Database("sessions", ShardMap.even(list(started)), started))


def browser(sessions: Any, *, secure: bool = True, address: str = "192.0.2.1") -> httpx.AsyncClient:
    cookie = SessionCookie(secure=secure)
    app = Layers(SessionLayer(application(sessions, cookie), sessions, cookie=cookie))
    transport = httpx.ASGITransport(app, client=(address, 1))
    return httpx.AsyncClient(transport=transport, base_url="https://shop" if secure else "http://shop")


@pytest.fixture
async def http(sessions: Sessions) -> AsyncIterator[httpx.AsyncClient]:
    async with browser(sessions) as client:
        yield client


async def token(http: httpx.AsyncClient) -> dict[str, str]:
    return {"x-csrf-token": (await http.get("/")).json()["csrf"], **ORIGIN}


async def test_the_way_of_a_browser(http: httpx.AsyncClient) -> None:
    """Visit, log in, be known, log out; the cookie changes at login and its token with it."""
    assert (await http.get("/")).json() == {"subject": None, "scheme": None, "csrf": None}
    await http.post("/visit")
    visitor = http.cookies["__Host-session"]
    before = await token(http)
    assert (await http.post("/login?subject=7", headers=before)).status_code == 200
    assert http.cookies["__Host-session"] != visitor
    page = (await http.get("/")).json()
    assert (page["subject"], page["scheme"]) == (7, "session")
    assert (await http.post("/logout", headers=before)).status_code == 403
    known = http.cookies["__Host-session"]
    assert (await http.post("/logout", headers=await token(http))).status_code == 200
    http.cookies.clear()
    for old in (known, visitor):
        line = {"cookie": f"__Host-session={old}"}
        assert (await http.get("/", headers=line)).json()["subject"] is None


async def test_a_planted_cookie_is_never_the_user(sessions: Sessions, http: httpx.AsyncClient) -> None:
    """The attacker knows the visitor's cookie; after the login it is worth nothing more, at once."""
    await http.post("/visit")
    planted = http.cookies["__Host-session"]
    await http.post("/login?subject=7", headers=await token(http))
    async with browser(sessions) as attacker:
        page = await attacker.get("/", headers={"cookie": f"__Host-session={planted}"})
        assert page.json()["subject"] is None
        forged = {"cookie": f"__Host-session={planted}", "x-csrf-token": csrf_token(planted), **ORIGIN}
        await attacker.post("/login?subject=8", headers=forged)
    assert (await http.get("/")).json()["subject"] == 7


@pytest.mark.parametrize(
    "change",
    [
        {"x-csrf-token": ""},
        {"x-csrf-token": "x" * 86},
        {"x-csrf-token": csrf_token("A" * 64)},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_a_forged_form_is_refused(http: httpx.AsyncClient, change: dict[str, str]) -> None:
    """Each of token and origin alone is enough to refuse."""
    await http.post("/visit")
    headers = {**await token(http), **change}
    answer = await http.post("/form", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "csrf-refused")
    assert (await http.post("/form", headers=await token(http))).status_code == 200


async def test_a_request_without_session_or_token_is_refused(http: httpx.AsyncClient) -> None:
    assert (await http.post("/form", headers=ORIGIN)).status_code == 403
    await http.post("/visit")
    assert (await http.post("/form", headers=ORIGIN)).status_code == 403
    assert (await http.post("/ended")).status_code == 401


async def test_a_form_brings_its_token_as_a_field(http: httpx.AsyncClient) -> None:
    """Once, and the handler still reads the whole body; twice is refused."""
    await http.post("/visit")
    csrf = (await http.get("/")).json()["csrf"]
    answer = await http.post("/form", data={"csrf": csrf, "text": "a b"}, headers=ORIGIN)
    assert (answer.status_code, answer.json()) == (200, f"csrf={csrf}&text=a+b")
    many = "&".join(["a=1"] * 2000)
    for body in (f"csrf={csrf}&csrf={csrf}", "", f"csrf={csrf}&{many}"):
        form = {"content-type": "application/x-www-form-urlencoded", **ORIGIN}
        assert (await http.post("/form", content=body, headers=form)).status_code == 403


async def test_answers_within_a_session_stay_out_of_shared_caches(http: httpx.AsyncClient) -> None:
    assert "cache-control" not in (await http.get("/")).headers
    assert (await http.post("/visit")).headers["cache-control"] == "private, no-cache"
    assert (await http.get("/")).headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(
    ("origin", "subject"),
    [("https://shop", 3), ("https://evil.example", None), ("null", None), ("http://shop", None)],
)
async def test_a_socket_of_another_sites_page_is_anonymous(
    sessions: Sessions, origin: str, subject: int | None
) -> None:
    """A page may open a WebSocket to any site, with that site's cookie, and read what comes."""
    seen: list[int | None] = []

    async def socket(scope: Any, receive: Any, send: Any) -> None:
        context = current()
        assert context is not None
        seen.append(context.identity.subject if context.identity else None)

    cookie = SessionCookie()
    opened = await sessions.open(3)
    line = cookie.set(opened.cookie).partition(";")[0]
    headers = {"host": "shop", "origin": origin, "cookie": line}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "websocket", "scheme": "wss", "path": "/", "headers": raw, "client": ("192.0.2.1", 1)}

    async def nothing(*_: Any) -> Any:
        raise AssertionError("nothing is sent or received")

    await SessionLayer(socket, sessions, cookie=cookie)(scope, nothing, nothing)
    assert seen == [subject]


async def test_an_insecure_cookie_serves_this_machine_alone(sessions: Sessions) -> None:
    """From elsewhere it is neither taken nor given."""
    async with browser(sessions, secure=False, address="127.0.0.1") as http:
        assert "secure" not in (await http.post("/visit")).headers["set-cookie"].lower()
        assert (await http.get("/")).json()["csrf"] is not None
        line = {"cookie": f"session={http.cookies['session']}"}
    async with browser(sessions, secure=False) as http:
        assert (await http.get("/", headers=line)).json()["csrf"] is None
        assert "set-cookie" not in (await http.post("/visit")).headers


async def test_a_database_that_is_away_is_503_for_sessions_only(http: httpx.AsyncClient) -> None:
    """A request without a cookie asks nothing."""

    class Away:
        async def find(self, cookie: str) -> Session | None:
            raise DatabaseUnavailable("away", retry_after=2)

    async with browser(Away()) as client:
        assert (await client.get("/")).status_code == 200
        line = {"cookie": "__Host-session=" + "A" * 64}
        answer = await client.get("/", headers=line)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


async def test_alone_it_makes_a_context_and_without_it_the_helper_says_so(sessions: Sessions) -> None:
    cookie = SessionCookie()
    app = application(sessions, cookie)
    opened = await sessions.open(3)
    transport = httpx.ASGITransport(SessionLayer(app, sessions, cookie=cookie))
    async with httpx.AsyncClient(transport=transport, base_url="https://shop") as http:
        page = await http.get("/", headers={"cookie": cookie.set(opened.cookie).partition(";")[0]})
        assert page.json()["subject"] == 3
    assert current() is None
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://shop") as http:
        with pytest.raises(RuntimeError, match="SessionLayer"):
            await http.get("/")


def test_the_module_is_one_of_the_platforms() -> None:
    """Its interface is fit to be called over a network, its expired rows are a worker's task."""
    from springtide.services.registry import Registry

    module = sessions_module()
    Registry([module], check_calls=True)
    assert module.migrations == MIGRATIONS
    assert [(task.name, task.every) for task in module.background] == [("purge", 60.0)]
