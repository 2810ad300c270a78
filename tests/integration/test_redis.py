"""Links to a real Redis: answers stay with their callers, whatever becomes of callers and servers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from tests._redis import RedisServer
from tests._redis_use import HANGS, answers, linked, refused, started, until

from springtide.clock import SystemClock
from springtide.errors import RedisError, RedisUnavailable
from springtide.redis import Script
from springtide.testing.faults import FaultProxy

pytestmark = [pytest.mark.needs("redis-server"), pytest.mark.timeout(300)]

ECHO = Script("echo", "return {KEYS[1], ARGV[1]}")


async def test_cancelled_callers_never_shift_the_answers_of_others(redis_server: RedisServer) -> None:
    """Of 1,000 callers at once half are cancelled, before and while their answers come: each of the others
    gets the answer to its own question."""
    async with started(redis_server.url) as redis:
        link = await linked(redis)

        async def ask(n: int) -> Any:
            return await link.send("ECHO", f"{n}")

        for turn in range(3):
            tasks = [asyncio.create_task(ask(n)) for n in range(1000)]
            for _ in range(turn):  # none, one or two turns of the loop: unsent, sent, on its way back
                await asyncio.sleep(0)
            for task in tasks[turn::2]:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            kept = [(n, a) for n, a in enumerate(answers) if not isinstance(a, asyncio.CancelledError)]
            assert len(kept) >= 500
            assert [answer for _, answer in kept] == [b"%d" % n for n, _ in kept]
        assert redis.link("") is link


async def test_commands_of_one_turn_are_one_write(redis_server: RedisServer) -> None:
    """100 GETs of one turn of the loop reach the server by one read of its socket."""
    async with started(redis_server.url) as redis:
        link = await linked(redis)
        await link.send("PING")

        def reads() -> int:
            return int(redis_server.info("stats")["total_reads_processed"])

        own = reads()
        own = reads() - own  # what asking for it costs
        before = reads()
        await asyncio.gather(*(link.send("GET", f"k{n}") for n in range(100)))
        assert reads() - before - own <= 10  # one, and those of who looks once a second


async def test_an_error_belongs_to_the_command_that_made_it(redis_server: RedisServer) -> None:
    """The commands around it have their answers; what cannot be packed is refused before it is queued."""
    async with started(redis_server.url) as redis:
        link = await linked(redis)
        await link.send("SET", "word", "x")
        wrong, right = link.send("INCR", "word"), link.send("GET", "word")
        with pytest.raises(RedisError) as caught:
            await wrong
        assert caught.value.code == "ERR"
        assert caught.value.address == link.address
        assert await right == b"x"
        with pytest.raises(TypeError):
            link.send("SET", "word", None)  # type: ignore[arg-type]
        assert await link.send("GET", "word") == b"x"


async def test_a_script_is_sent_whole_once_to_a_server_that_lost_it(redis_server: RedisServer) -> None:
    """A flush of the scripts is seen by nobody, and the digest is used again afterwards."""
    async with started(redis_server.url) as redis:
        link = await linked(redis)
        redis_server.command("SCRIPT", "FLUSH")
        assert await link.call(ECHO, ["k"], [1]) == [b"k", b"1"]
        whole = redis_server.commands_done("eval")
        redis_server.command("SCRIPT", "FLUSH")
        assert await asyncio.gather(*(link.call(ECHO, ["k"], [n]) for n in range(10))) == [
            [b"k", b"%d" % n] for n in range(10)
        ]
        assert await link.call(ECHO, ["k"], [1]) == [b"k", b"1"]
        assert whole < redis_server.commands_done("eval") <= whole + 10


async def test_a_frozen_server_costs_one_timeout_then_nothing(own_redis: Callable[..., RedisServer]) -> None:
    """Its callers are told so; nobody is given the link until the server answers in time again; the answers
    that come late shift nothing."""
    server = own_redis()
    async with started(server.url, timeout=0.25) as redis:
        link = await linked(redis)
        server.freeze()
        late = await asyncio.gather(*(link.send("ECHO", n) for n in range(10)), return_exceptions=True)
        assert all(isinstance(error, RedisUnavailable) for error in late)
        assert redis.link("") is None
        server.thaw()
        again = await linked(redis)
        assert await asyncio.gather(*(again.send("ECHO", n) for n in range(10))) == [
            b"%d" % n for n in range(10)
        ]


async def test_a_server_that_stays_frozen_loses_its_link(own_redis: Callable[..., RedisServer]) -> None:
    """The link is given up; connections that are taken and not answered are no links."""
    server = own_redis()
    async with started(server.url, timeout=0.1, connect_timeout=0.5) as redis:
        link = await linked(redis)
        server.freeze()
        with pytest.raises(RedisUnavailable):
            await link.send("PING")
        await until(lambda: not link.alive)
        assert "answered nothing" in link.why
        assert redis.link("") is None
        server.thaw()
        assert (await linked(redis)).run_id == link.run_id


async def test_a_server_that_was_killed_is_another_run(own_redis: Callable[..., RedisServer]) -> None:
    """Who waits is told at once; the new link has the new run id, and the old one never comes back."""
    server = own_redis()
    async with started(server.url) as redis:
        link = await linked(redis)
        server.freeze()
        waiting = link.send("GET", "k")
        await asyncio.sleep(0)
        server.kill()
        with pytest.raises(RedisUnavailable):
            await waiting
        await until(lambda: redis.link("") is None)
        server.start()
        new = await linked(redis)
        assert new.run_id == server.run_id != link.run_id
        with pytest.raises(RedisUnavailable):
            await link.send("GET", "k")


async def test_a_client_starts_without_its_server(own_redis: Callable[..., RedisServer]) -> None:
    """Nobody waits for a server that is not there, and it is found when it comes."""
    server = own_redis()
    server.kill()
    async with started(server.url) as redis:
        assert redis.link("") is None
        server.start()
        assert await (await linked(redis)).send("PING") == b"PONG"


async def test_a_blocked_reader_holds_up_nobody(redis_server: RedisServer) -> None:
    """It has a connection of its own, and ends with the client."""
    async with started(redis_server.url) as redis:
        link = await linked(redis)
        reader = await redis.reader("", block=30.0)
        waiting = reader.send("XREAD", "BLOCK", 30_000, "STREAMS", "s", "$")
        await until(lambda: redis_server.info("clients")["blocked_clients"] == "1")
        await link.send("XADD", "s", "1-1", "f", "v")
        assert await waiting == [[b"s", [[b"1-1", [b"f", b"v"]]]]]
        waiting = reader.send("XREAD", "BLOCK", 30_000, "STREAMS", "s", "$")
    with pytest.raises(RedisUnavailable):
        await waiting


async def test_a_reader_is_not_late_while_it_blocks(redis_server: RedisServer) -> None:
    """Its time-out begins where the time that it may block ends."""
    async with started(redis_server.url, timeout=1.0) as redis:
        await answers(redis, "PING")
        reader = await redis.reader("", block=2.0)
        assert await reader.send("XREAD", "BLOCK", 2000, "STREAMS", "nothing", "$") is None


async def test_a_wrong_login_is_said_at_the_start(own_redis: Callable[..., RedisServer]) -> None:
    """Waiting would not mend it; the password is not shown."""
    server = own_redis(password="right")
    said = await refused(server.url.replace("right", "wrong-one"))
    assert "login was refused" in said
    assert "wrong-one" not in said
    async with started(server.url) as redis:
        assert await (await linked(redis)).send("PING") == b"PONG"


async def test_a_cut_connection_is_made_again(redis_server: RedisServer) -> None:
    """Cut between a command and its answer: the caller is told, the next link serves."""
    async with (
        FaultProxy(target=redis_server.port) as proxy,
        started(f"redis://127.0.0.1:{proxy.port}") as redis,
    ):
        link = await linked(redis)
        proxy.cut()
        await until(lambda: not link.alive)
        assert await (await linked(redis)).send("PING") == b"PONG"


async def test_a_server_that_is_too_slow_is_done_without(redis_server: RedisServer) -> None:
    """It answers everything, always too late: nobody waits for it, until it is quick again."""
    async with (
        FaultProxy(target=redis_server.port) as proxy,
        started(f"redis://127.0.0.1:{proxy.port}", timeout=0.2) as redis,
    ):
        link = await linked(redis)
        proxy.slow(0.4)
        late = await asyncio.gather(*(link.send("PING") for _ in range(5)), return_exceptions=True)
        assert all(isinstance(error, RedisUnavailable) for error in late)
        assert redis.link() is None
        proxy.resume()
        assert await answers(redis, "PING") == b"PONG"


@pytest.mark.parametrize(
    ("version", "mode", "message"),
    [
        ("6.0.16", "standalone", "its version must be >= 6.2, got 6.0.16"),
        ("7.0.15", "sentinel", "must run as standalone, got sentinel"),
        ("", "standalone", "its version must be >= 6.2, got unknown"),
    ],
)
async def test_a_server_that_can_never_serve_is_said_at_the_start(
    version: str, mode: str, message: str
) -> None:
    """By what it says of itself; nothing is left open."""
    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"replication\r\n")
        info = f"{f'redis_version:{version}' if version else '#'}\r\nredis_mode:{mode}\r\nrun_id:abc\r\n"
        writer.write(
            f"+OK\r\n${len(info)}\r\n{info}\r\n$11\r\nloading:0\r\n\r\n$11\r\nrole:master\r\n".encode()
        )
        await reader.read()
        writer.close()
        gone.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert message in await refused(f"redis://127.0.0.1:{port}")
        async with asyncio.timeout(HANGS):
            await gone.wait()


def test_links_work_in_the_loop_of_the_app_servers(redis_server: RedisServer) -> None:
    """uvloop's transports are of other classes and write at other times."""

    async def use() -> None:
        async with started(redis_server.url) as redis:
            link = await linked(redis)
            answers = await asyncio.gather(*(link.send("ECHO", n) for n in range(100)))
            assert answers == [b"%d" % n for n in range(100)]

    uvloop.run(use())


def test_a_fork_must_not_use_its_parents_links(redis_server: RedisServer) -> None:
    """Two processes on one connection would read each other's answers: the child is told to make its own."""
    code = f"""
import asyncio, os
from springtide.errors import ConfigurationError
from springtide.redis import Redis

async def main():
    redis = Redis({redis_server.url!r}, name="shared", timeout={HANGS}, connect_timeout={HANGS})
    await redis.start()
    child = os.fork()
    if child == 0:
        said = []
        for use in (redis.link, redis.reader().send, redis.start().send, redis.stop().send):
            try:
                use(*([] if use == redis.link else [None]))
            except ConfigurationError as error:
                said.append(str(error))
        os.write(1, "\\n".join(said).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert await redis.link().send("PING") == b"PONG"
    await redis.stop()

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS, check=True
    )
    said = done.stdout.splitlines()
    assert len(said) == 4
    assert all("shared: it was started in process" in line and "a fork of it" in line for line in said)


async def test_pauses_between_attempts_grow_to_a_bound_and_are_spread() -> None:
    """A server that is gone is asked for about once a second, by each process at moments of its own."""
    pauses: list[float] = []
    enough = asyncio.Event()

    class Recording(SystemClock):
        async def sleep(self, seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 30:
                enough.set()
                await asyncio.Event().wait()

    async with started("redis://127.0.0.1:1", clock=Recording()), asyncio.timeout(HANGS):
        await enough.wait()
    for n, pause in enumerate(pauses):
        assert 0.5 <= pause / min(0.02 * 2**n, 1.0) <= 1.5
    assert len(set(pauses)) == 30
