"""Whatever is sent: never a 5xx, always the API's shape. Each operation with hostile values of every kind."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.market.harness import Api, Person, one_platform
from tests.market.realworld import specification

pytestmark = one_platform


@pytest.fixture
def shards() -> int:
    return 1


NASTY = [
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\udfff\ud800",
    "x" * 300,
    "é" * 70_000,
    "\u202e",
    "\u0000",
    "'; drop table x",
    "%s%n",
    "${7*7}",
    "../../etc/passwd",
    "\r\nX: y",
    "<script>",
    "\x7f",
    "🎉",
    "\ufeff",
    "ﷺ" * 300,
    "NULL",
    "-1",
    "1e309",
    "\\",
    '"',
    "a" * 1_000_000,
]

texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=50), st.characters().map(lambda c: c * 64))
values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)
FIELDS = ["username", "email", "password", "bio", "image", "title", "description", "body", "tagList"]
forms = st.dictionaries(st.sampled_from(FIELDS), st.one_of(values, st.lists(texts, max_size=25)), max_size=5)
bodies = st.one_of(
    st.builds(
        lambda name, form: {name: form},
        st.sampled_from(["user", "article", "comment"]),
        st.one_of(forms, values),
    ),
    values,
)


@pytest.mark.parametrize("operation", sorted(specification.OPERATIONS), ids=" ".join)
async def test_no_request_breaks_the_api(hostile: Hostile, operation: tuple[str, str]) -> None:
    """Every value in path, query, header and body is answered by a status and body of the specification."""
    await hold(hostile, operation, examples=8)


@pytest.mark.stress
@pytest.mark.parametrize("operation", sorted(specification.OPERATIONS), ids=" ".join)
async def test_no_request_of_many_breaks_the_api(hostile: Hostile, operation: tuple[str, str]) -> None:
    await hold(hostile, operation, examples=500)


async def hold(hostile: Hostile, operation: tuple[str, str], *, examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attack(data: st.DataObject) -> None:
        hostile.requests.append(hostile.request(data, *operation))

    attack()
    assert hostile.requests
    for request in hostile.requests:
        await hostile.send(**request)


class Hostile:
    """Draws requests first and sends them afterwards: Hypothesis is not asynchronous."""

    def __init__(self, api: Api, person: Person, slug: str) -> None:
        self.api = api
        self.person = person
        self.slug = slug
        self.requests: list[dict[str, Any]] = []

    def request(self, data: st.DataObject, method: str, template: str) -> dict[str, Any]:
        def part(_: re.Match[str]) -> str:
            text = data.draw(st.one_of(st.sampled_from([self.slug, self.person.username, "1"]), texts))[:2000]
            return quote(text, safe="", errors="surrogatepass") or "x"

        query = data.draw(
            st.dictionaries(
                st.sampled_from(["limit", "offset", "tag", "author", "favorited"]),
                st.one_of(texts, st.integers().map(str)),
                max_size=3,
            )
        )
        asked = "&".join(
            f"{name}={quote(value[:2000], safe='', errors='surrogatepass')}" for name, value in query.items()
        )
        header = data.draw(
            st.sampled_from(
                [f"Token {self.person.token}"] * 8 + [None, "Token x.y.z", "Bearer \xff", "Token " * 999]
            )
        )
        raw = json.dumps(data.draw(bodies)).encode()
        if data.draw(st.integers(0, 9)) == 0:
            raw = raw[: data.draw(st.integers(0, len(raw)))]
        return {
            "method": method,
            "path": re.sub(r"\{\w+\}", part, template),
            "query": asked,
            "header": header,
            "body": raw if method in ("POST", "PUT") else b"",
        }

    async def send(self, method: str, path: str, query: str, header: str | None, body: bytes) -> None:
        headers = [(b"content-type", b"application/json")] if body else []
        if header is not None:
            headers.append((b"authorization", header.encode("latin-1")))
        response = await self.api.client.request(
            method, f"/api{path}?{query}", content=body or None, headers=headers
        )
        assert response.status_code < 500, (method, path, query, header, body[:2000], response.text)
        if response.status_code != 204:
            fault = specification.faults(specification.ERRORS, response.json())
            assert response.is_success or not fault, (method, path, response.text)


@pytest_asyncio.fixture(loop_scope="module")
async def hostile(api: Api) -> Hostile:
    person = await api.person("Victim")
    return Hostile(api, person, (await api.article(person, "Some title"))["slug"])
