"""The primary is killed under load, again and again: what is lost, for how long nothing is written.

Three application processes write and read through a pool that follows the primary, on a primary with two
replicas of which one must confirm each commit (durability "quorum"). In every run the primary's processes are
killed with SIGKILL at a random moment; the benchmark finds it dead, promotes the replica that has received
most, has the other one follow it, and adds a new replica in place of the dead server. The application is told
nothing: it asks the servers. Then everything that was acknowledged must be there.

    failover_lost_acked       acknowledged writes that are not there afterwards, over all runs (0)
    failover_first_write_s    from the kill to the first acknowledged write that began after it, median (<= 5)
    failover_failed_reads     `eventual` reads that ended with an error (0)
    bounded_broken            `bounded` reads that were older than their bound, or ended with another error
                              than StalenessUnknown (0)
    stale_strong              strong and session reads, and all other violations the history checker finds (0)

The clients pause between operations, because this is not about throughput. `fsync` is off: what is killed are
processes, not the machine.
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

from tests._cluster import Cluster, Replica, eventually
from tests.servers import LoopThread, PostgresServer

from bench._failover_app import BOUND, READ, READERS, TABLE
from springtide.db import bucket_of
from springtide.ops.runner.processes import identify
from springtide.testing.history import Operation, Read, Violation, Write, check
from springtide.topology import Addresses, Roles

PROCESSES = 3
RUNS, QUICK_RUNS = 20, 4
DETECT = 0.1
"""Seconds between two looks at whether the primary's process is there."""

QUORUM = "alter system set synchronous_standby_names = 'ANY 1 (*)'"


class Fleet:
    """The servers by node name, as the runner would know them, and the file in which it says so."""

    def __init__(self, loop: LoopThread, folder: Path) -> None:
        self.file = folder / "addresses.json"
        self._cluster = Cluster(loop, replicas=0)
        self.nodes: dict[str, PostgresServer] = {"node-0": self._cluster.primary}
        self.primary = "node-0"
        self._epoch = 1
        self._made = 0
        self.told = ""
        self._cluster.primary.query(TABLE, dbname="cluster")
        self._cluster.primary.query(QUORUM)
        for _ in range(2):
            self.add()
        self._cluster.primary.query("select pg_reload_conf()")
        self.confirmed()
        self.write()

    @property
    def server(self) -> PostgresServer:
        return self.nodes[self.primary]

    def add(self) -> None:
        """A replica of the primary; its copy has the setting for quorum commits too."""
        self._made += 1
        self.nodes[f"node-{self._made}"] = self._cluster.add_replica(of=self.server)

    def write(self) -> None:
        urls = {name: server.url() for name, server in self.nodes.items()}
        roles = Roles(
            primary=self.primary,
            replicas=tuple(name for name in self.nodes if name != self.primary),
            epoch=self._epoch,
        )
        fresh = self.file.with_suffix(".new")
        fresh.write_text(Addresses(nodes=urls, clusters={"main": roles}).to_json())
        fresh.replace(self.file)

    def confirmed(self) -> None:
        quorum = "select count(*) > 0 from pg_stat_replication where sync_state = 'quorum'"
        eventually(lambda: self.server.query(quorum) == "t")

    def fail_over(self) -> float:
        """Kill the primary, find it dead, promote who has most; the moment of the kill."""
        old = self.server
        identity = identify(old.pid)
        killed = time.monotonic()
        old.kill()
        while identity is not None and identify(identity.pid) == identity:
            time.sleep(DETECT)
        dead = time.monotonic() - killed
        left = {name: server for name, server in self.nodes.items() if name != self.primary}
        received = "select (pg_last_wal_receive_lsn() - '0/0')::bigint"
        best = max(left, key=lambda name: int(left[name].query(received)))
        promoted = left[best]
        assert isinstance(promoted, Replica)
        promoted.promote()
        taken = time.monotonic() - killed
        self.nodes, self.primary = left, best
        self._epoch += 1
        for name, other in left.items():
            if name != best:
                assert isinstance(other, Replica)
                other.follow(promoted)
        self.write()
        follows = time.monotonic() - killed
        self.told = f"dead after {dead:.2f} s, promoted {taken:.2f} s, followed by the other {follows:.2f} s"
        return killed

    def repair(self) -> None:
        """A new replica in place of the dead server."""
        self.add()
        self.write()
        self.confirmed()

    def close(self) -> None:
        self._cluster.close()


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


def afterwards(server: PostgresServer, told: Told) -> list[Read]:
    """What every key of the run has on the primary now, as strong reads of one last session."""
    found = []
    for key in sorted(told.keys()):
        sql = READ.replace("$1", str(bucket_of(key))).replace("$2", f"'{key}'")
        began = time.monotonic()
        row = server.query(sql, dbname="cluster")
        version, value = (int(row.split("|")[0]), row.split("|")[1]) if row else (0, None)
        found.append(
            Read(
                session="afterwards",
                key=key,
                value=value,
                version=version,
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


async def run(fleet: Fleet, applications: Applications, number: int, *, quick: bool) -> dict[str, Any]:
    await applications.go(number)
    await asyncio.sleep(random.uniform(0.5, 1.0 if quick else 2.0))
    killed = await asyncio.to_thread(fleet.fail_over)
    await asyncio.sleep(0.7 if quick else 1.5)
    told = await applications.stop()
    after = await asyncio.to_thread(afterwards, fleet.server, told)
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
    print(f"    {fleet.told}; errors: {dict(told.failures) or 'none'}", flush=True)
    return result


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} short runs instead of {RUNS}")
    parser.add_argument("--runs", type=int, default=None)
    options = parser.parse_args()
    runs = options.runs or (QUICK_RUNS if options.quick else RUNS)
    loop = LoopThread()
    with tempfile.TemporaryDirectory(prefix="springtide-failover-") as name:
        folder = Path(name)
        fleet = await asyncio.to_thread(Fleet, loop, folder)
        try:
            applications = await Applications.start(fleet.file, folder)
            try:
                results = []
                for number in range(1, runs + 1):
                    results.append(await run(fleet, applications, number, quick=options.quick))
                    if number < runs:
                        await asyncio.to_thread(fleet.repair)
            finally:
                await applications.end()
        finally:
            await asyncio.to_thread(fleet.close)
            await asyncio.to_thread(loop.close)
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
