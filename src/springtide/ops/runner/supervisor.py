"""Run a whole platform: databases and programs first, then app servers and workers; stopped in reverse.

    lock the home -> end what a killed supervisor left -> bind the public socket -> PostgreSQL, Redis, brokers
    -> databases -> addresses.json -> migrations -> app servers and workers -> ready -> (signal) -> ordered
    stop

The topology's programs start beside the databases and are ready before the app servers begin.

The public socket is bound once and handed on, so that app servers come and go behind one address. A signal
at any moment ends in the ordered stop: nothing is left running. After kill -9 of the supervisor its children
go on serving; the next `up` adopts PostgreSQL and Redis and replaces the rest, `down` ends them all.
Small on purpose: it imports no web framework and no database driver, and starts short processes for those.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from springtide.clock import Clock, SystemClock
from springtide.errors import CgroupError, RunnerError
from springtide.lifecycle import Periodic
from springtide.ops.runner import brokers, certificates, given, given_redis, logs, pgdata, ports, processes
from springtide.ops.runner.access import Access
from springtide.ops.runner.backups.plan import Plan
from springtide.ops.runner.backups.schedule import Schedule
from springtide.ops.runner.beside import BesideProgram, Surroundings
from springtide.ops.runner.brokers import Brokers
from springtide.ops.runner.caches import Caches
from springtide.ops.runner.cgroups import Cgroup, Limits, open_group
from springtide.ops.runner.children import Child
from springtide.ops.runner.clusters import Keeper
from springtide.ops.runner.control import Control
from springtide.ops.runner.groups import groups, max_connections, roles
from springtide.ops.runner.home import Home, NodeState, State
from springtide.ops.runner.leftovers import clear_joins, end_leftovers
from springtide.ops.runner.operating import Operator
from springtide.ops.runner.poolers import Poolers
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.programs import PythonProgram
from springtide.ops.runner.workers import Workers
from springtide.topology import Addresses, Node, Topology, check_built
from springtide.topology.budget import server_demand

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)

DRAIN = 10.0
ROTATE_EVERY = 5.0
RENEW_EVERY = 12 * 3600.0


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
        host = topology.servers.host
        self._http = f"http://[{host}]" if ":" in host else f"http://{host}"
        self._drain = drain
        self._clock = clock or SystemClock()
        self._groups: dict[str, Cgroup] = {}
        self._listener: socket.socket | None = None
        self._keepers: dict[str, Keeper] = {}
        self._poolers = Poolers(home, changed=self._note, restarted=self._changed)
        self._caches = Caches(home, changed=self._note, restarted=self._changed)
        self._brokers = Brokers(home, changed=self._note, restarted=self._changed)
        self._programs: list[Child] = []
        self._workers = Workers(
            self._worker,
            scaling=lambda: self.topology.worker_scaling if self.topology.modules else None,
            changed=self._note,
            clock=self._clock,
        )
        self._servers: list[Child] = []
        self._cgroups: list[Cgroup] = []
        self._addresses = Addresses()
        self._variables: dict[str, str] = {}
        self._ready = False
        self._unlimited = False
        self.warnings: list[str] = []
        self._operator = Operator(
            self._source,
            running=lambda: self.topology,
            adopt=self._adopt,
            keepers=lambda: {
                name: kept[cluster.primary]
                for kept in (self._kept(),)
                for name, cluster in self.topology.clusters.items()
                if cluster.primary in kept
            },
        )
        self._control = Control(home.run, self._operator.handle)
        self._renewal = Periodic(
            "renew certificates", functools.partial(self._certify, authority=False), every=RENEW_EVERY
        )
        self._rotation = Periodic("rotate logs", self._rotate, every=ROTATE_EVERY)
        self._identity = processes.identify(os.getpid())
        self._plan = None if topology.backups is None else Plan(topology, home)
        self._backups = None if self._plan is None else Schedule(self._plan, clock=self._clock)

    @property
    def children(self) -> list[Child]:
        nodes = [child for keeper in self._keepers.values() for child in keeper.children]
        beside = [*self._caches.children, *self._brokers.children, *self._poolers.children]
        return [*nodes, *beside, *self._programs, *self._servers, *self._workers.children]

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
        caches = [node.name for node in self._supervised("redis")]
        await end_leftovers(self.home, databases=False, caches=caches)
        await asyncio.to_thread(clear_joins, self.home, self.topology.nodes)
        spec = self.topology.servers
        remedy = "choose another with `springtide up --port N` (0: a free one) or servers.port"
        self._listener = await asyncio.to_thread(ports.bind, spec.host, self._port, remedy=remedy)
        self._port = self._listener.getsockname()[1]
        await self._rotation.start()
        url = f"{self._http}:{self._port}"
        around = await asyncio.to_thread(Surroundings, self.topology, self.home, url)
        self._variables = around.variables
        await _together([self._prepare_databases(), self._start_programs(around)])
        self.url = url
        await self._start_application()
        await self._control.start()
        if self._backups is not None:
            await self._backups.start()

    def _adopt(self, topology: Topology) -> None:
        self.topology = topology
        if self._plan is not None:
            self._plan.use(topology)

    def _kept(self) -> dict[str, Keeper]:
        """The keepers by the node that the topology names as primary."""
        return {
            group.primary: self._keepers[group.name]
            for group in groups(self.topology)
            if group.name in self._keepers
        }

    async def _prepare_databases(self) -> None:
        await self._start_databases()
        self._addresses = self._current_addresses()
        self.home.write_addresses(self._addresses)
        if self._backups is not None:
            await self._backups.claim()
        self.home.write_environment(self._variables)
        await self._migrate()

    async def _certify(self, *, authority: bool) -> None:
        """Make what is missing and renew what ends soon; whoever has a new certificate reads it."""
        nodes = self._certified()
        if not nodes:
            return
        renewed = await certificates.ensure(self.home.path / "secrets", nodes, authority=authority)
        for keeper in self._keepers.values():
            for node, member in keeper.members.items():
                if node in renewed and member.server.state == "running":
                    await member.server.reload()
        for node in renewed:
            self._poolers.reload(node)
            await self._caches.reload(node)
            await self._brokers.reload(node)

    def _certified(self) -> list[str]:
        """The nodes started here that prove who they are by a certificate."""
        network = self.topology.network
        if network is None or not network.tls:
            return []
        return [node.name for node in self._supervised("postgres", "pgbouncer", "redis", *brokers.KINDS)]

    def _supervised(self, *kinds: str) -> list[Node]:
        return [n for n in self.topology.nodes.values() if n.supervised and n.kind in kinds]

    async def _start_databases(self) -> None:
        if self._plan is not None:
            await asyncio.to_thread(self._plan.prepare)
        await self._certify(authority=True)
        await self._renewal.start()
        self._keepers = {
            group.name: Keeper(
                group.name,
                primary=group.primary,
                replicas=group.replicas,
                folder=self.home.path / "clusters",
                make=self._database,
                changed=self._changed,
                quorum=group.quorum,
                auto=group.auto,
                failover_after=group.failover_after,
            )
            for group in groups(self.topology)
        }
        for node in self._supervised("redis"):
            limits = await self._limits(node.name, Limits(cpu=node.cpu, memory_bytes=node.memory_bytes))
            self._caches.add(node, self.topology, limits)
        for node in self._supervised(*brokers.KINDS):
            limits = await self._limits(node.name, Limits(cpu=node.cpu, memory_bytes=node.memory_bytes))
            self._brokers.add(node, self.topology, limits)
        work: list[Coroutine[Any, Any, None]] = [keeper.start() for keeper in self._keepers.values()]
        work += [child.start() for child in (*self._caches.children, *self._brokers.children)]
        given_urls = {
            cluster.name: self.topology.cluster_url(cluster.name)
            for cluster in self.topology.clusters.values()
            if self.topology.nodes[cluster.primary].given
        }
        if given_urls:
            nodes = server_demand(self.topology)
            demands = {name: nodes[self.topology.clusters[name].primary] for name in given_urls}
            work.append(given.check(given_urls, demands=demands))
        redis = {
            n.name: n.url for n in self.topology.nodes.values() if n.url is not None and n.kind == "redis"
        }
        if redis:
            work.append(self._check_redis(redis))
        await _together(work)
        for cluster in self.topology.clusters.values():
            if (keeper := self._kept().get(cluster.primary)) is not None:
                await keeper.server().ensure_database(cluster.dbname or cluster.name)
        await self._start_poolers(self.topology.as_found(self._current_addresses()))

    async def _check_redis(self, urls: Mapping[str, str]) -> None:
        for note in await given_redis.check(urls):
            self.warnings.append(note)
            _log.warning(note)

    async def _start_poolers(self, known: Topology) -> None:
        starting = []
        for spec in known.poolers.values():
            node = known.nodes[spec.node]
            if node.supervised:
                group = await self._limits(node.name, Limits(cpu=node.cpu, memory_bytes=node.memory_bytes))
                starting.append(self._poolers.add(spec, node, known, group).start())
        await _together(starting)

    async def _database(self, name: str) -> EmbeddedPostgres:
        """The server of one node. In a cluster all have the same bounds: a replica needs its primary's."""
        node, network = self.topology.nodes[name], self.topology.network
        group = await self._limits(name, Limits(cpu=node.cpu, memory_bytes=node.memory_bytes))
        if network is not None and network.tls and self._keepers:  # it was added while the others run
            await certificates.ensure(self.home.path / "secrets", [name], authority=False)
        access = Access(tls=network.tls, app_only=network.database_from_app_only) if network else None
        return EmbeddedPostgres(
            name,
            home=self.home.path,
            platform=self.topology.name,
            port=node.port,
            max_connections=max_connections(self.topology, name),
            archiving=None if self._plan is None else await asyncio.to_thread(self._plan.archiving, name),
            access=access,
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
        assert self._listener is not None and self.url is not None
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
        # Without modules there is no periodic work, so a worker would only take memory.
        count = self.topology.workers.count if self.topology.modules else 0
        await self._workers.prepare(count)
        await _together([child.start() for child in (*self._servers, *self._workers.children)])
        if self.topology.modules and self.topology.worker_scaling is not None:
            await self._workers.follow(self.url)

    async def _worker(self, number: int) -> Child:
        workers, name = self.topology.workers, f"worker-{number}"
        arguments, address = ["--drain", str(self._drain)], None
        if workers.metrics_port is not None:
            port = workers.metrics_port + number - 1
            arguments += ["--metrics-port", str(port)]
            address = f"{self._http}:{port}/metrics"
        program = PythonProgram(
            name,
            "springtide.ops.runner.worker",
            arguments,
            log=self.home.logs / f"{name}.log",
            folder=self._source.parent,
            env=self._environment(self._variables),
            address=address,
            drain=self._drain,
            cgroup=await self._limits(name, Limits(cpu=workers.cpu, memory_bytes=workers.memory_bytes)),
        )
        return Child(program, "worker", changed=self._note)

    def _changed(self) -> None:
        """After a change of a server's state, address or role: note it, let everybody know."""
        self._note()
        if not self._addresses.nodes or not all(keeper.settled for keeper in self._keepers.values()):
            return
        addresses = self._current_addresses()
        if addresses == self._addresses:
            return
        try:
            self._poolers.repoint(self.topology.as_found(addresses))
            self.home.write_addresses(addresses)
        except RunnerError as error:
            _log.error("databases have changed, and nobody can be told: %s", error)
            return
        before, self._addresses = self._addresses, addresses
        # Where a cluster has replicas, app processes follow the file; elsewhere they read it when they start.
        alone = [keeper.primary for keeper in self._keepers.values() if not keeper.replicas]
        alone += [*self._poolers.urls(), *self._caches.urls(), *self._brokers.urls()]
        if any(before.nodes.get(node, addresses.nodes[node]) != addresses.nodes[node] for node in alone):
            for child in (*self._servers, *self._workers.children):
                child.restart()

    def _current_addresses(self) -> Addresses:
        urls = {
            node: member.server.url()
            for keeper in self._keepers.values()
            for node, member in keeper.members.items()
            if member.server.known
        }
        urls |= self._poolers.urls() | self._caches.urls() | self._brokers.urls()
        return Addresses(nodes=urls, clusters=roles(self.topology, self._kept()))

    async def _limits(self, node: str, limits: Limits) -> Cgroup | None:
        if not limits:
            return None
        if node in self._groups:  # a worker that comes again
            return self._groups[node]
        platform = f"{self.topology.name}-{pgdata.home_hash(self.home.path)}"
        try:
            group = await asyncio.to_thread(open_group, platform, node, limits)
        except CgroupError as error:
            if not self._unlimited:  # once: the reason is the same for every node
                self._unlimited = True
                self.warnings.append(
                    f"CPU and memory limits are off (they need Linux control groups and root): {error}"
                )
                _log.warning(self.warnings[-1])
            return None
        self._groups[node] = group
        self._cgroups.append(group)
        return group

    async def _stop(self) -> None:
        """App servers and workers first, then the rest; every step is bounded, none prevents the next."""
        self._ready = False
        errors: list[Exception] = []
        await self._control.stop()
        if self._listener is not None:
            self._listener.close()
        if self._backups is not None:
            await self._backups.stop()
        application = [*(child.stop() for child in self._servers), self._workers.stop()]
        rest = [child.stop() for child in self._programs]
        rest += [keeper.stop() for keeper in self._keepers.values()]
        rest += [child.stop() for child in (*self._caches.children, *self._brokers.children)]
        poolers = [child.stop() for child in self._poolers.children]
        for group in (application, poolers, rest):
            results = await asyncio.gather(*group, return_exceptions=True)
            errors += [error for error in results if isinstance(error, Exception)]
        await self._rotation.stop()
        await self._renewal.stop()
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
            nodes=tuple(self._node_state(child) for child in self.children),
        )

    def _node_state(self, child: Child) -> NodeState:
        state = child.state()
        for keeper in self._keepers.values():
            if child.name in keeper.members:
                state = replace(state, role=keeper.role(child.name))
                if child.name == keeper.primary and state.error is None:
                    state = replace(state, error=keeper.notice)
        return state

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
