"""A real PgBouncer in front of a test's servers: `own_pooler({"main": url}, server_connections=1)`.

`url(name)` goes through it, and `console` asks it about itself. It does not outlive the test run, not even
one that is killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from tests.servers import LoopThread, scratch, watch

from springtide.ops.runner.pgbouncer import PgBouncer

__all__ = ["PoolerServer"]

WATCH = """
read -r _ && exit
read -r pid < "$0/pid" && kill -KILL "$pid"
rm -rf "$0"
"""


class PoolerServer:
    def __init__(self, loop: LoopThread, urls: Mapping[str, str], **options: Any) -> None:
        self._loop = loop
        self.folder = scratch("springtide-pooler-")
        self.server = PgBouncer("pooler", urls, home=self.folder / "home", **options)
        self._watch = watch(self.folder, WATCH)

    def start(self) -> None:
        self._loop.run(self.server.start())
        (self.folder / "pid").write_text(f"{self.server.pid}\n")

    def stop(self) -> None:
        self._loop.run(self.server.stop())

    def close(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._watch.communicate(b"closed\n")

    def url(self, name: str) -> str:
        return self.server.url(name)

    def repoint(self, urls: Mapping[str, str]) -> None:
        self.server.repoint(urls)
