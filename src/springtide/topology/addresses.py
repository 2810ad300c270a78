"""Where the nodes that the runner started answer, and who is the primary of each cluster now.

The runner writes `<home>/run/addresses.json`, always whole, by renaming; app processes read it, again and
again. What it says of a cluster's roles wins over the topology, which only says how the cluster began:

    {"nodes": {"db": "postgresql://..."}, "clusters": {"main": {"primary": "db", "replicas": [], "epoch": 1}}}

The epoch of a cluster grows with each change of its primary and never shrinks, so of two answers the one with
the greater epoch is the newer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from springtide.errors import ConfigurationError

__all__ = ["Addresses", "Roles", "read_addresses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Who does what in one cluster: nodes by name."""

    primary: str
    replicas: tuple[str, ...] = ()
    epoch: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """`nodes`: node -> url, passwords included; `clusters`: cluster -> roles, for those the runner keeps."""

    nodes: Mapping[str, str] = field(default_factory=dict)
    clusters: Mapping[str, Roles] = field(default_factory=dict)

    def to_json(self) -> str:
        clusters = {name: asdict(roles) for name, roles in self.clusters.items()}
        return json.dumps({"nodes": dict(self.nodes), "clusters": clusters}, indent=1)


def read_addresses(path: Path) -> Addresses:
    """What the runner wrote to `path`; nothing when there is no such file (the platform is down).

    Raises ConfigurationError when the file cannot be read or holds something else.
    """
    try:
        text = path.read_text()
        return _parsed(json.loads(text))
    except FileNotFoundError:
        return Addresses()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(f"{path}: the runner's addresses cannot be read: {error}") from error


def _parsed(found: Any) -> Addresses:
    if not isinstance(found, dict) or not isinstance(found.get("nodes"), dict):
        raise ValueError('an object with "nodes" and "clusters" was expected')
    clusters = {
        str(name): Roles(
            primary=str(roles["primary"]),
            replicas=tuple(str(node) for node in roles["replicas"]),
            epoch=int(roles["epoch"]),
        )
        for name, roles in found.get("clusters", {}).items()
    }
    return Addresses(nodes={str(n): str(url) for n, url in found["nodes"].items()}, clusters=clusters)
