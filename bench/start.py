"""How long until the platform answers, and what it costs to sit idle.

- `demo_cold_s`: in a fresh clone of this checkout with a fresh HOME, from `make demo` to the first answered
  request; downloads included, so it reports this machine's network as well (left out by `--quick`).
- `demo_warm_s`: the same command again in the same clone.
- `idle_pss_mb`: the sum of the proportional set sizes of the platform's Python processes (supervisor,
  app servers, workers) after that start, once it has answered requests and idles.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WARM_ROUNDS = 5
PATIENCE = 300.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answered(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when `url` answers 200. Raises RuntimeError with the log's end when it never does."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        try:
            with urllib.request.urlopen(url, timeout=2) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"{url} did not answer:\n{log.read_text(errors='replace')[-3000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def demo(clone: Path, home: Path) -> float:
    """Seconds from `make demo` to the first article list, then stop it."""
    port = free_port()
    log = home / "demo.log"
    begun = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["make", "demo", f"DEMO_PORT={port}", "DEMO_SECONDS=1"],
            cwd=clone,
            env={**os.environ, "HOME": str(home)},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            answered(f"http://127.0.0.1:{port}/api/tags", process, log)
            return time.monotonic() - begun
        finally:
            stop(process)


def idle_pss_mb(clone: Path, home: Path) -> float:
    """Start the platform, ask it a few things, let it idle, and add up its Python processes."""
    port = free_port()
    log = home / "up.log"
    springtide = clone / ".venv" / "bin" / "springtide"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(springtide), "up", "--port", str(port)],
            cwd=clone,
            env={**os.environ, "HOME": str(home)},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            for _ in range(50):
                answered(f"http://127.0.0.1:{port}/api/articles", process, log)
            time.sleep(5)
            return sum(pss(pid) for pid in python_processes(process.pid)) / 1024
        finally:
            stop(process)


def python_processes(root: int) -> list[int]:
    """`root` and its descendants that run Python."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return [pid for pid in found if "python" in os.path.realpath(f"/proc/{pid}/exe")]


def pss(pid: int) -> int:
    """Proportional set size in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no cold start: use this checkout as it is")
    quick: bool = parser.parse_args().quick

    work = Path(tempfile.mkdtemp(prefix="springtide-start-"))
    work.chmod(0o755)  # otherwise root's data would go to /var/lib/springtide, and stay there
    home = work / "home"
    home.mkdir()
    cold: float | None = None
    try:
        clone = work / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        if quick:
            subprocess.run(["make", "-s", ".venv/.run"], cwd=clone, check=True)
        else:
            cold = demo(clone, home)
            print(f"cold: {cold:.2f} s", flush=True)
        demo(clone, home)
        warm = [demo(clone, home) for _ in range(2 if quick else WARM_ROUNDS)]
        print("warm:", " ".join(f"{seconds:.2f}" for seconds in warm), "s", flush=True)
        pss_mb = idle_pss_mb(clone, home)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    figures = {
        "demo_cold_s": round(cold, 2) if cold is not None else None,
        "demo_warm_s": round(statistics.median(warm), 2),
        "idle_pss_mb": round(pss_mb, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
