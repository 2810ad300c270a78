"""No request waits for a third party; the watch that says so sees every way to call one."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosmtplib
import httpx
import obstore
import pytest
import uvicorn
from obstore.exceptions import BaseError
from obstore.store import S3Store
from tests.market.harness import Api, one_shard
from tests.market.mailing import MailboxProcess
from tests.market.outgoing import ALLOWED, Call, outgoing

from market.users.store import UserStore
from springtide.context import detached
from springtide.web.asgi import Layers


@asynccontextmanager
async def stranger() -> AsyncIterator[int]:
    """A server that answers each line by `ok`; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readline():
                writer.write(b"ok\n")
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"?\n")
    assert await reader.readline() == b"ok\n"


async def anew(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await ask(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


def blocking(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as made:
        made.sendall(b"?\n")
        assert made.recv(10) == b"ok\n"


def datagram(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"?", ("127.0.0.1", port))


async def through_layers(handler: Callable[[], Awaitable[Any]]) -> None:
    """One request whose handler it is."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await handler()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(app=Layers(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/asked")).status_code == 204


async def test_every_way_to_call_somebody_out_of_a_request_is_seen() -> None:
    """A new connection, one that was open before, a task of the request's, a thread with its context and one
    without, a datagram, a program, a server that is away, a bucket."""
    async with stranger() as port:
        kept = await asyncio.open_connection("127.0.0.1", port)
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nobody = closed.getsockname()[1]

        async def task() -> None:
            await asyncio.create_task(anew(port))

        async def away() -> None:
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", nobody)

        async def bucket() -> None:
            store = S3Store(
                "none",
                endpoint=f"http://127.0.0.1:{nobody}",
                access_key_id="a",
                secret_access_key="b",
                region="eu",
                client_options={"allow_http": True},
                retry_config={"max_retries": 0},
            )
            with pytest.raises(BaseError):
                await obstore.get_async(store, "x")

        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "new": lambda: anew(port),
            "kept": lambda: ask(*kept),
            "task": task,
            "thread": lambda: asyncio.to_thread(blocking, port),
            "bare thread": lambda: asyncio.get_running_loop().run_in_executor(None, blocking, port),
            "datagram": lambda: asyncio.to_thread(datagram, port),
            "program": lambda: asyncio.to_thread(subprocess.run, ["true"], check=True),
            "away": away,
            "bucket": bucket,
        }
        try:
            for name, way in ways.items():
                await through_layers(way)
                found = outgoing.take()
                wanted = {"away": nobody}.get(name, port)
                others = {"bucket": "a bucket", "program": "the program true"}
                to = others.get(name, str(("127.0.0.1", wanted)))
                assert found == [Call("GET /asked", to, None)], name
        finally:
            kept[1].close()
            await kept[1].wait_closed()


async def test_what_is_no_request_may_call_whomever_it_wants() -> None:
    """Neither tests, jobs nor what a request starts on nobody's behalf are watched."""
    async with stranger() as port:
        await anew(port)

        async def thread() -> None:
            await asyncio.get_running_loop().run_in_executor(None, blocking, port)

        async def apart() -> None:
            await asyncio.get_running_loop().create_task(anew(port), context=detached())
            await asyncio.get_running_loop().create_task(thread(), context=detached())

        await through_layers(apart)
        await thread()
    assert outgoing.take() == []


def test_a_server_serves_what_is_watched_as_anything_else() -> None:
    """It calls it by ASGI 3, and does not take it for a factory of applications."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("nobody asks")

    layers = Layers(app)
    config = uvicorn.Config(layers, lifespan="off", log_config=None, proxy_headers=False)
    config.load()
    assert (config.loaded_app, config.interface) == (layers, "asgi3")


@one_shard
async def test_requests_of_market_are_watched_and_its_own_databases_are_no_third_party(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registering calls nobody; with one call to the mail server in it, it is found out."""
    await api.person("Ada")
    assert outgoing.forbidden() == []
    mailbox = MailboxProcess(tmp_path / "mails")
    await mailbox.start()
    insert = UserStore.insert

    async def and_mail(store: UserStore, **new: Any) -> Any:
        made = await insert(store, **new)
        await aiosmtplib.send(
            b"Subject: Welcome\n\nhello",
            sender="market@example.com",
            recipients=[new["email"]],
            hostname="127.0.0.1",
            port=mailbox.smtp_port,
        )
        return made

    monkeypatch.setattr(UserStore, "insert", and_mail)
    try:
        await api.person("Grace")
    finally:
        await mailbox.close()
    found = outgoing.forbidden()
    assert {(call.route, call.to) for call in found} == {
        ("POST /api/users", str(("127.0.0.1", mailbox.smtp_port)))
    }


def test_whoever_is_allowed_says_why() -> None:
    """A pattern for a route, a module and a reason that says what the answer needs."""
    for one in ALLOWED:
        assert one.route.split(" ")[0] in ("GET", "POST", "PUT", "PATCH", "DELETE")
        assert one.caller.startswith("market.")
        assert (len(one.reason.split()) > 5 and "answer" in one.reason) or "page" in one.reason
