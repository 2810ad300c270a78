"""docs/failover.md: its topology is one, and says what the page says."""

from __future__ import annotations

import re
from pathlib import Path

from springtide.topology import loads

PAGE = (Path(__file__).parents[2] / "docs" / "failover.md").read_text()


def test_the_example_asks_for_quorum() -> None:
    """The database of the example is confirmed by a replica, the others on its cluster are not."""
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    topology = loads(example)
    assert (topology.database("payments").durability, topology.database("content").durability) == (
        "quorum",
        "async",
    )
    assert topology.confirmed("main")
