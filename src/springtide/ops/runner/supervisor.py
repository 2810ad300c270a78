"""Run a whole platform: databases and programs first, then app servers and workers; stopped in reverse.

    lock the home -> end what a killed supervisor left -> bind the public socket -> PostgreSQL nodes ->
    databases -> addresses.json -> migrations -> app servers and workers -> ready -> (signal) -> ordered stop

The topology's programs start beside the databases and are ready before the app servers begin.

The public socket is bound once and handed on, so that app servers come and go behind one address. A signal
at any moment ends in the ordered stop: nothing is left running. After kill -9 of the supervisor its children
go on serving; the next `up` adopts PostgreSQL and replaces the rest, `down` ends them all.
Small on purpose: it imports no web framework and no database driver, and starts short processes for those.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from springtide.clock import Clock, SystemClock
from springtide.errors import CgroupError, RunnerError
from springtide.lifecycle import Periodic
from springtide.ops.runner import given, logs, pgdata, ports, processes
from springtide.ops.runner.beside import BesideProgram, Surroundings
from springtide.ops.runner.cgroups import Cgroup, Limits, open_group
from springtide.ops.runner.children import Child
from springtide.ops.runner.home import Home, State
from springtide.ops.runner.leftovers import end_leftovers
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.programs import PythonProgram
from springtide.topology import Addresses, Node, Roles, Topology, check_built

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)

DRAIN = 10.0
ROTATE_EVERY = 5.0


class Supervisor:
    """One platform in one home. `port` overrides the topology's public port; 0 takes a free one."""

    def __init__(
        self,
        topology: Topology,
        home: Home,
        *,
        port: int | None = None,
        drain: float = DRAIN,
        clock: Clock | None = None,
    ) -> None:
        if topology.source is None:
            raise ValueError("a platform is run from a file: topology.source must not be None")
        if port is not None and not 0 <= port <= 65535:
            raise ValueError(f"port must be in 0..65535, got {port}")
        check_built(topology)
        self.topology = topology
        self.home = home
        self.url: str | None = None
        self._source = topology.source.absolute()
        self._port = topology.servers.port if port is None else port
        self._drain = drain
        self._clock = clock or SystemClock()
        self._listener: socket.socket | None = None
        self._databases: dict[str, EmbeddedPostgres] = {}
        self._nodes: list[Child] = []
        self._programs: list[Child] = []
        self._workers: list[Child] = []
        self._servers: list[Child] = []
        self._cgroups: list[Cgroup] = []
        self._urls: dict[str, str] = {}
        self._variables: dict[str, str] = {}
        self._ready = False
        self.warnings: list[str] = []
        self._rotation = Periodic("rotate logs", self._rotate, every=ROTATE_EVERY)
        self._identity = processes.identify(os.getpid())

    @property
    def children(self) -> list[Child]:
        return [*self._nodes, *self._programs, *self._servers, *self._workers]

    async def run(self, stopping: asyncio.Event, ready: Callable[[], None]) -> None:
        """Start everything, call `ready`, wait for `stopping`, stop everything.

        Also when cancelled or failed, everything is stopped before this returns.
        """
        if importlib.util.find_spec("uvicorn") is None:
            raise RunnerError("app servers need uvicorn: `pip install 'springtide[web]'`")
        await asyncio.to_thread(self.home.create)
        with self.home.lock():
            try:
                await self._start()
                self._ready = True
                self._note()
                _log.info("%s is up: %s", self.topology.name, self.url)
                ready()
                await stopping.wait()
            finally:
                _log.info("stopping %s", self.topology.name)
                await _finish(self._stop())
                _log.info("%s has stopped", self.topology.name)

    async def _start(self) -> None:
        self.home.write_state(self._state())
        await end_leftovers(self.home, databases=False)
        spec = self.topology.servers
        remedy = "choose another with `springtide up --port N` (0: a free one) or servers.port"
        self._listener = await asyncio.to_thread(ports.bind, spec.host, self._port, remedy=remedy)
        self._port = self._listener.getsockname()[1]
        host = f"[{spec.host}]" if ":" in spec.host else spec.host
        await self._rotation.start()
        url = f"http://{host}:{self._port}"
        around = await asyncio.to_thread(Surroundings, self.topology, self.home, url)
        self._variables = around.variables
        await _together([self._prepare_databases(), self._start_programs(around)])
        self.url = url
        await self._start_application()

    async def _prepare_databases(self) -> None:
        await self._start_databases()
        self.home.write_addresses(self._addresses(self._urls))
        self.home.write_environment(self._variables)
        await self._migrate()

    async def _start_databases(self) -> None:
        for node in self.topology.nodes.values():
            if node.supervised:
                self._databases[node.name] = await self._database(node)
        self._nodes = [
            Child(server, "postgres", changed=self._note, restarted=self._moved)
            for server in self._databases.values()
        ]
        checks: list[Coroutine[Any, Any, None]] = [child.start() for child in self._nodes]
        given_urls = {
            cluster.name: self.topology.cluster_url(cluster.name)
            for cluster in self.topology.clusters.values()
            if self.topology.nodes[cluster.primary].given
        }
        if given_urls:
            checks.append(given.check(given_urls))
        await _together(checks)
        self._urls = {name: server.url() for name, server in self._databases.items()}
        known = self.topology.with_addresses(self._urls)
        for cluster in known.clusters.values():
            if cluster.primary in self._databases:
                dbname = known.cluster_url(cluster.name).rpartition("/")[2]
                await self._databases[cluster.primary].ensure_database(dbname)

    async def _database(self, node: Node) -> EmbeddedPostgres:
        group = await self._limits(node.name, Limits(cpu=node.cpu, memory_bytes=node.memory_bytes))
        return EmbeddedPostgres(
            node.name,
            home=self.home.path,
            platform=self.topology.name,
            port=node.port,
            max_connections=node.max_connections,
            cgroup=group,
        )

    async def _migrate(self) -> None:
        """In a process of its own: the modules' code must not stay in the supervisor's memory."""
        if self.topology.modules is None:
            return
        log = self.home.logs / "migrate.log"
        begin = await asyncio.to_thread(lambda: log.stat().st_size if log.exists() else 0)
        folder = self._source.parent
        command = [sys.executable, "-P", "-m", "springtide.ops.cli", "db", "migrate"]
        command += ["--file", str(self._source)]
        status = await processes.run(command, log=log, env=self._environment(self._variables), cwd=folder)
        if status != 0:
            tail = await asyncio.to_thread(logs.tail, log, 15, begin=begin)
            raise RunnerError(f"the migrations failed (exit status {status})\n{tail}")

    async def _start_programs(self, around: Surroundings) -> None:
        for spec in self.topology.programs.values():
            command, variables = around.program(spec)
            program = BesideProgram(
                spec,
                command,
                around.ports[spec.name],
                log=self.home.logs / f"{spec.name}.log",
                folder=self._source.parent,
                env={**self._environment(variables), **self._python_path(), "SPRINGTIDE_PROGRAM": spec.name},
                drain=self._drain,
                cgroup=await self._limits(spec.name, Limits(cpu=spec.cpu, memory_bytes=spec.memory_bytes)),
            )
            self._programs.append(Child(program, "program", changed=self._note))
        await _together([child.start() for child in self._programs])

    async def _start_application(self) -> None:
        assert self._listener is not None
        spec, folder, env = self.topology.servers, self._source.parent, self._environment(self._variables)
        fd = self._listener.fileno()
        limits = Limits(cpu=spec.cpu, memory_bytes=spec.memory_bytes)
        arguments = [self.topology.app, "--fd", str(fd), "--path", str(self.topology.import_path)]
        arguments += ["--drain", str(self._drain)]
        for number in range(1, spec.count + 1):
            program = PythonProgram(
                f"app-{number}",
                "springtide.ops.runner.appserver",
                arguments,
                log=self.home.logs / f"app-{number}.log",
                folder=folder,
                env=env,
                address=self.url,
                pass_fds=(fd,),
                drain=self._drain,
                cgroup=await self._limits(f"app-{number}", limits),
            )
            self._servers.append(Child(program, "app", changed=self._note))
        workers = self.topology.workers
        limits = Limits(cpu=workers.cpu, memory_bytes=workers.memory_bytes)
        # Without modules there is no periodic work, so a worker would only take memory.
        for number in range(1, workers.count + 1) if self.topology.modules else ():
            program = PythonProgram(
                f"worker-{number}",
                "springtide.ops.runner.worker",
                ["--drain", str(self._drain)],
                log=self.home.logs / f"worker-{number}.log",
                folder=folder,
                env=env,
                drain=self._drain,
                cgroup=await self._limits(f"worker-{number}", limits),
            )
            self._workers.append(Child(program, "worker", changed=self._note))
        await _together([child.start() for child in (*self._servers, *self._workers)])

    def _moved(self) -> None:
        """After a restart of PostgreSQL: when a new port had to be taken, everybody must learn it."""
        urls = {name: server.url() for name, server in self._databases.items()}
        if urls != self._urls:
            try:
                self.home.write_addresses(self._addresses(urls))
            except RunnerError as error:
                _log.error("PostgreSQL has a new port that nobody can be told: %s", error)
                return
            self._urls = urls
            for child in (*self._servers, *self._workers):
                child.restart()

    def _addresses(self, urls: Mapping[str, str]) -> Addresses:
        clusters = {
            cluster.name: Roles(primary=cluster.primary, replicas=cluster.replicas)
            for cluster in self.topology.clusters.values()
            if cluster.primary in self._databases
        }
        return Addresses(nodes=urls, clusters=clusters)

    async def _limits(self, node: str, limits: Limits) -> Cgroup | None:
        if not limits:
            return None
        platform = f"{self.topology.name}-{pgdata.home_hash(self.home.path)}"
        try:
            group = await asyncio.to_thread(open_group, platform, node, limits)
        except CgroupError as error:
            if not self.warnings:  # once: the reason is the same for every node
                self.warnings.append(
                    f"CPU and memory limits are off (they need Linux control groups and root): {error}"
                )
                _log.warning(self.warnings[-1])
            return None
        self._cgroups.append(group)
        return group

    async def _stop(self) -> None:
        """App servers and workers first, then the rest; every step is bounded, none prevents the next."""
        self._ready = False
        errors: list[Exception] = []
        if self._listener is not None:
            self._listener.close()
        for group in ((*self._servers, *self._workers), (*self._programs, *self._nodes)):
            results = await asyncio.gather(*(child.stop() for child in group), return_exceptions=True)
            errors += [error for error in results if isinstance(error, Exception)]
        await self._rotation.stop()
        for cgroup in self._cgroups:
            await asyncio.to_thread(cgroup.remove)
        if errors:
            raise RunnerError("; ".join(str(error) for error in errors)) from errors[0]
        await asyncio.to_thread(self.home.clear)

    def _note(self) -> None:
        """Write down what runs. A full disk must not keep anything from being started again or stopped."""
        try:
            self.home.write_state(self._state())
        except RunnerError as error:
            _log.warning("`springtide status` will show old news: %s", error)

    def _state(self) -> State:
        assert self._identity is not None
        return State(
            platform=self.topology.name,
            supervisor=self._identity,
            topology=str(self._source),
            url=self.url,
            ready=self._ready,
            nodes=tuple(child.state() for child in self.children),
        )

    def _environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """That of a process: `variables` are the topology's, and what the operator has set wins over them."""
        return {
            "MALLOC_ARENA_MAX": "2",  # glibc's per-thread arenas cost more memory than they save time here
            **variables,
            **os.environ,
            "SPRINGTIDE_TOPOLOGY": str(self._source),
            "SPRINGTIDE_HOME": str(self.home.path),
            "PYTHONUNBUFFERED": "1",
        }

    def _python_path(self) -> dict[str, str]:
        """For programs in Python: the topology's import path, and nothing from the folder they start in."""
        path = [str(self.topology.import_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}

    async def _rotate(self) -> None:
        def rotate(paths: Sequence[Path]) -> None:
            for path in paths:
                logs.rotate(path)

        await asyncio.to_thread(lambda: rotate(self.home.log_files()))


async def _together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All at once; the first failure cancels the others and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _finish(stopping: Coroutine[Any, Any, None]) -> None:
    """Await the ordered stop to its end even when this task is cancelled again meanwhile."""
    task = asyncio.ensure_future(stopping)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
        except Exception:
            break
    task.result()
    if cancelled:
        raise asyncio.CancelledError
