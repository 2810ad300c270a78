"""Change the replicas of a cluster in the text of springtide.toml; everything else stays as it was written.

Pure: text in, text out; comments, order and spelling of the rest stay. What comes out was validated, so a
change that the topology's rules refuse raises TopologyError with their sentence.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import Array, InlineTable

from springtide.errors import ConfigurationError
from springtide.topology import Topology, check_built, loads, stage_topology

__all__ = ["added", "free_name", "removed"]


def free_name(topology: Topology) -> str:
    """`replica-N` with the smallest number that nobody has."""
    taken = {*topology.nodes, *topology.programs}
    return next(name for n in range(1, len(taken) + 2) if (name := f"replica-{n}") not in taken)


def added(text: str, topology: Topology, cluster: str, node: str, *, source: Path | None) -> str:
    """`text` with the new supervised node `node` as a replica of `cluster`."""
    if node in topology.nodes:
        raise ConfigurationError(f"node {node} is in the topology already: choose another name")
    found = _cluster(topology, cluster)
    document = tomlkit.parse(text)
    nodes = _table(document, "nodes")
    entry = tomlkit.inline_table() if isinstance(nodes, InlineTable) else tomlkit.table()
    entry.add("kind", "postgres")
    nodes[node] = entry
    _set_replicas(document, cluster, (*found.replicas, node))
    return _checked(document, source)


def removed(
    text: str, topology: Topology, cluster: str, node: str, *, primary: str, source: Path | None
) -> str:
    """`text` without replica `node`; `primary` is the present one, which the file may name otherwise."""
    found = _cluster(topology, cluster)
    members = (found.primary, *found.replicas)
    if node not in members or node == primary:
        raise ConfigurationError(f"{node} is no replica of cluster {cluster}")
    document = tomlkit.parse(text)
    _set_replicas(document, cluster, tuple(name for name in members if name not in (node, primary)))
    if primary != found.primary:
        for name, other in topology.clusters.items():
            if other.primary == found.primary:
                _table(_table(document, "clusters"), name)["primary"] = primary
    nodes = _table(document, "nodes")
    if topology.stage is not None and node in stage_topology(topology.stage).nodes:
        nodes[node] = False  # the preset has it, so the file takes it out
    else:
        nodes.remove(node)
        if not nodes:
            document.remove("nodes")
    return _checked(document, source)


def _cluster(topology: Topology, name: str) -> Any:
    if name not in topology.clusters:
        known = ", ".join(topology.clusters) or "none"
        raise ConfigurationError(f"there is no cluster {name!r} (known: {known})")
    return topology.clusters[name]


def _table(parent: Any, name: str) -> Any:
    if name not in parent:
        inline = isinstance(parent, InlineTable)
        top = isinstance(parent, tomlkit.TOMLDocument)
        parent[name] = tomlkit.inline_table() if inline else tomlkit.table(is_super_table=top)
    return parent[name]


def _set_replicas(document: tomlkit.TOMLDocument, cluster: str, replicas: Sequence[str]) -> None:
    """In the array that is there, so that its comments stay; a new one where the preset had it."""
    table = _table(_table(document, "clusters"), cluster)
    present = table.get("replicas")
    if not isinstance(present, Array):
        table["replicas"] = list(replicas)
        return
    for at in reversed(range(len(present))):
        if str(present[at]) not in replicas:
            del present[at]
    for name in replicas:
        if name not in [str(item) for item in present]:
            present.append(name)


def _checked(document: tomlkit.TOMLDocument, source: Path | None) -> str:
    """The new text; refused when it breaks a rule, or when it does not say what was meant."""
    text = tomlkit.dumps(document)
    if tomllib.loads(text) != document.unwrap():
        raise ConfigurationError(
            "the file writes [nodes] or [clusters] in a form that cannot be edited here: use tables, such as "
            "[nodes.db], or edit it by hand"
        )
    check_built(loads(text, source=source))
    return text
