"""An append-only file of JSON lines: a record is kept once `append` returns, whatever kills us then.

Appends that wait at the same time share one fsync. A last line without its end was never acknowledged:
opening cuts it off. Anything else that cannot be read stops the start.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

__all__ = ["Journal"]


class Journal:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writing = asyncio.Lock()
        self._fd = -1

    def open(self) -> list[dict[str, Any]]:
        """Every record so far. Blocks; call it before serving."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._fd, whole)
        os.fsync(self._fd)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return [json.loads(line) for line in content[:whole].splitlines()]

    async def append(self, record: dict[str, Any]) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((json.dumps(record, separators=(",", ":")).encode() + b"\n", done))
        async with self._writing:
            batch, self._waiting = self._waiting, []
            if batch:
                await asyncio.to_thread(self._write, b"".join(line for line, _ in batch))
                for _, waiter in batch:
                    waiter.set_result(None)
        await done

    def close(self) -> None:
        os.close(self._fd)

    def _write(self, lines: bytes) -> None:
        while lines:
            lines = lines[os.write(self._fd, lines) :]
        os.fsync(self._fd)
