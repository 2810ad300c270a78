"""A primary and its streaming replicas, whose lag is driven, which are killed, and one of which is promoted.

Every node is an `EmbeddedPostgres` in a folder of its own, in memory where there is room; it keeps its port
over kills and roles. Replication is quorum (`ANY 1`), so that a promotion may lose no acknowledged write.
Nothing here decides when: that is the schedule's.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg

from springtide.ops.runner import pgdata, processes
from springtide.ops.runner.accounts import server_account
from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.installs import find_install, reachable_install
from springtide.ops.runner.postgres import EmbeddedPostgres

__all__ = ["DBNAME", "Cluster", "Node", "cluster", "scratch"]

DBNAME = "main"
PATIENCE = 60.0

QUORUM = "synchronous_standby_names = 'ANY 1 (*)'"

WATCH = """
read -r _ && exit
for file in "$0"/*/data/db/postmaster.pid; do
  read -r pid < "$file" && kill -CONT "$pid" && kill -QUIT "$pid"
done
rm -rf "$0"
"""
"""Waits for a word from the benchmark; when that was killed (the pipe ends without one), cleans up for it."""


def scratch(prefix: str) -> Path:
    """A new folder that any account can enter (root's server runs as another one), in memory if it can be."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 * 2**30
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=memory if roomy else None))
    folder.chmod(0o755)
    return folder


async def until(condition: Callable[[], Awaitable[object]], what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not await condition():
        if time.monotonic() > give_up:
            raise RuntimeError(f"{what} did not happen within {PATIENCE:g} s")
        await asyncio.sleep(0.05)


class Node:
    """One server. `settings` are lines of its own configuration, which win over all others."""

    def __init__(self, name: str, folder: Path, *, settings: str = "", cgroup: Cgroup | None = None) -> None:
        self.name = name
        self.home = folder / name
        self.cgroup = cgroup
        self.server = EmbeddedPostgres("db", home=self.home, as_found=True, durable=False, cgroup=cgroup)
        self._settings = settings
        self._follows = ""
        self._delay = 0.0

    @property
    def url(self) -> str:
        return self.server.url(DBNAME)

    @property
    def data(self) -> Path:
        return self.home / "data" / "db"

    @property
    def running(self) -> bool:
        return self.server.state == "running"

    def processes(self) -> list[int]:
        return pgdata.servers(self.data)

    async def query(self, sql: str) -> asyncpg.Record | None:
        """The first row; the server must be well."""
        connection = await asyncpg.connect(self.url, timeout=10, ssl=False)
        try:
            return await connection.fetchrow(sql, timeout=10)
        finally:
            connection.terminate()

    async def start(self) -> None:
        await self.server.start()
        if not (self.data / "standby.signal").exists():
            await self.server.ensure_database(DBNAME)
        self._configure()

    async def stop(self) -> None:
        self.thaw()
        await self.server.stop()

    async def copy(self, primary: Node) -> None:
        """Become a replica of `primary`, from nothing; what was here before is gone. Not started."""
        await self.stop()
        shutil.rmtree(self.data, ignore_errors=True)
        for name, mode in (("", 0o755), ("data", 0o755), ("secrets", 0o700), ("logs", 0o700)):
            (self.home / name).mkdir(mode=mode, parents=True, exist_ok=True)
            (self.home / name).chmod(mode)
        shutil.copy(primary.home / "secrets" / "db.password", self.home / "secrets")
        account = server_account()
        self.data.mkdir(mode=0o700)
        account.own(self.data)
        program = reachable_install(find_install(primary.data), account).program("pg_basebackup")
        command = [str(program), "-d", primary.server.url(), "-D", str(self.data), "--checkpoint=fast"]
        log = self.home / "logs" / "basebackup.log"
        env = {"LC_ALL": "C", "HOME": "/"}
        status = await processes.run(
            [*command, "--wal-method=stream", "--no-sync"], log=log, env=env, account=account.switch
        )
        if status != 0:
            raise RuntimeError(f"no copy of {primary.name} for {self.name}:\n{log.read_text()}")
        self._become_replica_of(primary)

    def follow(self, primary: Node) -> None:
        """Stream from `primary` from now on."""
        self._become_replica_of(primary)
        os.kill(self.server.pid, signal.SIGHUP)

    async def promote(self) -> None:
        self._follows = ""
        # Without waiting: who waits has a snapshot, and replay may wait for him.
        await self.query("select pg_promote(false)")

        async def done() -> bool:
            row = await self.query("select pg_is_in_recovery() as recovering")
            return row is not None and not row["recovering"]

        await until(done, f"the promotion of {self.name}")
        self._configure()

    def delay(self, seconds: float) -> None:
        """Replay a commit no earlier than this after it was made."""
        self._delay = seconds
        self._configure()

    async def hold(self) -> None:
        await self.query("select pg_wal_replay_pause()")

    async def release(self) -> None:
        await self.query("select pg_wal_replay_resume()")

    def freeze(self) -> None:
        """SIGSTOP to every process of the server: connections stay open and nothing answers."""
        os.kill(self.server.pid, signal.SIGSTOP)  # first, so that no new backend appears meanwhile
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    async def kill(self) -> None:
        """kill -9, all of it."""
        os.kill(self.server.pid, signal.SIGKILL)
        self._signal(signal.SIGKILL)
        await self.server.wait()
        await self.server.stop()

    async def received(self) -> tuple[bool, int]:
        """Whether a receiver of the log runs, and how far the log is here."""
        row = await self.query(
            "select exists(select from pg_stat_wal_receiver) as runs, greatest(pg_last_wal_receive_lsn(),"
            " pg_last_wal_replay_lsn()) - '0/0'::pg_lsn as lsn"
        )
        assert row is not None
        return row["runs"], int(row["lsn"])

    def _signal(self, sig: signal.Signals) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, sig)

    def _become_replica_of(self, primary: Node) -> None:
        password = (self.home / "secrets" / "db.password").read_text().strip()
        self._follows = (
            f"primary_conninfo = 'host=127.0.0.1 port={primary.server.port} user={pgdata.SUPERUSER}"
            f" password={password} application_name={self.name}'"
        )
        signalling = self.data / "standby.signal"
        signalling.touch()
        server_account().own(signalling)
        self._configure(reload=False)

    def _configure(self, *, reload: bool = True) -> None:
        """Write what is peculiar to this node, and let a running server hear of it."""
        lines = [
            "wal_keep_size = '2GB'", "wal_retrieve_retry_interval = '100ms'", "wal_receiver_timeout = '5s'",
            f"recovery_min_apply_delay = {round(self._delay * 1000)}", self._settings, self._follows,
        ]  # fmt: skip
        file = self.data / "postgresql.auto.conf"
        fresh = file.with_name("postgresql.auto.conf.new")
        fresh.write_text("\n".join(lines) + "\n")
        server_account().own(fresh)
        fresh.replace(file)
        if reload:
            os.kill(self.server.pid, signal.SIGHUP)


class Cluster:
    """`nodes` in their order for ever; who is `primary` changes by `fail_over`."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.primary = nodes[0]

    @property
    def replicas(self) -> list[Node]:
        return [node for node in self.nodes if node is not self.primary]

    async def fail_over(self) -> float:
        """Kill the primary, promote who has most of its log, let the others follow; seconds it took.

        The old primary stays dead: it must be copied again, because it may have what nobody else has.
        """
        begun = time.monotonic()
        dead = self.primary
        await dead.kill()
        others = self.replicas
        for node in others:
            node.thaw()

        async def ended() -> bool:
            return not any([(await node.received())[0] for node in others])

        await until(ended, "the end of the replicas' connections to a dead primary")
        positions = {node: (await node.received())[1] for node in others}
        chosen = max(others, key=lambda node: positions[node])
        await chosen.promote()
        self.primary = chosen
        for node in others:
            if node is not chosen:
                node.follow(chosen)
        return time.monotonic() - begun

    async def rejoin(self, node: Node) -> None:
        await node.copy(self.primary)
        await node.start()

    async def streaming(self) -> None:
        """Return when every replica streams."""

        async def all_stream() -> bool:
            row = await self.primary.query(
                "select count(*) from pg_stat_replication where state = 'streaming'"
            )
            return row is not None and row[0] >= len(self.replicas)

        await until(all_stream, "streaming to every replica")

    async def caught_up(self) -> None:
        """Return when every replica has replayed what the primary has now."""
        row = await self.primary.query("select pg_current_wal_flush_lsn()::text as lsn")
        assert row is not None
        sql = f"select pg_last_wal_replay_lsn() >= '{row['lsn']}'::pg_lsn as has"

        async def all_have() -> bool:
            found = [await node.query(sql) for node in self.replicas]
            return all(row is not None and row["has"] for row in found)

        await until(all_have, "replay on every replica")


@asynccontextmanager
async def cluster(
    *, replicas: int, quorum: bool = True, settings: str = "", cgroups: dict[str, Cgroup] | None = None
) -> AsyncIterator[Cluster]:
    """Running and streaming; nothing is left of it after the block. Nodes are called pg-0, pg-1, ..."""
    folder = scratch("springtide-replicas-")
    lines = "\n".join([settings, QUORUM] if quorum else [settings])
    names = [f"pg-{number}" for number in range(replicas + 1)]
    nodes = [Node(name, folder, settings=lines, cgroup=(cgroups or {}).get(name)) for name in names]
    made = Cluster(nodes)
    watch = subprocess.Popen(
        ["/bin/sh", "-c", WATCH, folder],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        await made.primary.start()
        async with asyncio.TaskGroup() as group:
            for node in made.replicas:
                group.create_task(made.rejoin(node))
        await made.streaming()
        yield made
    finally:
        for node in nodes:
            node.thaw()  # all of them first: a shutdown waits for whoever streams from it
        await asyncio.gather(*(node.stop() for node in nodes), return_exceptions=True)
        shutil.rmtree(folder, ignore_errors=True)
        watch.communicate(b"closed\n")
