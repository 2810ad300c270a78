"""A server that is backed up: how its programs reach it, and which programs those are.

The embedded server is copied by its own programs, as its own account. One that is given by url is copied by
the programs that are installed here: of its own version if there are any, else of the next newer one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from springtide.errors import RunnerError
from springtide.ops.runner import pgdata, psql
from springtide.ops.runner.accounts import Account, server_account
from springtide.ops.runner.installs import FOLDERS, PACKAGE, SHARED, find_install, reachable_install

__all__ = ["Facts", "Server", "embedded", "given", "own_account"]

DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of itself. `now` is its clock, seconds since 1970; `size_bytes` that of its data.

    `tablespaces`: folders of its own outside the data folder.
    """

    system: str
    major: int
    size_bytes: int
    now: float
    tablespaces: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """`url` is where it answers, `programs` the folder of pg_basebackup, `account` as whom they run."""

    url: str
    programs: Path
    account: Account

    @property
    def where(self) -> str:
        """host:port, for people."""
        parts = urlsplit(self.url)
        return f"{parts.hostname or 'localhost'}:{parts.port or 5432}"

    @property
    def reach(self) -> str:
        """The url without its password, which others could read in the list of processes."""
        parts = urlsplit(self.url)
        credentials, at, address = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials.partition(':')[0]}{at}{address}"))

    @property
    def environment(self) -> dict[str, str]:
        found = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "HOME": "/", "PGCONNECT_TIMEOUT": "10"}
        password = urlsplit(self.url).password
        return found if password is None else {**found, "PGPASSWORD": unquote(password)}

    async def ask(self, sql: str, *, timeout: float = 30.0) -> str:
        """Run one statement by psql; its unaligned rows. Raises RunnerError."""
        return await psql.run(
            self.programs / "psql",
            *("-d", self.reach),
            sql=sql,
            who=f"PostgreSQL at {self.where}",
            environment=self.environment,
            timeout=timeout,
        )

    async def facts(self) -> Facts:
        said = await self.ask(
            "SELECT (SELECT system_identifier FROM pg_control_system()),"
            " current_setting('server_version_num')::int / 10000,"
            " (SELECT coalesce(sum(CASE WHEN has_database_privilege(oid, 'CONNECT')"
            " THEN pg_database_size(oid) END), 0) FROM pg_database),"
            " extract(epoch FROM clock_timestamp()), (SELECT count(*) - 2 FROM pg_tablespace)"
        )
        system, major, size, now, spaces = said.split("|")
        return Facts(system, int(major), int(size), float(now), int(spaces))


def embedded(url: str, data: Path, *, shared: Path = SHARED) -> Server:
    """The server that runs on `data`."""
    account = pgdata.owner(data, server_account())
    install = reachable_install(find_install(data), account, shared=shared)
    return Server(url=url, programs=install.root / "bin", account=account)


def own_account() -> Account:
    """Whoever we are, also root: for programs that are no server."""
    return Account(str(os.geteuid()), os.geteuid(), os.getegid(), None)


async def given(url: str) -> Server:
    """A server that somebody else runs. Raises RunnerError when no program here can copy it."""
    known = await asyncio.to_thread(_programs)
    if not known:
        raise RunnerError(
            "pg_basebackup is not installed: install postgresql-client, or springtide[embedded]"
        )
    newest = max(known)
    server = Server(url=url, programs=known[newest], account=own_account())
    major = (await server.facts()).major
    fitting = [found for found in known if found >= major]
    if not fitting:
        raise RunnerError(
            f"PostgreSQL at {server.where} is version {major}, and pg_basebackup here only {newest}: "
            f"install postgresql-client-{major}"
        )
    return Server(url=url, programs=known[min(fitting)], account=own_account())


def _programs() -> dict[int, Path]:
    """The folders that hold pg_basebackup and what belongs to it, by major version."""
    found: dict[int, Path] = {}
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        root = Path(spec.submodule_search_locations[0])
        found |= {major: root / name / "bin" for major, name in FOLDERS.items()}
    if (path := shutil.which("pg_config")) is not None:
        folder = Path(path).resolve().parent
        if (version := re.search(r"/(\d+)/bin$", str(folder))) is not None:
            found[int(version[1])] = folder
    if DEBIAN.is_dir():
        found |= {int(path.name): path / "bin" for path in DEBIAN.iterdir() if path.name.isdigit()}
    needed = ("pg_basebackup", "pg_waldump", "psql")
    return {
        major: folder
        for major, folder in found.items()
        if all((folder / program).exists() for program in needed)
    }
