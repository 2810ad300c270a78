"""What a process's cache counts, as metrics.

A class counts in plain numbers, which cost a hit one addition; they are read when somebody asks. Every sum
over the `level`s of `springtide_cache_reads_total` is all values that were asked for, but for those that
callers waited for together (`joined`), which are counted again by whoever brought them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["CacheClasses", "CacheGauges", "ClassGauges", "StatsGauges", "ViewGauges"]

NAME = "springtide_cache"


class StatsGauges(Protocol):
    """`cache._stats.Stats` has this shape, and says what each of them is."""

    @property
    def l1_hits(self) -> int: ...
    @property
    def l2_hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    @property
    def joined(self) -> int: ...
    @property
    def loads(self) -> int: ...
    @property
    def load_seconds(self) -> float: ...
    @property
    def failed(self) -> Mapping[str, int]: ...
    @property
    def fills(self) -> int: ...
    @property
    def refused(self) -> Mapping[str, int]: ...
    @property
    def stale_served(self) -> Mapping[str, int]: ...
    @property
    def bypassed(self) -> Mapping[str, int]: ...
    @property
    def overdue(self) -> int: ...
    @property
    def away(self) -> int: ...
    @property
    def voided(self) -> int: ...
    @property
    def unvoided(self) -> int: ...


class ViewGauges(Protocol):
    """`cache._memory.View` has this shape."""

    @property
    def bytes(self) -> int: ...
    @property
    def evicted(self) -> int: ...
    def __len__(self) -> int: ...


class ClassGauges(Protocol):
    """What of a class is shown; `cache.CacheClass` has this shape. `proven`: seconds for which what it keeps
    may be given out yet. `gaps`: how often invalidations were missing, so that what it held was dropped."""

    @property
    def stats(self) -> StatsGauges: ...
    @property
    def view(self) -> ViewGauges | None: ...
    @property
    def proven(self) -> float: ...
    @property
    def gaps(self) -> int: ...


class CacheGauges(Protocol):
    """`cache.Cache` has this shape. `line`: loads under way, waiting for their turn, and turned away.
    `restarts`: how often a listener to invalidations began anew."""

    @property
    def classes(self) -> Mapping[str, ClassGauges]: ...
    @property
    def line(self) -> tuple[int, int, int]: ...
    @property
    def restarts(self) -> int: ...


class CacheClasses(Collector):
    """Reads `cache` when the registry is asked."""

    def __init__(self, cache: CacheGauges) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        reads = _counter("reads", "Values asked for, by where they came from.", "level")
        bypasses = _counter("bypasses", "Values read past both levels, by why.", "reason")
        loads = _counter("loads", "Calls of the loader.")
        seconds = _counter("load_seconds", "Time in the loader.")
        failures = _counter("load_failures", "Calls of the loader that raised, by error.", "error")
        fills = _counter("fills", "Loaded values that the second level kept, or why not.", "outcome")
        stale = _counter("stale_served", "Old values that were given out, by why.", "reason")
        overdue = _counter("overdue", "Values that arrived later than the budget after they were asked for.")
        away = _counter("away", "Operations that Redis did not do.")
        voids = _counter("invalidations", "Invalidations told to Redis, or left to the relay.", "outcome")
        proven = _gauge("proven_seconds", "How long what is kept may still be given out; < 0: it may not.")
        gaps = _counter("gaps", "Times that invalidations were missing, and what was held was dropped.")
        held = _gauge("l1_bytes", "Bytes of the class in this process's memory.")
        entries = _gauge("l1_entries", "Values of the class in this process's memory.")
        evicted = _counter("l1_evictions", "Values that made room while they were still good.")
        line = GaugeMetricFamily(f"{NAME}_loads_now", "Loads under way, and waiting.", labels=["state"])
        refused = CounterMetricFamily(f"{NAME}_loads_refused", "Loads turned away.", labels=[])
        restarts = CounterMetricFamily(
            f"{NAME}_bus_restarts", "Times that a listener to invalidations began anew.", labels=[]
        )
        restarts.add_metric([], self._cache.restarts)
        running, waiting, turned_away = self._cache.line
        line.add_metric(["running"], running)
        line.add_metric(["waiting"], waiting)
        refused.add_metric([], turned_away)
        for name, cls in list(self._cache.classes.items()):
            stats, view = cls.stats, cls.view
            passed = sum(stats.bypassed.values())
            for level, count in (
                ("l1", stats.l1_hits),
                ("l2", stats.l2_hits),
                ("load", stats.misses),
                ("bypass", passed),
                ("joined", stats.joined),
            ):
                reads.add_metric([name, level], count)
            _each(bypasses, name, stats.bypassed)
            loads.add_metric([name], stats.loads)
            seconds.add_metric([name], stats.load_seconds)
            _each(failures, name, stats.failed)
            _each(fills, name, {"kept": stats.fills, **stats.refused})
            _each(stale, name, stats.stale_served)
            overdue.add_metric([name], stats.overdue)
            away.add_metric([name], stats.away)
            _each(voids, name, {"told": stats.voided, "left": stats.unvoided})
            proven.add_metric([name], cls.proven)
            gaps.add_metric([name], cls.gaps)
            if view is not None:
                held.add_metric([name], view.bytes)
                entries.add_metric([name], len(view))
                evicted.add_metric([name], view.evicted)
        yield from (reads, bypasses, loads, seconds, failures, fills, stale, overdue, away, voids)
        yield from (proven, gaps, held, entries, evicted, line, refused, restarts)


def _counter(name: str, says: str, label: str | None = None) -> CounterMetricFamily:
    return CounterMetricFamily(f"{NAME}_{name}", says, labels=["class", label] if label else ["class"])


def _gauge(name: str, says: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{NAME}_{name}", says, labels=["class"])


def _each(family: CounterMetricFamily, name: str, counts: Mapping[str, int]) -> None:
    for word, count in list(counts.items()):
        family.add_metric([name, word], count)
