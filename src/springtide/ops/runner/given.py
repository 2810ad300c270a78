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
from springtide.topology.budget import ADVICE, Demand

__all__ = ["check", "main"]

OLDEST = 15


ROOM = """
SELECT least(
    current_setting('max_connections')::int
        - CASE WHEN rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::int END,
    nullif(rolconnlimit, -1),
    (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database())
)
FROM pg_roles WHERE rolname = current_user
"""
"""What our role may open to our database; a null counts for nothing in least()."""


async def check(
    urls: Mapping[str, str], *, demands: Mapping[str, Demand] | None = None, timeout: float = 10.0
) -> None:
    """`urls`: cluster -> url, `demands`: cluster -> what the fleet may open to its server. Raises RunnerError
    naming every cluster that cannot be used."""
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
        asked = {
            name: [url, demand.amount, str(demand)] if demand is not None else [url, 0, ""]
            for name, url in urls.items()
            for demand in ((demands or {}).get(name),)
        }
        out, _ = await process.communicate(json.dumps(asked).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RunnerError("the given PostgreSQL servers could not be checked; see the lines above")
    problems = [f"cluster {name}: {text}" for name, text in json.loads(out).items() if text]
    if problems:
        raise RunnerError("\n".join(problems))


async def _problem(url: str, needed: int, sum_: str, timeout: float) -> str:
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
        room = await connection.fetchval(ROOM, timeout=timeout) if needed else None
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return f"{where} did not say how many connections it takes: {str(error) or type(error).__name__}"
    finally:
        connection.terminate()
    if version.major < OLDEST:
        return f"{where} is version {version.major}, and {OLDEST} is the oldest that works: upgrade it"
    if room is not None and room < needed:
        return (
            f"{where} takes {room} connections of {parts.username!r} (max_connections, limits of role and "
            f"database), and {sum_} do not fit: raise its limit, {ADVICE}"
        )
    return ""


async def _problems(asked: Mapping[str, tuple[str, int, str]], timeout: float) -> dict[str, str]:
    found = await asyncio.gather(*(_problem(*target, timeout) for target in asked.values()))
    return dict(zip(asked, found, strict=True))


def main() -> int:
    print(json.dumps(asyncio.run(_problems(json.load(sys.stdin), float(sys.argv[1])))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
