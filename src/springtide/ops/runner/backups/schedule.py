"""Backups of a running platform: taken when they are due, and the archiver watched.

A backup is due when there is none of what the database is now, when the newest is older than `every`, or when
the log after it has a gap (archiving was off meanwhile), so that nothing later could be restored; what the
primary still has of that is archived first. One that fails is tried again, with pauses.
What is known is noted in run/backups.json, which `springtide status` and `/metrics` show.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from springtide.clock import Clock, SystemClock
from springtide.errors import ConfigurationError, RunnerError
from springtide.lifecycle import Group as Services
from springtide.lifecycle import Periodic
from springtide.ops.runner import pgdata, standby
from springtide.ops.runner.accounts import server_account
from springtide.ops.runner.backups.plan import Group, Plan
from springtide.ops.runner.backups.rescuing import fill
from springtide.ops.runner.backups.server import Server
from springtide.ops.runner.backups.store import Backup, Store
from springtide.ops.runner.backups.taking import take

__all__ = ["Archived", "Schedule", "archived", "due"]

_log = logging.getLogger(__name__)

LOOK = 5.0
RETRY = 300.0

ARCHIVER = """
SELECT coalesce(last_archived_wal, ''), coalesce(last_failed_wal, ''),
       coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false),
       coalesce(extract(epoch FROM last_failed_time), 0),
       (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'),
       (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(modification)), 0)
        FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready')
FROM pg_stat_archiver
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """The archiver. `waiting` files are complete and not archived, the oldest for `lag` seconds.

    `failing`: the last attempt failed, on `file`.
    """

    last: str
    waiting: int
    lag: float
    failing: bool
    file: str


async def archived(server: Server) -> Archived:
    """Ask the server. Raises RunnerError."""
    last, failed, failing, _, waiting, lag = (await server.ask(ARCHIVER)).split("|")
    return Archived(
        last=last, waiting=int(waiting), lag=max(float(lag), 0.0), failing=failing == "t", file=failed
    )


def due(
    backups: Sequence[Backup], *, gap: bool, every: float, now: float, tried: float | None, retry: float
) -> bool:
    """Whether a backup is to be taken at `now`; `tried`: when the last attempt ended, None = none."""
    if tried is not None and now < tried + retry:
        return False
    return not backups or gap or now >= max(backup.ended for backup in backups) + every


class Schedule:
    """A service of the supervisor; `prepare` and `claim` come before `start`."""

    name = "backups"

    def __init__(self, plan: Plan, *, clock: Clock | None = None) -> None:
        self._plan = plan
        self._clock = clock or SystemClock()
        self._tried: dict[str, float] = {}
        self._notes: dict[str, dict[str, Any]] = {}
        every = plan.spec.every
        self._retry = min(RETRY, every)
        self._services = Services(
            self.name,
            (
                Periodic("watch the archiver", self._watch, every=LOOK, clock=self._clock),
                Periodic("take backups", self._take, every=min(LOOK, every / 4), clock=self._clock),
            ),
        )

    async def claim(self) -> None:
        """Hold every server to the folder of its backups. Raises RunnerError when it is another database."""
        for group in self._plan.groups:
            if not group.given:
                facts = await (await self._plan.server(group)).facts()
                await asyncio.to_thread(self._plan.store(group).claim, facts.system)

    async def start(self) -> None:
        await self._services.start()

    async def stop(self) -> None:
        await self._services.stop()

    async def _watch(self) -> None:
        for group in self._plan.groups:
            note: dict[str, Any] = {}
            if self._plan.archives(group):
                try:
                    note = asdict(await archived(await self._plan.server(group)))
                except (RunnerError, ConfigurationError) as error:
                    note = {"error": str(error)}
                if note.get("failing") and not self._note(group).get("archive", {}).get("failing"):
                    _log.error("the log of cluster %s cannot be archived: %s", group.cluster, note["file"])
            self._note(group)["archive"], self._note(group)["noted"] = note, self._clock.now()
        await self._write()

    async def _take(self) -> None:
        for group in self._plan.groups:
            try:
                await self._take_when_due(group)
            except (RunnerError, ConfigurationError, OSError) as error:
                self._note(group)["error"] = str(error)
                self._note(group)["failed"] = self._clock.now()
                _log.error("no backup of cluster %s: %s", group.cluster, error)
        await self._write()

    async def _take_when_due(self, group: Group) -> None:
        store, spec, note = self._plan.store(group), self._plan.spec, self._note(group)
        there = await asyncio.to_thread(store.present)
        gap = bool(there) and self._plan.archives(group) and await self._gap(group, store, there[-1])
        note["last"], note["every"] = asdict(there[-1]) if there else None, spec.every
        if there and note["failed"] is not None and there[-1].ended > note["failed"]:
            note["error"] = None  # somebody took one by hand meanwhile
        tried = self._tried.get(group.cluster)
        if not due(there, gap=gap, every=spec.every, now=self._clock.now(), tried=tried, retry=self._retry):
            return
        try:
            taken = await take(
                store,
                await self._plan.server(group),
                keep=spec.keep,
                max_rate_bytes=spec.max_rate_bytes,
                log=self._plan.log,
            )
        finally:
            self._tried[group.cluster] = self._clock.now()
        note["error"], note["last"] = None, asdict(taken.backup)
        _log.info("backup %s of cluster %s", taken.backup.name, group.cluster)

    async def _gap(self, group: Group, store: Store, backup: Backup) -> bool:
        """Whether the log after `backup` has a gap that cannot be filled from what the primary still has."""
        if not (missing := await asyncio.to_thread(store.gaps, backup)):
            return False
        data = await asyncio.to_thread(lambda: self._plan.data(self._plan.primary(group)))
        if not await asyncio.to_thread(standby.is_standby, data):  # a replica's files may not be complete
            account = await asyncio.to_thread(pgdata.owner, data, server_account())
            await fill(data, missing, store.wal, account, self._plan.log)
        return bool(await asyncio.to_thread(store.gaps, backup))

    def _note(self, group: Group) -> dict[str, Any]:
        new: dict[str, Any] = {"last": None, "error": None, "failed": None, "archive": {}}
        return self._notes.setdefault(group.cluster, new)

    async def _write(self) -> None:
        try:
            await asyncio.to_thread(self._plan.home.write_backups, self._notes)
        except RunnerError as error:
            _log.warning("`springtide status` will show old news of the backups: %s", error)
