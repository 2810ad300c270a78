"""`Idempotency-Key` over HTTP: what repetitions, strangers and hostile clients hear."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from tests.sharded import notes

from springtide.context import Identity, current
from springtide.db import Database, WriteTransaction
from springtide.db.idempotency import Idempotency
from springtide.errors import ConfigurationError, IdempotencyKeyInvalid
from springtide.web.asgi import Layers
from springtide.web.idempotency import check_key, idempotent, read_key

COUNT = "select count(*) from notes.note"
KEY = "Idempotency-Key"


class Shop:
    """An application with one effect, and what a test changes of it."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.keys = Idempotency(db, max_answer_bytes=2000)
        self.status = 201
        self.fail: Exception | None = None
        self.text = ""
        self.required = False
        self.gate: asyncio.Event | None = None
        self.inside = asyncio.Event()
        self.stream = False
        self.made = 0

    async def handle(self, request: Request) -> Any:
        user = request.headers.get("x-user")
        context = current()
        if user is not None and context is not None:
            context.identity = Identity(int(user), "token")
        body = await request.body()
        key = json.loads(body).get("key") if body.startswith(b"{") else None

        async def effect(tx: WriteTransaction) -> Any:
            self.made += 1
            id = secrets.randbits(40) << 10 | (tx.bucket & 1023)
            await tx.execute("insert into notes.note (bucket, id) values ($1, $2)", tx.bucket, id)
            self.inside.set()
            if self.gate is not None:
                await self.gate.wait()
            if self.fail is not None:
                raise self.fail
            if self.stream:
                return StreamingResponse(iter([b"x"]))
            answer = JSONResponse({"id": id, "text": self.text}, self.status)
            answer.headers["location"] = f"/notes/{id}"
            answer.headers["set-cookie"] = "a=b"
            answer.headers["x-other"] = "1"
            return answer

        home = int(user) if user is not None else None
        return await idempotent(request, self.keys, effect, home=home, key=key, required=self.required)


@pytest.fixture
async def shop(database_urls: tuple[str, str], tmp_path: Path) -> AsyncIterator[Shop]:
    async with notes(database_urls, tmp_path, size=8) as db:
        yield Shop(db)


@pytest.fixture
async def client(shop: Shop) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.add_api_route("/notes", shop.handle, methods=["POST", "PUT", "GET"])
    app.add_api_route("/notes/{id}", shop.handle, methods=["POST"])
    transport = httpx.ASGITransport(Layers(app), client=("192.0.2.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
        yield http


async def count(shop: Shop) -> int:
    return await shop.db.scatter_sum(COUNT)


@pytest.mark.parametrize("user", [None, "5", "1020"])
async def test_a_repetition_gets_the_kept_answer(
    shop: Shop, client: httpx.AsyncClient, user: str | None
) -> None:
    """Status, body and content headers; not the cookie, which was for that moment. Quotes do not matter."""
    who = {"x-user": user} if user is not None else {}
    first = await client.post("/notes", headers={KEY: "order-0001", **who}, content=b"body")
    again = await client.post("/notes", headers={KEY: '"order-0001"', **who}, content=b"body")
    assert first.status_code == again.status_code == 201
    assert again.content == first.content
    for name in ("location", "content-type"):
        assert again.headers[name] == first.headers[name]
    assert "set-cookie" in first.headers and "set-cookie" not in again.headers
    assert "x-other" not in again.headers
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    assert await count(shop) == shop.made == 1


async def test_of_fifty_clicks_one_counts(shop: Shop, client: httpx.AsyncClient) -> None:
    async def click() -> httpx.Response:
        return await client.post("/notes", headers={KEY: "order-0001", "x-user": "5"}, content=b"body")

    answers = await asyncio.gather(*(click() for _ in range(50)))
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {201, 409}
    fresh = [a for a in answers if a.status_code == 201 and "idempotent-replayed" not in a.headers]
    assert len(fresh) == 1
    assert await count(shop) == 1


async def test_a_duplicate_in_flight_gets_409_and_when_to_come_back(
    shop: Shop, client: httpx.AsyncClient
) -> None:
    shop.gate = asyncio.Event()
    first = asyncio.create_task(client.post("/notes", headers={KEY: "order-0001"}))
    await shop.inside.wait()
    second = await client.post("/notes", headers={KEY: "order-0001"})
    assert second.status_code == 409
    assert int(second.headers["retry-after"]) >= 1
    assert second.json()["code"] == "idempotency-in-flight"
    shop.gate.set()
    assert (await first).status_code == 201


async def test_another_body_gets_422(shop: Shop, client: httpx.AsyncClient) -> None:
    """Also another query or content type: they are part of what was asked."""
    await client.post("/notes", headers={KEY: "order-0001"}, content=b"one")
    for url, headers, body in (
        ("/notes", {}, b"two"),
        ("/notes?x=1", {}, b"one"),
        ("/notes", {"content-type": "text/html"}, b"one"),
    ):
        answer = await client.post(url, headers={KEY: "order-0001", **headers}, content=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency-key-reused")
    assert await count(shop) == 1


async def test_nobody_gets_the_answer_of_another(shop: Shop, client: httpx.AsyncClient) -> None:
    """Another user, another address, a user who signed in meanwhile, another path or method: own effects."""
    bodies = []
    for user in (None, "1", "2"):
        headers = {KEY: "order-0001"} | ({"x-user": user} if user else {})
        for method, path in (("POST", "/notes"), ("PUT", "/notes"), ("POST", "/notes/1")):
            answer = await client.request(method, path, headers=headers, content=b"body")
            assert (answer.status_code, "idempotent-replayed" in answer.headers) == (201, False)
            bodies.append(answer.content)
    forwarded = {KEY: "order-0001", "x-forwarded-for": "203.0.113.9"}
    assert "idempotent-replayed" in (await client.post("/notes", headers=forwarded, content=b"body")).headers
    elsewhere = httpx.ASGITransport(client._transport.app, client=("192.0.2.2", 1))  # type: ignore[attr-defined]
    async with httpx.AsyncClient(transport=elsewhere, base_url="http://shop") as other:
        answer = await other.post("/notes", headers={KEY: "order-0001"}, content=b"body")
        assert "idempotent-replayed" not in answer.headers
        bodies.append(answer.content)
    assert len(set(bodies)) == len(bodies) == await count(shop)


@pytest.mark.parametrize("failure", [HTTPException(409, "sold"), KeyError("bug"), None])
async def test_a_failure_undoes_the_effect_and_frees_the_key(
    shop: Shop, client: httpx.AsyncClient, failure: Exception | None
) -> None:
    """An exception, expected or not, and an answer of 5xx."""
    shop.fail, shop.status = failure, 503
    first = await client.post("/notes", headers={KEY: "order-0001"})
    assert first.status_code == {HTTPException: 409, KeyError: 500}.get(type(failure), 503)  # type: ignore[call-overload]
    assert await count(shop) == 0
    shop.fail, shop.status = None, 201
    again = await client.post("/notes", headers={KEY: "order-0001"})
    assert (again.status_code, "idempotent-replayed" in again.headers) == (201, False)


async def test_without_a_key_it_just_happens_or_is_refused(shop: Shop, client: httpx.AsyncClient) -> None:
    """Twice is twice; 5xx is undone all the same; `required` answers 400."""
    for _ in range(2):
        assert (await client.post("/notes", headers={"x-user": "5"})).status_code == 201
    assert await count(shop) == 2
    shop.status = 503
    assert (await client.post("/notes", headers={"x-user": "5"})).status_code == 503
    assert await count(shop) == 2
    shop.status = 201
    assert (await client.post("/notes")).status_code == 201
    assert await count(shop) == 3
    shop.required = True
    answer = await client.post("/notes", headers={"x-user": "5"})
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency-key-invalid")


async def test_a_form_may_bring_its_key_itself(shop: Shop, client: httpx.AsyncClient) -> None:
    for _ in range(2):
        answer = await client.post("/notes", json={"key": "form-key-1"})
    assert "idempotent-replayed" in answer.headers
    assert (await client.post("/notes", json={"key": "short"})).status_code == 400


@pytest.mark.parametrize(
    "key",
    ["", "short", "x" * 129, "with space!", "semi;colon", "new\nline-x", "nul\0-nul-nul", '"unclosed',
     "ключ-ключ", "back\\slash", "'; drop table", "comma,comma"],
)  # fmt: skip
async def test_hostile_keys_are_refused(shop: Shop, client: httpx.AsyncClient, key: str) -> None:
    with pytest.raises(IdempotencyKeyInvalid):
        check_key(key)
    with pytest.raises(IdempotencyKeyInvalid):
        read_key([(b"Idempotency-Key", key.encode())])
    answer = await client.post("/notes", headers=[(KEY.encode(), key.encode())])
    assert answer.status_code == 400
    assert await count(shop) == shop.made == 0


async def test_two_keys_are_none(client: httpx.AsyncClient) -> None:
    headers = [(KEY.encode(), b"order-0001"), (KEY.encode(), b"order-0002")]
    assert (await client.post("/notes", headers=headers)).status_code == 400
    assert read_key([]) is None
    assert read_key([(b"idempotency-key", b' "order-0001" ')]) == "order-0001"


async def test_what_cannot_be_kept_is_not_done(shop: Shop, client: httpx.AsyncClient) -> None:
    """An answer that streams or is too large is the programmer's error: 500, and no effect."""
    shop.stream = True
    assert (await client.post("/notes", headers={KEY: "order-0001"})).status_code == 500
    shop.stream, shop.text = False, "x" * 3000
    assert (await client.post("/notes", headers={KEY: "order-0001"})).status_code == 500
    assert await count(shop) == 0


async def test_a_client_that_leaves_frees_the_key(shop: Shop, client: httpx.AsyncClient) -> None:
    shop.gate = asyncio.Event()
    first = asyncio.create_task(client.post("/notes", headers={KEY: "order-0001"}))
    await shop.inside.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    shop.gate = None
    assert (await client.post("/notes", headers={KEY: "order-0001"})).status_code == 201
    assert await count(shop) == 1


async def test_safe_methods_are_not_for_this(shop: Shop, client: httpx.AsyncClient) -> None:
    assert (await client.get("/notes", headers={KEY: "order-0001"})).status_code == 500
    with pytest.raises(ConfigurationError, match="got GET"):
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        await idempotent(Request(scope), shop.keys, lambda tx: None, home=1)  # type: ignore[arg-type,return-value]
