"""A writer that is killed between its COMMIT and what should follow it.

    python -m bench.cached.doomed TOPOLOGY CACHE        (by bench/_cache_doomed.py)

Prints "ready", then writes what the line "KEY VALUE" of stdin says. Whoever runs it stands between it and
PostgreSQL, holds the answer to the COMMIT back, and kills it then.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from bench.cached.app import Registers, modules
from springtide.context import RequestContext, activate
from springtide.platform import Platform


async def main(topology: Path, cache: str) -> None:
    platform = Platform.from_topology(topology, modules=modules())
    registers: Registers = platform.service(Registers)
    async with platform:
        print("ready", flush=True)
        key, value = (await asyncio.to_thread(sys.stdin.readline)).split()
        with activate(RequestContext()):
            await registers.write(int(key), value, cache, 0.0)
        raise RuntimeError("this writer should have been killed")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
