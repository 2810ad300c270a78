"""One app server under SIGTERM: it says that it is leaving, finishes what it has begun, and leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

TOPOLOGY = """
name = "tiny"
stage = 1
app = "tiny:app"
[nodes.db]
url = "{url}"
"""

WRAPPED = """
import asyncio, pathlib
from springtide.platform import Platform

platform = Platform.from_topology(modules=[])

async def web(scope, receive, send):
    assert scope["type"] == "http"
    pathlib.Path("begun").touch()
    while platform.health.obstacle() is None:
        await asyncio.sleep(0.01)
    body = platform.health.obstacle().encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})

app = platform.wrap(web)
"""

BARE = """
import asyncio, pathlib

async def app(scope, receive, send):
    assert scope["type"] == "http"
    pathlib.Path("begun").touch()
    while not pathlib.Path("go").exists():
        await asyncio.sleep(0.01)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})
"""


@contextmanager
def serving(folder: Path, source: str) -> Iterator[tuple[subprocess.Popen[bytes], HTTPConnection]]:
    """The server process, started, and a connection whose GET / it has begun to answer."""
    (folder / "tiny.py").write_text(source)
    ready, told = os.pipe()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "springtide.ops.runner.appserver", "tiny:app", "--path", str(folder)]
        command += ["--fd", str(listener.fileno()), "--ready-fd", str(told), "--drain", "3"]
        home = {"SPRINGTIDE_TOPOLOGY": str(folder / "springtide.toml"), "SPRINGTIDE_HOME": str(folder)}
        server = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **home},
            stdin=subprocess.DEVNULL,
            pass_fds=[listener.fileno(), told],
        )
    os.close(told)
    try:
        assert os.read(ready, 1) == b"1"
        with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            connection.request("GET", "/")
            deadline = time.monotonic() + 30
            while not (folder / "begun").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield server, connection
    finally:
        os.close(ready)
        server.kill()
        server.wait(10)


def test_readiness_goes_off_while_requests_are_finished(tmp_path: Path, database_url: str) -> None:
    """A request that was begun before SIGTERM still sees the platform, which says that it is draining."""
    (tmp_path / "springtide.toml").write_text(TOPOLOGY.format(url=database_url))
    with serving(tmp_path, WRAPPED) as (server, connection):
        server.send_signal(signal.SIGTERM)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"draining")
        assert answer.headers["connection"] == "close"
        server.wait(10)


def test_an_application_without_a_platform_is_finished_too(tmp_path: Path) -> None:
    """Nothing of Springtide is needed in an application, and no lifespan."""
    with serving(tmp_path, BARE) as (server, connection):
        server.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionRefusedError):
            while True:  # until the server has heard the signal
                socket.create_connection(("127.0.0.1", connection.port), timeout=5).close()
                time.sleep(0.01)
        (tmp_path / "go").touch()
        assert connection.getresponse().read() == b"done"
        server.wait(10)
