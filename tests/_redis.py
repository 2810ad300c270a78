"""Real Redis servers for tests: one, a primary with replicas and Sentinels, a cluster of primaries.

Each runs in a folder of its own under the temporary folder, on free ports, writes nothing to disk, and does
not outlive the test run, not even one that is killed. All of it is synchronous: what is asked takes
milliseconds, and the test's event loop may stand still for them.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import hiredis
from tests.servers import scratch, watch

__all__ = ["RedisCluster", "RedisServer", "SentinelGroup", "free_port", "until"]

PATIENCE = 100.0
"""Seconds that only tell a slow machine from a server that hangs."""

SLOTS = 16384

WATCH = """
read -r _ && exit
for file in "$0"/*.pid; do read -r pid < "$file" && kill -KILL "$pid"; done
rm -rf "$0"
"""


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(12000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def until(holds: Callable[[], Any], what: str) -> Any:
    """The first true answer of `holds`, asked again and again."""
    end = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError, hiredis.HiredisError):
            if answer := holds():
                return answer
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {PATIENCE:.0f} s")
        time.sleep(0.02)


class RedisServer:
    """One `redis-server`; `config` by keyword with underscores (`maxmemory_policy="allkeys-lru"`).

    `password` is the default user's, `unix` adds a socket, `tls` is (certificate, key, authority) and turns
    the port into one for TLS alone.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        password: str | None = None,
        unix: bool = False,
        tls: tuple[Path, Path, Path] | None = None,
        sentinel: str | None = None,
        **config: object,
    ) -> None:
        self.folder = scratch("springtide-redis-")
        self.password = password
        self.tls = tls
        self._fixed = port is not None
        self.port = port or free_port()
        self.socket = self.folder / "redis.sock" if unix else None
        self._sentinel = sentinel
        self._config = {name.replace("_", "-"): str(value) for name, value in config.items()}
        self._process: subprocess.Popen[bytes] | None = None
        self._watch = watch(self.folder, WATCH)

    # -- life ----------------------------------------------------------------------------------------

    def start(self) -> RedisServer:
        """Return when it answers. A port that somebody else took meanwhile is exchanged, the first time."""
        end = time.monotonic() + PATIENCE
        while not self._begin():
            if time.monotonic() > end:
                raise TimeoutError(f"redis-server did not start:\n{self.log()[-2000:]}")
            if not self._fixed:
                self.port = free_port()
        self._fixed = True  # who knows its address now finds it there after a restart too
        return self

    def _begin(self) -> bool:
        self._write_config()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [shutil.which("redis-server") or "redis-server", str(self.folder / "redis.conf")]
                + (["--sentinel"] if self._sentinel else []),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self.folder / "server.pid").write_text(f"{self._process.pid}\n")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self._process.poll() is not None:
                return False
            with suppress(OSError, hiredis.HiredisError):
                answer = self.command("PING")
                if answer == "PONG" or "LOADING" not in str(answer):
                    return True
            time.sleep(0.01)
        return False

    def _write_config(self) -> None:
        path = self.folder / "redis.conf"
        if self._sentinel and path.exists():
            return  # a Sentinel keeps its state there
        listen = "tls-port" if self.tls else "port"
        settings = {
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            listen: str(self.port),
            "daemonize": "no",
        }
        if self.tls:
            certificate, key, authority = self.tls
            settings |= {
                "port": "0",
                "tls-cert-file": str(certificate),
                "tls-key-file": str(key),
                "tls-ca-cert-file": str(authority),
                "tls-auth-clients": "no",
            }
        if self.socket:
            settings["unixsocket"] = str(self.socket)
        if self.password:
            settings["requirepass"] = self.password
        if not self._sentinel:
            settings |= {"appendonly": "no", "repl-diskless-sync-delay": "0", "repl-backlog-size": "1mb"}
        lines = [f"{name} {value}" for name, value in (settings | self._config).items()]
        if not self._sentinel:
            lines.append('save ""')
        path.write_text("\n".join([*lines, self._sentinel or ""]) + "\n")

    def stop(self) -> None:
        """End it in order; `start` may follow, with the same address and another run id."""
        self.thaw()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """kill -9 and start: same address, another run id, empty."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, the kernel still takes what is sent, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        until(lambda: _state(self.pid) == "T", "freezing redis-server")

    def thaw(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        try:
            self._end(signal.SIGKILL)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._watch.communicate(b"closed\n")

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                os.kill(self._process.pid, how)
                os.kill(self._process.pid, signal.SIGCONT)
            self._process.wait(PATIENCE)
            (self.folder / "server.pid").unlink(missing_ok=True)
            self._process = None

    # -- asking --------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._process is not None, "redis-server is not running"
        return self._process.pid

    @property
    def url(self) -> str:
        scheme = "rediss" if self.tls else "redis"
        login = f":{self.password}@" if self.password else ""
        return f"{scheme}://{login}127.0.0.1:{self.port}/0"

    @property
    def run_id(self) -> str:
        """As links have it, outside of a cluster."""
        return f"{self.info('server')['run_id']}:{self.info('replication')['master_replid']}"

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def command(self, *command: object) -> Any:
        """The answer to one command over a connection of its own; an error reply is raised."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10.0) as plain:
            if self.tls is None:
                return self._ask(plain, command)
            context = ssl.create_default_context(cafile=self.tls[2])
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                return self._ask(secure, command)

    def _ask(self, connection: socket.socket, command: tuple[object, ...]) -> Any:
        reader = hiredis.Reader(encoding="utf-8", errors="surrogateescape")
        commands = [("AUTH", self.password), command] if self.password else [command]
        for words in commands:
            connection.sendall(
                hiredis.pack_command(tuple(w if isinstance(w, bytes) else str(w) for w in words))
            )
            while (answer := reader.gets()) is False:
                received = connection.recv(65536)
                if not received:
                    raise ConnectionError("redis-server closed the connection")
                reader.feed(received)
            if isinstance(answer, hiredis.ReplyError):
                raise answer
        return answer

    def info(self, section: str) -> dict[str, str]:
        """INFO `section` as a mapping."""
        lines = self.command("INFO", section).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def commands_done(self, name: str) -> int:
        """How often the server ran the command `name`."""
        entry = self.info("commandstats").get(f"cmdstat_{name.lower()}", "calls=0")
        return int(entry.split(",")[0].removeprefix("calls="))

    def flush(self) -> None:
        """FLUSHALL: every key is gone, the run id stays."""
        self.command("FLUSHALL", "SYNC")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


class SentinelGroup:
    """A primary, its replicas, and Sentinels that fail over after about a second."""

    def __init__(self, *, replicas: int = 1, sentinels: int = 3, name: str = "main", **config: Any) -> None:
        self.name = name
        self.servers: list[RedisServer] = []
        self.sentinels: list[RedisServer] = []
        try:
            first = self._add(**config)
            for _ in range(replicas):
                self._add(replicaof=f"127.0.0.1 {first.port}", **config)
            until(lambda: self._attached(first) == replicas, "replicas attached to their primary")
            login = f"sentinel auth-pass {name} {first.password}\n" if first.password else ""
            for _ in range(sentinels):
                settings = (
                    f"sentinel monitor {name} 127.0.0.1 {first.port} {sentinels // 2 + 1}\n{login}"
                    f"sentinel down-after-milliseconds {name} 1000\n"
                    f"sentinel failover-timeout {name} 5000\n"
                )
                sentinel = RedisServer(sentinel=settings)
                self.sentinels.append(sentinel)
                sentinel.start()
            until(lambda: all(self._knows(s, replicas, sentinels) for s in self.sentinels), "Sentinels met")
        except BaseException:
            self.close()
            raise

    def _add(self, **config: Any) -> RedisServer:
        server = RedisServer(**config)
        self.servers.append(server)
        return server.start()

    def _attached(self, primary: RedisServer) -> int:
        return int(primary.info("replication")["connected_slaves"])

    def _knows(self, sentinel: RedisServer, replicas: int, sentinels: int) -> bool:
        flat = sentinel.command("SENTINEL", "MASTER", self.name)
        facts = dict(zip(flat[::2], flat[1::2], strict=True))
        return int(facts["num-slaves"]) == replicas and int(facts["num-other-sentinels"]) == sentinels - 1

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        login = f":{self.servers[0].password}@" if self.servers[0].password else ""
        return f"redis+sentinel://{login}{hosts}/{self.name}"

    @property
    def primary(self) -> RedisServer:
        """Who the first Sentinel says is the primary."""
        _, port = self.sentinels[0].command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        return next(server for server in self.servers if server.port == int(port))

    def failover(self) -> RedisServer:
        """Ask for a change of the primary while all live; the new one, when the others agree."""
        old = self.primary
        until(
            lambda: self.sentinels[0].command("SENTINEL", "FAILOVER", self.name) == "OK", "failover accepted"
        )
        return self.promoted(instead_of=old)

    def promoted(self, *, instead_of: RedisServer) -> RedisServer:
        """The primary after `instead_of`, once every Sentinel names it and it says so itself."""

        def agreed() -> RedisServer | None:
            named = {s.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)[1] for s in self.sentinels}
            if len(named) != 1 or (port := int(named.pop())) == instead_of.port:
                return None
            server = next(server for server in self.servers if server.port == port)
            return server if server.info("replication")["role"] == "master" else None

        found = until(agreed, "a new primary")
        assert isinstance(found, RedisServer)
        return found

    def close(self) -> None:
        for server in [*self.sentinels, *self.servers]:
            server.close()


class RedisCluster:
    """Primaries that share the 16,384 slots evenly, in order; `add_replica` gives one of them a replica."""

    def __init__(self, *, nodes: int = 3, **config: Any) -> None:
        self.servers: list[RedisServer] = []
        self._config = {
            "cluster_enabled": "yes",
            "cluster_node_timeout": 5000,
            "cluster_require_full_coverage": "no",
            "cluster_replica_validity_factor": 0,  # a busy machine does not make a replica too old
            **config,
        }
        try:
            for _ in range(nodes):
                self._add()
            bounds = [SLOTS * index // nodes for index in range(nodes + 1)]
            for server, begin, end in zip(self.servers, bounds, bounds[1:], strict=False):
                server.command("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
            for epoch, server in enumerate(self.servers, 1):
                server.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            for server in self.servers[1:]:
                self._introduce(server)
            until(lambda: all(self._whole(server) for server in self.servers), "the cluster's nodes met")
        except BaseException:
            self.close()
            raise

    def _add(self) -> RedisServer:
        server = RedisServer(cluster_port=free_port(), **self._config)
        self.servers.append(server)
        return server.start()

    def _introduce(self, server: RedisServer) -> None:
        bus = self.servers[0]._config["cluster-port"]
        server.command("CLUSTER", "MEET", "127.0.0.1", self.servers[0].port, bus)

    def add_replica(self, primary: RedisServer) -> RedisServer:
        """A node that follows `primary`, in step with it, and known to all."""
        replica = self._add()
        self._introduce(replica)
        name = primary.command("CLUSTER", "MYID")
        until(lambda: all(self._whole(server) for server in self.servers), "the replica met the others")
        until(lambda: replica.command("CLUSTER", "REPLICATE", name) == "OK", "the replica took its primary")
        until(lambda: replica.info("replication").get("master_link_status") == "up", "the replica is in step")
        mine = replica.command("CLUSTER", "MYID")
        until(
            lambda: all(mine in str(s.command("CLUSTER", "REPLICAS", name)) for s in self.servers),
            "everybody knows the replica",
        )
        return replica

    def _whole(self, server: RedisServer) -> bool:
        facts = server.command("CLUSTER", "INFO")
        return (
            "cluster_state:ok" in facts
            and f"cluster_slots_ok:{SLOTS}" in facts
            and f"cluster_known_nodes:{len(self.servers)}" in facts
        )

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{server.port}' for server in self.servers)}"

    def slot(self, key: str) -> int:
        return int(self.servers[0].command("CLUSTER", "KEYSLOT", key))

    def owner(self, key: str) -> RedisServer:
        """The node that has the slot of `key`, by what the first node says."""
        slot = self.slot(key)
        for begin, end, (_, port, *_rest), *_replicas in self.servers[0].command("CLUSTER", "SLOTS"):
            if begin <= slot <= end:
                return next(server for server in self.servers if server.port == port)
        raise LookupError(f"nobody has slot {slot}")

    def begin_moving(self, key: str, target: RedisServer) -> None:
        """Open the slot of `key` for its move: what is not at the owner any more is answered by ASK."""
        source, slot = self.owner(key), self.slot(key)
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.command("CLUSTER", "MYID"))
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.command("CLUSTER", "MYID"))

    def finish_moving(self, key: str, target: RedisServer) -> None:
        """Move the keys of the slot that `begin_moving` opened, and give it to `target`."""
        source, slot = self.owner(key), self.slot(key)
        while names := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)
        owner = target.command("CLUSTER", "MYID")
        for server in [target, source, *(s for s in self.servers if s not in (source, target))]:
            server.command("CLUSTER", "SETSLOT", slot, "NODE", owner)

    def move(self, key: str, target: RedisServer) -> None:
        self.begin_moving(key, target)
        self.finish_moving(key, target)

    def close(self) -> None:
        for server in self.servers:
            server.close()
