"""springtide.toml: what the platform is made of, read into typed, validated structures."""

from springtide.topology.spec import (
    Cluster,
    DatabaseSpec,
    Node,
    Objectives,
    PoolSpec,
    ServerSpec,
    TelemetrySpec,
    Topology,
    WorkerSpec,
)

__all__ = [
    "Cluster",
    "DatabaseSpec",
    "Node",
    "Objectives",
    "PoolSpec",
    "ServerSpec",
    "TelemetrySpec",
    "Topology",
    "WorkerSpec",
]
