"""What the servers of a cluster say about their replication, asked by psql; whether one answers at all."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from springtide.errors import RunnerError
from springtide.ops.runner.failover import Position
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.standby import SLOT_PREFIX, slot_name

__all__ = ["Link", "answers", "drop_slot", "drop_slots", "ensure_slots", "held", "links", "timeline"]

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)

TIMEOUT = 5.0

_TIMELINE = """coalesce((SELECT max(('x' || left(name, 8))::bit(32)::int) FROM pg_ls_waldir()
  WHERE name ~ '^[0-9A-F]{24}$'), 0)"""

# The receiver's position counts once the receiver was asked for: then the log on the disk was at its end. It
# begins with the start of a segment, so the replayed position may be the greater one.
_HELD = f"""
SELECT CASE WHEN pg_is_in_recovery()
  AND NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')
  AND pg_last_wal_receive_lsn() IS NOT NULL
THEN json_build_object('timeline', {_TIMELINE},
  'lsn', greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn) END;
"""  # noqa: S608 - a constant inside a constant

_LINKS = """
SELECT coalesce(json_agg(json_build_object(
  'slot', slot_name, 'active', active, 'wal_status', wal_status, 'state', state, 'sync_state', sync_state,
  'flushed', flush_lsn - '0/0'::pg_lsn, 'lag_bytes', pg_current_wal_lsn() - replay_lsn,
  'lag_seconds', extract(epoch FROM replay_lag), 'now', pg_current_wal_flush_lsn() - '0/0'::pg_lsn,
  'waiting', (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'))), '[]')
FROM pg_replication_slots LEFT JOIN pg_stat_replication ON pid = active_pid
WHERE slot_type = 'physical' AND starts_with(slot_name, :'prefix');
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One replica as its primary sees it.

    `state` None: not connected. `lag_seconds` None: not known. `lost`: the primary has thrown away what the
    replica needs. `flushed` and `now` are positions: on the replica's disk, and of the primary.
    """

    slot: str
    state: str | None
    sync_state: str | None
    lost: bool
    flushed: int | None
    now: int
    lag_bytes: int | None
    lag_seconds: float | None
    waiting: int


async def held(server: EmbeddedPostgres) -> Position | None:
    """How far a replica's log goes, once it gets no more; None: it does not answer, or cannot tell yet."""
    try:
        answer = await server.query(_HELD, timeout=TIMEOUT)
    except (RunnerError, AssertionError):
        return None
    if not answer:
        return None
    found = json.loads(answer)
    return Position(int(found["timeline"]), int(found["lsn"]))


async def timeline(server: EmbeddedPostgres) -> int | None:
    """The latest timeline of a server's log; None: it does not answer."""
    try:
        return int(await server.query(f"SELECT {_TIMELINE};", timeout=TIMEOUT))
    except (RunnerError, ValueError):
        return None


async def links(primary: EmbeddedPostgres) -> Mapping[str, Link]:
    """slot -> how its replica is doing. Raises RunnerError when the primary does not answer."""
    answer = await primary.query(_LINKS, timeout=TIMEOUT, prefix=SLOT_PREFIX)
    return {entry["slot"]: _link(entry) for entry in json.loads(answer)}


def _link(entry: Mapping[str, Any]) -> Link:
    lag = entry["lag_bytes"]
    seconds = entry["lag_seconds"]
    return Link(
        slot=entry["slot"],
        state=entry["state"],
        sync_state=entry["sync_state"],
        lost=entry["wal_status"] == "lost",
        flushed=entry["flushed"],
        now=entry["now"],
        lag_bytes=lag,
        lag_seconds=0.0 if lag == 0 else None if seconds is None else float(seconds),
        waiting=entry["waiting"],
    )


async def ensure_slots(primary: EmbeddedPostgres, nodes: list[str]) -> None:
    """A slot on `primary` for each replica, so that it keeps what they have not got yet."""
    for node in nodes:
        await primary.query(
            "SELECT pg_create_physical_replication_slot(:'slot', true)"
            " WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = :'slot');\n",
            timeout=TIMEOUT,
            slot=slot_name(node),
        )


async def drop_slot(server: EmbeddedPostgres, node: str) -> None:
    """Drop the slot of a node whose processes have ended, and the sender that has not noticed yet."""
    await server.query(
        "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
        " WHERE slot_name = :'slot' AND active;\n"
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        " WHERE slot_name = :'slot' AND slot_type = 'physical';\n",
        timeout=2 * TIMEOUT,
        slot=slot_name(node),
    )


async def drop_slots(server: EmbeddedPostgres, *, keep: list[str]) -> None:
    """Drop the slots of all nodes but `keep`: of those that were removed, and of a time as primary."""
    await server.query(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_type = 'physical'"
        " AND starts_with(slot_name, :'prefix') AND NOT active AND slot_name <> ALL (:'keep'::text[]);\n",
        timeout=TIMEOUT,
        prefix=SLOT_PREFIX,
        keep="{" + ",".join(slot_name(node) for node in keep) + "}",
    )


async def answers(port: int, *, timeout: float) -> bool:
    """Whether the server on `port` forks a process for a new client and that one speaks.

    Asks for TLS, which needs no password and leaves no line in the log.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_SSL_REQUEST)
            return len(await reader.read(1)) == 1
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.transport.abort()
