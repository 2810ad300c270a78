"""What this version cannot do yet: the one list, from which a part is taken out in the change that builds it.

A topology that needs such a part can be read, shown and compared, but not started.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from springtide.errors import StageNotBuilt
from springtide.topology.kinds import KINDS
from springtide.topology.spec import Topology

__all__ = ["BUILT_KINDS", "NOT_BUILT", "Part", "check_built", "missing_parts"]

BUILT_KINDS = frozenset({"postgres", "pgbouncer", "redis", "rabbitmq", "nats", "kafka", "sqs"})

BUILT_TRANSPORTS = frozenset({"postgres", "redis", "rabbitmq", "nats", "kafka", "sqs"})

ON_THIS_MACHINE = frozenset({"postgres", "pgbouncer", "redis", "rabbitmq", "nats"})
"""Supervised nodes of these kinds run on this machine, whatever `machine` says they will run on one day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part that is not built; `needed` says whether a topology asks for it."""

    name: str
    needed: Callable[[Topology], bool]


NOT_BUILT: tuple[Part, ...] = (
    Part(
        name="supervised nodes on other machines",
        needed=lambda t: any(
            node.supervised and node.machine != "local" and node.kind not in ON_THIS_MACHINE
            for node in t.nodes.values()
        ),
    ),
    Part(name="the load balancer", needed=lambda t: t.balancer is not None),
    Part(name="sessions outside the process", needed=lambda t: t.sessions is not None),
    Part(name="rolling deploys", needed=lambda t: t.deploys is not None),
    Part(name="collected metrics and alerts", needed=lambda t: t.monitoring is not None),
    Part(name="rate limits", needed=lambda t: t.limits is not None),
    Part(name="the edge cache", needed=lambda t: t.edge is not None),
    Part(name="autoscaling", needed=lambda t: t.autoscaling is not None),
    Part(name="refresh tokens", needed=lambda t: t.tokens is not None),
    Part(
        name="the transport of jobs",
        needed=lambda t: t.jobs is not None and t.jobs.transport not in BUILT_TRANSPORTS,
    ),
    Part(name="events on a broker", needed=lambda t: t.events is not None),
    Part(name="services", needed=lambda t: bool(t.services)),
    Part(name="the gateway", needed=lambda t: t.gateway is not None),
    Part(name="circuit breakers", needed=lambda t: t.breaker is not None),
    Part(name="stores by access pattern", needed=lambda t: bool(t.stores)),
    Part(name="regions", needed=lambda t: bool(t.regions) or t.replication is not None),
)


def missing_parts(topology: Topology) -> list[str]:
    """The parts that `topology` asks for and this version lacks; empty when it can be started."""
    missing = [part.name for part in NOT_BUILT if part.needed(topology)]
    for name, node in topology.nodes.items():
        if node.kind not in BUILT_KINDS:
            missing.append(f"{KINDS[node.kind].says} (node {name})")
    return missing


def check_built(topology: Topology) -> None:
    """Raise StageNotBuilt, naming every part, when `topology` cannot be started by this version."""
    if missing := missing_parts(topology):
        raise StageNotBuilt(topology.stage, missing)
