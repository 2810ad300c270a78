"""A worker process for tests that kill it: `python -m tests.events_worker <folder> <options> <url>...`.

The group `ears` writes what it hears into facts.seen, in the transaction that moves it on. Prints "ready"
once it works, and `begun <what> <attempt>` for what begins with hold (waits, the first time) or kill (kills
the process, each time).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
from tests.events_support import Told, facts, group, insert, worker

from springtide.events import Delivery, On


class Ears:
    async def hear(self, fact: Told, delivery: Delivery) -> None:
        await insert(delivery, fact.what)
        how = fact.what.partition(" ")[0]
        if how in ("hold", "kill"):
            print(f"begun {fact.what} {delivery.attempt}", flush=True)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "hold" and delivery.attempt == 1:
            await asyncio.sleep(60)


async def main(folder: str, options: dict[str, Any], urls: list[str]) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    ears = group("ears", [On(Told, Ears.hear, effect="transactional")], max_run=options.pop("max_run"))
    async with facts(urls, Path(folder), size=8) as database:
        made = worker(database, urls, [(ears, Ears())], **options)
        await made.start()
        print("ready", flush=True)
        await stopping.wait()
        await made.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], msgspec.json.decode(sys.argv[2]), sys.argv[3:]))
