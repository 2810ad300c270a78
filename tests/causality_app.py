"""An app process over a cluster with replicas, for tests: registers over HTTP, tokens in and out.

    python -m tests.causality_app HOME URL REPLICA...     (urls of one PostgreSQL database on each server)

It prints its port. GET /register/KEY answers {"version", "value"}, POST writes. `Authorization: Bearer N` and
the cookie `session=N` prove to be N. /state says who answered the reads.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from tests.replicated import QUICK, READ, WRITE

from springtide.context import Identity, current
from springtide.db import Database, ShardMap, bucket_of
from springtide.db.members import Fixed, Member
from springtide.db.pool import Pool
from springtide.db.servers import Servers
from springtide.identity.positions import Positions
from springtide.web.asgi import Layers
from springtide.web.causality import Carrier, CausalityKeys


def make(home: Path, primary: str, replicas: list[str]) -> Any:
    pool = Pool(primary, cluster="main", size=10, reserved=2)
    members = [Member(node="primary", url=primary)]
    members += [Member(node=f"replica-{number}", url=url) for number, url in enumerate(replicas, 1)]
    servers = Servers(
        "main",
        pool,
        Fixed(members),
        replica_pool=lambda member: Pool(member.url, cluster=f"main/{member.node}", reserved=0),
        settings=QUICK,
    )
    db = Database("registers", ShardMap.even(["main"]), {"main": pool}, servers={"main": servers})
    positions = Positions(pool)
    keys = CausalityKeys.load_or_create(home / "causality.key")
    carrier = Carrier(keys, name="registers", clusters=["main"], positions=positions)

    async def register(request: Request) -> JSONResponse:
        context, key = current(), request.path_params["key"]
        assert context is not None
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme == "Bearer":
            context.identity = Identity(int(token), "token")
        elif "session" in request.cookies:
            context.identity = Identity(int(request.cookies["session"]), "session")
        if request.method == "POST":
            async with db.write(key) as tx:
                version = await tx.fetch_value(WRITE, bucket_of(key), key, request.query_params["value"])
            return JSONResponse({"version": version, "value": request.query_params["value"]})
        row = await db.read(key).fetch_one(READ, bucket_of(key), key)
        answer = {"version": 0, "value": None} if row is None else dict(row)
        return JSONResponse(answer)

    async def state(request: Request) -> JSONResponse:
        return JSONResponse(
            {
                "serving": [one.state for one in servers.replicas].count("serving"),
                "replica_reads": sum(one.reads for one in servers.replicas),
                "primary_reads": dict(servers.primary_reads),
            }
        )

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with pool:
            await servers.start()
            await positions.start()
            yield
            await positions.stop()
            await servers.stop()

    routes = [Route("/state", state), Route("/register/{key}", register, methods=["GET", "POST"])]
    app = Starlette(routes=routes)
    layers = Layers(app, causality=carrier)

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        await (layers if scope["type"] == "http" else app)(scope, receive, send)

    app.router.lifespan_context = lifespan
    return wrapped


if __name__ == "__main__":
    home, primary, *replicas = sys.argv[1:]
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    made = make(Path(home), primary, replicas)
    uvicorn.Server(uvicorn.Config(made, log_level="warning", timeout_keep_alive=90)).run([listening])
