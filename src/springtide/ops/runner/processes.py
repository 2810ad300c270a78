"""One operating-system process, ours or adopted, held by a pidfd so that a recycled pid is never signalled.

`spawn` starts a child in a session of its own (a terminal's Ctrl-C reaches the supervisor only) and hands
it over even when the caller is cancelled meanwhile: it is killed then, never lost.
`adopt` takes over a process that an earlier supervisor left; it must still be the one that was noted.
Nothing here decides when to restart; that is `children.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from springtide.errors import RunnerError

__all__ = [
    "Identity",
    "Process",
    "Stage",
    "adopt",
    "alive",
    "identify",
    "parent",
    "rss_bytes",
    "run",
    "spawn",
    "stop",
    "suspended",
]


@dataclass(frozen=True, slots=True)
class Identity:
    """A pid with the moment it started, in clock ticks since this boot: never the same twice."""

    pid: int
    started: int
    boot: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of an escalation: send `sig`, then wait up to `seconds`."""

    sig: signal.Signals
    seconds: float


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the state on; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def identify(pid: int) -> Identity | None:
    """Who `pid` is now; None when nobody runs under it (a zombie counts as nobody)."""
    fields = _stat(pid)
    if fields is None or fields[0] in "ZX":
        return None
    return Identity(pid, int(fields[19]), boot_id())


def alive(identity: Identity) -> bool:
    return identify(identity.pid) == identity


def parent(pid: int) -> int | None:
    """Who started the process, or took it over; None when it is gone."""
    fields = _stat(pid)
    return None if fields is None else int(fields[1])


def suspended(pid: int) -> bool:
    """Whether the process is stopped by a signal (SIGSTOP): it exists and does nothing."""
    fields = _stat(pid)
    return fields is not None and fields[0] == "T"


def rss_bytes(pid: int) -> int | None:
    """Resident memory of one process; None when it is gone."""
    fields = _stat(pid)
    return None if fields is None else int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


class Process:
    """A running or ended process. `returncode` is known for our own children only."""

    def __init__(self, pid: int, *, popen: subprocess.Popen[bytes] | None = None) -> None:
        self._fd = os.pidfd_open(pid)
        self._popen = popen
        self.pid = pid
        fields = _stat(pid)
        if fields is None:
            os.close(self._fd)
            raise ProcessLookupError(f"no process {pid}")
        self.identity = Identity(pid, int(fields[19]), boot_id())

    @property
    def returncode(self) -> int | None:
        return self._popen.poll() if self._popen is not None else None

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self._fd)

    def send(self, sig: signal.Signals) -> bool:
        """Signal the process; False when it has ended."""
        try:
            signal.pidfd_send_signal(self._fd, sig)
        except ProcessLookupError:
            return False
        return True

    def send_group(self, sig: signal.Signals) -> None:
        """Signal every process of the session that `spawn` made; nothing when its leader has ended."""
        if self.send(signal.Signals(sig)):
            with suppress(ProcessLookupError):
                os.killpg(self.pid, sig)

    async def wait(self) -> int | None:
        """Return when the process has ended: its exit status (negative: signal), None if adopted."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        fd = os.dup(self._fd)  # one per waiter: a loop keeps one callback per descriptor
        loop.add_reader(fd, lambda: None if ended.done() else ended.set_result(None))
        try:
            await ended
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        return self.returncode


def adopt(identity: Identity) -> Process | None:
    """The process that was noted as `identity`; None when it is gone or its pid belongs to another."""
    if not alive(identity):
        return None
    try:
        process = Process(identity.pid)
    except ProcessLookupError:
        return None
    return process if process.identity == identity else None


async def spawn(
    arguments: Sequence[str],
    *,
    log: Path | None,
    env: Mapping[str, str],
    cwd: Path | str = "/",
    account: tuple[int, int] | None = None,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start `arguments` in a new session; stdout and stderr are appended to `log`.

    `account` is (uid, gid) to run as. Raises RunnerError when it cannot be started.
    """

    def start() -> Process:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        out = subprocess.DEVNULL if log is None else os.open(log, flags, 0o600)
        try:
            popen = subprocess.Popen(
                list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                user=None if account is None else account[0],
                group=None if account is None else account[1],
                extra_groups=None if account is None else [],
                pass_fds=pass_fds,
                umask=0o077,
            )
            return Process(popen.pid, popen=popen)
        finally:
            if out >= 0:
                os.close(out)

    starting = asyncio.get_running_loop().run_in_executor(None, start)
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait([starting])
        if starting.exception() is None:
            process = starting.result()
            process.send_group(signal.SIGKILL)
            await process.wait()
        raise
    except OSError as error:
        raise RunnerError(f"cannot start {arguments[0]}: {error.strerror}") from error


async def run(
    arguments: Sequence[str],
    *,
    log: Path | None,
    env: Mapping[str, str],
    account: tuple[int, int] | None = None,
    cwd: Path | str = "/",
) -> int:
    """Run `arguments` to its end and return its exit status; a cancelled caller kills it."""
    process = await spawn(arguments, log=log, env=env, account=account, cwd=cwd)
    try:
        status = await process.wait()
    except BaseException:
        process.send_group(signal.SIGKILL)
        await process.wait()
        raise
    assert status is not None
    return status


async def stop(process: Process, stages: Sequence[Stage]) -> bool:
    """Send each stage's signal until the process ends; False when even the last one did not end it."""
    for stage in stages:
        if not process.send(stage.sig):
            return True
        if stage.sig is not signal.SIGKILL:
            process.send(signal.SIGCONT)  # a stopped process would not act on the signal
        try:
            async with asyncio.timeout(stage.seconds):
                await process.wait()
            return True
        except TimeoutError:
            continue
    return False
