"""What a supervised Redis is told: its redis.conf, and what is read out of what it says of itself. Pure.

It holds a cache, so nothing that is in it is missed: no snapshot, no log, no fork.

Its memory has a bound, and at the bound it forgets, of the keys with a time to live, those used least
(`volatile-lfu`). What decides whether a loaded value may be kept (tombstones with their horizon, sequence,
bus) is small and used several times a second, so it goes last; by the age of the last use (lru) or by what
is left of a life (ttl) a burst of new values, or leases, would decide. Losing it is safe, but then nothing is
kept until the primary has been asked again. A scan over many keys that are read once does not push out those
that are read all the time, either. What another use of the same Redis keeps for ever is not touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from springtide.errors import RunnerError

__all__ = ["DEFAULT_BYTES", "POLICY", "Told", "conf", "noted_port", "told", "values_bytes"]

POLICY = "volatile-lfu"

DEFAULT_BYTES = 256 * 1024 * 1024
"""What it may keep when the node has no `memory_bytes`."""

SHARE = 0.75
"""Of a node's `memory_bytes`, the part for keys and values; the rest is for connections, scripts and gaps."""


def values_bytes(memory_bytes: int | None) -> int:
    """How much a node of so much memory keeps before it forgets."""
    return DEFAULT_BYTES if memory_bytes is None else int(memory_bytes * SHARE)


def conf(*, port: int, password: str, max_bytes: int, folder: Path, tls: bool) -> str:
    """redis.conf. `tls`: clients must speak TLS; certificate, key and authority are in `folder`."""
    listen = (
        {"port": port}
        if not tls
        else {
            "port": 0,
            "tls-port": port,
            "tls-cert-file": _quoted(folder / "server.crt"),
            "tls-key-file": _quoted(folder / "server.key"),
            "tls-ca-cert-file": _quoted(folder / "ca.crt"),
            "tls-auth-clients": "no",
            "tls-protocols": '"TLSv1.2 TLSv1.3"',
        }
    )
    settings: dict[str, object] = {
        "bind": "127.0.0.1",
        **listen,
        "requirepass": _quoted(password),
        "dir": _quoted(folder),
        "daemonize": "no",
        "set-proc-title": "no",  # it would overwrite the environment by which a later start knows it
        "save": '""',
        "appendonly": "no",
        "maxmemory": max_bytes,
        "maxmemory-policy": POLICY,
        "maxmemory-samples": 10,  # of so many keys the one used least goes; 5 would be guessed worse
        "lazyfree-lazy-eviction": "yes",  # a large value is given back beside the commands, not before them
        "lazyfree-lazy-expire": "yes",
        "lazyfree-lazy-server-del": "yes",
        "lazyfree-lazy-user-del": "yes",
        "lazyfree-lazy-user-flush": "yes",
        "tcp-keepalive": 60,
    }
    lines = ["# Written by Springtide; a change is lost at the next start."]
    return "\n".join([*lines, *(f"{name} {value}" for name, value in settings.items()), ""])


def noted_port(text: str) -> int | None:
    """The port that a redis.conf written by `conf` names."""
    found = re.search(r"^(?:tls-)?port ([1-9]\d*)$", text, re.MULTILINE)
    return int(found[1]) if found is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a Redis says of itself. `hits` and `misses`: reads of keys that were there and that were not;
    `evicted`: keys forgotten for want of room. All since its start."""

    version: str
    used_bytes: int
    max_bytes: int
    keys: int
    hits: int
    misses: int
    evicted: int
    policy: str

    @property
    def hit_rate(self) -> float | None:
        """None before the first read."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else None


def told(info: str) -> Told:
    """Read the answer to INFO. Raises RunnerError when it is none."""
    facts = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    try:
        return Told(
            version=facts["redis_version"],
            used_bytes=int(facts["used_memory"]),
            max_bytes=int(facts["maxmemory"]),
            keys=_keys(facts),
            hits=int(facts["keyspace_hits"]),
            misses=int(facts["keyspace_misses"]),
            evicted=int(facts["evicted_keys"]),
            policy=facts["maxmemory_policy"],
        )
    except (KeyError, ValueError) as error:
        raise RunnerError(f"what Redis says of itself is not understood: {error}") from error


def _keys(facts: Mapping[str, str]) -> int:
    """Over all databases: `db0:keys=3,expires=1,avg_ttl=0`."""
    found = (re.match(r"keys=(\d+)", text) for name, text in facts.items() if re.fullmatch(r"db\d+", name))
    return sum(int(match[1]) for match in found if match is not None)


def _quoted(text: object) -> str:
    """As redis.conf quotes: a folder may have spaces in it."""
    said = str(text)
    if "\n" in said or "\0" in said:
        raise RunnerError("a folder or password of Redis must not have line breaks in it")
    return '"' + said.replace("\\", "\\\\").replace('"', '\\"') + '"'
