"""One app server: uvicorn on the public socket that the supervisor bound. `python -m ...appserver`.

The socket is inherited, so several servers share it, and a crashed one takes no waiting connection with it.
SIGTERM: a platform's readiness goes off, no new connections are taken, requests in flight are finished within
the drain time, the lifespan is closed. (Nothing is waited for before the second step: there is no balancer
yet that could notice the first. One will need the time of its checks here.)
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys

import uvicorn

from springtide._lifespan import DRAIN
from springtide.ops._process import begun

__all__ = ["main"]


class _Server(uvicorn.Server):
    """uvicorn's server, which also tells the supervisor when it accepts connections, and the platform when
    it is about to take no more."""

    def __init__(self, config: uvicorn.Config, ready_fd: int) -> None:
        super().__init__(config)
        self._ready_fd = ready_fd

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            begun()
            os.write(self._ready_fd, b"1")
        os.close(self._ready_fd)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain = self.lifespan.state.get(DRAIN)
        if drain is not None:
            drain()
        await super().shutdown(sockets)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="springtide appserver")
    parser.add_argument("app")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--drain", type=float, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    args = parser.parse_args(arguments)
    sys.path.insert(0, args.path)
    os.set_inheritable(args.ready_fd, False)
    os.set_inheritable(args.fd, False)
    config = uvicorn.Config(
        args.app,
        loop="uvloop" if importlib.util.find_spec("uvloop") else "auto",
        http="httptools" if importlib.util.find_spec("httptools") else "auto",
        lifespan="auto",
        access_log=False,  # Springtide's layers log requests; other applications log their own
        server_header=False,
        proxy_headers=False,  # only an application that knows its proxies may trust their headers
        timeout_graceful_shutdown=max(1, round(args.drain)),
    )
    server = _Server(config, args.ready_fd)
    server.run(sockets=[socket.socket(fileno=args.fd)])
    return 0 if server.started else 3


if __name__ == "__main__":
    sys.exit(main())
