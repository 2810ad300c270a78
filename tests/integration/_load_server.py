"""A server whose delays are known, for tests of the load generator; run as a process of its own.

/delay/20            answers after 20 ms                 /status/503      answers with that status
/stall/key/100/1.0   the 100th request to `key` stops the whole process for 1.0 s
/timing              answers with Server-Timing          anything else    answers at once
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections import Counter
from typing import Any

import uvicorn

seen: Counter[str] = Counter()


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    parts = scope["path"].strip("/").split("/")
    status = 200
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    if parts[0] == "delay":
        await asyncio.sleep(float(parts[1]) / 1000)
    elif parts[0] == "status":
        status = int(parts[1])
    elif parts[0] == "stall":
        seen[parts[1]] += 1
        if seen[parts[1]] == int(parts[2]):
            time.sleep(float(parts[3]))
    elif parts[0] == "timing":
        headers.append((b"server-timing", b'sql;dur=2.5;desc="queries", cpu;dur=0.5'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


if __name__ == "__main__":
    # Not --fd of uvicorn: it takes the socket for a Unix one and leaves Nagle on, which costs 40 ms.
    config = uvicorn.Config(app, access_log=False, log_level="error", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
