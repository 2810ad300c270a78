"""The protocol of a link, byte by byte: the other side is a transport that takes bytes and gives bytes."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.errors import RedisError, RedisUnavailable
from springtide.redis import link as protocol
from springtide.redis.link import Link
from springtide.redis.script import Script

HANGS = 60.0


class Wire(asyncio.Transport):
    """Keeps what is written, one entry per write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True


def connected(*, timeout: float = HANGS, block: float = 0.0) -> tuple[Link, Wire]:
    link, wire = Link("test:1", timeout=timeout, block=block), Wire()
    link.connection_made(wire)
    return link, wire


async def turn() -> None:
    await asyncio.sleep(0)


ANSWERS: list[tuple[bytes, Any]] = [
    (b"+OK\r\n", b"OK"),
    (b"$-1\r\n", None),
    (b"$5\r\na\r\nbc\r\n", b"a\r\nbc"),
    (b":-7\r\n", -7),
    (b"*2\r\n$1\r\nx\r\n*1\r\n:1\r\n", [b"x", [1]]),
    (b"*0\r\n", []),
    (b"-ERR no\r\n", RedisError),
    (b"-LOADING data\r\n", RedisUnavailable),
]


@given(
    kinds=st.lists(st.tuples(st.integers(0, len(ANSWERS) - 1), st.booleans()), min_size=1, max_size=30),
    data=st.data(),
)
def test_answers_find_their_commands_wherever_the_stream_is_split(
    kinds: list[tuple[int, bool]], data: st.DataObject
) -> None:
    """Any answers, cut into any pieces, with any of the callers gone: each caller that stays has its own."""
    stream = b"".join(ANSWERS[kind][0] for kind, _ in kinds)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))

    async def body() -> None:
        link, wire = connected()
        futures = [link.send("GET", n) for n in range(len(kinds))]
        await turn()
        assert len(wire.writes) == 1
        for future, (_, gone) in zip(futures, kinds, strict=True):
            if gone:
                future.cancel()
        bounds = sorted({0, len(stream), *cuts})
        for begin, end in pairwise(bounds):
            link.data_received(stream[begin:end])
        for future, (kind, gone) in zip(futures, kinds, strict=True):
            expected = ANSWERS[kind][1]
            if gone:
                assert future.cancelled()
            elif isinstance(expected, type):
                assert isinstance(future.exception(), expected)
            else:
                assert future.result() == expected
        assert link.alive
        link.close()

    asyncio.run(body())


async def test_what_one_turn_sends_is_one_write() -> None:
    """And what the next turn sends is another; each byte as Redis wants it."""
    link, wire = connected()
    for n in range(3):
        link.send("SET", f"k{n}", b"\x00\r\n")
    await turn()
    link.send("GET", "é")
    await turn()
    assert wire.writes == [
        b"".join(b"*3\r\n$3\r\nSET\r\n$2\r\nk%d\r\n$3\r\n\x00\r\n\r\n" % n for n in range(3)),
        b"*2\r\n$3\r\nGET\r\n$2\r\n\xc3\xa9\r\n",
    ]
    link.close()


@pytest.mark.parametrize("bytes_", [b"+OK\r\n+OK\r\n", b"!nonsense\r\n"])
async def test_a_stream_that_cannot_be_matched_ends_the_link(bytes_: bytes) -> None:
    """More answers than commands, or no answers at all: nobody after that could trust an answer."""
    link, wire = connected()
    first, second = link.send("PING"), None
    if bytes_.startswith(b"!"):
        second = link.send("PING")
    await turn()
    link.data_received(bytes_)
    assert not link.alive
    assert wire.aborted
    assert "protocol" in link.why
    if second is not None:
        assert isinstance(first.exception(), RedisUnavailable)
        assert isinstance(second.exception(), RedisUnavailable)
    link.data_received(b"+OK\r\n")  # what the transport still had
    link.connection_lost(None)


async def test_a_late_caller_is_told_and_its_answer_dropped() -> None:
    """The answer that comes after all belongs to the late command, not to the next one."""
    link, _ = connected(timeout=0.05)
    late = link.send("GET", "slow")
    with pytest.raises(RedisUnavailable, match=r"no answer within 0\.05 s"):
        await late
    assert link.alive
    link.data_received(b"$4\r\nslow\r\n")
    link._timeout = HANGS
    prompt = link.send("GET", "quick")
    link.data_received(b"$5\r\nquick\r\n")
    assert await prompt == b"quick"
    link.close()


async def test_a_link_that_is_late_for_everybody_trips_and_one_that_is_silent_is_lost() -> None:
    """First it says that it is not to be used, then it is gone; each is said once."""
    link, wire = connected(timeout=0.02)
    said: list[bool] = []
    link.on_trouble = lambda troubled: said.append(troubled.alive)
    futures = [link.send("GET", n) for n in range(protocol.TRIPS_AFTER)]
    await asyncio.wait(futures)
    async with asyncio.timeout(HANGS):
        while link.alive:
            await asyncio.sleep(0.005)
    assert said == [True, False]
    assert wire.aborted
    assert "answered nothing" in link.why


async def test_an_answer_in_time_between_late_ones_keeps_the_link() -> None:
    """Single slow commands are no reason to do without the server."""
    link, _ = connected(timeout=0.05)
    for _ in range(protocol.TRIPS_AFTER + 1):
        slow = link.send("SLOW")
        await asyncio.wait([slow])
        link.data_received(b"+SLOW\r\n")
        quick = link.send("QUICK")
        link.data_received(b"+QUICK\r\n")
        assert await quick == b"QUICK"
    assert not link.tripped
    link.close()


async def test_late_answers_alone_do_not_count_as_answers() -> None:
    """A server that answers everything too late is as good as silent, though it never stops talking."""
    link, _ = connected(timeout=0.02)
    for _ in range(protocol.TRIPS_AFTER):
        await asyncio.wait([link.send("SLOW")])
        link.data_received(b"+SLOW\r\n")
    async with asyncio.timeout(HANGS):
        while not link.tripped:
            link.send("SLOW")
            await asyncio.sleep(0.03)
            link.data_received(b"+SLOW\r\n")
    assert link.alive
    link.close()


async def test_a_loop_that_stood_still_blames_nobody() -> None:
    """After a pause of this process the answers that wait in the socket are read before anybody is late."""
    link, _ = connected(timeout=0.2)
    asked = link.send("GET", "k")
    await turn()
    end = asyncio.get_running_loop().time() + 0.6
    while asyncio.get_running_loop().time() < end:  # the loop stands still
        pass
    link._judge()  # as loops do that run timers before they read
    assert not asked.done()
    link.data_received(b"$1\r\nv\r\n")
    assert await asked == b"v"
    link.close()


async def test_a_full_link_refuses_and_forgets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many commands in flight, cancelled ones included, or too many bytes that nobody takes."""
    monkeypatch.setattr(protocol, "MAX_IN_FLIGHT", 3)
    link, wire = connected()
    held = [link.send("GET", n) for n in range(3)]
    held[0].cancel()
    with pytest.raises(RedisUnavailable, match="3 commands wait"):
        await link.send("GET", "one more")
    link.data_received(b"+0\r\n+1\r\n")
    link.pause_writing()
    with pytest.raises(RedisUnavailable, match="has not taken"):
        await link.send("GET", "another")
    link.resume_writing()
    last = link.send("GET", "last")
    link.data_received(b"+2\r\n+last\r\n")
    assert [await held[1], await held[2], await last] == [b"1", b"2", b"last"]
    assert all(b"one more" not in data and b"another" not in data for data in wire.writes)
    link.close()


async def test_a_lost_link_fails_everybody_and_stays_lost() -> None:
    """What was sent, what was not sent yet, what comes after; nobody who left them alone is heard of."""
    link, wire = connected()
    sent = link.send("GET", "sent")
    await turn()
    unsent = link.send("GET", "unsent")
    link.connection_lost(ConnectionResetError("reset"))
    await turn()
    after = link.send("GET", "after")
    for future in (sent, unsent, after):
        with pytest.raises(RedisUnavailable, match="reset"):
            await future
    assert len(wire.writes) == 1


async def test_a_script_falls_back_to_its_text_once() -> None:
    """NOSCRIPT is answered by the text; a second NOSCRIPT is an error; a caller that left sends nothing."""
    script = Script("s", "return 1")
    link, wire = connected()
    wanted, gone = link.call(script, ["k"], [1]), link.call(script, ["k"], [2])
    await turn()
    assert wire.writes[0].count(script.sha.encode()) == 2
    gone.cancel()
    link.data_received(b"-NOSCRIPT No matching script.\r\n" * 2)
    await turn()
    assert wire.writes[1:] == [b"*5\r\n$4\r\nEVAL\r\n$8\r\nreturn 1\r\n$1\r\n1\r\n$1\r\nk\r\n$1\r\n1\r\n"]
    link.data_received(b"-NOSCRIPT No matching script.\r\n")
    with pytest.raises(RedisError, match="NOSCRIPT"):
        await wanted
    assert link.alive
    link.close()


@pytest.mark.parametrize(
    "reply",
    [
        "READONLY You can't write against a read only replica.",
        "ERR Error running script: -READONLY You can't",
    ],
)
async def test_a_demoted_server_ends_its_link_after_the_answers_it_gave(reply: str) -> None:
    """As Redis 7 says it, and as 6.2 says it of a script."""
    link, _ = connected()
    refused, read = link.send("SET", "k", 1), link.send("GET", "k")
    link.data_received(f"-{reply}\r\n$1\r\nv\r\n".encode())
    assert await read == b"v"
    with pytest.raises(RedisUnavailable, match="no primary"):
        await refused
    await turn()
    assert not link.alive


async def test_a_slot_elsewhere_is_said_to_the_caller_and_the_cluster() -> None:
    """Nothing is followed: the keys were built for this node."""
    link, _ = connected()
    told: list[str] = []
    link.on_moved = lambda: told.append("moved")
    replies = ["MOVED 1 h:1", "ASK 1 h:1", "TRYAGAIN later", "CLUSTERDOWN no"]
    futures = [link.send("GET", "k") for _ in replies]
    link.data_received("".join(f"-{reply}\r\n" for reply in replies).encode())
    for future, reply in zip(futures, replies, strict=True):
        error = future.exception()
        assert isinstance(error, RedisUnavailable)
        assert reply in str(error)
    assert told == ["moved"] * 4
    link.close()


async def test_an_error_inside_an_answer_is_part_of_it() -> None:
    """EXEC answers with a list in which one may be an error."""
    link, _ = connected()
    future = link.send("EXEC")
    link.data_received(b"*2\r\n+OK\r\n-ERR no\r\n")
    first, second = await future
    assert first == b"OK"
    assert isinstance(second, Exception)
    link.close()
