"""PostgreSQL servers for tests: the embedded one, driven from synchronous code.

A server runs in a home of its own under the temporary folder, on a free port, without fsync. Everything
asynchronous happens in a loop of its own thread, so fixtures work in synchronous and asyncio tests alike.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from springtide.ops.runner import pgdata
from springtide.ops.runner.postgres import EmbeddedPostgres

T = TypeVar("T")


def scratch(prefix: str) -> Path:
    """A new folder that any account can enter (root's server runs as another one), in memory if it can be."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 * 2**30
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=memory if roomy else None))
    folder.chmod(0o755)
    return folder


class LoopThread:
    """An event loop in a daemon thread; `run` waits for a coroutine from outside."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-servers", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T], *, timeout: float = 90) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=timeout)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


def watch(folder: Path, script: str) -> subprocess.Popen[bytes]:
    """A process that runs `script`, with the folder as $0, when the test run is killed: it waits for a word,
    and the pipe ends without one. `communicate(b"closed\\n")` ends it otherwise."""
    return subprocess.Popen(
        ["/bin/sh", "-c", script, folder],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


WATCH = """
read -r _ && exit
read -r pid < "$0/home/data/db/postmaster.pid" && kill -CONT "$pid" && kill -QUIT "$pid"
rm -rf "$0"
"""


class PostgresServer:
    """One running server. `url(dbname)` connects as its superuser by TCP with SCRAM.

    It does not outlive the test run, not even one that is killed.
    """

    def __init__(self, loop: LoopThread, **options: Any) -> None:
        self._loop = loop
        self.folder = scratch("springtide-test-")
        self.server = EmbeddedPostgres("db", home=self.folder / "home", durable=False, **options)
        self._watch = watch(self.folder, WATCH)

    def start(self) -> None:
        self._loop.run(self.server.start())

    def stop(self) -> None:
        """Shut the server down; the data stays, `start` may follow (on the same port)."""
        self.thaw()
        self._loop.run(self.server.stop())

    def close(self) -> None:
        """Stop the server and remove its data."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._watch.communicate(b"closed\n")

    @property
    def pid(self) -> int:
        return self.server.pid

    @property
    def port(self) -> int:
        return self.server.port

    def url(self, dbname: str = "postgres") -> str:
        return self.server.url(dbname)

    def create_database(self, name: str | None = None, *, template: str = "template1") -> str:
        """Create a database (a fresh name when none is given), as a copy of `template`; its name."""
        name = name or f"t_{uuid.uuid4().hex[:12]}"
        sql = "SELECT format('CREATE DATABASE %I TEMPLATE %I', :'name', :'template') \\gexec\n"
        self._loop.run(self.server.query(sql, name=name, template=template))
        return name

    def drop_database(self, name: str) -> None:
        """Drop the database, with whatever is connected to it."""
        sql = "SELECT format('DROP DATABASE IF EXISTS %I WITH (FORCE)', :'name') \\gexec\n"
        self._loop.run(self.server.query(sql, name=name))

    def query(self, sql: str, *, dbname: str = "postgres") -> str:
        """Run `sql` by psql: unaligned rows without headers."""
        return self._loop.run(self.server.query(sql, dbname=dbname))

    def processes(self) -> list[int]:
        """The postmaster and all its children."""
        return self._loop.run(asyncio.to_thread(pgdata.servers, self.server.data))

    def freeze(self) -> None:
        """SIGSTOP to every process of the server: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)  # first, so that no new backend appears meanwhile
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9 to every process of the server; `restart` brings it back, with recovery."""
        os.kill(self.pid, signal.SIGKILL)
        self._signal_all(signal.SIGKILL)
        self._loop.run(self.server.wait())

    def restart(self) -> None:
        """Stop (if it still runs) and start again on the same port."""
        self.stop()
        self.start()

    def _signal_all(self, sig: signal.Signals) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, sig)
