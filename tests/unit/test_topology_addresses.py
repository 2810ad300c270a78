"""What the runner says about a running platform: where nodes answer, who is the primary of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from springtide.errors import ConfigurationError
from springtide.topology import Addresses, Roles, loads, read_addresses

TOPOLOGY = loads(
    "name = 'x'\napp = 'x:app'\n[nodes.a]\n[nodes.b]\n[nodes.c]\nurl = 'postgresql://u@h/c'\n"
    "[clusters.main]\nprimary = 'a'\n[clusters.far]\nprimary = 'c'\n[databases.default]\nshards = ['main']\n"
)


def test_written_and_read_back(tmp_path: Path) -> None:
    """What was written is what is read; without a file there is nothing, which is no fault."""
    written = Addresses(
        nodes={"a": "postgresql://a"}, clusters={"main": Roles(primary="a", replicas=("b",), epoch=3)}
    )
    (tmp_path / "addresses.json").write_text(written.to_json())
    assert read_addresses(tmp_path / "addresses.json") == written
    assert read_addresses(tmp_path / "none.json") == Addresses()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"nodes": {}, "clusters": {"main": {}}}', '{"nodes": 1}'])
def test_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    """A file that holds something else is named."""
    (tmp_path / "addresses.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"addresses\.json: the runner's addresses cannot be read"):
        read_addresses(tmp_path / "addresses.json")


def test_the_primary_that_runs_wins() -> None:
    """After a promotion the cluster's url is that of its new primary; the file said how it began."""
    nodes = {name: f"postgresql://s@127.0.0.1:{port}/postgres" for name, port in (("a", 1), ("b", 2))}
    found = Addresses(nodes=nodes, clusters={"main": Roles(primary="b", replicas=("a",), epoch=2)})
    running = TOPOLOGY.as_found(found)
    assert running.cluster_url("main") == "postgresql://s@127.0.0.1:2/main"
    assert running.clusters["main"].replicas == ("a",)


def test_what_the_topology_lacks_is_left_out() -> None:
    """A node that the file has lost, a role on such a node, and the address of a given node count nothing."""
    found = Addresses(
        nodes={"gone": "postgresql://x", "c": "postgresql://elsewhere", "a": "postgresql://s@h:1/postgres"},
        clusters={"main": Roles(primary="gone", epoch=2), "lost": Roles(primary="a")},
    )
    running = TOPOLOGY.as_found(found)
    assert running.cluster_url("main") == "postgresql://s@h:1/main"
    assert running.cluster_url("far") == "postgresql://u@h/c"
    assert dict(running.clusters).keys() == {"main", "far"}
