"""One PostgreSQL data folder: where it lies, how it is made, what it is configured with, who has it open.

A folder is made under a temporary name and renamed when it is complete, so a start that was cut off at any
moment leaves no half-made database. The functions here are synchronous and short; `postgres.py` runs them
in a thread, under the lock of the home.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import stat
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from springtide.errors import RunnerError
from springtide.ops.runner import processes, standby
from springtide.ops.runner.accounts import Account
from springtide.ops.runner.installs import make_shared

__all__ = ["Postmaster", "Staging", "clear_stale", "locate", "postmaster", "settings_file", "write_settings"]

SUPERUSER = "springtide"
BUILTIN_LOCALE = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
"""Same order and case rules on every machine, no libc involved; older versions take libc's."""

NEEDED_BYTES = 128 * 1024 * 1024
"""A new cluster with its first two WAL segments takes about 60 MB; the rest lets it work."""


@dataclass(frozen=True, slots=True)
class Postmaster:
    """What postmaster.pid says. `status` is starting, stopping, ready or standby; "" while it is written."""

    pid: int
    port: int
    socket_folder: str
    status: str


def home_hash(home: Path) -> str:
    return hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:10]


def locate(home: Path, node: str, *, platform: str, account: Account, shared: Path) -> Path:
    """The real folder of `node`'s data; the parent exists and `account` can enter it.

    Normally `<home>/data/<node>`. When root's account cannot reach that (a checkout under a private folder)
    it is `<shared>/<platform>-<hash of home>/<node>`, with a link in the usual place.
    """
    outside = shared / f"{platform}-{home_hash(home)}" / node
    return place(home / "data" / node, outside, account=account, shared=shared)


def place(link: Path, outside: Path, *, account: Account, shared: Path) -> Path:
    """`link` itself where `account` can enter its parent, else `outside`, with a link to it."""
    if link.is_symlink():
        target = link.readlink()
        if target != outside:
            raise RunnerError(
                f"{link} points to {target}, but this home's data belongs in {outside}: was the folder moved "
                f"or copied? Move the data there, or remove the link to start with an empty database"
            )
        _make_outside(outside, shared)
        return outside
    if account.can_enter(link.parent):
        return link
    if link.exists() or account.switch is None:
        raise RunnerError(
            f"{account.name} cannot enter {link.parent}: let other users pass through the folders above it"
        )
    _make_outside(outside, shared)
    link.symlink_to(outside)
    return outside


def _make_outside(outside: Path, shared: Path) -> None:
    make_shared(shared)
    outside.parent.mkdir(mode=0o755, exist_ok=True)
    outside.parent.chmod(0o755)


def owner(data: Path, account: Account) -> Account:
    """The account that must open `data`: root may open what any account made, others only their own."""
    found = data.stat()
    if found.st_uid == account.uid:
        return account
    try:
        name = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        name = str(found.st_uid)
    if account.switch is None or found.st_uid == 0:
        raise RunnerError(f"{data} belongs to {name}, and PostgreSQL would run as {account.name}: chown it")
    return Account(name, found.st_uid, found.st_gid, (found.st_uid, found.st_gid))


class Staging:
    """A folder beside the data folder in which initdb works.

    `finish` moves the result into place; `clear` must follow in any case.
    """

    def __init__(self, data: Path, account: Account, *, size: int = 0) -> None:
        """`size`: bytes that will come. What has no room is refused: a full disk ends all who write to it."""
        free, needed = shutil.disk_usage(data.parent).free, size + NEEDED_BYTES
        if free < needed:
            raise RunnerError(
                f"no room for a new database in {data.parent}: {free // 2**20} MB are free, "
                f"{needed // 2**20} MB are needed; free some, or put the project on another disk"
            )
        self._data = data
        self._account = account
        self.folder = Path(tempfile.mkdtemp(prefix=f".new-{data.name}-", dir=data.parent))
        account.own(self.folder)
        self.data = self.folder / "data"
        self.password_file = self.folder / "password"

    @staticmethod
    def clear(data: Path) -> None:
        """Remove what was not finished, also by starts that were killed; an initdb still there is ended."""
        begin = f".new-{data.name}-"
        for left in data.parent.glob(f"{begin}*"):
            if "-" not in left.name.removeprefix(begin):  # else it is of another node, whose name goes on
                remove(left)

    def arguments(self, initdb: Path, password: str, *, durable: bool, major: int) -> list[str]:
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(password + "\n")
        self._account.own(self.password_file)
        arguments = [
            str(initdb),
            f"--pgdata={self.data}",
            f"--username={SUPERUSER}",
            f"--pwfile={self.password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            *(BUILTIN_LOCALE if major >= 17 else ("--locale=C.UTF-8",)),
            "--data-checksums",
            "--no-instructions",
        ]
        return arguments if durable else [*arguments, "--no-sync"]

    def finish_copy(self) -> None:
        """Put a base backup into place, instead of what is there; it will follow, never lead."""
        standby.make_standby(self.data, self._account)
        if self._data.exists():
            self._data.rename(self.folder / "replaced")
        self.data.rename(self._data)

    def finish(self) -> None:
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write("\n# Written by Springtide at every start; ALTER SYSTEM overrides it.\n")
            configuration.write("include_if_exists = 'springtide.conf'\n")
        self.data.rename(self._data)


def inside(folder: Path) -> list[int]:
    """Processes that name `folder` on their command line or work in it, ourselves excluded."""
    found = []
    wanted = os.fsencode(folder)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "cmdline").read_bytes() or (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
        except OSError:  # gone meanwhile, or another user's
            continue
    return found


def remove(folder: Path, *, seconds: float = 5.0) -> None:
    """End whoever works in `folder` and remove it, until it is gone: they may write for a moment longer.

    After `seconds` what cannot be removed stays.
    """
    deadline = time.monotonic() + seconds
    while True:
        for pid in inside(folder):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > deadline:
            return
        time.sleep(0.02)


_DURABLE = "fsync = on"

_DISPOSABLE = """\
fsync = off
# In files of the data folder: nothing is left in /dev/shm when the server is killed and its data removed.
dynamic_shared_memory_type = mmap"""


def discard(home: Path, node: str, data: Path) -> None:
    """Nothing of `node` stays but its log. Only when no process works on the data any more."""
    shutil.rmtree(data, ignore_errors=True)
    link = home / "data" / node
    if link.is_symlink():
        link.unlink()
    standby.want_repair(data, None)
    (home / "secrets" / f"{node}.password").unlink(missing_ok=True)


_NOT_ARCHIVED = """\
# No backups are made: every WAL file counts as archived at once, so that none is kept for ever.
# Backups replace this command with a reload.
archive_command = '/bin/true'"""


def settings_file(*, max_connections: int, durable: bool, archiving: str | None = None) -> str:
    """springtide.conf. What would need a restart later is right from the start, so growing needs none.

    archiving: lines that say where the log is archived; None: nowhere.
    """
    return f"""\
# Written by Springtide at every start: use ALTER SYSTEM for changes of your own.
listen_addresses = '127.0.0.1'
max_connections = {max_connections}
password_encryption = 'scram-sha-256'

# Replicas, live moves and backups need these, and each would cost a restart to change.
wal_level = logical
max_wal_senders = 20
max_replication_slots = 20
max_worker_processes = 32
max_logical_replication_workers = 16
max_prepared_transactions = 64
wal_log_hints = on
archive_mode = on
{archiving or _NOT_ARCHIVED}
# A forgotten replication slot may not fill the disk.
max_slot_wal_keep_size = '4GB'

# What the doctor and you will want to know.
track_io_timing = on
track_wal_io_timing = on
track_activity_query_size = 4096
compute_query_id = on
log_lock_waits = on
log_line_prefix = '%m [%p] %q%a@%d '
log_timezone = 'UTC'
timezone = 'UTC'

# Short statements: compiling them costs more than it saves.
jit = off
{_DURABLE if durable else _DISPOSABLE}
"""


def secret(path: Path, data: Path, *, shared_with: Path | None = None) -> str:
    """The password in `path`; made the first time. A standby has that of its upstream (`shared_with`)."""
    known = path.read_text().strip() if path.exists() else ""
    if shared_with is None and known:
        return known
    if shared_with is not None:
        if not shared_with.exists() or not (password := shared_with.read_text().strip()):
            raise RunnerError(f"{shared_with} is missing, and a replica needs it: restore that file")
        if password == known:
            return known
    elif (data / "PG_VERSION").exists():
        raise RunnerError(f"{path} is missing, and the database in {data} needs it: restore that file")
    else:
        password = secrets.token_urlsafe(24)
    temporary = path.with_name(f".{path.name}")  # a full disk must not leave an empty password
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(password + "\n")
    temporary.replace(path)
    return password


def write_settings(data: Path, text: str, account: Account, *, name: str = "springtide.conf") -> None:
    """Replace the file atomically."""
    target = data / name
    if target.exists() and target.read_text() == text:
        return
    temporary = data / f"{name}.{secrets.token_hex(4)}"
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    account.own(temporary)
    temporary.replace(target)


def postmaster(data: Path) -> Postmaster | None:
    """The server that has `data` open, None when there is none; a stale lock file does not count."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    if not lines or not lines[0].strip().isdigit():
        return None
    pid = int(lines[0])
    if not _is_server(pid, data):
        return None
    port = int(lines[3]) if len(lines) > 3 and lines[3].strip().isdigit() else 0
    folder = lines[4].strip() if len(lines) > 4 else ""
    return Postmaster(pid, port, folder, lines[7].strip() if len(lines) > 7 else "")


def _is_server(pid: int, data: Path) -> bool:
    """PostgreSQL's processes work in their data folder: true only for one of this folder's, alive.

    The program counts as well: the shell of somebody who looks at the folder is no server.
    """
    if processes.identify(pid) is None:
        return False
    try:
        if Path(f"/proc/{pid}/cwd").readlink() != data.resolve():
            return False
        program = Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return False
    return program.removesuffix(" (deleted)") == "postgres"  # deleted: the wheel was updated meanwhile


def servers(data: Path) -> list[int]:
    """Every live process that works in `data`: a postmaster, or backends that outlived theirs."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if _is_server(pid, data)]


def clear_stale(data: Path, *, seconds: float = 10.0) -> None:
    """End backends whose postmaster was killed, then remove its lock file.

    PostgreSQL itself refuses to start while another process happens to have the old postmaster's pid; we
    know better, because nobody works in the folder any more.
    """
    deadline = time.monotonic() + seconds
    while left := servers(data):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RunnerError(f"processes {left} still use {data} and do not end, not even when killed")
        time.sleep(0.02)
    (data / "postmaster.pid").unlink(missing_ok=True)


def socket_path(data: Path, account: Account) -> Path:
    """Where the server's unix socket goes: short enough for a socket address (107 bytes)."""
    name = f"springtide-{hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:12]}"
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > 60 or not account.can_enter(base):
        base = Path("/tmp")  # noqa: S108 - the folder is created 0700 and its owner is checked
    return base / name


def _is_ours(folder: Path, account: Account) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid in (account.uid, os.geteuid())


def socket_folder(data: Path, account: Account) -> Path:
    """Make the private folder for the server's unix socket. Raises RunnerError when a stranger's is there."""
    folder = socket_path(data, account)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not _is_ours(folder, account):
            raise RunnerError(f"{folder} is in the way and belongs to somebody else: remove it") from None
    account.own(folder)
    folder.chmod(0o700)
    return folder


def remove_socket_folder(data: Path, account: Account) -> None:
    """Remove the folder that `socket_folder` made; a stranger's in its place stays."""
    folder = socket_path(data, account)
    with suppress(FileNotFoundError):
        if _is_ours(folder, account):
            shutil.rmtree(folder, ignore_errors=True)


def explain(error: OSError, doing: str) -> RunnerError:
    """An error of the file system as a sentence with what to do."""
    where = f" {error.filename}" if error.filename else ""
    advice = {
        errno.ENOSPC: "the disk is full: free some space",
        errno.EDQUOT: "the disk quota is used up: free some space",
        errno.EROFS: "the file system is mounted read-only: put the project on a writable one",
        errno.EACCES: "permission denied: give yourself the right, or run in a folder of your own",
        errno.EPERM: "not permitted: give yourself the right, or run in a folder of your own",
    }.get(error.errno or 0, error.strerror or str(error))
    return RunnerError(f"cannot {doing}{where}: {advice}")
