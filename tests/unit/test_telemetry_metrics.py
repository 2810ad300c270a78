"""Signals become metrics: right, bounded and documented."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from prometheus_client import Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from springtide.cache import Cache
from springtide.context import Ledger, Part, Trace
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
    StatementFinished,
    StatementRepeated,
    StatementSlow,
    TaskFailed,
    TransportChanged,
    WorkersWanted,
)
from springtide.telemetry.loop import LoopMonitor
from springtide.telemetry.metrics import MetricsSink
from springtide.telemetry.prometheus import MetricsEndpoint, render
from springtide.testing import ManualClock

PAGE = Path(__file__).parents[2] / "docs" / "telemetry.md"


@dataclass
class Stats:
    size: int = 5
    idle: int = 3
    busy: int = 2
    waiting: int = 1
    generation: int = 4


def request(
    route: str = "/a", status: int = 200, seconds: float = 0.03, method: str = "GET"
) -> RequestFinished:
    ledger = Ledger()
    ledger.add(Part.SQL, 0.002, "select 1")
    ledger.add(Part.CPU, 0.0004)
    return RequestFinished(method, route, status, seconds, "r", ledger, None, None)


@dataclass(frozen=True)
class Replica:
    node: str
    state: str
    lag_bytes: int | None
    lag_seconds: float | None
    in_flight: int = 0
    reads: int = 7


class Servers:
    replicas = (Replica("db-2", "serving", 0, 0.0), Replica("db-3", "ejected", None, None))
    primary_reads: ClassVar = {"behind": 2}
    barred: ClassVar = {"db-4": "rival"}
    unconfirmed = True


def everything(sink: MetricsSink) -> None:
    sink.emit(request())
    sink.emit(StatementFinished("main", "select 1", 0.002, 5, "57014"))
    sink.emit(StatementSlow("main", "select 1", 1.5, None, "r"))
    sink.emit(StatementRepeated("main", "select 1", 9, "store.py:3 find"))
    sink.emit(PoolWaited("main", "normal", 0.01, "acquired"))
    sink.emit(ConnectionOpened("main", 0.005))
    sink.emit(ConnectionClosed("main", "aged", 100.0))
    sink.emit(ServiceChanged("pool main", "running"))
    sink.emit(TaskFailed("relay", "boom", 1.0))
    sink.emit(
        JobFinished("users", "mail.welcome", 1, "id", 3, "done", 2.0, 0.3, "r", Trace.new(), Ledger(), None)
    )
    sink.emit(JobsMeasured("users", "main", "mail.welcome", 7, 2, 1, 4, 12.5))
    sink.emit(FlowMoved("orders", "orders.place", 1, "id", "charge", "done", "running"))
    sink.emit(FlowsMeasured("orders", "main", "orders.place", 1, 2, 3, 4))
    sink.emit(ScheduleFired("users", "nightly", 1, 3, 7.0))
    sink.emit(JobsSent("users", "main", 5, 4, 2, 0.25))
    sink.emit(LoadMeasured("users", "main", "users.welcome", 12, 1.5, 0.25))
    sink.emit(WorkersWanted(3, 21.4))
    sink.emit(JobsReceived("users", "main", 3, 1, 2))
    sink.emit(TransportChanged("redis 127.0.0.1:6379", False, "receiving: nobody is connected"))
    handled = ("orders", "figures.sales", "orders.placed", 1, 7, 3, 1, "done", 0.2, 0.1)
    sink.emit(EventsHandled(*handled, "r", Trace.new(), Ledger(), None))
    sink.emit(GroupMeasured("orders", "main", "figures.sales", 12, 3.5, 1, 2))
    sink.emit(LogMeasured("orders", "main", 700, 4, 0.5))
    sink.emit(LogKept("orders", "main", ("figures.sales",), False))
    sink.emit(IdempotencyChecked("users", "replayed"))
    sink.emit(SessionChanged("revoked", 3))
    sink.emit(CausalityChecked("forged", 2))
    sink.emit(PartOmitted("also-bought", "TimeoutError"))
    sink.emit(BehindFlushed("content", "views", 5, 2, 0.5))
    sink.emit(BehindWaiting("content", "main", "views", 7))
    sink.emit(BehindFailed("content", "views", "ValueError()"))
    sink.emit(CacheHitRateChanged("user", 0.5, 0.8, True))
    sink.emit(PolicyLowered("/articles/{slug}", "identity"))
    sink.emit(RedisChanged("cache", "127.0.0.1:6379", "serving", ""))
    sink.emit(RelayChanged("main", True))
    sink.emit(RelayMeasured("main", 20, 5, 0.0, 0.2, 0.3))
    sink.observe_loop_lag(0.001)
    sink.watch_pool("main", Stats, max_size=20)
    sink.watch_replicas("main", Servers())


def test_replicas_are_shown_with_their_state_and_what_is_known_of_their_lag() -> None:
    """An unknown lag is left out, not shown as none; the primary's reads are counted by reason."""
    sink = MetricsSink(process=False)
    sink.watch_replicas("main", Servers())
    at = {"cluster": "main", "node": "db-2"}
    assert value(sink, "springtide_replica_state", **at, state="serving") == 1
    assert value(sink, "springtide_replica_state", **at, state="lagging") == 0
    assert value(sink, "springtide_replica_lag_bytes", **at) == 0
    assert value(sink, "springtide_replica_reads_total", **at) == 7
    assert value(sink, "springtide_replica_lag_seconds", cluster="main", node="db-3") is None
    assert value(sink, "springtide_primary_reads_total", cluster="main", reason="behind") == 2
    assert value(sink, "springtide_server_barred", cluster="main", node="db-4", why="rival") == 1
    assert value(sink, "springtide_quorum_refused", cluster="main") == 1


def value(sink: MetricsSink, name: str, **labels: str) -> float | None:
    return sink.registry.get_sample_value(name, labels)


def test_every_signal_is_counted() -> None:
    sink = MetricsSink()
    everything(sink)
    assert value(sink, "http_requests_total", method="GET", route="/a", status="200") == 1
    slow = {"method": "GET", "route": "/a", "status_class": "2xx"}
    assert value(sink, "http_request_duration_seconds_bucket", le="0.025", **slow) == 0
    assert value(sink, "http_request_duration_seconds_bucket", le="0.05", **slow) == 1
    assert value(sink, "springtide_request_part_seconds_sum", route="/a", part="sql") == 0.002
    assert value(sink, "springtide_db_statement_seconds_count", cluster="main", statement="select 1") == 1
    assert value(sink, "springtide_db_statement_rows_total", cluster="main", statement="select 1") == 5
    assert value(sink, "springtide_db_statement_errors_total", cluster="main", error="57014") == 1
    wait = {"cluster": "main", "priority": "normal", "outcome": "acquired"}
    assert value(sink, "springtide_pool_wait_seconds_sum", **wait) == 0.01
    assert value(sink, "springtide_pool_connections", cluster="main", state="open") == 5
    assert value(sink, "springtide_pool_connections_limit", cluster="main") == 20
    assert value(sink, "springtide_pool_waiting", cluster="main") == 1
    assert value(sink, "springtide_loop_lag_seconds_count") == 1
    assert value(sink, "springtide_idempotency_total", module="users", outcome="replayed") == 1
    assert value(sink, "springtide_sessions_total", event="revoked") == 3
    assert value(sink, "springtide_causality_total", event="forged") == 2
    assert value(sink, "springtide_cache_hit_rate_low", **{"class": "user"}) == 1
    omitted = {"part": "also-bought", "reason": "TimeoutError"}
    assert value(sink, "springtide_parts_omitted_total", **omitted) == 1
    mail = {"module": "users", "kind": "mail.welcome"}
    assert value(sink, "springtide_job_runs_total", outcome="done", **mail) == 1
    assert value(sink, "springtide_job_run_seconds_sum", **mail) == 0.3
    assert value(sink, "springtide_job_wait_seconds_sum", **mail) == 2.0
    assert value(sink, "springtide_job_attempts_sum", **mail) == 3
    for state, count in (("ready", 7), ("running", 2), ("parked", 1), ("dead", 4)):
        assert value(sink, "springtide_jobs", shard="main", state=state, **mail) == count
    assert value(sink, "springtide_job_age_seconds", shard="main", **mail) == 12.5
    there = {"module": "users", "shard": "main"}
    for outcome, count in (("confirmed", 4), ("refused", 1), ("repeated", 2)):
        assert value(sink, "springtide_jobs_sent_total", outcome=outcome, **there) == count
    for outcome, count in (("claimed", 3), ("waiting", 1), ("dropped", 2)):
        assert value(sink, "springtide_jobs_received_total", outcome=outcome, **there) == count
    assert value(sink, "springtide_jobs_relay_lag_seconds", **there) == 0.25
    assert value(sink, "springtide_jobs_transport_carries", transport="redis 127.0.0.1:6379") == 0
    sink.emit(ServiceChanged("pool main", "stopped"))
    assert value(sink, "springtide_service_state", service="pool main", state="running") == 0
    assert value(sink, "springtide_service_state", service="pool main", state="stopped") == 1


def test_series_are_bounded_and_sums_stay_right() -> None:
    sink = MetricsSink(max_routes=10, max_statements=10, process=False)
    for number in range(2000):
        sink.emit(request(route=f"/{number}", method=f"M{number}"))
        sink.emit(StatementFinished("main", f"select {number}", 0.001, 1, f"E{number}"))
        sink.emit(PoolWaited("main", f"p{number}", 0.1, f"o{number}"))
        sink.emit(TaskFailed(f"t{number}", "x", None))
    samples = [sample for metric in sink.registry.collect() for sample in metric.samples]
    assert len(samples) < 8000
    counted = [sample.value for sample in samples if sample.name == "http_requests_total"]
    assert sum(counted) == 2000
    assert len(counted) <= 10 * 4 + 1
    rows = [sample.value for sample in samples if sample.name == "springtide_db_statement_rows_total"]
    assert sum(rows) == 2000
    assert len(rows) == 11


def test_how_many_workers_are_wanted_is_absent_where_nobody_asked() -> None:
    """Who adds workers by it would take them all away at a 0."""
    sink = MetricsSink()
    assert value(sink, "springtide_workers_wanted") is None
    for workers, slots in ((3, 21.4), (4, 31.0)):
        sink.emit(WorkersWanted(workers, slots))
        assert value(sink, "springtide_workers_wanted") == workers
        assert value(sink, "springtide_worker_slots_wanted") == slots


def test_registries_are_separate() -> None:
    first, second = MetricsSink(), MetricsSink()
    first.emit(request())
    assert value(second, "http_requests_total", method="GET", route="/a", status="200") is None


async def test_the_endpoint_speaks_both_formats() -> None:
    sink = MetricsSink()
    everything(sink)
    http = httpx.AsyncClient(
        transport=httpx.ASGITransport(MetricsEndpoint(sink.registry)), base_url="http://t"
    )
    plain = await http.get("/metrics", headers={"accept": "text/plain"})
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert {"http_requests", "process_cpu_seconds"} <= {family.name for family in prometheus(plain.text)}
    open_form = await http.get(
        "/metrics", headers={"accept": "application/openmetrics-text;version=junk,*/*"}
    )
    assert open_form.headers["content-type"].startswith("application/openmetrics-text")
    assert open_form.text.endswith("# EOF\n")
    assert "http_requests" in {family.name for family in openmetrics(open_form.text)}
    assert "_created" not in plain.text + open_form.text
    assert (await http.head("/metrics")).content == b""
    assert (await http.post("/metrics")).status_code == 405


def test_hostile_labels_cannot_forge_metrics() -> None:
    sink = MetricsSink(process=False)
    sink.emit(request(route='/a"} 1\nforged_total 5\n'))
    body, _ = render(sink.registry)
    assert "\nforged_total" not in body.decode()
    assert "forged_total" not in {family.name for family in prometheus(body.decode())}


NOTES = {
    "main": {
        "last": {"name": "b", "ended": 100.5}, "error": None, "failed": 90.0, "noted": 200.0,
        "archive": {"last": "x", "waiting": 3, "lag": 4.5, "failing": True, "file": "y"},
    },
    "two": {"last": None, "error": "no room", "failed": None, "archive": {"error": "no answer"}},
}  # fmt: skip


def test_what_the_runner_noted_of_backups_is_shown(tmp_path: Path) -> None:
    """What is not known is not shown, and neither is anything while there is no file, or a broken one."""
    sink, notes = MetricsSink(process=False), tmp_path / "backups.json"
    sink.watch_backups(notes)

    def shown() -> dict[tuple[str, str], float]:
        body, _ = render(sink.registry)
        samples = [one for family in prometheus(body.decode()) for one in family.samples]
        samples = [one for one in samples if re.match("springtide_(backup|archive)", one.name)]
        return {(s.name.removeprefix("springtide_"), s.labels["cluster"]): s.value for s in samples}

    for text in (None, "{", "[1]"):
        if text is not None:
            notes.write_text(text)
        assert shown() == {}
    notes.write_text(json.dumps(NOTES))
    assert shown() == {
        ("backup_last_timestamp_seconds", "main"): 100.5,
        ("backup_failed_timestamp_seconds", "main"): 90.0,
        ("archive_waiting_files", "main"): 3,
        ("archive_lag_seconds", "main"): 4.5,
        ("archive_failing", "main"): 1,
        ("backups_noted_timestamp_seconds", "main"): 200.0,
    }


def cache_with_numbers() -> Cache:
    """One in which everything has happened."""

    async def load(id: int) -> str:
        return "never called"

    cache = Cache("app", redis="redis://127.0.0.1:1")
    stats = cache.define("user:{id}", str, load=load).stats
    for counts in (stats.failed, stats.refused, stats.stale_served, stats.bypassed):
        counts["why"] = 2
    return cache


def test_the_page_lists_exactly_the_metrics_that_exist(tmp_path: Path) -> None:
    sink = MetricsSink(process=False)
    everything(sink)
    (tmp_path / "backups.json").write_text(json.dumps(NOTES))
    sink.watch_backups(tmp_path / "backups.json")
    sink.watch_cache(cache_with_numbers())
    exist: dict[str, tuple[str, ...]] = {}
    for metric in sink.registry.collect():
        name = metric.name + ("_total" if metric.type == "counter" else "")
        labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
        exist[name] = tuple(sorted(labels))
    listed = {
        name: tuple(sorted(re.findall(r"`(\w+)`", labels)))
        for name, labels in re.findall(
            r"^\| `((?:http|springtide)_\w+)` \|[^|]*\|([^|]*)\|", PAGE.read_text(), re.M
        )
    }
    assert listed == exist


def test_what_a_cache_did_not_hear_is_counted() -> None:
    """Gaps are of a class, over all its slots; a listener is everybody's."""
    sink, cache = MetricsSink(process=False), cache_with_numbers()
    cache.classes["user"].places[None].slot.gap()
    assert cache._bus is not None
    cache._bus.restarts = 3
    sink.watch_cache(cache)
    assert value(sink, "springtide_cache_gaps_total", **{"class": "user"}) == 1
    assert value(sink, "springtide_cache_bus_restarts_total") == 3


async def test_the_monitor_measures_how_late_the_loop_is() -> None:
    clock, lags = ManualClock(), list[float]()
    monitor = LoopMonitor(observe=lags.append, every=0.5, clock=clock)
    await monitor.start()
    await clock.until_sleeping()
    await clock.advance(0.5)
    assert lags == [0.0]
    clock._monotonic += 3.0  # the loop stood still: time went by and nobody was woken
    assert monitor.lag() == pytest.approx(2.5)
    await clock.until_sleeping()
    await clock.advance(0.0)
    assert lags[-1] == pytest.approx(2.5)
    await monitor.stop()
    assert monitor.lag() == 0.0


async def test_a_loop_that_is_held_up_shows_in_the_lag() -> None:
    lags = asyncio.Queue[float]()
    monitor = LoopMonitor(observe=lags.put_nowait, every=0.01)
    await monitor.start()
    await lags.get()

    def hog() -> Any:
        return sum(range(3_000_000))

    hog()
    assert max(await lags.get(), await lags.get()) > 0.005
    await monitor.stop()


def test_a_gauge_of_the_application_may_end_in_created() -> None:
    """Only the time stamps that the client library adds are left out."""
    sink = MetricsSink(process=False)
    Gauge("accounts_created", "A gauge.", registry=sink.registry).set(7)
    everything(sink)
    text = render(sink.registry)[0].decode()
    assert "accounts_created 7.0" in text
    assert "http_requests_created" not in text
