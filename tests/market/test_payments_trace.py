"""A call to the payment provider continues the trace of the request that makes it."""

from __future__ import annotations

import asyncio

from market.payments.client import ProviderClient
from market.payments.settings import PaymentSettings
from springtide.clock import SystemClock
from springtide.context import RequestContext, Trace, activate
from springtide.telemetry.tracing import parse_traceparent


async def test_the_trace_is_passed_on() -> None:
    """Same trace, a span of its own: what the provider logs can be found from our side."""
    heads: list[str] = []

    async def provider(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(provider, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = PaymentSettings(url=f"http://127.0.0.1:{port}", key="k")
    client = ProviderClient(settings, clock=SystemClock())
    trace = Trace.new()
    await client.start()
    try:
        with activate(RequestContext(trace=trace)):
            assert await client.find_refund("nothing") is None
    finally:
        await client.stop()
        server.close()
        await server.wait_closed()
    fields = dict(line.split(": ", 1) for line in heads[0].splitlines()[1:] if line)
    sent = parse_traceparent(fields["traceparent"])
    assert sent is not None
    assert sent[0] == trace.trace_id and fields["traceparent"] != trace.traceparent
