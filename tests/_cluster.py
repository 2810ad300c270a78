"""A primary and its streaming replicas, for tests that break the world.

    with cluster(loop, replicas=2) as world:       # fixture: own_cluster(replicas=2)
        world.primary.query("create table t (n int)", dbname=world.dbname)
        world.replicas[0].hold()                   # its replay stands still
        world.replicas[0].kill()                   # kill -9; restart() brings it back, at an older position

Each server is a `PostgresServer` (`url`, `query`, `kill`, `restart`, `freeze`, `thaw`, `stop`, `start`); a
replica is a copy of the primary by pg_basebackup that streams from it. All have the superuser, the password
and the databases of the primary. Synchronous, like `PostgresServer`: in an asyncio test that must go on
serving meanwhile, call it through `asyncio.to_thread`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.servers import LoopThread, PostgresServer

from springtide.ops.runner import processes
from springtide.ops.runner.accounts import server_account
from springtide.ops.runner.installs import find_install, reachable_install

__all__ = ["Cluster", "Replica", "cluster", "eventually"]

PATIENCE = 60.0
"""Seconds that tell a condition that comes late from one that never comes."""


def eventually(condition: Callable[[], Any], *, seconds: float = PATIENCE) -> Any:
    """What `condition` answers once that is true."""
    give_up = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < give_up, f"{condition} did not come true within {seconds} s"
        time.sleep(0.02)
    return answer


class Replica(PostgresServer):
    """A streaming replica of `of`; its folder is filled by the first `start`."""

    def __init__(self, loop: LoopThread, of: PostgresServer, **options: Any) -> None:
        super().__init__(loop, as_found=True, **options)
        self._of = of
        self._filled = False

    def start(self) -> None:
        if not self._filled:
            self._fill()
            self._filled = True
        super().start()

    def _fill(self) -> None:
        home = self.folder / "home"
        for name, mode in (("", 0o755), ("data", 0o755), ("secrets", 0o700), ("logs", 0o700)):
            (home / name).mkdir(mode=mode)
            (home / name).chmod(mode)
        shutil.copy(self._of.folder / "home" / "secrets" / "db.password", home / "secrets")
        account = server_account()
        data = home / "data" / "db"
        data.mkdir(mode=0o700)
        account.own(data)
        install = reachable_install(find_install(self._of.server.data), account)
        command = [str(install.program("pg_basebackup")), "-d", self._of.url(), "-D", str(data)]
        command += ["--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream", "--no-sync"]
        log = home / "logs" / "basebackup.log"
        env = {"LC_ALL": "C", "HOME": "/"}
        status = self._loop.run(processes.run(command, log=log, env=env, account=account.switch))
        assert status == 0, log.read_text()
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.write("wal_retrieve_retry_interval = '100ms'\n")

    # -- lag -------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Stop replaying; what was replayed stays readable, and the log is still received."""
        self.query("select pg_wal_replay_pause()")
        eventually(lambda: self.query("select pg_get_wal_replay_pause_state()") == "paused")

    def release(self) -> None:
        self.query("select pg_wal_replay_resume()")

    def delay(self, seconds: float) -> None:
        """Replay each commit no earlier than this long after it was made; 0 is as soon as possible."""
        self.configure(recovery_min_apply_delay=f"{round(seconds * 1000)}ms")

    def configure(self, **settings: str) -> None:
        """ALTER SYSTEM and reload; the server has heard of it when this returns."""
        loaded = "select pg_conf_load_time()"
        before = self.query(loaded)
        for name, value in settings.items():
            self.query(f"alter system set {name} = '{value}'")
        self.query("select pg_reload_conf()")
        eventually(lambda: self.query(loaded) != before)

    # -- positions and roles ---------------------------------------------------------------------------

    @property
    def replayed(self) -> str:
        return self.query("select pg_last_wal_replay_lsn()")

    def catch_up(self) -> None:
        """Return when everything that the primary has flushed by now is replayed."""
        target = self._of.query("select pg_current_wal_flush_lsn()")
        sql = f"select pg_last_wal_replay_lsn() >= '{target}'"
        eventually(lambda: self.query(sql) == "t")

    def promote(self) -> None:
        """Make it a primary of its own, on a new timeline; whoever it followed is not asked."""
        self.query("select pg_promote(false)")  # without waiting: replay may wait for who has a snapshot
        eventually(lambda: self.query("select pg_is_in_recovery()") == "f")

    def follow(self, server: PostgresServer) -> None:
        """Stream from `server` from now on (which may be a replica that was promoted)."""
        self._of = server
        password = (self.folder / "home" / "secrets" / "db.password").read_text().strip()
        address = f"host=127.0.0.1 port={server.port} user=springtide password={password}"
        self.configure(primary_conninfo=address)
        streams = f"select count(*) from pg_stat_wal_receiver where sender_port = {server.port}"
        streams += " and status = 'streaming'"
        eventually(lambda: self.query(streams) == "1")


class Cluster:
    """`primary` is where it began, whoever is promoted later; `dbname` an empty database on all of them."""

    def __init__(self, loop: LoopThread, *, replicas: int, **options: Any) -> None:
        self._loop = loop
        self._options = options
        self.primary = PostgresServer(loop, **options)
        self.replicas: list[Replica] = []
        self.dbname = "cluster"
        try:
            self.primary.start()
            self.primary.create_database(self.dbname)
            for _ in range(replicas):
                self.add_replica()
        except BaseException:
            self.close()
            raise

    @property
    def servers(self) -> list[PostgresServer]:
        return [self.primary, *self.replicas]

    def add_replica(self, *, of: PostgresServer | None = None) -> Replica:
        """A new replica (of the primary unless told otherwise), running and streaming."""
        replica = Replica(self._loop, of or self.primary, **self._options)
        self.replicas.append(replica)
        replica.start()
        return replica

    def url(self, server: PostgresServer | None = None) -> str:
        """Of the cluster's database on `server`; None means the primary."""
        return (server or self.primary).url(self.dbname)

    def close(self) -> None:
        for server in self.servers:
            server.thaw()  # all of them first: a shutdown waits for whoever streams from it
        for server in reversed(self.servers):
            server.close()


@contextmanager
def cluster(loop: LoopThread, *, replicas: int = 1, **options: Any) -> Iterator[Cluster]:
    made = Cluster(loop, replicas=replicas, **options)
    try:
        yield made
    finally:
        made.close()
