"""A platform's cache: made as the topology says when it is first asked for, and what runs beside it.

A platform whose modules ask for no cache imports nothing of it, and of Redis nothing either.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from springtide.clock import Clock
from springtide.lifecycle import Service
from springtide.signals import Sink
from springtide.telemetry.metrics import MetricsSink
from springtide.topology import Topology

if TYPE_CHECKING:
    from springtide.cache import Cache
    from springtide.web.health import Check

__all__ = ["Caching"]


class Caching:
    """Of one platform. folder: for what its processes report (`watch`). dsns: where primaries answer."""

    def __init__(
        self,
        topology: Topology,
        *,
        folder: Path,
        dsns: Mapping[str, str],
        metrics: MetricsSink,
        clock: Clock,
        sink: Sink,
    ) -> None:
        self.made: Cache | None = None
        """None: nobody has asked for it."""
        self._topology = topology
        self._folder = folder
        self._dsns = dsns
        self._metrics = metrics
        self._clock = clock
        self._sink = sink

    def cache(self) -> Cache:
        """The cache, made now if it is not there."""
        if self.made is None:
            self.made = self._make()
            self._metrics.watch_cache(self.made)
        return self.made

    def _make(self) -> Cache:
        from springtide.cache import Cache

        spec = self._topology.cache
        max_loads = max(self._topology.pool.size // 2, 1)  # the other half is for what is not cached
        if spec is None:
            return Cache(self._topology.name, max_loads=max_loads, clock=self._clock, sink=self._sink)
        return Cache(
            self._topology.name,
            redis=self._topology.node_url(spec.node),
            l1_bytes=spec.l1_bytes,
            ttl=spec.ttl,
            l1=spec.l1_ttl,
            max_loads=max_loads,
            dsns=self._dsns,
            clock=self._clock,
            sink=self._sink,
        )

    @property
    def keeps(self) -> bool:
        """Whether it has a level that other processes share."""
        return self.made is not None and self.made.redis is not None

    @property
    def services(self) -> list[Service]:
        """To be started before the modules."""
        return [self.made] if self.made is not None else []

    @property
    def checks(self) -> dict[str, Check]:
        """For health pages."""
        return {"cache": self.made.check} if self.made is not None else {}

    def beside(self, *, serving: bool) -> list[Service]:
        """What looks after it; and, where requests come in (`serving`), what loads what is popular before the
        platform is ready: last, for the loaders need the modules."""
        spec = self._topology.cache
        if spec is None or self.made is None:
            return []
        from springtide.cache.warm import WarmUp
        from springtide.cache.watch import Watch

        node = os.environ.get("SPRINGTIDE_NODE")
        parts: list[Service] = [
            Watch(self.made, folder=self._folder, node=node, wanted_hit_rate=spec.wanted_hit_rate)
        ]
        if serving and spec.warm_up:
            parts.append(WarmUp(self.made, seconds=spec.warm_up, folder=self._folder))
        return parts
