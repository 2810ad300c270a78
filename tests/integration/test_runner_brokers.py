"""RabbitMQ and NATS under `springtide up`: started, killed, frozen, ended; and what is said when they cannot
be."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests._brokers import RabbitBroker
from tests.integration._platforms import Project, kill, project, until
from tests.integration.test_transports_drivers import publish, receive
from tests.servers import scratch
from tests.transports import fresh_name

from springtide.errors import RunnerError, TransportRefused
from springtide.jobs.transports import Message, driver
from springtide.ops.runner import certificates, nats_settings, processes, rabbitmq_settings
from springtide.ops.runner import nats as runner_nats
from springtide.ops.runner import rabbitmq as runner_rabbitmq
from springtide.ops.runner.children import Child
from springtide.ops.runner.home import Home
from springtide.ops.runner.leftovers import end_leftovers, left_brokers
from springtide.ops.runner.nats import NatsServer
from springtide.ops.runner.nats_talk import NatsRefused, ask
from springtide.ops.runner.rabbitmq import RabbitServer
from springtide.topology import read_addresses

NODES = """
[nodes.db]
[nodes.broker]
kind = "{kind}"
[clusters.main]
primary = "db"
[databases.default]
shards = ["main"]
"""

LINE = "mail.main.1"


@pytest.fixture
def made(template: Path) -> Iterator[Callable[[str], Project]]:
    with project() as found:
        yield lambda kind: found.write(NODES.format(kind=kind)).prepare(template)


@pytest.fixture
def home() -> Iterator[Path]:
    folder = scratch("springtide-broker-home-")
    yield folder / "home"
    for pid in left_brokers(Home(folder / "home")):
        kill(pid)
    shutil.rmtree(folder, ignore_errors=True)


def node(found: Project, name: str = "broker") -> dict[str, Any]:
    return next(node for node in found.status()["nodes"] if node["node"] == name)


def url_of(found: Project) -> str:
    return read_addresses(found.home / "run" / "addresses.json").nodes["broker"]


async def carry(kind: str, url: str, name: str, *, send: int = 0, take: int = 0) -> None:
    """Through the driver of jobs: publish so many messages, then receive and settle so many."""
    transport = driver(kind, url, name=name)
    await transport.start()
    try:
        await publish(transport, [Message(LINE, 0, UUID(int=number), 1) for number in range(send)])
        found = await receive(transport, take, lines=[LINE]) if take else []
        await transport.ack(found)
    finally:
        await transport.stop()


@pytest.mark.needs("nats-server")
@pytest.mark.timeout(300)
def test_a_platform_lives_with_its_nats(made: Callable[[str], Project]) -> None:
    """It runs on loopback as an account that is not root and knows one password; `status` says what it holds;
    killed, it is started again at the same address with all that it had; `down` leaves its data alone."""
    found = made("nats")
    found.run("up", "-d")
    first, url, name = node(found), url_of(found), fresh_name()
    assert (first["kind"], first["state"]) == ("nats", "running")
    assert Path(f"/proc/{first['pid']}").stat().st_uid != 0
    settings = (found.home / "data" / "broker").resolve() / "nats.conf"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    with pytest.raises(NatsRefused, match="Authorization"):
        ask(f"nats://springtide:wrong@{first['address']}", "$JS.API.INFO", timeout=20.0)
    asyncio.run(carry("nats", url, name, send=3))
    held = found.status()["brokers"]["broker"]
    assert (held["streams"], held["ready"]) == (1, 3)
    assert "broker: 3 messages ready; " in found.call("status")

    kill(first["pid"])
    until(lambda: found.pids().get("broker") not in (None, first["pid"]))
    until(lambda: node(found)["state"] == "running")
    assert url_of(found) == url
    asyncio.run(carry("nats", url, name, take=3))
    found.run("down")
    assert found.leftovers() == []
    assert (settings.parent / "streams").is_dir()


@pytest.mark.needs("rabbitmq-server")
@pytest.mark.timeout(600)
def test_a_platform_lives_with_its_rabbitmq(made: Callable[[str], Project]) -> None:
    """As NATS does. What a killed supervisor left is ended by `down`, Erlang's name server included."""
    found = made("rabbitmq")
    found.run("up", "-d", timeout=400)
    first, url, name = node(found), url_of(found), fresh_name()
    assert (first["kind"], first["state"]) == ("rabbitmq", "running")
    assert Path(f"/proc/{first['pid']}").stat().st_uid != 0
    folder = (found.home / "data" / "broker").resolve()
    for file in ("rabbitmq.conf", "definitions.json", ".erlang.cookie"):
        assert stat.S_IMODE((folder / file).stat().st_mode) == 0o600
    asyncio.run(carry("rabbitmq", url, name, send=3))
    for login in ("guest:guest", "springtide:wrong"):
        with pytest.raises(TransportRefused, match="login"):
            asyncio.run(carry("rabbitmq", f"amqp://{login}@{first['address']}/", name))
    until(lambda: found.status()["brokers"]["broker"].get("ready") == 3)  # it counts every few seconds
    assert "broker: 3 messages ready; 0 taken; " in found.call("status")
    supervisor = found.status()["supervisor"]
    kill(supervisor)
    until(lambda: processes.identify(supervisor) is None)
    assert {n["node"]: n["state"] for n in found.status()["nodes"]}["broker"] == "orphaned"
    found.run("down")
    assert found.leftovers() == []


@pytest.mark.parametrize(
    "broker", [pytest.param("rabbitmq", marks=pytest.mark.needs("rabbitmq-server"))], indirect=True
)
@pytest.mark.timeout(600)
def test_erlangs_name_server_ends_with_its_server(broker: RabbitBroker) -> None:
    """It is none of the machine's own, and kill -9 of the server ends it and all that the server started."""
    mark = f"SPRINGTIDE_HOME={broker.folder}/home".encode()

    def processes_left() -> dict[int, str]:
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
            except OSError:
                continue
        return found

    before = processes_left()
    assert "epmd" in before.values() and before[broker.pid] == "beam.smp"
    assert left_brokers(Home(broker.folder / "home")) == [broker.pid]
    broker.kill()
    until(lambda: processes_left() == {})


@pytest.mark.needs("nats-server")
async def test_one_that_a_killed_supervisor_left_is_ended_before_another_starts(home: Path) -> None:
    """Two never have the data open; one whose supervisor is gone is ended with what else it left."""
    left, second = NatsServer("broker", home=home), NatsServer("broker", home=home)
    await left.start()
    await second.start()
    assert await left.wait() is not None
    assert second.pid != left.pid
    places = await asyncio.to_thread(Home, home)
    assert await end_leftovers(places, databases=False) == [second.pid]
    assert await asyncio.to_thread(left_brokers, places) == []
    assert await second.wait() is not None


@pytest.mark.needs("nats-server")
async def test_one_that_is_silent_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen, it is killed after some looks without an answer, and its watch starts another with its data."""
    monkeypatch.setattr(NatsServer, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(runner_nats, "ANSWER_WITHIN", 0.5)
    server = NatsServer("broker", home=home)
    name = fresh_name()
    again = asyncio.Event()
    child = Child(server, "nats", changed=lambda: None, restarted=again.set)
    await child.start()
    try:
        await carry("nats", server.url(), name, send=2)
        first = server.pid
        os.kill(first, 19)
        async with asyncio.timeout(90):
            await again.wait()
        assert server.pid != first
        await carry("nats", server.url(), name, take=2)
    finally:
        await child.stop()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("nats", marks=pytest.mark.needs("nats-server")),
        pytest.param("rabbitmq", marks=pytest.mark.needs("rabbitmq-server")),
    ],
)
@pytest.mark.timeout(600)
async def test_with_tls_it_proves_who_it_is(home: Path, kind: str) -> None:
    """The driver speaks TLS to it and trusts the platform's authority alone."""
    await asyncio.to_thread((home / "secrets").mkdir, parents=True)
    await certificates.ensure(home / "secrets", ["broker"], authority=True)
    server: NatsServer | RabbitServer
    if kind == "nats":
        server = NatsServer("broker", home=home, tls=True, start_timeout=400)
    else:
        server = RabbitServer("broker", home=home, tls=True, start_timeout=400)
    await server.start()
    try:
        url = server.url()
        assert url.startswith(("tls://", "amqps://")) and url.endswith(f"?ssl_ca_certs={home}/secrets/ca.crt")
        await carry(kind, url, fresh_name(), send=2, take=2)
        stranger = driver(kind, url.partition("?")[0], name=fresh_name())
        await stranger.start()
        try:
            with pytest.raises(Exception, match=r"(?i)certificate.verify.failed"):
                await stranger.publish([Message(LINE, 0, UUID(int=1), 1)])
        finally:
            await stranger.stop()
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("program", "package"),
    [(runner_nats.PROGRAM, "nats-server"), (runner_rabbitmq.PROGRAM, "rabbitmq-server")],
)
def test_without_the_program_the_error_says_how_to_get_it(
    program: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    nowhere = replace(program, tried=("nowhere", package))
    with pytest.raises(RunnerError, match=rf"apt-get install {package}.*make servers.*give the node a url"):
        nowhere.find()


def test_settings_say_what_they_must() -> None:
    """Passwords are hashed or quoted, folders that would break a file are refused, streams are synced where
    the version can."""
    nats: dict[str, Any] = {
        "name": "b",
        "port": 7,
        "password": 'a"b',
        "system_password": "c",
        "folder": Path('/x "y"'),
        "tls": False,
    }
    assert "sync_interval" not in nats_settings.conf(**nats, version=(2, 9))
    text = nats_settings.conf(**nats, version=(2, 10))
    assert "sync_interval: always\n" in text and 'password: "a\\"b"' in text
    assert 'store_dir: "/x \\"y\\"/streams"\n' in text
    with pytest.raises(RunnerError, match="line breaks"):
        nats_settings.conf(**{**nats, "folder": Path("/a\nb")}, version=(2, 9))
    assert "secret" not in rabbitmq_settings.definitions("secret")
    rabbit: dict[str, Any] = {"port": 7, "figures_port": 8, "max_bytes": 9, "folder": Path("/a b")}
    assert "listeners.tcp.1 = 127.0.0.1:7\n" in rabbitmq_settings.conf(**rabbit, tls=False)
    assert "listeners.tcp = none\n" in rabbitmq_settings.conf(**rabbit, tls=True)
    with pytest.raises(RunnerError, match="quotes"):
        rabbitmq_settings.conf(**{**rabbit, "folder": Path("/a#b")}, tls=False)
    for read in (rabbitmq_settings.told, lambda text: nats_settings.told(text, text)):
        with pytest.raises(RunnerError, match="not understood"):
            read("{}")


def test_options_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="go_bytes must be > 0"):
        NatsServer("b", home=tmp_path, go_bytes=0)
    with pytest.raises(ValueError, match="max_bytes must be > 0"):
        RabbitServer("b", home=tmp_path, max_bytes=0)
