"""What `springtide status` says of the brokers that run here: asked of them, in a moment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from springtide.errors import ConfigurationError, RunnerError
from springtide.ops.runner import nats_settings, rabbitmq_settings
from springtide.ops.runner.home import Home
from springtide.ops.runner.nats_talk import NatsRefused, ask
from springtide.ops.runner.rabbitmq_talk import figures
from springtide.topology import read_addresses

__all__ = ["sentence", "told_by"]

ANSWER_WITHIN = 3.0

NATS_ASKS = ("$SYS.REQ.SERVER.PING.VARZ", "$SYS.REQ.SERVER.PING.JSZ")


def told_by(home: Home, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per broker in `rows` that runs: what it says, or {"error": why it does not say it."""
    running = {row["node"]: row["kind"] for row in rows if row["kind"] in _ASKED and row["pid"]}
    if not running:
        return {}
    try:
        urls = read_addresses(home.run / "addresses.json").nodes
    except ConfigurationError:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for node, kind in running.items():
        if node in urls:
            try:
                found[node] = _ASKED[kind](home, node, urls[node])
            except (OSError, NatsRefused, RunnerError) as error:
                found[node] = {"error": str(error) or type(error).__name__}
    return found


def sentence(told: Mapping[str, Any]) -> str:
    """One line for people."""
    if "error" in told:
        return f"does not say what it holds: {told['error']}"
    bound = f" of {told['max_bytes'] / 2**20:.0f}" if "max_bytes" in told else ""
    parts = [
        f"{told['ready']:,} messages ready",
        *([f"{told['taken']:,} taken"] if "taken" in told else []),
        f"{told['connections']:,} connections",
        f"{told['memory_bytes'] / 2**20:.0f}{bound} MB",
    ]
    return "; ".join(parts)


def _rabbitmq(home: Home, node: str, url: str) -> dict[str, Any]:
    text = (home.path / "data" / node / "rabbitmq.conf").read_text()
    port = re.search(r"^prometheus\.tcp\.port = (\d+)$", text, re.MULTILINE)
    if port is None:
        raise RunnerError(f"the settings of {node} do not say where its figures are")
    return asdict(rabbitmq_settings.told(figures(int(port[1]), timeout=ANSWER_WITHIN)))


def _nats(home: Home, node: str, url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    login = f"{nats_settings.SYSTEM}:{quote(home.password(f'{node}.system'), safe='')}"
    system = urlunsplit(parts._replace(netloc=f"{login}@{parts.hostname}:{parts.port}"))
    return asdict(nats_settings.told(*ask(system, *NATS_ASKS, timeout=ANSWER_WITHIN)))


_ASKED = {"rabbitmq": _rabbitmq, "nats": _nats}
