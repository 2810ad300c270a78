"""Where the members of a cluster are known from: a list, the runner's file, Patroni's REST API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from springtide.db import _rest
from springtide.db.members import Fixed, Member, Patroni, RunnerFile
from springtide.errors import MembersUnknown
from springtide.topology import Addresses, Roles

URL = "postgresql://shop:s%40me@pgs.internal:5432/shop?application_name=x"
CLUSTER = {
    "members": [
        {"name": "a", "role": "leader", "state": "running", "host": "10.0.0.1", "port": 5432, "timeline": 3},
        {"name": "b", "role": "replica", "state": "running", "host": "fd00::2", "port": 5433, "lag": 0},
        {
            "name": "c",
            "role": "replica",
            "state": "running",
            "host": "10.0.0.3",
            "port": 5432,
            "tags": {"noloadbalance": True},
        },
        {"name": "d", "role": "replica", "state": "start failed"},
    ]
}


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """An HTTP server that sends the same bytes to everybody, and nothing at all for None."""
    heard: list[bytes] = []
    over = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        if answer is None:
            await over.wait()
        else:
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
    finally:
        over.set()
        server.close()
        await server.wait_closed()


def http(body: object, status: str = "200 OK") -> bytes:
    return f"HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n{json.dumps(body)}".encode()


async def test_patroni_names_its_members() -> None:
    """Addresses are Patroni's; account, PostgreSQL database and parameters are the topology's. One without an
    address is left out, one that is tagged against reads has no weight."""
    async with answering(http(CLUSTER)) as (url, heard):
        found = await Patroni([f"{url}/"], "main", url=URL).members()
    assert [(member.node, member.url, member.weight) for member in found] == [
        ("a", "postgresql://shop:s%40me@10.0.0.1:5432/shop?application_name=x", 1.0),
        ("b", "postgresql://shop:s%40me@[fd00::2]:5433/shop?application_name=x", 1.0),
        ("c", "postgresql://shop:s%40me@10.0.0.3:5432/shop?application_name=x", 0.0),
    ]
    assert heard[0].startswith(b"GET /cluster HTTP/1.0\r\n")


NONSENSE = {
    "an error": http(CLUSTER, "503 Service Unavailable"),
    "no JSON": b"HTTP/1.0 200 OK\r\n\r\n<html>",
    "another document": http({"members": 3}),
    "a list": http([1]),
    "a member without a name": http({"members": [{"host": "h", "port": 1}]}),
    "no member with an address": http({"members": [{"name": "a", "host": None, "port": "x"}]}),
    "another protocol": b"SSH-2.0-OpenSSH\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
async def test_a_patroni_that_answers_nonsense_is_passed_over(answer: bytes) -> None:
    """The next one is asked; and it is asked first from then on."""
    async with answering(answer) as (bad, asked), answering(http(CLUSTER)) as (good, _):
        patroni = Patroni([bad, good], "main", url=URL)
        assert len(await patroni.members()) == 3
        await patroni.members()
        assert len(asked) == 1
    async with answering(answer) as (bad, _):
        with pytest.raises(MembersUnknown, match="no Patroni tells the members of main"):
            await Patroni([bad], "main", url=URL).members()


async def test_a_patroni_that_never_answers_costs_its_time_out() -> None:
    """One that is frozen and one that is gone are passed over; without any other the members are unknown."""
    async with answering(http(CLUSTER)) as (gone, _):
        pass
    async with answering(None) as (frozen, _), answering(http(CLUSTER)) as (good, _):
        assert len(await Patroni([frozen, gone, good], "main", url=URL, timeout=0.05).members()) == 3
        with pytest.raises(MembersUnknown, match="TimeoutError"):
            await Patroni([frozen, gone], "main", url=URL, timeout=0.05).members()


async def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read has a bound, so a lying server cannot fill the memory."""
    monkeypatch.setattr(_rest, "MAX_BYTES", 1000)
    async with answering(http({"members": [], "more": "x" * 2000})) as (url, _):
        with pytest.raises(MembersUnknown, match="more than 1000 bytes"):
            await Patroni([url], "main", url=URL).members()


@pytest.mark.parametrize("url", ["10.0.0.1:8008", "ftp://h:1", "http://", "http://user:secret@h:8008"])
def test_a_rest_address_must_be_one(url: str) -> None:
    """Refused when it is made, with the value."""
    with pytest.raises(ValueError, match="urls must look like"):
        Patroni([url], "main", url=URL)
    with pytest.raises(ValueError, match="one REST address at least"):
        Patroni([], "main", url=URL)
    with pytest.raises(ValueError, match="timeout must be > 0 seconds, got 0"):
        Patroni(["http://h:1"], "main", url=URL, timeout=0)


def write(path: Path, addresses: Addresses) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(addresses.to_json())
    fresh.replace(path)


def node(port: int) -> str:
    return f"postgresql://s@127.0.0.1:{port}/postgres"


async def test_the_runners_file_is_followed(tmp_path: Path) -> None:
    """Primary first, each node with an address, the cluster's PostgreSQL database; a changed file is read
    again, and one that has gone or holds something else leaves the members unknown."""
    path = tmp_path / "addresses.json"
    source = RunnerFile(path, "main", dbname="shop")
    with pytest.raises(MembersUnknown):
        await source.members()
    roles = Roles(primary="b", replicas=("a", "c"), epoch=2)
    write(path, Addresses(nodes={"a": node(1), "b": node(2), "x": node(9)}, clusters={"main": roles}))
    assert [(member.node, member.url) for member in await source.members()] == [
        ("b", "postgresql://s@127.0.0.1:2/shop"),
        ("a", "postgresql://s@127.0.0.1:1/shop"),
    ]
    write(path, Addresses(nodes={"c": node(3)}, clusters={"main": roles}))
    assert [member.url for member in await source.members()] == ["postgresql://s@127.0.0.1:3/shop"]
    for unusable in (
        Addresses(nodes={"c": node(3)}),
        Addresses(nodes={}, clusters={"main": roles}),
        Addresses(nodes={"c": node(3)}, clusters={"other": roles}),
    ):
        write(path, unusable)
        with pytest.raises(MembersUnknown, match="does not tell the members of main"):
            await source.members()
    path.write_text("{")
    with pytest.raises(MembersUnknown):
        await source.members()
    write(path, Addresses(nodes={"a": node(1)}, clusters={"main": roles}))
    assert [member.node for member in await RunnerFile(path, "main").members()] == ["a"]


async def test_a_list_of_members_is_what_it_is() -> None:
    """Fixed members answer always the same; none, two of one name and a negative weight are refused."""
    members = [Member(node="a", url=URL), Member(node="b", url=URL, weight=0)]
    assert list(await Fixed(members).members()) == members
    with pytest.raises(ValueError, match="each of another name, got \\['a', 'a'\\]"):
        Fixed([members[0], members[0]])
    with pytest.raises(ValueError, match="got \\[\\]"):
        Fixed([])
    with pytest.raises(ValueError, match="weight of member a must be >= 0, got -1"):
        Member(node="a", url=URL, weight=-1)
