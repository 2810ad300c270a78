"""Whether the Redis servers that the topology gives by URL can be used: who they are, and how they forget.

One that answers and cannot serve (another login, too old) is a fault. One that does not answer is told: the
platform starts without its cache and finds it when it is there. So is one that would refuse writes when it is
full. Runs as a process of its own (`python -m ...given_redis`, node -> url as JSON on stdin), so that the
supervisor needs no client in memory.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping

from springtide.errors import ConfigurationError, RedisError, RedisUnavailable, RunnerError
from springtide.ops.runner.redis_settings import told

__all__ = ["check", "main"]


async def check(urls: Mapping[str, str], *, timeout: float = 5.0) -> list[str]:
    """What is to be said of `urls`, by node. Raises RunnerError naming all that cannot be used."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "springtide.ops.runner.given_redis",
        str(timeout),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        out, _ = await process.communicate(json.dumps(dict(urls)).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RunnerError("the given Redis servers could not be checked; see the lines above")
    found: dict[str, tuple[str, str]] = json.loads(out)
    if faults := [f"node {name}: {fault}" for name, (fault, _) in found.items() if fault]:
        raise RunnerError("\n".join(faults))
    return [f"node {name}: {note}" for name, (_, note) in found.items() if note]


async def _asked(url: str, timeout: float) -> tuple[str, str]:
    """What is wrong with it, and what is to be said of it; each may be empty."""
    from springtide.redis import Redis  # here: it needs a library that may not be installed

    redis = Redis(url, name="check", timeout=timeout, connect_timeout=timeout)
    try:
        await redis.start()
        link = redis.link("check")
        if link is None:
            return "", "it does not answer: until it does, nothing is cached"
        try:
            found = told((await link.send("INFO")).decode(errors="replace"))
        except (RedisError, RedisUnavailable, RunnerError) as error:
            return "", str(error)
        if found.max_bytes and found.policy == "noeviction":
            return "", "it refuses writes when it is full: set maxmemory-policy to volatile-lfu"
        return "", ""
    except ConfigurationError as error:
        return str(error), ""
    finally:
        await redis.stop()


async def _all(urls: Mapping[str, str], timeout: float) -> dict[str, tuple[str, str]]:
    try:
        answers = await asyncio.gather(*(_asked(url, timeout) for url in urls.values()))
    except ImportError:
        fault = "the client is not installed: `pip install 'springtide[redis]'`"
        return dict.fromkeys(urls, (fault, ""))
    return dict(zip(urls, answers, strict=True))


def main() -> int:
    print(json.dumps(asyncio.run(_all(json.load(sys.stdin), float(sys.argv[1])))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
