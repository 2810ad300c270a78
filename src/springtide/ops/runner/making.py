"""Make the data folder of one node: by initdb, as a copy of a running server, or by rewinding a diverged one.

Initdb and base backup work in a staging folder and are renamed when they are complete, so whatever cuts them
off leaves nothing that could be taken for a database. A rewind changes the folder in place: beforehand it is
noted that only a new copy helps if it does not come to its end.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from springtide.errors import RunnerError
from springtide.ops.runner import access, logs, pgdata, processes, psql, standby
from springtide.ops.runner.accounts import Account
from springtide.ops.runner.backups.rescuing import rescue
from springtide.ops.runner.installs import Install
from springtide.ops.runner.standby import Upstream

__all__ = ["Place", "copy", "initialise", "rewind", "to_its_end", "uncut"]

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

LOG_LINES = 15
COPYING = "springtide copy"

STATE = "Database cluster state"
KILLED_REPLICA = "in archive recovery"
"""What pg_controldata says of a replica that runs, or that was killed."""

ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One node's data and what works on it."""

    node: str
    data: Path
    account: Account
    install: Install
    password: str
    log: Path
    durable: bool
    authority: Path | None = None
    """Whose certificate servers must show; None: they have no TLS."""
    archive: Path | None = None
    """Where its log is archived; None: nowhere."""

    async def run(self, what: str, arguments: list[str], **variables: str) -> None:
        """Run one of PostgreSQL's programs; RunnerError with the end of its output when it fails."""
        begin = await asyncio.to_thread(self.log_size)
        env = {**ENVIRONMENT, **variables}
        status = await processes.run(arguments, log=self.log, env=env, account=self.account.switch)
        if status != 0:
            raise RunnerError(await self.failure(what, begin, status))

    def log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def logged(self, words: bytes, begin: int) -> bool:
        """Whether `words` came to the log since it had `begin` bytes."""
        try:
            with self.log.open("rb") as file:
                file.seek(begin)
                return words in file.read(1024 * 1024)
        except OSError:
            return False

    async def failure(self, what: str, begin: int, status: int | None) -> str:
        """A sentence with the last lines that came to the log, and with what to do if known."""
        text = await asyncio.to_thread(logs.tail, self.log, LOG_LINES, begin=begin)
        ended = "" if status is None else f" (exit status {status})"
        message = f"PostgreSQL {self.node} could not {what}{ended}"
        if "No space left on device" in text:
            message += f": the disk of {self.data} is full, free some space"
        elif "Read-only file system" in text:
            message += f": {self.data} is on a file system that is mounted read-only"
        return f"{message}\n{text}"


async def initialise(place: Place) -> None:
    """A new, empty database."""
    try:
        staging = await uncut(pgdata.Staging, place.data, place.account)
        initdb = place.install.program("initdb")
        arguments = await uncut(
            staging.arguments,
            initdb,
            place.password,
            durable=place.durable,
            major=place.install.major,
        )
        await place.run("make its data folder", arguments)
        await uncut(staging.finish)
    finally:
        await uncut(pgdata.Staging.clear, place.data)


async def ensure_slot(place: Place, upstream: Upstream) -> None:
    """The node's slot on its upstream, which keeps the WAL that the node has not got yet."""
    await _ask(
        place,
        upstream,
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        " WHERE slot_name = :'slot' AND wal_status = 'lost' AND NOT active;\n"  # it is of no use to anybody
        "SELECT pg_create_physical_replication_slot(:'slot', true)"
        " WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = :'slot');\n",
        slot=standby.slot_name(place.node),
    )


async def _ask(place: Place, upstream: Upstream, sql: str, *, timeout: float = 10.0, **variables: str) -> str:
    return await psql.ask(
        place.install.program("psql"),
        sql,
        who=f"PostgreSQL {upstream.node}",
        port=upstream.port,
        user=pgdata.SUPERUSER,
        password=place.password,
        root=place.authority,
        timeout=timeout,
        **variables,
    )


async def copy(place: Place, upstream: Upstream) -> None:
    """A base backup of `upstream` that will follow it; it replaces what is in the folder."""
    await _rescue(place)
    try:
        size = int(await _ask(place, upstream, "SELECT sum(pg_database_size(oid)) FROM pg_database;\n"))
        staging = await uncut(pgdata.Staging, place.data, place.account, size=size)
        await uncut(standby.write_passfile, staging.password_file, place.password, place.account)
        root = await _root(place, staging.folder)
        await ensure_slot(place, upstream)
        arguments = [
            str(place.install.program("pg_basebackup")),
            f"--pgdata={staging.data}",
            "--checkpoint=fast",
            "--wal-method=stream",
            f"--slot={standby.slot_name(place.node)}",
            "--no-password",
            f"--dbname={_reach(place, upstream, staging.password_file, root)}",
        ]
        if not place.durable:
            arguments.append("--no-sync")
        await place.run(f"copy the database of {upstream.node}", arguments)
        await uncut(staging.finish_copy)
        await uncut(standby.want_repair, place.data, None)
    finally:
        await uncut(pgdata.Staging.clear, place.data)


async def rewind(place: Place, upstream: Upstream) -> None:
    """Undo in the folder what `upstream` does not have, then follow it; by a new copy where that fails.

    A replica that was killed is copied, too: pg_rewind would let it recover alone, which ends its log with
    records of its own. No log goes on there, and it would count as the one that goes furthest.
    """
    await _rescue(place)
    await uncut(standby.want_repair, place.data, "copy")
    try:
        if (await asyncio.to_thread(place.install.control, place.data)).get(STATE) == KILLED_REPLICA:
            raise RunnerError(f"replica {place.node} did not end in order")
        await ensure_slot(place, upstream)  # first, so that what is needed afterwards is kept
        # Before PostgreSQL 16 pg_rewind learns of a new timeline only by a checkpoint on it.
        await _ask(place, upstream, "CHECKPOINT;\n", timeout=60.0)
        passfile = place.data / standby.PASSFILE
        await uncut(standby.write_passfile, passfile, place.password, place.account)
        root = await _root(place, place.data)
        # A server that crashed is recovered first, by PostgreSQL in single-user mode, which no standby can.
        await uncut((place.data / standby.SIGNAL).unlink, missing_ok=True)
        arguments = [
            str(place.install.program("pg_rewind")),
            f"--target-pgdata={place.data}",
            f"--source-server={_reach(place, upstream, passfile, root)}",
        ]
        if not place.durable:
            arguments.append("--no-sync")
        await place.run(f"be rewound to where {upstream.node} took over", arguments)
    except RunnerError as error:
        _log.warning("%s; it is copied anew", error)
        await copy(place, upstream)
        return
    await uncut(standby.make_standby, place.data, place.account)
    await uncut(standby.want_repair, place.data, None)


async def _rescue(place: Place) -> None:
    """Archive what a primary that was replaced had not: `upstream` counts all that it got as archived."""
    if place.archive is not None:
        await rescue(place.data, place.archive, place.account, place.log, rest=False)


def _reach(place: Place, upstream: Upstream, passfile: Path, root: Path | None) -> str:
    """Under a name that may confirm no commit: a copy that is not finished holds nothing."""
    return standby.conninfo(upstream, user=pgdata.SUPERUSER, name=COPYING, passfile=passfile, root=root)


async def _root(place: Place, folder: Path) -> Path | None:
    """The authority's certificate in `folder`, where programs of the server's account may read it."""
    if place.authority is None:
        return None
    root = folder / access.ROOT
    await uncut(access.install_root, place.authority, root, place.account)
    return root


async def uncut(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """`function` in a thread; a cancelled caller waits for it, so that what it made can be undone."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


async def to_its_end(work: Awaitable[None]) -> None:
    """Await `work` to its end although this task is cancelled meanwhile; that is raised after it."""
    running = asyncio.ensure_future(work)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
