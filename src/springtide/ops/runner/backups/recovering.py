"""Let PostgreSQL recover a copy of a base backup up to a moment, in a folder of its own.

The server listens on a private unix socket only, where nobody but its own account is, so it asks for no
password; it archives nothing. It ends by itself when the moment is not reached; else it is asked how far it
came, gets the password that the platform knows, and is shut down. Its data is then a primary's, complete.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from springtide.errors import RunnerError
from springtide.ops.runner import logs, making, pgdata, processes, psql
from springtide.ops.runner.accounts import Account
from springtide.ops.runner.backups import wal
from springtide.ops.runner.backups.archiving import restore_script
from springtide.ops.runner.installs import Install
from springtide.ops.runner.postgres import SHUTDOWN
from springtide.ops.runner.processes import Process

__all__ = ["NotReached", "Reached", "Recovery"]

POLL = 0.05


class NotReached(Exception):
    """The log ended before the moment; `last` is the last transaction in it, None when there is none."""

    def __init__(self, last: str | None) -> None:
        super().__init__(last)
        self.last = last


@dataclass(frozen=True, slots=True)
class Reached:
    """The new `timeline` goes on at `position`; `last` is when the last transaction before it committed."""

    timeline: int
    position: int
    last: float | None


class Recovery:
    """One copy in `staging`/data. `archive` and the log of `olds` are where its log comes from."""

    def __init__(
        self,
        staging: Path,
        *,
        account: Account,
        install: Install,
        archive: Path,
        olds: Sequence[Path],
        log: Path,
    ) -> None:
        self.data = staging / "data"
        self._staging = staging
        self._account = account
        self._install = install
        self._archive = archive
        self._olds = tuple(olds)
        self._log = log

    async def run(self, *, timeline: int, moment: float | None, password: str) -> Reached:
        """Recover along `timeline` up to `moment`, None: as far as the log goes.

        Raises NotReached, and RunnerError for any other end. May be called again after either.
        """
        await asyncio.to_thread(self._prepare)
        begin = await asyncio.to_thread(lambda: self._log.stat().st_size if self._log.exists() else 0)
        sockets = await making.uncut(pgdata.socket_folder, self.data, self._account)
        process: Process | None = None
        try:
            process = await processes.spawn(
                [str(self._install.program("postgres")), "-D", str(self.data)]
                + [part for pair in self._settings(sockets, timeline, moment) for part in ("-c", pair)],
                log=self._log,
                env=making.ENVIRONMENT,
                account=self._account.switch,
            )
            await self._until_ready(process, begin)
            return await self._finish(sockets, password)
        finally:
            if process is not None:
                await asyncio.shield(processes.stop(process, SHUTDOWN))
            await asyncio.to_thread(pgdata.clear_stale, self.data)
            await asyncio.to_thread(pgdata.remove_socket_folder, self.data, self._account)

    def _prepare(self) -> None:
        files = {
            self._staging / "restore.sh": restore_script(self._archive, self._olds),
            self._staging / "hba.conf": "local all all trust\n",
            self.data / "recovery.signal": "",
        }
        for path, text in files.items():
            path.touch(mode=0o600)
            path.write_text(text)
            self._account.own(path)
        (self.data / "standby.signal").unlink(missing_ok=True)

    def _settings(self, sockets: Path, timeline: int, moment: float | None) -> list[str]:
        script = shlex.quote(str(self._staging / "restore.sh")).replace("%", "%%")
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(sockets),
            "port": "5432",
            "hba_file": str(self._staging / "hba.conf"),
            "ssl": "off",
            "hot_standby": "off",
            "synchronous_standby_names": "",
            "primary_conninfo": "",
            "primary_slot_name": "",
            "archive_command": "",
            "restore_command": f"/bin/sh {script} %f %p",
            "recovery_target_timeline": str(timeline),
            "recovery_target_action": "promote",
        }
        if moment is not None:
            at = datetime.fromtimestamp(moment, UTC)
            settings["recovery_target_time"] = at.isoformat(sep=" ", timespec="microseconds")
        return [f"{key}={value}" for key, value in settings.items()]

    async def _until_ready(self, process: Process, begin: int) -> None:
        """As long as it takes: how much log there is to go through, only the operator can judge."""
        ending = asyncio.ensure_future(process.wait())
        try:
            while True:
                done, _ = await asyncio.wait([ending], timeout=POLL)
                if done:
                    raise await asyncio.to_thread(self._why, begin)
                found = await asyncio.to_thread(pgdata.postmaster, self.data)
                if found is not None and found.pid == process.pid and found.status == "ready":
                    return
        finally:
            ending.cancel()
            await asyncio.wait([ending])

    def _why(self, begin: int) -> Exception:
        lines = logs.last_lines(self._log, 2000, begin=begin)
        text = "\n".join(lines)
        if "recovery ended before configured recovery target was reached" in text:
            found = re.findall(r"last completed transaction was at log time (\S+ \S+)", text)
            return NotReached(found[-1] if found else None)
        what = "the backup could not be recovered"
        if "No space left on device" in text:
            what += f": the disk of {self._staging} is full, free some space"
        elif (wrong := re.search(r'archive file "(\w+)" has wrong size', text)) is not None:
            what += f": {self._archive / wrong[1]} is not whole"
        return RunnerError(f"{what}\n" + "\n".join(f"    {line}" for line in lines[-15:]))

    async def _finish(self, sockets: Path, password: str) -> Reached:
        quoted = password.replace("\\", "\\\\").replace("'", "\\'")
        last = await self._ask(
            sockets,
            f"\\set password '{quoted}'\n"
            "SELECT extract(epoch FROM pg_last_xact_replay_timestamp()) WHERE NOT pg_is_in_recovery();\n"
            f"ALTER ROLE {pgdata.SUPERUSER} PASSWORD :'password';\n",
        )
        timeline, position = await asyncio.to_thread(self._fork)
        return Reached(timeline, position, float(last) if last else None)

    def _fork(self) -> tuple[int, int]:
        """The timeline that began at the end of the recovery, and where: the last line of its history."""
        folder = self.data / "pg_wal"
        timeline = max(wal.histories(path.name for path in folder.iterdir()))
        branches = wal.history(timeline, (folder / f"{timeline:08X}.history").read_text())
        return timeline, branches[-1].begin

    async def _ask(self, sockets: Path, sql: str) -> str:
        return await psql.run(
            self._install.program("psql"),
            *("-h", str(sockets), "-U", pgdata.SUPERUSER, "-d", "postgres"),
            sql=sql,
            who="the recovered database",
            environment=making.ENVIRONMENT,
            timeout=60.0,
        )
