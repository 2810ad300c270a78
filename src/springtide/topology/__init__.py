"""springtide.toml: what the platform is made of, read into typed, validated structures."""

from springtide.topology.addresses import Addresses, Roles, read_addresses
from springtide.topology.built import check_built, missing_parts
from springtide.topology.diff import Change, diff
from springtide.topology.keys import redacted
from springtide.topology.parse import load, loads
from springtide.topology.plain import to_json, to_toml
from springtide.topology.programs import ProgramSpec
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
from springtide.topology.stages import stage_topology

__all__ = [
    "Cluster",
    "DatabaseSpec",
    "Node",
    "Objectives",
    "PoolSpec",
    "ProgramSpec",
    "ServerSpec",
    "TelemetrySpec",
    "Topology",
    "WorkerSpec",
    "Addresses",
    "Roles",
    "load",
    "loads",
    "check_built",
    "missing_parts",
    "read_addresses",
    "stage_topology",
    "to_toml",
    "to_json",
    "Change",
    "diff",
    "redacted",
]
