"""A worker process for webhooks, to be killed while an endpoint has not answered.

Run as `python -m tests.market.hooking_child HOME URL...`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.market.hooking import RESCUED, platform_of, worker

from market.webhooks.settings import WebhookSettings


async def main(home: str, urls: list[str]) -> None:
    async with platform_of(urls, Path(home), WebhookSettings(loopback=True, timeout=25.0)) as platform:
        await worker(platform, **RESCUED).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
