"""What `springtide status` says of the Redis servers that run here: asked of them, in a moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from springtide.errors import ConfigurationError, RunnerError
from springtide.ops.runner.home import Home
from springtide.ops.runner.redis_settings import told
from springtide.ops.runner.redis_talk import RedisRefused, talk
from springtide.topology import read_addresses

__all__ = ["sentence", "told_by"]

ANSWER_WITHIN = 1.0


def told_by(home: Home, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per node of kind redis in `rows` that runs: what it says, or {"error": why it does not say it."""
    running = [row["node"] for row in rows if row["kind"] == "redis" and row["pid"]]
    if not running:
        return {}
    try:
        urls = read_addresses(home.run / "addresses.json").nodes
    except ConfigurationError:
        return {}
    return {node: _told(urls[node]) for node in running if node in urls}


def _told(url: str) -> dict[str, Any]:
    try:
        (info,) = talk(url, ["INFO"], timeout=ANSWER_WITHIN)
        found = told(info)
    except (OSError, RedisRefused, RunnerError) as error:
        return {"error": str(error) or type(error).__name__}
    return {**asdict(found), "hit_rate": found.hit_rate}


def sentence(told: Mapping[str, Any]) -> str:
    """One line for people."""
    if "error" in told:
        return f"does not say how full it is: {told['error']}"
    rate = "nothing read yet" if told["hit_rate"] is None else f"{told['hit_rate']:.0%} of reads found"
    parts = [
        f"{told['used_bytes'] / 2**20:.0f} of {told['max_bytes'] / 2**20:.0f} MB",
        f"{told['keys']:,} keys",
        rate,
        f"{told['evicted']:,} forgotten for want of room",
    ]
    return "; ".join(parts)
