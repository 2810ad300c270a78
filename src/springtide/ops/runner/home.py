"""The folder `.springtide` of one platform: its lock, what it noted about its processes, its addresses.

    data/      one folder (or link) per PostgreSQL node        secrets/   passwords and keys, 0600
    logs/      one file per node                               run/       state, addresses, environment
    programs/  one folder per program, and their ports
    lock       held by the supervisor; its process id is inside

Files are replaced atomically. The lock is the kernel's (flock), so it ends with its holder; it lies outside
run/, so that whoever removes that folder does not open the home to a second supervisor.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from springtide.errors import RunnerError
from springtide.ops.runner.pgdata import explain
from springtide.ops.runner.processes import Identity, identify
from springtide.topology import Addresses

__all__ = ["Home", "NodeState", "State"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """One process as `springtide status` shows it. `since` is seconds since 1970.

    `role`: "primary" or "replica", where a database has replicas.
    """

    name: str
    kind: str
    state: str
    identity: Identity | None
    address: str | None
    since: float
    restarts: int
    error: str | None = None
    role: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the supervisor noted last; it may be dead since, so every identity is checked before use."""

    platform: str
    supervisor: Identity
    topology: str
    url: str | None
    ready: bool
    nodes: tuple[NodeState, ...] = field(default=())


class Home:
    """Paths and files only; starting and stopping is the supervisor's."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.run = self.path / "run"
        self.logs = self.path / "logs"
        self._lock = self.path / "lock"

    @classmethod
    def beside(cls, topology: Path | None) -> Home:
        """That of the file `topology`; None: the one that the runner named, else that of springtide.toml."""
        if topology is None and (named := os.environ.get("SPRINGTIDE_HOME")):
            return cls(Path(named))
        file = topology or Path(os.environ.get("SPRINGTIDE_TOPOLOGY", "springtide.toml"))
        return cls(file.absolute().parent / ".springtide")

    def create(self) -> None:
        """Make the folders. Raises RunnerError when the place cannot be written."""
        try:
            for folder, mode in (
                (self.path, 0o755),
                (self.path / "data", 0o755),
                (self.run, 0o700),
                (self.logs, 0o700),
                (self.path / "secrets", 0o700),
                (self.path / "programs", 0o700),
            ):
                if not folder.is_dir():
                    folder.mkdir(parents=True)
                    folder.chmod(mode)
            probe = self.run / f".probe-{secrets.token_hex(4)}"
            probe.write_bytes(b"x" * 4096)
            probe.unlink()
        except FileExistsError as error:
            raise RunnerError(f"{error.filename} is in the way: a folder is needed there") from error
        except OSError as error:
            raise explain(error, "write to the platform's folder") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the home. Raises RunnerError, naming the holder, when another process does."""
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise explain(error, "lock the platform's folder") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
                raise RunnerError(
                    f"a platform already runs from {self.path} (process {holder}): "
                    "see `springtide status`, stop it with `springtide down`"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def holder(self) -> Identity | None:
        """Who holds the lock now; None when nobody does."""
        try:
            with self._lock.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    text = file.read(32).strip()
                    return identify(int(text)) if text.isdigit() else None
        except FileNotFoundError:
            pass
        return None

    def write_state(self, state: State) -> None:
        self._replace(self.run / "state.json", json.dumps(asdict(state), indent=1))

    def read_state(self) -> State | None:
        """None when there is none, or when it was written by a version that noted other things."""
        try:
            raw = json.loads((self.run / "state.json").read_text())
            nodes = tuple(
                NodeState(**{**node, "identity": node["identity"] and Identity(**node["identity"])})
                for node in raw.pop("nodes")
            )
            return State(**{**raw, "supervisor": Identity(**raw["supervisor"])}, nodes=nodes)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise explain(error, "read the platform's state") from error
        except (ValueError, KeyError, TypeError):
            return None

    def write_addresses(self, addresses: Addresses) -> None:
        """Where the nodes answer and who is primary; app processes read it while they run."""
        self._replace(self.run / "addresses.json", addresses.to_json())

    def write_environment(self, variables: Mapping[str, str]) -> None:
        """What the topology gives app servers and workers, for the commands that build the same platform."""
        self._replace(self.run / "environment.json", json.dumps(dict(variables), indent=1))

    def use_environment(self) -> None:
        """Set in this process what `write_environment` noted, where the operator has set nothing himself."""
        for name, value in _object(self.run / "environment.json").items():
            os.environ.setdefault(name, str(value))

    def write_backups(self, notes: Mapping[str, Any]) -> None:
        """What is known of each cluster's backups, for `springtide status`."""
        self._replace(self.run / "backups.json", json.dumps(dict(notes), indent=1))

    def read_backups(self) -> dict[str, Any]:
        """Empty when the topology asks for none, or nothing runs."""
        return _object(self.run / "backups.json")

    def write_notes(self, notes: Sequence[str]) -> None:
        """What the seed said about how to use its data, to be said again; nothing where there is no home."""
        if self.path.is_dir():
            self._replace(self.run / "notes.json", json.dumps({"seed": list(notes)}, indent=1))

    def read_notes(self) -> list[str]:
        """Empty when nothing was seeded here."""
        found = _object(self.run / "notes.json").get("seed", [])
        return [str(note) for note in found] if isinstance(found, list) else []

    def folder(self, program: str) -> Path:
        """The program's own folder, made when it is not there."""
        folder = self.path / "programs" / program
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise explain(error, "make the folder of a program:") from error
        return folder

    def write_ports(self, ports: Mapping[str, int]) -> None:
        """The ports that programs have, by "program.port", to be taken again at the next start."""
        self._replace(self.path / "programs" / "ports.json", json.dumps(dict(ports), indent=1))

    def read_ports(self) -> dict[str, int]:
        """Empty when there are none yet."""
        noted = _object(self.path / "programs" / "ports.json")
        return {name: port for name, port in noted.items() if type(port) is int and 0 < port < 65536}

    def secret(self, name: str) -> str:
        """The text kept as `secrets/<name>.secret`; made the first time. Only for the lock's holder."""
        return self._kept(f"{name}.secret")

    def password(self, node: str) -> str:
        """That of a node, kept as `secrets/<node>.password`; made the first time."""
        return self._kept(f"{node}.password")

    def _kept(self, file: str) -> str:
        path = self.path / "secrets" / file
        try:
            if not path.exists():
                self._replace(path, secrets.token_urlsafe(32))
            text = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RunnerError(f"cannot read {path}: {error}") from error
        if not text:
            raise RunnerError(f"{path} is empty: restore it, or remove it to have a new one made")
        return text

    def clear(self) -> None:
        """Forget processes and addresses, after everything was stopped."""
        try:
            for name in ("state.json", "addresses.json", "environment.json", "backups.json"):
                (self.run / name).unlink(missing_ok=True)
        except OSError as error:
            raise explain(error, "remove") from error

    def log_files(self) -> list[Path]:
        """The nodes' logs, sorted; none when nothing was ever started."""
        try:
            return sorted(path for path in self.logs.iterdir() if path.suffix == ".log")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise explain(error, "read the logs in") from error

    def _replace(self, path: Path, text: str) -> None:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)  # somebody may have removed it while we run
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise explain(error, f"write {path.name}:") from error


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no file, or none with an object."""
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise explain(error, "read") from error
