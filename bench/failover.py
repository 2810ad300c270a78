"""The primary is killed under load, again and again: what is lost, for how long nothing is written.

A platform of `springtide up` keeps a primary and two replicas of which one must confirm each commit
(durability "quorum"). Three application processes write and read through what an application has: a pool that
follows the primary, replicas, a deadline per request. In every run all processes of the primary are killed
with SIGKILL at a random moment. The runner notices, promotes a replica by its own rules and lets the old
primary rejoin; the application is told nothing: it asks the servers. Then everything that was acknowledged
must be there. The next run begins when both replicas confirm again.

    failover_lost_acked       acknowledged writes that are not there afterwards, over all runs (0)
    failover_first_write_s    from the kill to the first acknowledged write that began after it, median (<= 5)
    failover_failed_reads     `eventual` reads that ended with an error (0)
    bounded_broken            `bounded` reads that were older than their bound, or ended with another error
                              than StalenessUnknown (0)
    stale_strong              strong and session reads, and all other violations the history checker finds (0)

The clients pause between operations, because this is not about throughput.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench._cluster import until
from bench._failover_app import BOUND, READERS
from bench._failover_fleet import Fleet, fleet
from springtide.testing.history import Operation, Read, Violation, Write, check

PROCESSES = 3
RUNS, QUICK_RUNS = 20, 4


class Told:
    """What one run's processes were told, and what is there afterwards."""

    def __init__(self, found: list[dict[str, Any]]) -> None:
        self.failures: Counter[str] = Counter()
        self.operations: list[Operation] = []
        self.kinds: Counter[str] = Counter()
        for one in found:
            self.failures.update(one["failures"])
            for entry in one["history"]:
                self.kinds[entry["kind"]] += 1
                self.operations.append(_operation(entry))

    def first_write_after(self, moment: float) -> float:
        acknowledged = [
            one.ended
            for one in self.operations
            if isinstance(one, Write) and one.outcome == "ok" and one.began >= moment
        ]
        return min(acknowledged) - moment

    @property
    def acknowledged(self) -> int:
        return sum(isinstance(one, Write) and one.outcome == "ok" for one in self.operations)

    @property
    def unknown(self) -> int:
        return sum(isinstance(one, Write) and one.outcome == "unknown" for one in self.operations)

    def keys(self) -> set[str]:
        return {one.key for one in self.operations}


def _operation(entry: dict[str, Any]) -> Operation:
    common = {name: entry[name] for name in ("session", "key", "value", "version", "began", "ended")}
    if entry["kind"] == "write":
        return Write(**common, outcome=entry["outcome"])
    return Read(**common, consistency=READERS[entry["kind"]])


class Applications:
    def __init__(self, processes: list[asyncio.subprocess.Process], folder: Path) -> None:
        self._processes = processes
        self._folder = folder

    @classmethod
    async def start(cls, file: Path, folder: Path) -> Applications:
        def one(number: int) -> Any:
            command = (sys.executable, "-m", "bench._failover_app", str(file), str(number), str(PROCESSES))
            pipe = asyncio.subprocess.PIPE
            return asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)

        return cls([await one(number) for number in range(PROCESSES)], folder)

    async def _all(self, *commands: str) -> None:
        async def tell(process: asyncio.subprocess.Process, command: str) -> None:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{command}\n".encode())
            async with asyncio.timeout(90):
                answer = await process.stdout.readline()
            assert answer == b"done\n", f"an application process said {answer!r}"

        async with asyncio.TaskGroup() as group:
            for process, command in zip(self._processes, commands, strict=True):
                group.create_task(tell(process, command))

    async def go(self, run: int) -> None:
        await self._all(*[f"go {run}"] * PROCESSES)

    async def stop(self) -> Told:
        files = [self._folder / f"told-{number}.json" for number in range(PROCESSES)]
        await self._all(*(f"stop {file}" for file in files))
        return Told([json.loads(file.read_text()) for file in files])

    async def end(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                assert process.stdin is not None
                process.stdin.close()
        for process in self._processes:
            try:
                async with asyncio.timeout(20):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def afterwards(servers: Fleet, told: Told) -> list[Read]:
    """What every key of the run has on the primary now, as strong reads of one last session."""
    began = time.monotonic()
    rows = await servers.fetch("SELECT key, version, value FROM bench.register")
    there = {row["key"]: row for row in rows}
    found = []
    for key in sorted(told.keys()):
        row = there.get(key)
        found.append(
            Read(
                session="afterwards",
                key=key,
                value=row["value"] if row is not None else None,
                version=row["version"] if row is not None else 0,
                began=began,
                ended=time.monotonic(),
                consistency=READERS["strong"],
            )
        )
    return found


def lost(told: Told, after: list[Read]) -> int:
    """Acknowledged writes beyond the last version that is there. Versions count up, so what is below it was
    there when the last one was written; that no two writes share a version is the checker's to find."""
    versions = {read.key: read.version for read in after}
    return sum(
        isinstance(one, Write) and one.outcome == "ok" and (one.version or 0) > versions[one.key]
        for one in told.operations
    )


def of_kind(violations: list[Violation], kind: str) -> int:
    return sum(
        isinstance(one.operation, Read) and one.operation.consistency == READERS[kind] for one in violations
    )


async def run(servers: Fleet, applications: Applications, number: int, *, quick: bool) -> dict[str, Any]:
    await applications.go(number)
    await asyncio.sleep(random.uniform(0.5, 1.0 if quick else 2.0))
    old = servers.primary
    killed = servers.kill_primary()
    await asyncio.to_thread(servers.until, lambda: servers.primary != old, "a failover")
    promoted = time.monotonic() - killed
    await asyncio.sleep(0.7 if quick else 1.5)
    told = await applications.stop()
    after = await afterwards(servers, told)
    violations = check([*told.operations, *after])
    for violation in violations[:5]:
        print(f"    {violation.rule}: {violation.sentence}")
    errors = {
        kind: sum(n for name, n in told.failures.items() if name.startswith(f"{kind} ")) for kind in READERS
    }
    unproven = told.failures["bounded StalenessUnknown"]
    bounded = of_kind(violations, "bounded")
    result = {
        "lost": lost(told, after),
        "first_write": told.first_write_after(killed),
        "failed_eventual": errors["eventual"],
        "bounded_broken": bounded + errors["bounded"] - unproven,
        "other": len(violations) - bounded,
        "acknowledged": told.acknowledged,
        "unknown": told.unknown,
        "unproven": unproven,
        "reads": sum(told.kinds[kind] for kind in READERS),
    }
    print(
        f"run {number:2}: first write after {result['first_write']:.2f} s; {result['acknowledged']} writes"
        f" acknowledged, {result['unknown']} unknown, {result['lost']} lost; {result['reads']} reads,"
        f" eventual failed {result['failed_eventual']}, bounded refused {unproven}"
        f" broken {result['bounded_broken']}; other violations {result['other']}",
    )
    print(f"    promoted after {promoted:.2f} s; errors: {dict(told.failures) or 'none'}", flush=True)
    return result


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} short runs instead of {RUNS}")
    parser.add_argument("--runs", type=int, default=None)
    options = parser.parse_args()
    runs = options.runs or (QUICK_RUNS if options.quick else RUNS)
    results = []
    with fleet() as servers:
        await servers.prepare()
        await until(servers.whole, "streaming to both replicas")
        with tempfile.TemporaryDirectory(prefix="springtide-told-") as folder:
            applications = await Applications.start(servers.file, Path(folder))
            try:
                for number in range(1, runs + 1):
                    results.append(await run(servers, applications, number, quick=options.quick))
                    if number < runs:
                        await until(servers.whole, "the return of the old primary")
            finally:
                await applications.end()
    total = {key: sum(result[key] for result in results) for key in results[0] if key != "first_write"}
    firsts = [result["first_write"] for result in results]
    print(
        json.dumps(
            {
                "failover_lost_acked": total["lost"],
                "failover_first_write_s": round(statistics.median(firsts), 2),
                "failover_first_write_max_s": round(max(firsts), 2),
                "failover_failed_reads": total["failed_eventual"],
                "bounded_broken": total["bounded_broken"],
                "bounded_refused": total["unproven"],
                "bound_s": BOUND,
                "stale_strong": total["other"],
                "runs": runs,
                "writes_acknowledged": total["acknowledged"],
                "writes_unknown": total["unknown"],
                "reads": total["reads"],
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
