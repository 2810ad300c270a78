"""A process that is a Kafka cluster of one broker: librdkafka's mock cluster behind a port of our choice.

    python -m tests._kafka_cluster PORT WIRE

At PORT clients find the broker, and are told that it is there. At WIRE it says that it is at the port whose
number was read last from standard input: for clients that come by a proxy and are to stay behind it, though
Kafka has its clients connect to where brokers say that they are. Ends with standard input.

A broker answers a question for messages as soon as it has one; the mock only when the time that the question
may wait is over. So that time is shortened on the way to it.
"""

from __future__ import annotations

import asyncio
import ctypes
import struct
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import confluent_kafka

PRODUCER = 0

HOST = b"127.0.0.1"

REBALANCE_DELAY = 50
"""Milliseconds for which a group waits for more members; the broker's default is three seconds."""


def library() -> Any:
    """The librdkafka that the client's wheel brought, whose functions Python does not offer all."""
    folder = Path(confluent_kafka.__file__).parent.with_name("confluent_kafka.libs")
    (path,) = folder.glob("librdkafka-*.so*")
    return ctypes.CDLL(str(path))


def begin(port: int) -> int:
    """Start the cluster, whose broker says that it is at `port`; where it really is."""
    kafka = library()
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(kafka, name).restype = ctypes.c_void_p
    kafka.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    why = ctypes.create_string_buffer(500)
    conf = ctypes.c_void_p(kafka.rd_kafka_conf_new())
    client = kafka.rd_kafka_new(PRODUCER, conf, why, ctypes.c_size_t(len(why)))
    if not client:
        raise RuntimeError(why.value.decode())
    cluster = ctypes.c_void_p(kafka.rd_kafka_mock_cluster_new(ctypes.c_void_p(client), 1))
    kafka.rd_kafka_mock_broker_set_host_port(cluster, 1, HOST, port)
    kafka.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, REBALANCE_DELAY)
    kafka.rd_kafka_mock_set_controller_id(cluster, 1)
    bootstraps: bytes = kafka.rd_kafka_mock_cluster_bootstraps(cluster)
    return int(bootstraps.rpartition(b":")[2])


FETCH, FLEXIBLE, NAMELESS = 1, 12, 15
"""A question for messages; from which version on its head ends in one more byte, and no replica is named."""

FETCH_WAIT_MS = 10


def hastened(frame: bytes) -> bytes:
    """A request; one for messages waits for FETCH_WAIT_MS only."""
    kind, version, _, client = struct.unpack_from(">hhih", frame, 4)
    if kind != FETCH:
        return frame
    at = 14 + max(client, 0) + (version >= FLEXIBLE) + 4 * (version < NAMELESS)
    return frame[:at] + struct.pack(">i", FETCH_WAIT_MS) + frame[at + 4 :]


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Requests or answers, whole, each with its length in front."""
    while True:
        try:
            head = await reader.readexactly(4)
            yield head + await reader.readexactly(struct.unpack(">i", head)[0])
        except (asyncio.IncompleteReadError, ConnectionError):
            return


def advertised(port: int) -> bytes:
    """As answers have host and port of a broker."""
    return HOST + struct.pack(">i", port)


async def serve(port: int, wire: int) -> None:
    real, told = begin(port), port

    def at(answered: Callable[[bytes], bytes]) -> Any:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                there, back = await asyncio.open_connection("127.0.0.1", real)
            except OSError:
                writer.close()
                return
            await asyncio.wait(
                {
                    asyncio.ensure_future(passed(reader, back, hastened)),
                    asyncio.ensure_future(passed(there, writer, answered)),
                },
                return_when=asyncio.FIRST_COMPLETED,
            )
            writer.close()
            back.close()

        return accepted

    async def passed(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, changed: Callable[[bytes], bytes]
    ) -> None:
        async for frame in frames(source):
            sink.write(changed(frame))
            try:
                await sink.drain()
            except ConnectionError:
                return

    def moved(frame: bytes) -> bytes:
        return frame.replace(advertised(port), advertised(told))

    await asyncio.start_server(at(lambda frame: frame), "127.0.0.1", port)
    await asyncio.start_server(at(moved), "127.0.0.1", wire)
    print("ready", flush=True)
    words = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    while line := await words.readline():
        told = int(line)
        print("told", flush=True)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
