"""Backups of a running platform: taken when they are due, and the archiver watched.

A backup is due when there is none, when the newest is older than `every`, or when the log after it has a gap
(archiving was off meanwhile), so that nothing later could be restored. One that fails is tried again, with
pauses. What is known is noted in run/backups.json, which `springtide status` shows.
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
from springtide.ops.runner.backups.plan import Group, Plan
from springtide.ops.runner.backups.server import Server
from springtide.ops.runner.backups.store import Backup
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
    backups: Sequence[Backup], *, gap: bool, every: float, now: float, failed: float | None, retry: float
) -> bool:
    """Whether a backup is to be taken at `now`; `failed`: when the last attempt did, None: none did."""
    if failed is not None and now < failed + retry:
        return False
    return not backups or gap or now >= max(backup.ended for backup in backups) + every


class Schedule:
    """A service of the supervisor; `prepare` and `claim` come before `start`."""

    name = "backups"

    def __init__(self, plan: Plan, *, clock: Clock | None = None) -> None:
        self._plan = plan
        self._clock = clock or SystemClock()
        self._failed: dict[str, float] = {}
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
            self._note(group)["archive"] = note
        await self._write()

    async def _take(self) -> None:
        for group in self._plan.groups:
            store = self._plan.store(group)
            there = await asyncio.to_thread(store.backups)
            gap = False
            if there and self._plan.archives(group):
                gap = bool(await asyncio.to_thread(store.gaps, there[-1]))
            note = self._note(group)
            note["last"] = asdict(there[-1]) if there else None
            note["every"] = self._plan.spec.every
            if due(
                there,
                gap=gap,
                every=self._plan.spec.every,
                now=self._clock.now(),
                failed=self._failed.get(group.cluster),
                retry=self._retry,
            ):
                await self._take_one(group)
        await self._write()

    async def _take_one(self, group: Group) -> None:
        note = self._note(group)
        try:
            taken = await take(
                self._plan.store(group),
                await self._plan.server(group),
                keep=self._plan.spec.keep,
                max_rate_bytes=self._plan.spec.max_rate_bytes,
                log=self._plan.log,
            )
        except (RunnerError, ConfigurationError, OSError) as error:
            self._failed[group.cluster] = self._clock.now()
            note["error"] = str(error)
            _log.error("no backup of cluster %s: %s", group.cluster, error)
            return
        self._failed.pop(group.cluster, None)
        note["error"], note["last"] = None, asdict(taken.backup)
        _log.info("backup %s of cluster %s", taken.backup.name, group.cluster)

    def _note(self, group: Group) -> dict[str, Any]:
        return self._notes.setdefault(group.cluster, {"last": None, "error": None, "archive": {}})

    async def _write(self) -> None:
        try:
            await asyncio.to_thread(self._plan.home.write_backups, self._notes)
        except RunnerError as error:
            _log.warning("`springtide status` will show old news of the backups: %s", error)
