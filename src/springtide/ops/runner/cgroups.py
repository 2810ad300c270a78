"""CPU and memory limits of one node, by Linux control groups, version 1 and 2.

The group is `springtide/<platform>-<hash>/<node>`; it is removed when the node has stopped. What was written
is read back: a kernel that rounds or ignores a limit is found out at once.

CPU: quota per period. The period is 10 ms, so a limited process never pauses for long; the kernel takes
quotas of 1 ms and more, so below 0.1 CPU the period grows to 1 ms / cpu.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path

from springtide.errors import CgroupError

__all__ = ["Cgroup", "Limits", "open_group", "remove_platform"]

PERIOD_US = 10_000
LEAST_QUOTA_US = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`cpu` in processors (0.25 is a quarter of one), `memory_bytes` with the page cache; None: unlimited."""

    cpu: float | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.cpu is not None and self.cpu <= 0:
            raise ValueError(f"cpu must be > 0, got {self.cpu}")
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            raise ValueError(f"memory_bytes must be > 0, got {self.memory_bytes}")

    def __bool__(self) -> bool:
        return self.cpu is not None or self.memory_bytes is not None

    @property
    def quota(self) -> tuple[int, int]:
        """(quota, period) in microseconds."""
        assert self.cpu is not None
        period = max(PERIOD_US, round(LEAST_QUOTA_US / self.cpu))
        return max(round(self.cpu * period), LEAST_QUOTA_US), period


class Cgroup:
    """The group of one node: one folder in version 2, one per controller in version 1."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self.folders = folders

    def add(self, pid: int) -> None:
        """Move `pid` into the group; what it starts from then on is in it too. Gone processes are ignored."""
        for folder in self.folders:
            try:
                (folder / "cgroup.procs").write_text(str(pid))
            except ProcessLookupError:
                continue
            except OSError as error:
                raise CgroupError(f"cannot move process {pid} into {folder}: {error.strerror}") from error

    def pids(self) -> set[int]:
        """Every process that is in all folders of the group."""
        found = [{int(p) for p in (f / "cgroup.procs").read_text().split()} for f in self.folders]
        return set.intersection(*found) if found else set()

    def remove(self, *, seconds: float = 2.0) -> None:
        """Remove the group, and the folders above it when they are empty.

        The kernel may count a process that has just ended for a moment; waits for that up to `seconds`.
        """
        deadline = time.monotonic() + seconds
        for folder in self.folders:
            while True:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.01)
                    continue
                break
            for parent in (folder.parent, folder.parent.parent):
                try:
                    parent.rmdir()
                except OSError:  # another node or platform is in it
                    break


def open_group(
    platform: str,
    node: str,
    limits: Limits,
    *,
    root: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
) -> Cgroup:
    """Make the group of `node` and set its limits.

    `root` is where control groups are mounted, `own` the list of the caller's own groups.
    Raises CgroupError when the kernel, or our rights, do not allow it; nothing is left then.
    """
    name = Path("springtide") / platform / node
    try:
        if (root / "cgroup.controllers").exists():
            return _open_v2(root, name, limits)
        return _open_v1(root, name, limits, own)
    except OSError as error:
        reason = "permission denied" if isinstance(error, PermissionError) else error.strerror
        raise CgroupError(f"{error.filename or root}: {reason}") from error


def remove_platform(
    platform: str, *, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> None:
    """Remove every group of `platform`, for one whose supervisor could not do it."""
    name = Path("springtide") / platform
    if (root / "cgroup.controllers").exists():
        bases = [root]
    else:
        mounted = [root / controller for controller in ("cpu", "memory")]
        bases = [m / _own_group(own, m.name, m) for m in mounted if m.is_dir()]
    for base in bases:
        if (base / name).is_dir():
            Cgroup(tuple(node for node in (base / name).iterdir() if node.is_dir())).remove()


def _open_v2(root: Path, name: Path, limits: Limits) -> Cgroup:
    wanted = [c for c, v in (("cpu", limits.cpu), ("memory", limits.memory_bytes)) if v is not None]
    available = (root / "cgroup.controllers").read_text().split()
    if missing := [controller for controller in wanted if controller not in available]:
        raise CgroupError(f"{root} does not offer the controller {' and '.join(missing)}")
    folder = root
    for part in name.parts:
        enabled = (folder / "cgroup.subtree_control").read_text().split()
        if needed := [f"+{controller}" for controller in wanted if controller not in enabled]:
            (folder / "cgroup.subtree_control").write_text(" ".join(needed))
        folder = folder / part
        folder.mkdir(exist_ok=True)
    group = Cgroup((folder,))
    try:
        if limits.cpu is not None:
            quota, period = limits.quota
            _write(folder / "cpu.max", f"{quota} {period}")
        if limits.memory_bytes is not None:
            _write(folder / "memory.max", str(_pages(limits.memory_bytes)))
    except BaseException:
        group.remove()
        raise
    return group


def _open_v1(root: Path, name: Path, limits: Limits, own: Path) -> Cgroup:
    wanted = [c for c, v in (("cpu", limits.cpu), ("memory", limits.memory_bytes)) if v is not None]
    folders: dict[str, Path] = {}
    for controller in wanted:
        mounted = root / controller
        if not (mounted / "cgroup.procs").exists():
            raise CgroupError(f"no control groups for {controller} are mounted in {root}")
        folders[controller] = mounted / _own_group(own, controller, mounted) / name
    group = Cgroup(tuple(folders.values()))
    try:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        if "cpu" in folders:
            quota, period = limits.quota
            # The kernel refuses a quota above the parent's share at any moment: unlimited, period, quota.
            (folders["cpu"] / "cpu.cfs_quota_us").write_text("-1")
            _write(folders["cpu"] / "cpu.cfs_period_us", str(period))
            _write(folders["cpu"] / "cpu.cfs_quota_us", str(quota))
        if "memory" in folders and limits.memory_bytes is not None:
            _write(folders["memory"] / "memory.limit_in_bytes", str(_pages(limits.memory_bytes)))
    except BaseException:
        group.remove()
        raise
    return group


def _own_group(own: Path, controller: str, mounted: Path) -> Path:
    """Our own group within `mounted`, so that a limit set on us from above still holds for the node."""
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            inside = Path(path.lstrip("/"))
            return inside if (mounted / inside).is_dir() else Path()
    return Path()


def _pages(size: int) -> int:
    page = resource.getpagesize()
    return size // page * page


def _write(path: Path, value: str) -> None:
    path.write_text(value)
    found = path.read_text().strip()
    if found != value:
        raise CgroupError(f"{path} was set to {value} and says {found}")
