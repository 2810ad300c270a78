"""Redis under `springtide up`: started, killed, frozen, taken over; and what is said when it cannot be."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests._redis import RedisServer as FoundRedis
from tests._redis import free_port
from tests.integration._platforms import Project, kill, project, until
from tests.servers import scratch

from springtide.errors import ProcessCrashed, RunnerError
from springtide.ops.runner import certificates, given_redis, processes
from springtide.ops.runner import redis as runner_redis
from springtide.ops.runner.children import Child
from springtide.ops.runner.home import Home
from springtide.ops.runner.leftovers import end_leftovers, left_caches
from springtide.ops.runner.redis import PROGRAM, RedisServer
from springtide.ops.runner.redis_settings import POLICY, conf, noted_port, told, values_bytes
from springtide.ops.runner.redis_talk import RedisRefused, talk
from springtide.topology import read_addresses

NODES = """
[nodes.db]
[nodes.store]
kind = "redis"
memory_bytes = 67108864
[clusters.main]
primary = "db"
[databases.default]
shards = ["main"]
"""


@pytest.fixture
def cached(template: Path) -> Iterator[Project]:
    with project() as made:
        yield made.write(NODES).prepare(template)


def ask(made: Project, *command: str) -> str:
    url = read_addresses(made.home / "run" / "addresses.json").nodes["store"]
    return talk(url, command, timeout=20.0)[0]


def node(made: Project, name: str = "store") -> dict[str, Any]:
    return next(node for node in made.status()["nodes"] if node["node"] == name)


def end_supervisor(made: Project) -> None:
    """kill -9, until it is gone."""
    pid = made.status()["supervisor"]
    kill(pid)
    until(lambda: processes.identify(pid) is None)


@pytest.mark.needs("redis-server")
def test_a_platform_lives_with_its_redis(cached: Project) -> None:
    """It answers to the password in secrets alone, on loopback, as an account that is not root, writes
    nothing, forgets at its bound; it is in `status` with what it holds; killed, it is started again at the
    same address, and the application never notices; `down` leaves nothing."""
    cached.run("up", "-d")
    found = node(cached)
    assert (found["kind"], found["state"]) == ("redis", "running")
    assert Path(f"/proc/{found['pid']}").stat().st_uid != 0
    password = cached.home / "secrets" / "store.password"
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    settings = (cached.home / "data" / "store").resolve() / "redis.conf"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    url = read_addresses(cached.home / "run" / "addresses.json").nodes["store"]
    assert url == f"redis://:{password.read_text()}@{found['address']}/0"
    with pytest.raises(RedisRefused, match="NOAUTH"):
        talk(f"redis://{found['address']}/0", ["PING"], timeout=20.0)
    assert ask(cached, "SET", "a", "1", "EX", "1000") == "OK"
    assert ask(cached, "GET", "a") == "1"
    assert "maxmemory_policy:volatile-lfu" in ask(cached, "INFO", "memory")
    caches = cached.status()["caches"]["store"]
    assert (caches["keys"], caches["hits"], caches["misses"], caches["hit_rate"]) == (1, 1, 0, 1.0)
    assert caches["max_bytes"] == 48 * 2**20
    assert "store: " in (text := cached.call("status")) and "1 keys; 100% of reads found" in text

    application = cached.pids()["app-1"]
    kill(found["pid"])
    until(lambda: cached.pids().get("store") not in (None, found["pid"]))
    until(lambda: node(cached)["state"] == "running")
    assert ask(cached, "EXISTS", "a") == "0"
    assert node(cached)["address"] == found["address"]

    assert cached.pids()["app-1"] == application
    assert cached.get("/")
    cached.run("down")
    assert cached.leftovers() == []
    assert [path.name for path in settings.parent.iterdir()] == ["redis.conf"]


@pytest.mark.needs("redis-server")
def test_one_that_a_killed_supervisor_left_stays_warm(cached: Project) -> None:
    """The next `up` goes on with the same process and what it holds, and watches it; `down` ends one that was
    left, too."""
    cached.run("up", "-d")
    first = cached.pids()["store"]
    ask(cached, "SET", "a", "1", "EX", "1000")
    end_supervisor(cached)
    assert {n["node"]: n["state"] for n in cached.status()["nodes"]}["store"] == "orphaned"
    cached.run("up", "-d")
    assert cached.pids()["store"] == first
    assert ask(cached, "GET", "a") == "1"
    kill(first)
    until(lambda: cached.pids().get("store") not in (None, first))
    end_supervisor(cached)
    cached.run("down")
    assert cached.leftovers() == []


@pytest.mark.needs("redis-server")
async def test_one_that_cannot_be_taken_over_is_ended(home: Path) -> None:
    """Frozen, or told something else than it would be told now: another takes its place. One whose node is
    not in the topology any more is ended, one whose node is stays."""
    left = RedisServer("store", home=home)
    await left.start()
    same = RedisServer("store", home=home)
    await same.start()
    assert (same.pid, same.url()) == (left.pid, left.url())
    kill(left.pid, signal.SIGSTOP)
    second = RedisServer("store", home=home)
    await second.start()
    assert second.pid != left.pid
    larger = RedisServer("store", home=home, max_bytes=2**29)
    await larger.start()
    assert larger.pid != second.pid
    places = await asyncio.to_thread(Home, home)
    assert await end_leftovers(places, databases=False, caches=["store"]) == []
    assert await end_leftovers(places, databases=False, caches=["other"]) == [larger.pid]
    assert await asyncio.to_thread(left_caches, places) == []
    for server in (left, second, larger):
        assert await server.wait() is not None


def test_without_the_program_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    nowhere = replace(PROGRAM, tried=("redis-server",))
    with pytest.raises(RunnerError, match=r"apt-get install redis-server.*give the node a url.*remove"):
        nowhere.find()


@pytest.fixture
def home() -> Iterator[Path]:
    folder = scratch("springtide-redis-home-")
    yield folder / "home"
    for pid in left_caches(Home(folder / "home")):
        kill(pid)


@pytest.mark.needs("redis-server")
async def test_one_that_does_not_start_says_why(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own words are in the error, and nothing of it is left."""
    monkeypatch.setattr(runner_redis, "conf", lambda **options: conf(**options) + "no-such-thing yes\n")
    server = RedisServer("store", home=home)
    with pytest.raises(ProcessCrashed, match=r"could not start\n(.*\n)*.*no-such-thing"):
        await server.start()
    assert await asyncio.to_thread(lambda: left_caches(Home(home))) == []


@pytest.mark.needs("redis-server")
async def test_one_that_is_silent_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen, it is killed after some questions without an answer, and its watch starts another; one that
    answers with an error is there."""
    monkeypatch.setattr(RedisServer, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(runner_redis, "ANSWER_WITHIN", 0.2)
    server = RedisServer("store", home=home)
    changes: list[str] = []
    child = Child(server, "redis", changed=lambda: None, restarted=lambda: changes.append("restarted"))
    await child.start()
    try:
        first = server.pid
        kill(first, signal.SIGSTOP)
        await happened(lambda: changes == ["restarted"])
        assert server.pid != first
        assert await asyncio.to_thread(talk, server.url(), ["PING"], timeout=20.0) == ["PONG"]
    finally:
        await child.stop()


@pytest.mark.needs("redis-server")
async def test_with_tls_it_proves_who_it_is_and_renews_that(home: Path) -> None:
    """Its port speaks TLS alone, with a certificate of the platform's authority; a client that trusts another
    turns away; a renewed certificate is shown without a restart."""
    secrets = home / "secrets"
    await asyncio.to_thread(secrets.mkdir, parents=True)
    await certificates.ensure(secrets, ["store"], authority=True)
    server = RedisServer("store", home=home, tls=True)
    await server.start()
    try:
        url, pid = server.url(), server.pid
        assert url.startswith("rediss://") and url.endswith(f"?ssl_ca_certs={secrets}/ca.crt")

        async def answered(url: str) -> list[str]:
            return await asyncio.to_thread(talk, url, ["PING"], timeout=20.0)

        assert await answered(url) == ["PONG"]
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await answered(url.partition("?")[0])
        with pytest.raises(OSError, match=r"closed|reset"):
            await answered(url.replace("rediss", "redis"))
        (secrets / "store.key").unlink()
        assert await certificates.ensure(secrets, ["store"], authority=False) == ["store"]
        before = await asyncio.to_thread(shown, server.port)
        await server.reload()
        assert await asyncio.to_thread(shown, server.port) != before
        assert (await answered(url), server.pid) == (["PONG"], pid)
    finally:
        await server.stop()


def shown(port: int) -> str:
    """The certificate that it shows."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=20.0)


async def happened(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.needs("redis-server")
async def test_a_port_that_somebody_took_is_exchanged_unless_it_was_asked_for(home: Path) -> None:
    """After a stop another process listens where it was: a free port is taken; a port that the topology
    names is refused with who has it."""
    server = RedisServer("store", home=home)
    await server.start()
    port = server.port
    await server.stop()
    with socket.create_server(("127.0.0.1", port)):
        await server.start()
        assert server.port != port
        await server.stop()
        with pytest.raises(
            RunnerError, match=rf"port {port} on 127\.0\.0\.1 is taken by .*nodes\.fixed\.port"
        ):
            await RedisServer("fixed", home=home, port=port).start()


@pytest.mark.needs("redis-server")
async def test_what_decides_over_fills_outlives_values_when_it_is_full(home: Path) -> None:
    """Ten times what has room is written once and never read. Such values are forgotten; what is used all the
    while stays although it has a time to live as well, what has none is not touched; no write is refused."""
    server = RedisServer("store", home=home, max_bytes=8 * 2**20)
    await server.start()
    try:
        names = [f"kept{n}" for n in range(100)]
        used = [["SET", name, "x", "EX", "3600"] for name in names] + [["SET", "for ever", "x"]]
        assert set(await asyncio.to_thread(talk, server.url(), *used, timeout=20.0)) == {"OK"}
        rounds = [["EXPIRE", name, "3600"] for name in names] * 10
        values = [["SET", f"value{n}", "x" * 10_000, "PX", "100000"] for n in range(8_000)]
        for begin in range(0, len(values), 1000):
            asked = [*rounds, *values[begin : begin + 1000]]
            answers = await asyncio.to_thread(talk, server.url(), *asked, timeout=20.0)
            assert answers == ["1"] * len(rounds) + ["OK"] * 1000
        asked = [*[["EXISTS", name] for name in (*names, "for ever")], ["INFO"]]
        found = await asyncio.to_thread(talk, server.url(), *asked, timeout=20.0)
        assert set(found[:-1]) == {"1"}
        assert told(found[-1]).evicted > 4_000
    finally:
        await server.stop()


def test_its_settings_say_what_they_must() -> None:
    """A folder with quotes and spaces is quoted, line breaks are refused, and the port is found again."""
    options: dict[str, Any] = {"port": 7, "password": "p", "max_bytes": 9, "folder": Path('/a "b"')}
    for tls in (False, True):
        text = conf(**options, tls=tls)
        assert 'dir "/a \\"b\\""\n' in text
        assert f"maxmemory-policy {POLICY}\n" in text and "maxmemory 9\n" in text
        assert noted_port(text) == 7
    assert "port 0\n" in conf(**options, tls=True)
    with pytest.raises(RunnerError, match="line breaks"):
        conf(**{**options, "folder": Path("/a\nb")}, tls=False)
    assert noted_port("nothing") is None
    assert (values_bytes(None), values_bytes(64 * 2**20)) == (256 * 2**20, 48 * 2**20)
    with pytest.raises(RunnerError, match="not understood"):
        told("redis_version:7\r\n")


def test_options_that_cannot_work_are_refused(tmp_path: Path) -> None:
    for options, text in (
        ({"name": "a/b"}, "plain file name"),
        ({"max_bytes": 0}, "max_bytes must be > 0"),
        ({"start_timeout": 0}, "start_timeout must be > 0"),
    ):
        given = {"name": "p", "home": tmp_path, **options}
        with pytest.raises(ValueError, match=text):
            RedisServer(given.pop("name"), **given)


@pytest.mark.needs("redis-server")
async def test_a_given_one_is_looked_at_before_anything_starts(own_redis: Callable[..., FoundRedis]) -> None:
    """One that refuses us is a fault, all at once; of one that does not answer, and of one that will refuse
    writes when it is full, there is a sentence; the others are silent."""
    good = await asyncio.to_thread(
        own_redis, password="right", maxmemory="10mb", maxmemory_policy="volatile-lfu"
    )
    full = await asyncio.to_thread(own_redis, maxmemory="10mb", maxmemory_policy="noeviction")
    gone = await asyncio.to_thread(free_port)
    urls = {"good": good.url, "full": full.url, "gone": f"redis://127.0.0.1:{gone}"}
    notes = await given_redis.check(urls, timeout=20.0)
    assert [note.partition(":")[0] for note in notes] == ["node full", "node gone"]
    assert "maxmemory-policy to volatile-lfu" in notes[0] and "nothing is cached" in notes[1]
    wrong = good.url.replace("right", "wrong")
    with pytest.raises(RunnerError, match=r"node one: .*WRONGPASS(.|\n)*node two: "):
        await given_redis.check({"one": wrong, "good": good.url, "two": wrong}, timeout=20.0)
