"""Whether the servers that the topology gives by URL can be used: reachable, new enough, database there.

Runs as a process of its own (`python -m ...given`, targets as JSON on stdin), so that the supervisor needs
no database driver in memory. The answer is one sentence per target, empty when all is well.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from urllib.parse import urlsplit

from springtide.errors import RunnerError

__all__ = ["check", "main"]

OLDEST = 15


async def check(urls: Mapping[str, str], *, timeout: float = 10.0) -> None:
    """`urls`: cluster -> url. Raises RunnerError naming every cluster that cannot be used."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "springtide.ops.runner.given",
        str(timeout),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PGCONNECT_TIMEOUT": str(round(timeout))},
    )
    try:
        out, _ = await process.communicate(json.dumps(dict(urls)).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RunnerError("the given PostgreSQL servers could not be checked; see the lines above")
    problems = [f"cluster {name}: {text}" for name, text in json.loads(out).items() if text]
    if problems:
        raise RunnerError("\n".join(problems))


async def _problem(url: str, timeout: float) -> str:
    import asyncpg

    parts = urlsplit(url)
    where = f"PostgreSQL at {parts.hostname or 'the default host'}:{parts.port or 5432}"
    try:
        connection = await asyncpg.connect(url, timeout=timeout)
    except asyncpg.InvalidCatalogNameError:
        return f"{where} has no database {parts.path.strip('/')!r}: create it"
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
        return f"{where} refuses user {parts.username!r}: {error}"
    except TimeoutError:
        return f"{where} did not answer within {timeout:g} s: check its url and the network"
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        return f"{where} cannot be reached: {error}"
    try:
        version = connection.get_server_version()
    finally:
        connection.terminate()
    if version.major < OLDEST:
        return f"{where} is version {version.major}, and {OLDEST} is the oldest that works: upgrade it"
    return ""


async def _problems(urls: Mapping[str, str], timeout: float) -> dict[str, str]:
    found = await asyncio.gather(*(_problem(url, timeout) for url in urls.values()))
    return dict(zip(urls, found, strict=True))


def main() -> int:
    print(json.dumps(asyncio.run(_problems(json.load(sys.stdin), float(sys.argv[1])))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
