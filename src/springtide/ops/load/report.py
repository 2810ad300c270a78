"""A run's results for people (a table) and for programs (JSON), with what makes them doubtful said first.

Pure: text and plain values from Results. In the JSON every time is in milliseconds, and its keys say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from springtide.ops.load.generator import Snapshot
from springtide.ops.load.histogram import Histogram
from springtide.ops.load.results import Results

__all__ = ["live", "summary", "table", "warnings"]

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}

MAX_CPU = 0.85
MAX_LATE = 0.01
MAX_STEPS_OFF = 0.25


def warnings(results: Results) -> list[str]:
    """Why the figures may say less about the server than they seem to; one sentence each."""
    found = []
    if results.interrupted:
        found.append("the run was ended early: these are the figures until then")
    if results.cpu > MAX_CPU:
        found.append(
            f"the generator used {results.cpu:.0%} of a CPU: it may have been the bottleneck"
            " (--processes uses more of them)"
        )
    if results.sent and results.late > MAX_LATE * results.sent:
        found.append(
            f"{results.late:,} of {results.sent:,} requests were begun late by the generator itself"
            f" (p99 {_ms(results.lag.quantile(0.99))} ms): this machine is too busy to measure well"
        )
    if results.unsent:
        found.append(
            f"{results.unsent:,} of {results.planned:,} planned journeys were not begun, because too many"
            " were in flight: the server is slower than the rate, and the latencies leave these out"
        )
    for name, journey in results.journeys.items():
        ended = journey.completed
        if ended >= 100 and not journey.abandoned and not journey.unfinished:
            steps = journey.requests / ended
            if abs(steps - journey.steps) > MAX_STEPS_OFF * journey.steps:
                found.append(
                    f"journey {name} declares {journey.steps:g} requests and made {steps:.2f} on average:"
                    " the rate in requests per second is off by as much"
                )
    return found


def summary(results: Results) -> dict[str, object]:
    """Everything of a run as JSON values."""
    planned_requests = sum(journey.planned * journey.steps for journey in results.journeys.values())
    return {
        "url": results.url,
        "seed": results.seed,
        "processes": results.processes,
        "seconds": round(results.seconds, 3),
        "interrupted": results.interrupted,
        "warnings": warnings(results),
        "journeys_planned": results.planned,
        "journeys_unsent": results.unsent,
        "requests_planned": round(planned_requests),
        "requests_sent": results.sent,
        "requests_ok": results.ok,
        "requests_failed": results.failed,
        "requests_late": results.late,
        "requests_queued": results.queued,
        "requests_resent": results.resent,
        "rate_ok": _rate(results.ok, results.seconds),
        "connections_opened": results.opened,
        "received_bytes": results.received_bytes,
        "errors": results.errors,
        "latency_ms": _figures(results.latency),
        "service_ms": _figures(results.service),
        "lag_ms": _figures(results.lag),
        "generator_cpu": round(results.cpu, 3),
        "server_ms_per_request": _parts(results.parts, results.timed),
        "phases": [
            {
                "name": phase.name,
                "seconds": round(phase.duration, 3),
                "rate_planned": round(phase.rate, 1),
                "rate_ok": _rate(phase.ok, phase.duration),
                "journeys_planned": phase.planned,
                "journeys_unsent": phase.unsent,
                "sent": phase.sent,
                "ok": phase.ok,
                "errors": phase.errors,
                "latency_ms": _figures(phase.latency),
            }
            for phase in results.phases
        ],
        "routes": {
            name: {
                "ok": route.ok,
                "late": route.late,
                "errors": route.errors,
                "latency_ms": _figures(route.latency),
                "service_ms": _figures(route.service),
                "server_ms_per_request": _parts(route.parts, route.timed),
            }
            for name, route in sorted(results.routes.items())
        },
        "journeys": {
            name: {
                "planned": journey.planned,
                "completed": journey.completed,
                "abandoned": journey.abandoned,
                "unsent": journey.unsent,
                "unfinished": journey.unfinished,
                "requests": journey.requests,
                "duration_ms": _figures(journey.duration),
            }
            for name, journey in results.journeys.items()
        },
    }


def table(results: Results) -> str:
    """The report on a terminal; no line depends on its width."""
    planned = sum(journey.planned * journey.steps for journey in results.journeys.values())
    lines = [
        f"{results.url}: {results.seconds:.1f} s, seed {results.seed}",
        f"  requests   about {planned:,.0f} planned, {results.sent:,} sent, {results.ok:,} ok"
        f" ({_rate(results.ok, results.seconds):,.1f}/s), {results.failed:,} failed, {results.late:,} late",
        f"  journeys   {results.planned:,} planned, {results.planned - results.unsent:,} begun,"
        f" {results.unsent:,} unsent",
    ]
    if results.errors:
        lines.append("  errors     " + ", ".join(f"{kind}: {n:,}" for kind, n in results.errors.items()))
    lines += [f"  warning    {warning}" for warning in warnings(results)]
    rows = [
        [
            f"{phase.name}: {phase.rate:,.0f}/s for {phase.duration:.1f} s",
            f"{phase.ok:,}",
            f"{phase.sent - phase.ok:,}",
            *_cells(phase.latency),
        ]
        for phase in results.phases
    ]
    lines += ["", *_grid("phase", rows)]
    routes = sorted(results.routes.items(), key=lambda item: -item[1].latency.total)
    rows = [[name, f"{route.ok:,}", f"{route.failed:,}", *_cells(route.latency)] for name, route in routes]
    rows.append(["all", f"{results.ok:,}", f"{results.failed:,}", *_cells(results.latency)])
    lines += ["", *_grid("request (ms from when it was due)", rows)]
    rows = [
        [
            name,
            f"{journey.completed:,}",
            f"{journey.abandoned + journey.unfinished:,}",
            *_cells(journey.duration),
        ]
        for name, journey in results.journeys.items()
        if journey.planned
    ]
    lines += ["", *_grid("journey (ms from beginning to end)", rows)]
    if results.timed:
        lines += ["", f"where the time went (the server's own account of {results.timed:,} answers)"]
        whole = sum(seconds for part, seconds in results.parts.items() if part != "total")
        for part, seconds in results.parts.items():
            share = f"{seconds / whole:6.1%}" if whole and part != "total" else " " * 6
            lines.append(f"  {part:<12}{seconds / results.timed * 1000:10.2f} ms per request  {share}")
    return "\n".join(lines)


def live(snapshot: Snapshot, *, seconds: float) -> str:
    """One line about the run so far; rates and latencies are of the last `seconds`."""
    window = snapshot.window
    p50, p99 = window.quantiles((0.5, 0.99))
    return (
        f"{snapshot.elapsed:6.1f} s  {snapshot.phase:<7} {window.count / max(seconds, 1e-9):8,.1f} ok/s"
        f"  p50 {_ms(p50)} ms  p99 {_ms(p99)} ms  {snapshot.sent:,} sent  {snapshot.failed:,} failed"
        f"  {snapshot.late:,} late  {snapshot.unsent:,} unsent  {snapshot.in_flight:,} in flight"
    )


def _grid(title: str, rows: Sequence[Sequence[str]]) -> list[str]:
    head = [title, "ok", "failed", *QUANTILES, "max"]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]


def _cells(histogram: Histogram) -> list[str]:
    if not histogram.count:
        return ["-"] * (len(QUANTILES) + 1)
    return [_ms(value) for value in histogram.quantiles(QUANTILES.values())] + [_ms(histogram.maximum)]


def _figures(histogram: Histogram) -> dict[str, float | int]:
    figures: dict[str, float | int] = {"count": histogram.count}
    if histogram.count:
        values = histogram.quantiles(QUANTILES.values())
        figures |= {name: round(value * 1000, 3) for name, value in zip(QUANTILES, values, strict=True)}
        figures |= {"max": round(histogram.maximum * 1000, 3), "mean": round(histogram.mean * 1000, 3)}
    return figures


def _parts(parts: Mapping[str, float], timed: int) -> dict[str, float]:
    return {part: round(seconds / timed * 1000, 4) for part, seconds in parts.items()} if timed else {}


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 1) if seconds > 0 else 0.0


def _ms(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
