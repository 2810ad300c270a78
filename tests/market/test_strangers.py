"""Addresses that strangers gave: which are taken and called, and what is heard of who answers badly."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.market.hooking import receiver

from market.strangers import (
    MAX_CALLS,
    Caller,
    NotPublic,
    Unreachable,
    is_public,
    may_be_called,
    retry_after,
)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0",
        "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
        "::127.0.0.1", "2001:db8::1", "64:ff9b:1::a00:1", "fec0::1", "2001::1", "100::1",
    ],
)  # fmt: skip
def test_no_neighbour_is_public(address: str) -> None:
    assert not is_public(address)


def test_the_internet_is_public() -> None:
    assert all(is_public(address) for address in ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"))


@pytest.mark.parametrize(
    ("url", "public", "here"),
    [
        ("https://hooks.example.com/a?b=c", True, True),
        ("https://hooks.example.com:443/", True, True),
        ("http://hooks.example.com/", False, False),
        ("https://hooks.example.com:8443/", False, False),
        ("https://127.0.0.1/", False, True),
        ("http://localhost:9000/x", False, True),
        ("http://[::1]:9000/", False, True),
        ("https://10.0.0.5/", False, False),
        ("https://169.254.169.254/latest", False, False),
        ("https://[fd00::1]/", False, False),
        ("https://2130706433/", False, False),
        ("https://0x7f.1/", False, False),
        ("https://printer/", False, False),
        ("https://user@hooks.example.com/", False, False),
        ("https://hooks.example.com/#x", False, False),
        ("https://hooks.example.com\\@evil.example/", False, False),
        ("https://hooks.example.com/ x", False, False),
        ("https://hööks.example.com/", False, False),
        ("ftp://hooks.example.com/", False, False),
        ("https://hooks.example.com:99999/", False, False),
        ("//hooks.example.com/", False, False),
        ("", False, False),
    ],
)
def test_addresses_are_taken_by_their_form(url: str, public: bool, here: bool) -> None:
    assert may_be_called(url, loopback=False) is public
    assert may_be_called(url, loopback=True) is here


def test_how_long_to_wait_is_bounded() -> None:
    """In seconds or as a date, never longer than `most`; what cannot be read says nothing."""
    now = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)
    for text, wanted in {
        "120": 120.0, "999999999": 600.0, "9" * 30: None, "-5": None, "soon": None, "": None,
        "Thu, 26 Nov 2026 12:01:00 GMT": 60.0, "Thu, 26 Nov 2026 11:00:00 GMT": 0.0,
        "Fri, 27 Nov 2026 12:00:00 GMT": 600.0,
        f"Thu, 26 Nov {'9' * 30} 12:01:00 GMT": None, f"Thu, 26 Nov 2026 12:01:00 +{'9' * 30}": None,
    }.items():  # fmt: skip
        assert retry_after({"retry-after": text}, now, 600.0) == wanted, text
    assert retry_after({}, now, 600.0) is None


@asynccontextmanager
async def calling(*, timeout: float = 20.0, loopback: bool = True) -> AsyncIterator[Caller]:
    caller = Caller(timeout=timeout, loopback=loopback)
    await caller.start()
    try:
        yield caller
    finally:
        await caller.stop()


def lead(monkeypatch: pytest.MonkeyPatch, *addresses: list[str]) -> list[str]:
    """Names lead to these addresses, one list a look-up; the names that were looked up."""
    asked: list[str] = []
    answers = list(addresses)

    def lookup(host: str, port: int, **options: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return asked


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.215.14", "10.0.0.5"], []])
async def test_a_name_is_called_only_if_all_it_leads_to_is_public(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    async with receiver() as there, calling(loopback=False) as caller:
        lead(monkeypatch, addresses)
        with pytest.raises(NotPublic):
            await caller.post(f"http://hooks.example.com:{there.port}/", b"{}", {})
        assert there.got == []


async def test_the_address_that_was_looked_at_is_the_one_that_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name is looked up once a call: one that leads elsewhere the next moment is not followed there."""
    async with receiver() as there, calling() as caller:
        asked = lead(monkeypatch, ["127.0.0.1"])
        answer = await caller.post(f"http://hooks.example.com:{there.port}/x", b"{}", {"a": "b"})
        assert answer.status == 204
        assert asked == ["hooks.example.com"]
        assert there.got[0].headers["host"] == f"hooks.example.com:{there.port}"


async def test_redirections_and_proxies_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver() as there, receiver() as other, calling() as caller:
        monkeypatch.setenv("HTTP_PROXY", other.url())
        monkeypatch.setenv("ALL_PROXY", other.url())
        there.then = (307, {"Location": other.url()})
        assert (await caller.post(there.url(), b"{}", {})).status == 307
        assert other.got == []


async def test_what_one_answers_is_sent_to_no_other() -> None:
    """One address has many names: a cookie that is kept would reach them all, and every answer adds one."""
    async with receiver() as there, calling() as caller:
        there.then = (204, {"Set-Cookie": "who=me; Path=/"})
        for _ in range(2):
            await caller.post(there.url(), b"{}", {})
        assert [one.headers.get("cookie") for one in there.got] == [None, None]


async def test_an_address_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Path and query may be all that keeps strangers out of it."""
    caplog.set_level(logging.INFO)
    async with receiver() as there, calling() as caller:
        assert (await caller.post(there.url("/hook-of-ours?key=unguessed"), b"{}", {})).status == 204
    assert "hook-of-ours" not in caplog.text and "unguessed" not in caplog.text


async def test_names_that_nobody_resolves_hold_up_no_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    def hang(host: str, port: int, **options: Any) -> list[Any]:
        let_go.wait(60.0)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    async with calling(loopback=False) as caller:
        post = caller.post
        calls = [asyncio.create_task(post("https://slow.example.com/", b"{}", {})) for _ in range(MAX_CALLS)]
        try:
            await asyncio.sleep(0)  # each has begun to look up its name
            async with asyncio.timeout(30.0):
                assert await asyncio.to_thread(threading.current_thread) is not threading.main_thread()
        finally:
            let_go.set()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(one) for one in ended} <= {NotPublic, Unreachable}


async def test_who_does_not_answer_is_left_in_time_and_learns_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Silence, an answer without an end, a broken connection, nobody there: a sentence without addresses."""
    async with receiver() as there, calling(timeout=1.0) as caller:
        for does, why in (("hang", "no answer within 1 s"), ("drip", "no answer within 1 s")):
            there.does = [does]
            with pytest.raises(Unreachable, match=why):
                await caller.post(there.url(), b"{}", {})
    async with receiver() as there, calling() as caller:
        there.does = ["die"]
        with pytest.raises(Unreachable, match="does not answer as HTTP does"):
            await caller.post(there.url(), b"{}", {})
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        with pytest.raises(Unreachable, match="could not be connected to") as found:
            await caller.post(f"http://127.0.0.1:{port}/", b"{}", {})
        assert "127.0.0.1" not in str(found.value)
        plain = await asyncio.start_server(_greet, "127.0.0.1", 0)
        async with plain:
            with pytest.raises(Unreachable, match="TLS could not be agreed upon"):
                await caller.post(f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}/", b"{}", {})


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Whatever it is sent, this is no TLS."""
    writer.write(b"220 hello\r\n")
    await reader.read(1)
    writer.close()
