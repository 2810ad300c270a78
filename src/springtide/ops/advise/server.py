"""What a larger database machine would bring, and where that ends. Pure over what the server says.

Memory: reads that miss `shared_buffers`, and sorts that spill, end with enough of it; more brings nothing.
Processors: statements that run at once beyond the cores wait for each other; more cores help until one
statement, one lock or the log's one writer is the limit. Told only where the figures point there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from springtide.ops.advise.findings import Finding

__all__ = ["MachineFacts", "machine", "read_facts"]

MIN_BLOCKS = 100_000
MISSES = 0.05
SPILLED_BYTES = 256 * 2**20
BUSY = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """`running` are backends that run a statement now; `cores` None where the server does not tell."""

    hit: int
    read: int
    temp_files: int
    temp_bytes: int
    database_bytes: int
    shared_buffers: int
    work_mem: int
    max_connections: int
    connections: int
    running: int
    cores: int | None


_FACTS = """
select d.blks_hit as hit, d.blks_read as read, d.temp_files, d.temp_bytes,
       pg_database_size(d.datname) as database_bytes,
       pg_size_bytes(current_setting('shared_buffers')) as shared_buffers,
       pg_size_bytes(current_setting('work_mem')) as work_mem,
       current_setting('max_connections')::int as max_connections,
       (select count(*) from pg_stat_activity where backend_type = 'client backend') as connections,
       (select count(*) from pg_stat_activity where backend_type = 'client backend' and state = 'active'
        and pid <> pg_backend_pid() and wait_event_type is null) as running
from pg_stat_database d where d.datname = current_database()
"""


async def read_facts(connection: Any, cores: int | None) -> MachineFacts:
    row: Mapping[str, Any] = await connection.fetchrow(_FACTS)
    return MachineFacts(**dict(row), cores=cores)


def machine(facts: MachineFacts) -> list[Finding]:
    findings: list[Finding] = []
    touched = facts.hit + facts.read
    misses = facts.read / max(touched, 1)
    ceiling = facts.database_bytes
    if touched >= MIN_BLOCKS and misses > MISSES and ceiling > facts.shared_buffers:
        wanted = min(2 * facts.shared_buffers, ceiling)
        findings.append(
            Finding(
                kind="machine",
                form="memory",
                title=f"{misses:.0%} of the blocks read were not in shared_buffers",
                share=0.0,
                checked="server",
                sql=(f"ALTER SYSTEM SET shared_buffers = '{wanted // 2**20}MB'; -- and restart",),
                evidence={
                    "shared_buffers": _size(facts.shared_buffers),
                    "database": _size(ceiling),
                    "next_size": f"twice the memory holds {min(wanted / ceiling, 1):.0%} of it",
                    "ceiling": f"at {_size(ceiling)} everything is in memory, and more of it brings nothing; "
                    "then indexes, a cache and replicas are next",
                },
            )
        )
    if facts.temp_bytes > SPILLED_BYTES and facts.temp_files:
        typical = facts.temp_bytes // facts.temp_files
        needed = min(max(2 * typical, 2 * facts.work_mem), 2**30)
        findings.append(
            Finding(
                kind="machine",
                form="work_mem",
                title=f"{facts.temp_files} sorts and hashes went to disk ({_size(facts.temp_bytes)})",
                share=0.0,
                checked="server",
                sql=(f"ALTER SYSTEM SET work_mem = '{needed // 2**20}MB';", "SELECT pg_reload_conf();"),
                evidence={
                    "work_mem": _size(facts.work_mem),
                    "average_file": _size(typical),
                    "ceiling": f"each of {facts.connections} sessions may take it several times: "
                    f"{_size(needed * facts.connections)} and more at once",
                },
            )
        )
    if facts.cores is not None and facts.running > BUSY * facts.cores:
        findings.append(
            Finding(
                kind="machine",
                form="cpu",
                title=f"{facts.running} statements run at once on {facts.cores} cores",
                share=0.0,
                checked="server",
                evidence={
                    "connections": f"{facts.connections} of {facts.max_connections}",
                    "next_size": f"{2 * facts.cores} cores run twice as many at once",
                    "ceiling": "a single statement stays as slow as it is, and writes of one row wait for "
                    "each other on any machine; beyond about 64 cores replicas carry reads for less",
                },
            )
        )
    return findings


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
