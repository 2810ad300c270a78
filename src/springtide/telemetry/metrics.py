"""Signals become Prometheus metrics.

`MetricsSink` hears signals and keeps counters; gauges are read when somebody asks for the metrics, from the
pools that were added. Everything lives in the registry that is given: no global one is touched.
Labels are route templates, statement fingerprints and other bounded words, never paths or ids, and every set
of labels has a bound besides; what comes past it is added up under `(other)`.
docs/telemetry.md lists every metric; a test holds the page to this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from springtide.signals import (
    BehindFailed,
    BehindFlushed,
    BehindWaiting,
    CacheHitRateChanged,
    CausalityChecked,
    ConnectionClosed,
    ConnectionOpened,
    EventsHandled,
    FlowMoved,
    FlowsMeasured,
    GroupMeasured,
    IdempotencyChecked,
    JobFinished,
    JobsMeasured,
    JobsReceived,
    JobsSent,
    LoadMeasured,
    LogKept,
    LogMeasured,
    PartOmitted,
    PolicyLowered,
    PoolWaited,
    RedisChanged,
    RelayChanged,
    RelayMeasured,
    RequestFinished,
    ScheduleFired,
    ServiceChanged,
    SessionChanged,
    Signal,
    StatementFinished,
    StatementRepeated,
    StatementSlow,
    TaskFailed,
    TransportChanged,
    WorkersWanted,
)
from springtide.telemetry._series import Series
from springtide.telemetry.backups import BackupNotes
from springtide.telemetry.caches import CacheClasses, CacheGauges

__all__ = [
    "JOB_BUCKETS",
    "LONG_BUCKETS",
    "SHORT_BUCKETS",
    "ClusterGauges",
    "MetricsSink",
    "PoolGauges",
    "ReplicaGauges",
]

LONG_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
"""Seconds, for what a client waits for: 0.2 and 1 are edges because objectives are."""

SHORT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Seconds, for the parts of a request."""

JOB_BUCKETS = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Seconds, for work that nobody waits for."""

ATTEMPT_BUCKETS = (1, 2, 3, 5, 8, 12, 20)

STATES = ("starting", "running", "stopping", "stopped", "failed")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "OTHER"
MAX_LABEL_CHARS = 200


REPLICA_STATES = ("joining", "serving", "lagging", "ejected")


class ReplicaGauges(Protocol):
    """What of a replica is shown; `db.servers.ReplicaState` has this shape. None is not shown."""

    @property
    def node(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def lag_bytes(self) -> int | None: ...
    @property
    def lag_seconds(self) -> float | None: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def reads(self) -> int: ...


class ClusterGauges(Protocol):
    """What of a cluster is shown; `db.servers.Servers` has this shape.

    `primary_reads` counts by reason what the primary had although there are replicas; `barred` says by node
    why it is used for nothing; `unconfirmed` is true while quorum writes are refused.
    """

    @property
    def replicas(self) -> Sequence[ReplicaGauges]: ...
    @property
    def primary_reads(self) -> Mapping[str, int]: ...
    @property
    def barred(self) -> Mapping[str, str]: ...
    @property
    def unconfirmed(self) -> bool: ...


class PoolGauges(Protocol):
    """What of a pool is shown; `db.pool.PoolStats` has this shape. `size` is how many are open."""

    @property
    def size(self) -> int: ...
    @property
    def idle(self) -> int: ...
    @property
    def busy(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def generation(self) -> int: ...


class _Pools(Collector):
    """Reads the pools when the registry is asked."""

    def __init__(self) -> None:
        self._pools: dict[str, tuple[Callable[[], PoolGauges], int | None]] = {}

    def add(self, cluster: str, stats: Callable[[], PoolGauges], max_size: int | None) -> None:
        self._pools[cluster] = (stats, max_size)

    def collect(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily(
            "springtide_pool_connections", "Connections by state.", labels=["cluster", "state"]
        )
        limit = GaugeMetricFamily(
            "springtide_pool_connections_limit", "Connections that a pool may open.", labels=["cluster"]
        )
        waiting = GaugeMetricFamily(
            "springtide_pool_waiting", "Callers that queue for a connection.", labels=["cluster"]
        )
        generation = GaugeMetricFamily(
            "springtide_pool_generation",
            "How often all connections were retired at once.",
            labels=["cluster"],
        )
        for cluster, (ask, max_size) in list(self._pools.items()):
            stats = ask()
            connections.add_metric([cluster, "idle"], stats.idle)
            connections.add_metric([cluster, "busy"], stats.busy)
            connections.add_metric([cluster, "open"], stats.size)
            if max_size is not None:
                limit.add_metric([cluster], max_size)
            waiting.add_metric([cluster], stats.waiting)
            generation.add_metric([cluster], stats.generation)
        yield from (connections, limit, waiting, generation)


class _Replicas(Collector):
    """Reads what is known of replicas when the registry is asked."""

    def __init__(self) -> None:
        self._clusters: dict[str, ClusterGauges] = {}

    def add(self, cluster: str, servers: ClusterGauges) -> None:
        self._clusters[cluster] = servers

    def collect(self) -> Iterator[Metric]:
        name, labels = "springtide_replica", ["cluster", "node"]
        state = GaugeMetricFamily(f"{name}_state", "1 for the state it is in.", labels=[*labels, "state"])
        behind = GaugeMetricFamily(f"{name}_lag_bytes", "Log that it has not replayed.", labels=labels)
        lag = GaugeMetricFamily(f"{name}_lag_seconds", "How far it is behind the primary.", labels=labels)
        flying = GaugeMetricFamily(f"{name}_in_flight", "Reads that it answers now.", labels=labels)
        reads = CounterMetricFamily(f"{name}_reads", "Reads that it was given.", labels=labels)
        kept = CounterMetricFamily(
            "springtide_primary_reads", "Reads that no replica could have.", labels=["cluster", "reason"]
        )
        barred = GaugeMetricFamily(
            "springtide_server_barred", "1: it is used for nothing.", labels=[*labels, "why"]
        )
        unconfirmed = GaugeMetricFamily(
            "springtide_quorum_refused", "1: the primary waits for no standby.", labels=["cluster"]
        )
        for cluster, servers in list(self._clusters.items()):
            unconfirmed.add_metric([cluster], servers.unconfirmed)
            for node, why in list(servers.barred.items()):
                barred.add_metric([cluster, node, why], 1)
            for replica in servers.replicas:
                for one in REPLICA_STATES:
                    state.add_metric([cluster, replica.node, one], one == replica.state)
                if replica.lag_bytes is not None:
                    behind.add_metric([cluster, replica.node], replica.lag_bytes)
                if replica.lag_seconds is not None:
                    lag.add_metric([cluster, replica.node], replica.lag_seconds)
                flying.add_metric([cluster, replica.node], replica.in_flight)
                reads.add_metric([cluster, replica.node], replica.reads)
            for reason, count in list(servers.primary_reads.items()):
                kept.add_metric([cluster, reason], count)
        yield from (state, behind, lag, flying, reads, kept, barred, unconfirmed)


class MetricsSink:
    """A `Sink`. `registry` None makes one of its own; process metrics are put into it on Linux."""

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        max_routes: int = 500,
        max_statements: int = 300,
        max_jobs: int = 200,
        process: bool = True,
    ) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self._requests = Series(
            Counter(
                "http_requests_total", "Requests answered; 499: the client left.",
                ["method", "route", "status"], registry=registry,
            ),
            max_series=max_routes * 4, open_ended=(1,),
        )  # fmt: skip
        self._durations = Series(
            Histogram(
                "http_request_duration_seconds", "From the first byte to the end of the answer.",
                ["method", "route", "status_class"], buckets=LONG_BUCKETS, registry=registry,
            ),
            max_series=max_routes * 2, open_ended=(1,),
        )  # fmt: skip
        self._parts = Series(
            Histogram(
                "springtide_request_part_seconds", "Where the time of requests went.",
                ["route", "part"], buckets=SHORT_BUCKETS, registry=registry,
            ),
            max_series=max_routes * 4, open_ended=(0,),
        )  # fmt: skip
        self._statements = Series(
            Histogram(
                "springtide_db_statement_seconds", "Execution of one SQL statement, by fingerprint.",
                ["cluster", "statement"], buckets=SHORT_BUCKETS, registry=registry,
            ),
            max_series=max_statements, open_ended=(1,),
        )  # fmt: skip
        self._rows = Series(
            Counter(
                "springtide_db_statement_rows_total", "Rows returned or changed, by fingerprint.",
                ["cluster", "statement"], registry=registry,
            ),
            max_series=max_statements, open_ended=(1,),
        )  # fmt: skip
        self._slow = Series(
            Counter(
                "springtide_db_slow_statements_total", "Statements that took as long as is told.",
                ["cluster", "statement"], registry=registry,
            ),
            max_series=max_statements, open_ended=(1,),
        )  # fmt: skip
        self._repeated = Series(
            Counter(
                "springtide_db_repeated_statements_total", "Requests that ran one statement in a loop.",
                ["cluster", "statement"], registry=registry,
            ),
            max_series=max_statements, open_ended=(1,),
        )  # fmt: skip
        self._statement_errors = Series(
            Counter(
                "springtide_db_statement_errors_total", "Failed statements by SQLSTATE or exception.",
                ["cluster", "error"], registry=registry,
            ),
            max_series=100, open_ended=(1,),
        )  # fmt: skip
        self._waits = Series(
            Histogram(
                "springtide_pool_wait_seconds", "Queueing for a connection.",
                ["cluster", "priority", "outcome"], buckets=SHORT_BUCKETS, registry=registry,
            ),
            max_series=200, open_ended=(1, 2),
        )  # fmt: skip
        self._opened = Series(
            Histogram(
                "springtide_pool_connect_seconds", "Opening a connection.",
                ["cluster"], buckets=SHORT_BUCKETS, registry=registry,
            ),
            max_series=100, open_ended=(0,),
        )  # fmt: skip
        self._closed = Series(
            Counter(
                "springtide_pool_connections_closed_total", "Connections closed, by reason.",
                ["cluster", "reason"], registry=registry,
            ),
            max_series=200, open_ended=(1,),
        )  # fmt: skip
        self._services = Series(
            Gauge(
                "springtide_service_state", "1 for the state that a service is in.",
                ["service", "state"], registry=registry,
            ),
            max_series=500, open_ended=(0,),
        )  # fmt: skip
        self._task_failures = Series(
            Counter(
                "springtide_task_failures_total", "Supervised tasks that raised.",
                ["task"], registry=registry,
            ),
            max_series=200, open_ended=(0,),
        )  # fmt: skip
        self._jobs_finished = Series(
            Counter(
                "springtide_job_runs_total", "Runs of jobs that ended, by outcome.",
                ["module", "kind", "outcome"], registry=registry,
            ),
            max_series=max_jobs * 6, open_ended=(1,),
        )  # fmt: skip
        self._job_runs = Series(
            Histogram(
                "springtide_job_run_seconds", "One run of a job.",
                ["module", "kind"], buckets=JOB_BUCKETS, registry=registry,
            ),
            max_series=max_jobs, open_ended=(1,),
        )  # fmt: skip
        self._job_waits = Series(
            Histogram(
                "springtide_job_wait_seconds", "From when a job was due until its run began.",
                ["module", "kind"], buckets=JOB_BUCKETS, registry=registry,
            ),
            max_series=max_jobs, open_ended=(1,),
        )  # fmt: skip
        self._job_attempts = Series(
            Histogram(
                "springtide_job_attempts", "Runs that a job took until it was done or dead.",
                ["module", "kind"], buckets=ATTEMPT_BUCKETS, registry=registry,
            ),
            max_series=max_jobs, open_ended=(1,),
        )  # fmt: skip
        self._jobs = Series(
            Gauge(
                "springtide_jobs", "Jobs by state, as the worker last counted them.",
                ["module", "shard", "kind", "state"], registry=registry,
            ),
            max_series=max_jobs * 7, open_ended=(2,),
        )  # fmt: skip
        self._jobs_sent = Counter(
            "springtide_jobs_sent_total", "Jobs given to the transport: confirmed, refused, or repeated.",
            ["module", "shard", "outcome"], registry=registry,
        )  # fmt: skip
        self._jobs_received = Counter(
            "springtide_jobs_received_total", "Jobs that the transport brought: claimed, waiting, dropped.",
            ["module", "shard", "outcome"], registry=registry,
        )  # fmt: skip
        self._jobs_lag = Gauge(
            "springtide_jobs_relay_lag_seconds", "How long the oldest job last sent had been due.",
            ["module", "shard"], registry=registry,
        )  # fmt: skip
        self._transport = Gauge(
            "springtide_jobs_transport_carries", "Whether jobs come by the transport (1) or from SQL (0).",
            ["transport"], registry=registry,
        )  # fmt: skip
        self._job_paused = Series(
            Gauge(
                "springtide_job_paused", "1 while operators have paused the kind.",
                ["module", "shard", "kind"], registry=registry,
            ),
            max_series=max_jobs, open_ended=(2,),
        )  # fmt: skip
        self._job_age = Series(
            Gauge(
                "springtide_job_age_seconds", "How long the oldest due job waits.",
                ["module", "shard", "kind"], registry=registry,
            ),
            max_series=max_jobs, open_ended=(2,),
        )  # fmt: skip
        self._load_waiting = Series(
            Gauge(
                "springtide_job_waiting", "Jobs that are due, or will be within 15 s.",
                ["module", "shard", "kind"], registry=registry,
            ),
            max_series=max_jobs, open_ended=(2,),
        )  # fmt: skip
        self._load_arrival = Series(
            Gauge(
                "springtide_job_arrival_rate", "Jobs per second that become due, over the last minute.",
                ["module", "shard", "kind"], registry=registry,
            ),
            max_series=max_jobs, open_ended=(2,),
        )  # fmt: skip
        self._load_service = Series(
            Gauge(
                "springtide_job_service_seconds", "How long a job has a slot of a worker, on average lately.",
                ["module", "shard", "kind"], registry=registry,
            ),
            max_series=max_jobs, open_ended=(2,),
        )  # fmt: skip
        # registered by the first signal: whoever adds workers must not read 0 where nobody has asked
        self._workers_wanted = Gauge(
            "springtide_workers_wanted", "Workers that the jobs need, within the topology's bounds.",
            registry=None,
        )  # fmt: skip
        self._slots_wanted = Gauge(
            "springtide_worker_slots_wanted", "Slots of workers that the jobs need.", registry=None
        )  # fmt: skip
        self._wanted = False
        self._schedule_slots = Series(
            Counter(
                "springtide_schedule_slots_total", "Slots of schedules, by whether they were run.",
                ["module", "schedule", "outcome"], registry=registry,
            ),
            max_series=max_jobs * 2, open_ended=(1,),
        )  # fmt: skip
        self._schedule_late = Series(
            Histogram(
                "springtide_schedule_late_seconds", "From a schedule's slot until its job was enqueued.",
                ["module", "schedule"], buckets=JOB_BUCKETS, registry=registry,
            ),
            max_series=max_jobs, open_ended=(1,),
        )  # fmt: skip
        self._event_calls = Series(
            Counter(
                "springtide_events_handled_total", "Events by what became of the call of their handler.",
                ["module", "group", "kind", "outcome"], registry=registry,
            ),
            max_series=max_jobs * 5, open_ended=(2,),
        )  # fmt: skip
        self._event_runs = Series(
            Histogram(
                "springtide_event_run_seconds", "One call of a group's handler, for one event or a batch.",
                ["module", "group", "kind"], buckets=JOB_BUCKETS, registry=registry,
            ),
            max_series=max_jobs, open_ended=(2,),
        )  # fmt: skip
        self._event_waits = Series(
            Histogram(
                "springtide_event_wait_seconds", "From when an event was appended until its call began.",
                ["module", "group", "kind"], buckets=JOB_BUCKETS, registry=registry,
            ),
            max_series=max_jobs, open_ended=(2,),
        )  # fmt: skip
        self._group_lag = Series(
            Gauge(
                "springtide_event_group_lag", "Events that a group has not passed.",
                ["module", "shard", "group"], registry=registry,
            ),
            max_series=max_jobs, open_ended=(2,),
        )  # fmt: skip
        self._group_lag_seconds = Series(
            Gauge(
                "springtide_event_group_lag_seconds", "How long ago the oldest of them came into the log.",
                ["module", "shard", "group"], registry=registry,
            ),
            max_series=max_jobs, open_ended=(2,),
        )  # fmt: skip
        self._group_blocked = Series(
            Gauge(
                "springtide_event_group_blocked_lanes", "Lanes that wait for a person or for newer code.",
                ["module", "shard", "group"], registry=registry,
            ),
            max_series=max_jobs, open_ended=(2,),
        )  # fmt: skip
        self._group_dead = Series(
            Gauge(
                "springtide_event_group_dead", "Dead letters of a group.",
                ["module", "shard", "group"], registry=registry,
            ),
            max_series=max_jobs, open_ended=(2,),
        )  # fmt: skip
        self._log_position = Series(
            Gauge(
                "springtide_event_log_position", "The last position of a log.",
                ["module", "shard"], registry=registry,
            ),
            max_series=500, open_ended=(1,),
        )  # fmt: skip
        self._log_waiting = Series(
            Gauge(
                "springtide_event_log_waiting", "Appended events that are not in the log yet.",
                ["module", "shard"], registry=registry,
            ),
            max_series=500, open_ended=(1,),
        )  # fmt: skip
        self._log_waiting_seconds = Series(
            Gauge(
                "springtide_event_log_waiting_seconds", "How long ago the oldest of them was appended.",
                ["module", "shard"], registry=registry,
            ),
            max_series=500, open_ended=(1,),
        )  # fmt: skip
        self._log_kept = Series(
            Counter(
                "springtide_event_log_kept_total",
                "Days of a log that were kept for groups behind them, or dropped in spite of that.",
                ["module", "shard", "dropped"], registry=registry,
            ),
            max_series=500, open_ended=(1,),
        )  # fmt: skip
        self._flow_steps = Series(
            Counter(
                "springtide_flow_steps_total", "Steps of workflows, by what became of them.",
                ["module", "flow", "step", "outcome"], registry=registry,
            ),
            max_series=max_jobs * 4, open_ended=(1, 2),
        )  # fmt: skip
        self._flows = Series(
            Gauge(
                "springtide_flows", "Workflows that have not ended, by state.",
                ["module", "shard", "flow", "state"], registry=registry,
            ),
            max_series=max_jobs * 4, open_ended=(2,),
        )  # fmt: skip
        self._idempotency = Series(
            Counter(
                "springtide_idempotency_total", "Requests with an idempotency key, by what became of them.",
                ["module", "outcome"], registry=registry,
            ),
            max_series=200, open_ended=(0,),
        )  # fmt: skip
        self._sessions = Series(
            Counter(
                "springtide_sessions_total", "Sessions by what happened to them, and refused cookies.",
                ["event"], registry=registry,
            ),
            max_series=10, open_ended=(0,),
        )  # fmt: skip
        self._causality = Series(
            Counter(
                "springtide_causality_total", "Causality tokens that were not believed, and what was kept.",
                ["event"], registry=registry,
            ),
            max_series=12, open_ended=(0,),
        )  # fmt: skip
        self._omitted = Series(
            Counter(
                "springtide_parts_omitted_total", "Pages answered without a part that did not come in time.",
                ["part", "reason"], registry=registry,
            ),
            max_series=100, open_ended=(0, 1),
        )  # fmt: skip
        self._behind_rows = Series(
            Counter(
                "springtide_behind_rows_total", "Changes that write-behind has applied.",
                ["database", "name"], registry=registry,
            ),
            max_series=100, open_ended=(1,),
        )  # fmt: skip
        self._behind_waited = Series(
            Histogram(
                "springtide_behind_wait_seconds", "How long the oldest change of a transaction had waited.",
                ["database", "name"], buckets=LONG_BUCKETS, registry=registry,
            ),
            max_series=100, open_ended=(1,),
        )  # fmt: skip
        self._behind_failed = Series(
            Counter(
                "springtide_behind_failures_total", "Tries to apply the changes of one key that failed.",
                ["database", "name"], registry=registry,
            ),
            max_series=100, open_ended=(1,),
        )  # fmt: skip
        self._behind_waiting = Series(
            Gauge(
                "springtide_behind_waiting", "Changes that wait to be applied.",
                ["database", "shard", "name"], registry=registry,
            ),
            max_series=200, open_ended=(2,),
        )  # fmt: skip
        self._hit_rate_low = Series(
            Gauge(
                "springtide_cache_hit_rate_low", "1: the hit rate of a class is below what is wanted of it.",
                ["class"], registry=registry,
            ),
            max_series=200, open_ended=(0,),
        )  # fmt: skip
        self._lowered = Series(
            Counter(
                "springtide_http_policies_lowered_total", "Answers kept for less than was declared.",
                ["route", "reason"], registry=registry,
            ),
            max_series=500, open_ended=(0, 1),
        )  # fmt: skip
        self._redis = Counter(
            "springtide_redis_links_total", "Changes of links to Redis, by what they became.",
            ["redis", "state"], registry=registry,
        )  # fmt: skip
        self._relay_leads = Gauge(
            "springtide_cache_relay_leads", "1: this process applies what writes make stale in caches.",
            ["cluster"], registry=registry,
        )  # fmt: skip
        self._relay_rounds = Counter(
            "springtide_cache_relay_rounds_total", "Looks of the relay at what was written down.",
            ["cluster"], registry=registry,
        )  # fmt: skip
        self._relay_rows = Counter(
            "springtide_cache_relay_rows_total", "Invalidations that the relay applied.",
            ["cluster"], registry=registry,
        )  # fmt: skip
        self._relay_strangers = Counter(
            "springtide_cache_relay_strangers_total",
            "Invalidations that the relay applied of classes that its process does not know.",
            ["cluster"], registry=registry,
        )  # fmt: skip
        self._relay_oldest = Gauge(
            "springtide_cache_relay_oldest_seconds", "How long the oldest invalidation waits to be applied.",
            ["cluster"], registry=registry,
        )  # fmt: skip
        self._relay_longest = Gauge(
            "springtide_cache_relay_round_seconds", "The longest time between two rounds lately.",
            ["cluster"], registry=registry,
        )  # fmt: skip
        self._lag = Histogram(
            "springtide_loop_lag_seconds", "How late the event loop ran what was due.",
            buckets=SHORT_BUCKETS, registry=registry,
        )  # fmt: skip
        self._pools = _Pools()
        registry.register(self._pools)
        self._replicas = _Replicas()
        registry.register(self._replicas)
        if process:
            ProcessCollector(registry=registry)

    def watch_pool(
        self, cluster: str, stats: Callable[[], PoolGauges], *, max_size: int | None = None
    ) -> None:
        """Show the pool of `cluster`; `stats` is called whenever the metrics are read, from any thread.

        `max_size` is how many connections it may open, None when that is not to be shown.
        """
        self._pools.add(cluster, stats, max_size)

    def watch_replicas(self, cluster: str, servers: ClusterGauges) -> None:
        """Show the replicas of `cluster`; asked whenever the metrics are read, from any thread."""
        self._replicas.add(cluster, servers)

    def watch_cache(self, cache: CacheGauges) -> None:
        """Show the classes of `cache`; asked whenever the metrics are read, from any thread."""
        self.registry.register(CacheClasses(cache))

    def watch_backups(self, notes: Path) -> None:
        """Show what the runner notes of its backups in the file `notes`."""
        self.registry.register(BackupNotes(notes))

    def observe_loop_lag(self, seconds: float) -> None:
        self._lag.observe(seconds)

    def emit(self, signal: Signal) -> None:
        if isinstance(signal, StatementFinished):
            self._statement(signal)
        elif isinstance(signal, RequestFinished):
            self._request(signal)
        elif isinstance(signal, PoolWaited):
            self._waits.child(signal.cluster, signal.priority, signal.outcome).observe(signal.seconds)
        elif isinstance(signal, ConnectionOpened):
            self._opened.child(signal.cluster).observe(signal.seconds)
        elif isinstance(signal, ConnectionClosed):
            self._closed.child(signal.cluster, signal.reason).inc()
        elif isinstance(signal, ServiceChanged):
            for state in STATES:
                self._services.child(signal.service, state).set(state == signal.state)
        elif isinstance(signal, TaskFailed):
            self._task_failures.child(signal.task).inc()
        elif isinstance(signal, JobFinished):
            self._job(signal)
        elif isinstance(signal, JobsMeasured):
            module, shard, kind = signal.module, signal.shard, signal.kind
            for state in ("ready", "sent", "running", "held", "paused", "parked", "dead"):
                self._jobs.child(module, shard, kind, state).set(getattr(signal, state))
            self._job_age.child(module, shard, kind).set(signal.age)
            self._job_paused.child(module, shard, kind).set(signal.stopped)
        elif isinstance(signal, LoadMeasured):
            of_kind = signal.module, signal.shard, signal.kind
            self._load_waiting.child(*of_kind).set(signal.waiting)
            self._load_arrival.child(*of_kind).set(signal.arrival)
            if signal.service is not None:
                self._load_service.child(*of_kind).set(signal.service)
        elif isinstance(signal, WorkersWanted):
            self._workers_wanted.set(signal.workers)
            self._slots_wanted.set(signal.slots)
            if not self._wanted:
                self._wanted = True
                self.registry.register(self._workers_wanted)
                self.registry.register(self._slots_wanted)
        elif isinstance(signal, ScheduleFired):
            name = signal.module, signal.schedule
            self._schedule_slots.child(*name, "run").inc(signal.runs)
            self._schedule_slots.child(*name, "skipped").inc(signal.skipped)
            if signal.runs:
                self._schedule_late.child(*name).observe(signal.late)
        elif isinstance(signal, JobsSent):
            sent, where = self._jobs_sent.labels, (signal.module, signal.shard)
            sent(*where, "confirmed").inc(signal.confirmed)
            sent(*where, "refused").inc(signal.sent - signal.confirmed)
            sent(*where, "repeated").inc(signal.repeated)
            self._jobs_lag.labels(*where).set(signal.lag)
        elif isinstance(signal, JobsReceived):
            received, where = self._jobs_received.labels, (signal.module, signal.shard)
            for outcome in ("claimed", "waiting", "dropped"):
                received(*where, outcome).inc(getattr(signal, outcome))
        elif isinstance(signal, TransportChanged):
            self._transport.labels(signal.transport).set(signal.carries)
        elif isinstance(signal, EventsHandled):
            self._events(signal)
        elif isinstance(signal, GroupMeasured):
            at = (signal.module, signal.shard, signal.group)
            self._group_lag.child(*at).set(signal.waiting)
            self._group_lag_seconds.child(*at).set(signal.age)
            self._group_blocked.child(*at).set(signal.blocked)
            self._group_dead.child(*at).set(signal.dead)
        elif isinstance(signal, LogMeasured):
            self._log_position.child(signal.module, signal.shard).set(signal.position)
            self._log_waiting.child(signal.module, signal.shard).set(signal.waiting)
            self._log_waiting_seconds.child(signal.module, signal.shard).set(signal.age)
        elif isinstance(signal, LogKept):
            self._log_kept.child(signal.module, signal.shard, str(signal.dropped).lower()).inc()
        elif isinstance(signal, FlowMoved):
            self._flow_steps.child(signal.module, signal.kind, signal.step, signal.outcome).inc()
        elif isinstance(signal, FlowsMeasured):
            for state in ("running", "waiting", "undoing", "stuck"):
                of = signal.module, signal.shard, signal.kind, state
                self._flows.child(*of).set(getattr(signal, state))
        elif isinstance(signal, IdempotencyChecked):
            self._idempotency.child(signal.module, signal.outcome).inc()
        elif isinstance(signal, SessionChanged):
            self._sessions.child(signal.event).inc(signal.count)
        elif isinstance(signal, StatementSlow):
            self._slow.child(signal.cluster, signal.statement[:MAX_LABEL_CHARS]).inc()
        elif isinstance(signal, StatementRepeated):
            self._repeated.child(signal.cluster, signal.statement[:MAX_LABEL_CHARS]).inc()
        elif isinstance(signal, CausalityChecked):
            self._causality.child(signal.event).inc(signal.count)
        elif isinstance(signal, PartOmitted):
            self._omitted.child(signal.part, signal.reason).inc()
        elif isinstance(signal, BehindFlushed):
            self._behind_rows.child(signal.database, signal.name).inc(signal.rows)
            self._behind_waited.child(signal.database, signal.name).observe(signal.waited)
        elif isinstance(signal, BehindFailed):
            self._behind_failed.child(signal.database, signal.name).inc()
        elif isinstance(signal, BehindWaiting):
            self._behind_waiting.child(signal.database, signal.shard, signal.name).set(signal.rows)
        elif isinstance(signal, PolicyLowered):
            self._lowered.child(signal.route, signal.reason).inc()
        elif isinstance(signal, CacheHitRateChanged):
            self._hit_rate_low.child(signal.cls).set(signal.low)
        elif isinstance(signal, RedisChanged):
            self._redis.labels(signal.redis, signal.state).inc()
        elif isinstance(signal, RelayChanged):
            self._relay_leads.labels(signal.cluster).set(signal.leads)
        elif isinstance(signal, RelayMeasured):
            self._relay_rounds.labels(signal.cluster).inc(signal.rounds)
            self._relay_rows.labels(signal.cluster).inc(signal.rows)
            self._relay_strangers.labels(signal.cluster).inc(signal.strangers)
            self._relay_oldest.labels(signal.cluster).set(signal.oldest)
            self._relay_longest.labels(signal.cluster).set(signal.longest)

    def _request(self, signal: RequestFinished) -> None:
        method = signal.method if signal.method in METHODS else OTHER_METHOD
        route, status = signal.route, signal.status
        self._requests.child(method, route, str(status)).inc()
        self._durations.child(method, route, f"{status // 100}xx").observe(signal.seconds)
        for part, entry in signal.ledger.parts.items():
            self._parts.child(route, part.value).observe(entry.seconds)

    def _job(self, signal: JobFinished) -> None:
        module, kind = signal.module, signal.kind
        self._jobs_finished.child(module, kind, signal.outcome).inc()
        if signal.outcome in ("done", "dead"):
            self._job_attempts.child(module, kind).observe(signal.attempt)
        if signal.trace is not None:  # it ran here; what was only rescued did not
            self._job_runs.child(module, kind).observe(signal.seconds)
            self._job_waits.child(module, kind).observe(signal.waited)

    def _events(self, signal: EventsHandled) -> None:
        at = (signal.module, signal.group, signal.kind)
        self._event_calls.child(*at, signal.outcome).inc(signal.count)
        self._event_runs.child(*at).observe(signal.seconds)
        self._event_waits.child(*at).observe(signal.waited)

    def _statement(self, signal: StatementFinished) -> None:
        statement = signal.statement[:MAX_LABEL_CHARS]
        self._statements.child(signal.cluster, statement).observe(signal.seconds)
        if signal.rows:
            self._rows.child(signal.cluster, statement).inc(signal.rows)
        if signal.error is not None:
            self._statement_errors.child(signal.cluster, signal.error).inc()
