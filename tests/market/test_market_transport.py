"""What HTTP itself asks for: addresses, methods, types and sizes of bodies, origins, trouble below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.market.harness import Api, one_platform, serving

from springtide.errors import CommitUnknown, DatabaseUnavailable, DeadlineExceeded

pytestmark = one_platform


@pytest.fixture
def shards() -> int:
    return 1


@pytest.mark.parametrize(
    "path", ["/nothing", "/", "/articles/", "/articles/a/b/c", "//articles", "/users/login/x"]
)
async def test_unknown_addresses_are_not_found(api: Api, path: str) -> None:
    assert (await api.call("GET", path, expect=404))["errors"] == {"route": ["not found"]}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/articles", {"GET", "HEAD", "POST"}),
        ("DELETE", "/user", {"GET", "HEAD", "PUT"}),
        ("POST", "/articles/some-slug", {"GET", "HEAD", "PUT", "DELETE"}),
        ("GET", "/users/login", {"POST"}),
    ],
)
async def test_wrong_methods_are_told_the_right_ones(
    api: Api, method: str, path: str, allowed: set[str]
) -> None:
    """405 with every method of the address in Allow, although several routes share it."""
    response = await api.send(method, path)
    assert response.status_code == 405
    assert response.json()["errors"] == {"method": ["is not allowed here"]}
    assert {name.strip() for name in response.headers["allow"].split(",")} >= allowed


async def test_head_answers_whatever_get_answers(api: Api) -> None:
    """The same status, type and length, on every address that can be read."""
    jake = await api.person("Jake")
    slug = (await api.article(jake))["slug"]
    token = {"Authorization": f"Token {jake.token}"}
    paths = ["/user", "/articles", "/articles/feed", "/tags", "/profiles/Jake"]
    for path in (*paths, f"/articles/{slug}", f"/articles/{slug}/comments", "/articles/nothing"):
        got = await api.client.get(f"/api{path}", headers=token)
        head = await api.client.head(f"/api{path}", headers=token)
        assert head.status_code == got.status_code, path
        for name in ("content-type", "content-length"):
            assert head.headers[name] == got.headers[name], path


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "", "json", ";"],
)
async def test_bodies_that_are_not_json_are_refused(api: Api, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    body = b'{"user": {"email": "a@b.c", "password": "x"}}'
    answer = await api.call("POST", "/users/login", content=body, headers=headers, expect=415)
    assert answer["errors"] == {"body": ["must be JSON (application/json) in UTF-8"]}


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        'Application/JSON; charset="UTF-8"',
        "application/vnd.api+json",
        None,
    ],
)
async def test_bodies_that_are_json_are_read(api: Api, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    body = b'{"user": {"email": "a@b.c", "password": "x"}}'
    await api.call("POST", "/users/login", content=body, headers=headers, expect=401)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"1",
        b"{'user': 1}",
        b"\xff\xfe{}",
        b'{"user": {"email": "\xed\xa0\x80"}}',
        b'{"user": {"email": "\\ud800"}}',
        b'{"user": NaN}',
        b'{"user": 1e999}',
        b"[" * 100_000,
        b'{"user":' * 50_000,
    ],
)
async def test_malformed_bodies_are_422(api: Api, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await api.call("POST", "/users/login", content=body, headers=headers, expect=422)
    assert set(answer["errors"]) == {"body"}


async def test_too_large_bodies_are_413(urls: list[str], home: Path) -> None:
    """Whether the length is declared or found out while reading."""
    async with serving(urls, home, body_bytes=2_000) as api:
        body = msgspec.json.encode({"user": {"email": "a@b.c", "password": "x" * 3_000}})
        headers = {"Content-Type": "application/json"}

        async def chunks() -> Any:
            for start in range(0, len(body), 500):
                yield body[start : start + 500]

        for content in (body, chunks()):
            answer = await api.call("POST", "/users/login", content=content, headers=headers, expect=413)
            assert answer["errors"] == {"body": ["is too large"]}


async def test_origins_that_are_configured_may_read_answers(urls: list[str], home: Path) -> None:
    async with serving(urls, home, cors_origins=("https://shop.example",)) as api:
        headers = {"Origin": "https://shop.example"}
        response = await api.send("GET", "/tags", headers=headers)
        assert response.headers["access-control-allow-origin"] == "https://shop.example"
        asking = {
            **headers,
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        response = await api.client.options("/api/user", headers=asking)
        assert response.is_success
        assert "authorization" in response.headers["access-control-allow-headers"].lower()
        refused = await api.send("GET", "/tags", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    ("error", "status", "thing"),
    [
        (DatabaseUnavailable("no connection", retry_after=2.0), 503, "server"),
        (DeadlineExceeded("waiting"), 504, "server"),
        (CommitUnknown("lost"), 500, "server"),
        (RuntimeError("secret detail"), 500, "server"),
    ],
)
async def test_trouble_below_has_the_apis_shape(
    api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, thing: str
) -> None:
    """503 with Retry-After, 504 and 500 are errors like any other, and tell nothing of the inside."""

    async def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("market.content.tags.PopularTags.most_used", fail)
    monkeypatch.setattr("market.users.store.UserStore.find", fail)
    login = {"user": {"email": "a@b.c", "password": "x"}}
    for response in (
        await api.client.get("/api/tags"),
        await api.client.post("/api/users/login", json=login),
    ):
        assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
        assert set(response.json()["errors"]) == {thing}
        assert "secret" not in response.text
        assert ("retry-after" in response.headers) == (status == 503)


async def test_the_platforms_own_pages_are_there(api: Api) -> None:
    """/ links to what there is; every link works."""
    front = await api.client.get("/")
    assert front.status_code == 200
    for path in ("/docs", "/metrics", "/health/ready", "/health/dependencies", "/api/articles"):
        assert f'href="{path}"' in front.text
        assert (await api.client.get(path)).status_code == 200, path


async def test_metrics_name_routes_by_template(api: Api) -> None:
    jake = await api.person()
    slug = (await api.article(jake))["slug"]
    await api.call("GET", f"/articles/{slug}", expect=200)
    await api.call("GET", f"/articles/{slug}/comments", expect=200)
    text = (await api.client.get("/metrics")).text
    assert "/api/articles/{slug}" in text
    assert "/api/articles/{slug}/comments" in text
    assert slug not in text


async def test_answers_carry_request_id_and_timing(api: Api) -> None:
    response = await api.send("GET", "/articles")
    assert response.headers["x-request-id"]
    assert "sql;" in response.headers["server-timing"]
