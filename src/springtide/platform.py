"""The composition root: the one place where topology, database, telemetry, web and modules meet.

    platform = Platform.from_topology(modules=modules())
    app = platform.wrap(FastAPI())

A platform is built from a topology and a list of modules; building connects to nothing. Started, it opens
the pools, refuses to run on a database whose migrations are pending, and starts the modules in the order of
their requirements; stopped, it undoes that in reverse. It lives in one event loop and wraps one application.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from springtide import _lifespan
from springtide._caching import Caching
from springtide.clock import Clock, SystemClock
from springtide.db import Database, ShardMap, idempotency
from springtide.db.consistency import Consistency
from springtide.db.durability import check_quorum
from springtide.db.insight import Insight
from springtide.db.members import Fixed, Member, Members, Patroni, RunnerFile
from springtide.db.migrate import Migrator
from springtide.db.pool import Pool
from springtide.db.servers import RoutingSettings, Servers
from springtide.errors import ConfigurationError, MigrationError
from springtide.events import EventWorker, Publisher, Subscription, kind_of
from springtide.flows import Flows, FlowUpkeep
from springtide.identity.positions import Positions
from springtide.jobs import Enqueuer, Handler, Queue, Scheduler, Worker
from springtide.jobs import kind_of as kind_of_job
from springtide.jobs.pressure import Pressure
from springtide.jobs.scaling import Bounds, Scaling
from springtide.lifecycle import Group, Periodic, Service, StartStop
from springtide.outbox import Bell
from springtide.services.module import Interface, Module, ModuleContext
from springtide.services.registry import Registry
from springtide.signals import FanOut, Sink
from springtide.telemetry import logs
from springtide.telemetry.logs import LogSink
from springtide.telemetry.loop import LoopMonitor
from springtide.telemetry.metrics import MetricsSink
from springtide.telemetry.prometheus import MetricsEndpoint
from springtide.topology import Cluster, Topology, check_built, load, read_addresses
from springtide.topology.layers import WorkerScalingSpec
from springtide.web.asgi import ROUTE_KEY, Layers, RenderError
from springtide.web.causality import LIFETIME, Carrier, CausalityKeys
from springtide.web.health import Check, Health
from springtide.web.scaling import ScalingPage

if TYPE_CHECKING:
    from springtide.cache import Cache
    from springtide.identity.passwords import Passwords
    from springtide.identity.tokens import AccessTokens
    from springtide.jobs.transports import Transport

__all__ = ["Platform", "load_modules"]

T = TypeVar("T")

RECONCILE_EVERY = 30.0
"""Seconds between two passes over what crashed writers left, per module."""

PURGE_EVERY = 60.0
"""Seconds between two passes over idempotency records past their retention, per database, and over what
identities have seen."""

CAUSALITY_KEY = "SPRINGTIDE_CAUSALITY_KEY"


class Platform:
    """One process's view of the running whole.

    topology:    what exists; its nodes must have addresses (given, or filled in by the runner).
    modules:     the application's modules, in any order.
    home:        folder for what the platform keeps (`secrets/`); None means `.springtide` beside the file.
    sink:        hears every signal beside the platform's own metrics and logs; None means nobody.
    addresses:   the runner's file of who is where, to be watched for replicas that come and go; None: nobody
                 does, besides those of the topology.
    routing:     how replicas are read; None means as the topology says, in the zone that SPRINGTIDE_ZONE
                 names.
    check_calls: make calls between modules as a network would (for tests; see services.call.Checked).

    Raises ConfigurationError (ModuleError, StageNotBuilt) when the parts do not fit together.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        modules: Sequence[Module] = (),
        home: Path | None = None,
        addresses: Path | None = None,
        clock: Clock | None = None,
        sink: Sink | None = None,
        routing: RoutingSettings | None = None,
        check_calls: bool = False,
    ) -> None:
        check_built(topology)
        self.topology = topology
        self.clock: Clock = clock or SystemClock()
        self._metrics = metrics = MetricsSink()
        self.metrics = metrics.registry
        own: list[Sink] = [metrics, LogSink(slow_request=topology.telemetry.slow_request)]
        self.sink: Sink = FanOut([*own, sink] if sink is not None else own)
        self.name = topology.name
        self._home = home or (topology.source.parent if topology.source else Path()) / ".springtide"
        self._routing = {name: routing or _routing(spec) for name, spec in topology.clusters.items()}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wrapped = False
        self._migrating = False
        self._passwords: Passwords | None = None
        self._tokens: AccessTokens | None = None
        self._identity: list[Service] = []
        self._group: Group | None = None
        self.insight = Insight(
            folder=self._home / "run" / "statements",
            node=os.environ.get("SPRINGTIDE_NODE"),
            slow_statement=topology.telemetry.slow_statement,
            clock=self.clock,
            sink=self.sink,
        )
        self.pools: Mapping[str, Pool] = {name: self._pool(name) for name in topology.clusters}
        self._control = {
            name: pool if topology.pooler(name) is None else self._control_pool(name)
            for name, pool in self.pools.items()
        }
        for cluster, pool in self.pools.items():
            metrics.watch_pool(cluster, pool.stats, max_size=topology.pool.size)
        watched = {cluster: self._members(cluster, addresses) for cluster in topology.clusters}
        self.servers: Mapping[str, Servers] = {
            cluster: self._servers(cluster, members)
            for cluster, members in watched.items()
            if members is not None
        }
        """Of the clusters that have replicas or may get some while this process runs."""
        for cluster, servers in self.servers.items():
            metrics.watch_replicas(cluster, servers)
        self._primaries = _Primaries(topology, self.servers)
        self._caching = Caching(
            topology,
            folder=self._home / "run" / "cache",
            dsns=self._primaries,
            metrics=metrics,
            clock=self.clock,
            sink=self.sink,
        )
        if topology.backups is not None:
            metrics.watch_backups(self._home / "run" / "backups.json")
        self._monitor = LoopMonitor(observe=metrics.observe_loop_lag, clock=self.clock, sink=self.sink)
        self.health = Health(
            state=lambda: self.state,
            lag=self._monitor.lag,
            dependencies={
                cluster: functools.partial(pool.fetch_value, "select 1")
                for cluster, pool in self.pools.items()
            },
            more=self._more_checks,
            clock=self.clock,
        )
        self._bell = Bell(clock=self.clock, sink=self.sink)
        self._pressure = Pressure(clock=self.clock, sink=self.sink)
        home_cluster = _home_cluster(topology)
        self._positions = (
            Positions(self.pools[home_cluster], lifetime=LIFETIME, clock=self.clock, sink=self.sink)
            if home_cluster is not None
            else None
        )
        self._carrier = Carrier(
            self._causality_keys,
            name=self.name,
            clusters=topology.clusters,
            positions=self._positions if self.servers else None,
            longest_lag=max((found.longest_lag for found in self._routing.values()), default=0.0),
            clock=self.clock,
            sink=self.sink,
        )
        self._registry = Registry(modules, check_calls=check_calls)
        self._databases = {
            module.name: self._database(module)
            for module in self._registry.modules
            if module.migrations is not None
        }
        self._flows = {
            module.name: Flows(self._databases[module.name], module.workflows, sink=self.sink)
            for module in self._registry.modules
            if module.workflows
        }
        self._scaling = (
            Scaling(self.job_databases, self.bounds, clock=self.clock, sink=self.sink)
            if topology.worker_scaling is not None
            else None
        )
        self._registry.build(self._context)
        for module in self._registry.modules:
            for group in module.groups:
                self._log_of(module, group.source)

    @classmethod
    def from_topology(
        cls,
        path: Path | None = None,
        *,
        modules: Sequence[Module] | None = None,
        sink: Sink | None = None,
        check_calls: bool = False,
    ) -> Platform:
        """Read springtide.toml and build the platform that it describes.

        path None means the file that the runner named (SPRINGTIDE_TOPOLOGY), else ./springtide.toml.
        modules None means those that the file's `modules` key names. Addresses of nodes that the runner
        started are read from its home (SPRINGTIDE_HOME, else `.springtide` beside the file). In a process
        that the runner started, logs take the form that the topology asks for.
        """
        chosen = path or Path(os.environ.get("SPRINGTIDE_TOPOLOGY", "springtide.toml"))
        topology = load(chosen)
        home = chosen.resolve().parent / ".springtide"
        if path is None and (named := os.environ.get("SPRINGTIDE_HOME")):
            home = Path(named)
        addresses = home / "run" / "addresses.json"
        topology = topology.as_found(read_addresses(addresses))
        if "SPRINGTIDE_NODE" in os.environ:
            form = cast(logs.Format, topology.telemetry.log_format)  # the topology allows no other
            logs.configure(form, topology.telemetry.log_level)
        if modules is None:
            modules = load_modules(topology)
        return cls(
            topology,
            modules=modules,
            home=home,
            addresses=addresses if addresses.exists() else None,
            sink=sink,
            check_calls=check_calls,
        )

    @property
    def state(self) -> str:
        return self._group.state if self._group is not None else "new"

    @property
    def home(self) -> Path:
        """The folder for what the platform keeps on this machine."""
        return self._home

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules, each after those it requires."""
        return self._registry.modules

    def service(self, interface: Interface[T]) -> T:
        """The service that provides `interface`. Raises ModuleError when no module does."""
        return self._registry.service(interface)

    def flows(self, module: str) -> Flows | None:
        """The workflows of `module`, for operators and tests; None when it declares none."""
        return self._flows.get(module)

    def database(self, module: str) -> Database:
        """The database of `module`, for seeds and tests: a module itself uses its context's `db`."""
        try:
            return self._databases[module]
        except KeyError:
            known = ", ".join(self._databases) or "none"
            raise ConfigurationError(
                f"no module {module!r} has a database (those that do: {known})"
            ) from None

    @property
    def job_databases(self) -> list[Database]:
        """Of the modules that have jobs or workflows."""
        return [self._databases[module.name] for module in self.modules if module.jobs or module.workflows]

    @property
    def bounds(self) -> Bounds:
        """Of the number of workers, as the topology's `worker_scaling` or its defaults say."""
        spec, pool = self.topology.worker_scaling or WorkerScalingSpec(), self.topology.pool
        # each job may hold a connection, and half of them are for everything else
        slots = max((pool.size - pool.reserved) // 2, 1)
        return Bounds(slots, least=spec.min, most=spec.max, time_to_drain=spec.time_to_drain)

    @property
    def cache(self) -> Cache:
        """The cache; made when it is first asked for, started and stopped with the platform."""
        if self._caching.made is None and self._group is not None:
            raise ConfigurationError(
                "the cache was first asked for after the start: ask while building the application"
            )
        return self._caching.cache()

    @property
    def passwords(self) -> Passwords:
        """Password hashing; started and stopped with the platform when it was asked for before the start."""
        if self._passwords is None:
            from springtide.identity.passwords import Passwords

            self._passwords = Passwords(clock=self.clock, sink=self.sink)
            self._add_identity(self._passwords)
        return self._passwords

    @property
    def tokens(self) -> AccessTokens:
        """Access tokens by and for this platform; keys from SPRINGTIDE_TOKEN_KEY, else secrets/token.key."""
        if self._tokens is None:
            from springtide.identity.keys import KeyRing
            from springtide.identity.tokens import AccessTokens

            lines = os.environ.get("SPRINGTIDE_TOKEN_KEY")
            keys = (
                functools.partial(KeyRing, lines.splitlines(), source="SPRINGTIDE_TOKEN_KEY")
                if lines is not None
                else functools.partial(KeyRing.load_or_create, self._home / "secrets" / "token.key")
            )
            self._tokens = AccessTokens(
                keys, issuer=self.name, audience=f"{self.name}/api", clock=self.clock, sink=self.sink
            )
            self._add_identity(self._tokens)
        return self._tokens

    async def start(self) -> None:
        """Open pools, check migrations, start modules. Raises MigrationError when migrations are pending."""
        self._enter_loop()
        self._refuse_while_migrating()
        if self._group is None:
            migrations = StartStop("migrations", self._refuse_pending, _nothing, sink=self.sink)
            durability = StartStop("durability", self._refuse_less, _nothing, sink=self.sink)
            implementations = (self._registry.implementation(module.name) for module in self.modules)
            lively = [made for made in implementations if _is_service(made)]
            pools = self.pools.values()
            servers = self.servers.values()  # first: they know who is the primary that a pool must find
            carrying: list[Service | None] = [self._positions] if self.servers else []
            if self.servers or self._caching.keeps:  # what a session wrote is known to its next request
                carrying.append(self._carrier)
            tokens = [service for service in carrying if service is not None]
            parts: list[Service] = [self._monitor, self.insight, *servers, *pools, durability, migrations]
            parts += [self._pressure] if self._pressure.needed else []
            parts += [self._scaling] if self._scaling is not None and self._wrapped else []
            parts += [self._bell, *tokens, *self._identity, *self._caching.services, *lively]
            parts += self._caching.beside(serving=self._wrapped)
            self._group = Group(self.name, parts, sink=self.sink)
        await self._group.start()

    async def stop(self) -> None:
        """Undo the start, in reverse; a platform that never started stays as it is."""
        if self._group is not None:
            self._enter_loop()
            await self._group.stop()

    async def __aenter__(self) -> Platform:
        try:
            await self.start()
        except BaseException:
            await self.stop()  # a start whose caller was cancelled goes on by itself
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def migrate(self) -> list[str]:
        """Apply every module's pending migrations on every shard, required modules first.

        Returns what was applied. It goes past poolers, and a platform that is not running opens what it needs
        for it.
        """
        self._enter_loop()
        self._refuse_while_migrating()
        applied: list[str] = []
        running = self.pools.values() if self.state == "running" else ()
        needed = tuple(pool for pool in self._control.values() if pool not in running)
        pools = Group(f"{self.name}:migrate", needed)
        self._migrating = True
        try:
            await pools.start()
            for migrator in self._migrators(self._control):
                applied += await migrator.apply()
        finally:
            try:
                await pools.stop()
            finally:
                self._migrating = False
        return applied

    def background(self, *, drain: float = 20.0) -> list[Service]:
        """What a worker starts after the platform and stops before it: jobs, events and periodic work.

        Stopped, running jobs and handlers have `drain` seconds to finish before they are handed back.
        """
        work = [*self._worker(drain), *self._event_worker(drain)]
        for module in self.modules:
            if module.schedules:
                database = self._databases[module.name]
                work.append(Scheduler(database, module.schedules, clock=self.clock, sink=self.sink))
        work += [FlowUpkeep(flows, clock=self.clock, sink=self.sink) for flows in self._flows.values()]
        for module in self.modules:
            made = self._registry.implementation(module.name)
            for task in module.background:
                body = functools.partial(task.method, made)
                work.append(self._periodic(f"{module.name}.{task.name}", body, task.every))
        if self._positions is not None and self.servers:
            work.append(self._periodic("positions.purge", self._positions.purge, PURGE_EVERY))
        for name, database in self._databases.items():
            work.append(self._periodic(f"{name}.reconcile", database.reconcile, RECONCILE_EVERY))
            forget = functools.partial(idempotency.purge, database)
            work.append(self._periodic(f"{name}.idempotency", forget, PURGE_EVERY))
        return work

    def wrap(
        self,
        app: _lifespan.App,
        *,
        render_error: RenderError | None = None,
        body_limits: Mapping[str, int] | None = None,
    ) -> _lifespan.App:
        """`app` with the layers around it, start/stop by the lifespan, and beside it /metrics, /health and,
        where the topology has worker_scaling, /scaling.

        render_error gives body and content type of an error that a layer answers; None means problem+json.
        body_limits are bytes for the paths where bodies may be larger or must be smaller than the topology's
        `body_bytes` (see `Layers`).
        Raises ConfigurationError when the platform wraps an application already.
        """
        if self._wrapped:
            raise ConfigurationError(
                f"platform {self.name!r} wraps an application already; build one platform per application"
            )
        self._wrapped = True
        servers, telemetry = self.topology.servers, self.topology.telemetry
        beside: dict[str, _lifespan.App] = {"/metrics": MetricsEndpoint(self.metrics)}
        beside |= dict.fromkeys(self.health.paths, self.health)
        if self._scaling is not None:
            beside["/scaling"] = ScalingPage(self._scaling.page)

        async def routed(scope: Any, receive: Any, send: Any) -> None:
            page = beside.get(scope["path"]) if scope["type"] == "http" else None
            if page is not None:
                scope[ROUTE_KEY] = scope["path"]
            await (page or app)(scope, receive, send)

        layers = Layers(
            routed,
            clock=self.clock,
            sink=self.sink,
            request_timeout=servers.request_timeout,
            body_bytes=servers.body_bytes,
            body_limits=body_limits,
            trusted_proxies=servers.trusted_proxies,
            cors_origins=servers.cors_origins,
            trace_sample=telemetry.trace_sample,
            render_error=render_error,
            causality=self._carrier,
        )

        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                if "state" in scope:  # the server has one: other servers know nothing of draining
                    scope["state"][_lifespan.DRAIN] = self.health.drain
                await _lifespan.run(self, app, scope, receive, send)
            else:
                await layers(scope, receive, send)

        return wrapped

    def _pool(self, cluster: str, replica: Member | None = None) -> Pool:
        spec = self.topology.pool
        pooler = self.topology.pooler(cluster) if replica is None else None
        replaced = replica is None and self.topology.clusters[cluster].replicated
        return Pool(
            self.topology.client_url(cluster) if replica is None else replica.url,
            cluster=cluster if replica is None else f"{cluster}/{replica.node}",
            pooled=pooler is not None,
            prepared_statements=pooler.prepared_statements > 0 if pooler is not None else None,
            size=spec.size,
            reserved=spec.reserved,
            max_waiting=spec.max_waiting,
            acquire_timeout=spec.acquire_timeout,
            idle=spec.idle,
            max_age=spec.max_age,
            clock=self.clock,
            sink=self.sink,
            insight=self.insight,
            primary_only=replaced and pooler is None,
            # a dead primary is replaced: what has not been sent waits for the new one
            outage_timeout=self.topology.servers.request_timeout if replaced else None,
        )

    def _control_pool(self, cluster: str) -> Pool:
        """Past the pooler, for migrations: they hold a lock for as long as their session."""
        return Pool(
            self.topology.cluster_url(cluster),
            cluster=cluster,
            size=2,
            reserved=0,
            acquire_timeout=self.topology.pool.acquire_timeout,
            clock=self.clock,
            sink=self.sink,
        )

    def _members(self, cluster: str, addresses: Path | None) -> Members | None:
        """Who tells the servers of `cluster`; None when it is one server for good."""
        spec = self.topology.clusters[cluster]
        if addresses is not None and self.topology.nodes[spec.primary].supervised:
            return RunnerFile(addresses, cluster, dbname=spec.dbname, describe=self._described)
        if spec.patroni:
            return Patroni(spec.patroni, cluster, url=self.topology.cluster_url(cluster))
        if not spec.replicas:
            return None
        members = []
        for node in (spec.primary, *spec.replicas):
            zone, weight = self._described(node)
            url = self.topology.cluster_url(cluster, node)
            members.append(Member(node=node, url=url, zone=zone, weight=weight))
        return Fixed(members)

    def _described(self, node: str) -> tuple[str, float]:
        """Zone and weight of a node; those of one that the topology does not know yet are the usual ones."""
        found = self.topology.nodes.get(node)
        return (found.zone, found.weight) if found is not None else ("local", 1.0)

    def _servers(self, cluster: str, members: Members) -> Servers:
        pooled = self.topology.pooler(cluster) is not None
        return Servers(
            cluster,
            self.pools[cluster],
            members,
            replica_pool=functools.partial(self._pool, cluster),
            primary_url=(lambda _: self.topology.client_url(cluster)) if pooled else None,
            quorum=self.topology.confirmed(cluster),
            settings=self._routing[cluster],
            clock=self.clock,
            sink=self.sink,
        )

    def _more_checks(self) -> dict[str, Check]:
        """Of what comes and goes, and of the cache."""
        replicas: dict[str, Check] = {
            f"{cluster}/{replica.node}": functools.partial(servers.check, replica.node)
            for cluster, servers in self.servers.items()
            for replica in servers.replicas
        }
        return replicas | self._caching.checks

    def _database(self, module: Module) -> Database:
        spec = self.topology.database(module.name)
        shards = ShardMap.even(spec.shards)
        names = [handler.kind.name for handler in module.jobs]
        names += [kind_of_job(step).name for workflow in module.workflows for step in workflow.jobs.values()]
        enqueue = Enqueuer(names=names, bell=self._bell, pressure=self._pressure)
        local = [
            shard for shard in spec.shards if spec.durability == "async" and self.topology.confirmed(shard)
        ]
        database = Database(
            module.name,
            shards,
            self.pools,
            servers=self.servers,
            default=Consistency.parse(spec.consistency),
            local_commits=local,
            clock=self.clock,
            enqueue=enqueue,
            publish=Publisher(names=[kind_of(event).name for event in module.publishes], bell=self._bell),
        )
        self._pressure.watch(database, [handler.kind for handler in module.jobs])
        return database

    def _causality_keys(self) -> CausalityKeys:
        """Keys from SPRINGTIDE_CAUSALITY_KEY, else secrets/causality.key. Blocks."""
        lines = os.environ.get(CAUSALITY_KEY)
        if lines is not None:
            return CausalityKeys(lines.splitlines(), source=CAUSALITY_KEY)
        return CausalityKeys.load_or_create(self._home / "secrets" / "causality.key")

    def _worker(self, drain: float) -> list[Service]:
        """One worker for the jobs of all modules, if any module has some."""
        queues = [
            Queue(
                database=self._databases[module.name],
                handlers=self.handlers(module),
                implementation=self._registry.implementation(module.name),
            )
            for module in self.modules
            if module.jobs or module.workflows
        ]
        if not queues:
            return []
        return [
            Worker(
                queues,
                dsns=self._primaries,
                slots=self.bounds.slots,
                drain=drain,
                name=os.environ.get("SPRINGTIDE_NODE", "worker"),
                transport=self._transport(),
                clock=self.clock,
                sink=self.sink,
            )
        ]

    def _transport(self) -> Transport | None:
        """What carries jobs, where the topology names a broker for it."""
        node = self.topology.carrier
        if node is None:
            return None
        from springtide.jobs.transports import driver

        return driver(
            self.topology.nodes[node].kind,
            self.topology.node_url(node),
            name=self.name,
            clock=self.clock,
            sink=self.sink,
        )

    def _event_worker(self, drain: float) -> list[Service]:
        """One worker for the events of all modules, if any module publishes some or has groups."""
        subscriptions = [
            Subscription(
                group=group,
                log=self._log_of(module, group.source),
                effects=self._databases.get(module.name),
                implementation=self._registry.implementation(module.name),
            )
            for module in self.modules
            for group in module.groups
        ]
        logs = [self._databases[module.name] for module in self.modules if module.publishes]
        if not subscriptions and not logs:
            return []
        pool = self.topology.pool
        return [
            EventWorker(
                subscriptions,
                logs=logs,
                dsns=self._primaries,
                # beside the jobs', which have half of what is not reserved
                slots=max((pool.size - pool.reserved) // 4, 1),
                drain=drain,
                name=os.environ.get("SPRINGTIDE_NODE", "worker"),
                clock=self.clock,
                sink=self.sink,
            )
        ]

    def _log_of(self, module: Module, source: str | None) -> Database:
        name = source or module.name
        if name not in self._databases:
            known = ", ".join(self._databases) or "none"
            raise ConfigurationError(
                f"a group of module {module.name!r} reads the events of {name!r}, which has no database"
                f" (those that do: {known})"
            )
        return self._databases[name]

    def handlers(self, module: Module) -> list[Handler[Any]]:
        """Of the module's jobs, and of the steps of its workflows."""
        flows = self._flows.get(module.name)
        return [*module.jobs, *(flows.handlers if flows is not None else ())]

    def _context(self, module: Module, services: Mapping[Any, Any]) -> ModuleContext:
        return ModuleContext(
            module.name,
            clock=self.clock,
            sink=self.sink,
            database=self._databases.get(module.name),
            flows=self._flows.get(module.name),
            services=services,
            settings=module.settings,
            home=self._home,
            passwords=lambda: self.passwords,
            tokens=lambda: self.tokens,
            cache=lambda: self.cache,
            cached=self.topology.cache is not None,
        )

    def _migrators(self, pools: Mapping[str, Pool]) -> list[Migrator]:
        return [
            Migrator(
                module.name,
                module.migrations,
                {shard: pools[shard] for shard in self._databases[module.name].pools},
            )
            for module in self.modules
            if module.migrations is not None
        ]

    async def _refuse_pending(self) -> None:
        pending = [name for migrator in self._migrators(self.pools) for name in await migrator.pending()]
        if pending:
            raise MigrationError(
                f"{len(pending)} migrations are pending: {', '.join(pending)}; run `springtide db migrate`"
            )

    async def _refuse_less(self) -> None:
        """Refuse a given server that acknowledges commits which no replica has; the runner's own do not."""
        for name, spec in self.topology.databases.items():
            for cluster in spec.shards if spec.durability == "quorum" else ():
                if self.topology.nodes[self.topology.clusters[cluster].primary].given:
                    await check_quorum(self.pools[cluster], database=name)

    def _periodic(self, name: str, body: Any, every: float) -> Service:
        return Periodic(name, body, every=every, clock=self.clock, sink=self.sink)

    def _add_identity(self, service: Service) -> None:
        if self._group is not None:
            raise ConfigurationError(
                f"{service.name} were first asked for after the start: ask while building the application"
            )
        self._identity.append(service)

    def _refuse_while_migrating(self) -> None:
        if self._migrating:
            raise ConfigurationError(f"platform {self.name!r} is being migrated: wait for that to end")

    def _enter_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ConfigurationError(
                f"platform {self.name!r} belongs to another event loop; build one platform per loop"
            )


def _routing(cluster: Cluster) -> RoutingSettings:
    return RoutingSettings(
        zone=os.environ.get("SPRINGTIDE_ZONE", "local"),
        max_lag=cluster.max_lag,
        min_serving=cluster.min_serving,
        look_every=cluster.look_every,
    )


def _home_cluster(topology: Topology) -> str | None:
    """The cluster where it is kept what identities have seen, the same in every process; None without any."""
    default = topology.databases.get("default")
    return default.shards[0] if default is not None else next(iter(topology.clusters), None)


def load_modules(topology: Topology) -> list[Module]:
    """The modules that the topology's `modules` key names: a list or a function giving one; [] without key.

    The topology's import path is put first on `sys.path`. Raises ConfigurationError naming the key.
    """
    if topology.modules is None:
        return []
    folder = str(topology.import_path)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    file, _, attributes = topology.modules.partition(":")
    try:
        found = functools.reduce(getattr, attributes.split("."), importlib.import_module(file))
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"modules = {topology.modules!r} cannot be imported: {error}") from error
    made = found() if callable(found) else found
    if not (isinstance(made, Sequence) and all(isinstance(module, Module) for module in made)):
        raise ConfigurationError(f"modules = {topology.modules!r} must give a list of Module, got {made!r}")
    return list(made)


class _Primaries(Mapping[str, str]):
    """Where the primary of each cluster answers now, past every pooler."""

    def __init__(self, topology: Topology, servers: Mapping[str, Servers]) -> None:
        self._topology = topology
        self._servers = servers

    def __getitem__(self, cluster: str) -> str:
        servers = self._servers.get(cluster)
        return (servers and servers.address) or self._topology.cluster_url(cluster)

    def __iter__(self) -> Iterator[str]:
        return iter(self._topology.clusters)

    def __len__(self) -> int:
        return len(self._topology.clusters)


def _is_service(made: Any) -> bool:
    methods = (getattr(made, "start", None), getattr(made, "stop", None))
    return isinstance(getattr(made, "name", None), str) and all(map(asyncio.iscoroutinefunction, methods))


async def _nothing() -> None:
    return None
