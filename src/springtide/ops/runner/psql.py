"""Ask a server by psql: the supervisor needs no database driver in memory for that."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from springtide.errors import RunnerError

__all__ = ["ask", "run"]


async def ask(
    psql: Path,
    sql: str,
    *,
    who: str,
    port: int,
    user: str,
    password: str,
    dbname: str = "postgres",
    root: Path | None = None,
    timeout: float = 30.0,
    **variables: str,
) -> str:
    """Run `sql` on 127.0.0.1 and return its unaligned rows; `:'name'` inserts a variable, quoted.

    `root`: the authority that the server must prove itself by; None: it has no TLS.
    Raises RunnerError, beginning with `who`, when the server refuses, or does not answer within `timeout`.
    """
    options: list[str] = []
    for key, value in variables.items():
        options += ["-v", f"{key}={value}"]
    environment = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(port),
        "PGUSER": user,
        "PGPASSWORD": password,
        "PGDATABASE": dbname,
        "PGCONNECT_TIMEOUT": str(max(2, round(timeout))),
        "PGAPPNAME": "springtide-runner",
        "LC_ALL": "C",
        **({} if root is None else {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(root)}),
    }
    return await run(psql, *options, sql=sql, who=who, environment=environment, timeout=timeout)


async def run(
    psql: Path, *options: str, sql: str, who: str, environment: Mapping[str, str], timeout: float
) -> str:
    """Run `sql` where `options` and `environment` say, and return its unaligned rows; raises as `ask` does.

    The statements go in by stdin: nobody reads them in the list of processes.
    """
    process = await asyncio.create_subprocess_exec(
        *(str(psql), "-XAtq", "-v", "ON_ERROR_STOP=1", *options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate(sql.encode())
    except TimeoutError:
        raise RunnerError(f"{who} did not answer within {timeout:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RunnerError(f"{who}: {err.decode(errors='replace').strip()}")
    return out.decode().strip()
