"""CPU and memory limits: against a folder that behaves like the kernel's, and against the kernel itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from springtide.errors import CgroupError
from springtide.ops.runner.cgroups import Cgroup, Limits, open_group, remove_platform

V2 = {
    "cgroup.controllers": "cpu memory",
    "cgroup.subtree_control": "",
    "cgroup.procs": "",
    "cpu.max": "max 1",
}
V1 = {
    "cpu": {"cgroup.procs": "", "cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
    "memory": {"cgroup.procs": "", "memory.limit_in_bytes": "9223372036854771712"},
}


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """A fake mount: folders made in it get the kernel's files, and go with them when they are removed."""
    root = tmp_path / "cgroup"
    mkdir, rmdir = Path.mkdir, Path.rmdir

    def files(folder: Path) -> dict[str, str]:
        controller = folder.relative_to(root).parts[0] if folder != root else ""
        return V1[controller] if controller in V1 and not (root / "cgroup.controllers").exists() else V2

    def make(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if self.exists() and exist_ok:
            return
        if parents and not self.parent.exists():
            make(self.parent, parents=True)
        mkdir(self, mode)
        if self.is_relative_to(root) and self != root:
            for name, text in files(self).items():
                (self / name).write_text(text)

    def remove(self: Path) -> None:
        if any(path.is_dir() for path in self.iterdir()):
            raise OSError(39, "Directory not empty")
        for path in self.iterdir():
            path.unlink()
        rmdir(self)

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(Path, "rmdir", remove)
    return lambda: root


def v2(root: Path) -> Path:
    os.mkdir(root)
    for name, text in V2.items():
        (root / name).write_text(text)
    return root


def v1(root: Path) -> Path:
    for controller in V1:
        (root / controller).mkdir(parents=True)
    return root


def own(folder: Path, text: str = "4:memory:/\n1:cpu:/\n") -> Path:
    path = folder / "own"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("cpu", "quota"),
    [(0.25, (2500, 10000)), (2.0, (20000, 10000)), (0.05, (1000, 20000)), (0.1, (1000, 10000))],
)
def test_quota(cpu: float, quota: tuple[int, int]) -> None:
    """A period of 10 ms, longer only where the kernel's least quota of 1 ms asks for it."""
    assert Limits(cpu=cpu).quota == quota


def test_limits_are_checked() -> None:
    """Values that make no sense are refused with the value; no limit is false."""
    for wrong in ({"cpu": 0.0}, {"memory_bytes": -1}):
        with pytest.raises(ValueError, match=r"must be > 0, got"):
            Limits(**wrong)
    assert not Limits() and Limits(cpu=1.0)


def test_v2_sets_and_removes(kernel: Callable[[], Path]) -> None:
    """Controllers are enabled on the way down, limits set in the node's folder, and all of it is removed."""
    root = v2(kernel())
    group = open_group("shop-1", "db", Limits(cpu=0.25, memory_bytes=100 * 2**20 + 1), root=root)
    folder = root / "springtide" / "shop-1" / "db"
    assert group.folders == (folder,)
    assert (folder / "cpu.max").read_text() == "2500 10000"
    assert (folder / "memory.max").read_text() == str(100 * 2**20)
    for above in (root, folder.parent.parent, folder.parent):
        assert (above / "cgroup.subtree_control").read_text() == "+cpu +memory"
    group.add(123)
    assert group.pids() == {123}
    group.remove()
    assert not (root / "springtide").exists()


def test_v2_enables_only_what_is_needed(kernel: Callable[[], Path]) -> None:
    """A memory limit alone asks for no CPU controller, and a missing controller is named."""
    root = v2(kernel())
    open_group("shop", "db", Limits(memory_bytes=2**20), root=root)
    assert (root / "cgroup.subtree_control").read_text() == "+memory"
    (root / "cgroup.controllers").write_text("memory")
    with pytest.raises(CgroupError, match="does not offer the controller cpu"):
        open_group("shop", "app", Limits(cpu=1.0), root=root)


def test_a_limit_that_the_kernel_ignores_is_found(
    kernel: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read back must be what was written; otherwise the group is removed again."""
    root = v2(kernel())
    write = Path.write_text

    def ignoring(self: Path, text: str) -> int:
        return write(self, "max 100000" if self.name == "cpu.max" else text)

    monkeypatch.setattr(Path, "write_text", ignoring)
    with pytest.raises(CgroupError, match="was set to 2500 10000 and says max 100000"):
        open_group("shop", "db", Limits(cpu=0.25), root=root)
    assert not (root / "springtide").exists()


def test_v1_is_below_our_own_group(kernel: Callable[[], Path], tmp_path: Path) -> None:
    """A limit set on us from above must still hold: the node's groups are inside ours."""
    root = v1(kernel())
    (root / "memory" / "box").mkdir()
    listed = own(tmp_path, "4:memory:/box\n1:cpu,cpuacct:/elsewhere\n")
    group = open_group("shop", "db", Limits(cpu=0.5, memory_bytes=2**20), root=root, own=listed)
    cpu, memory = group.folders
    assert (cpu, memory) == (root / "cpu/springtide/shop/db", root / "memory/box/springtide/shop/db")
    assert (cpu / "cpu.cfs_quota_us").read_text() == "5000"
    assert (cpu / "cpu.cfs_period_us").read_text() == "10000"
    assert (memory / "memory.limit_in_bytes").read_text() == str(2**20)
    remove_platform("shop", root=root, own=listed)
    assert not (root / "cpu" / "springtide").exists() and not (root / "memory/box/springtide").exists()
    assert (root / "memory" / "box").exists()


def test_without_the_right(tmp_path: Path) -> None:
    """No control groups, or no permission: one CgroupError with the reason."""
    with pytest.raises(CgroupError, match="no control groups for cpu"):
        open_group("shop", "db", Limits(cpu=1.0), root=tmp_path, own=own(tmp_path))
    (tmp_path / "cgroup.controllers").write_text("cpu")
    with pytest.raises(CgroupError, match=r"cgroup\.subtree_control: No such file"):
        open_group("shop", "db", Limits(cpu=1.0), root=tmp_path)


REAL = Path("/sys/fs/cgroup")


@pytest.fixture
def real() -> Iterator[Cgroup]:
    try:
        group = open_group(f"test-{os.getpid()}", "node", Limits(cpu=0.1, memory_bytes=64 * 2**20))
    except CgroupError as error:
        pytest.skip(f"no control groups here: {error}")
    yield group
    group.remove()
    assert not any(folder.exists() for folder in group.folders)


def test_the_kernel_enforces_it(real: Cgroup) -> None:
    """A busy process in the group gets a tenth of a processor, its children included."""
    code = "import time\nend=time.monotonic()+1\nwhile time.monotonic()<end: pass\nprint(time.process_time())"
    shell = shutil.which("sh")
    assert shell is not None
    busy = subprocess.Popen(
        [shell, "-c", 'read go; "$@"', "sh", sys.executable, "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    real.add(busy.pid)
    assert busy.pid in real.pids()
    begun = time.monotonic()
    out, _ = busy.communicate("go\n")
    assert float(out) < 0.1 * (time.monotonic() - begun) + 0.1
