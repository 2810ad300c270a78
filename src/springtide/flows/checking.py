"""Before a deploy: which flows that have not ended could the code of this process not go on with?

    no workflow        it has no workflow of this kind and version
    unreadable flow    it has one, and the flow's data do not decode

If it is deployed all the same, the first wait until a release knows them, and the others fail at their next
step and are stuck, for what undoes them needs the data, too. Flows that are stuck already keep no deploy:
they are counted apart, as dead letters are.

Of the jobs of their steps `springtide.jobs.checking` tells. As there, data are read in pages by the primary
key, at most `payloads` of each kind and version and shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from springtide.db import Database
from springtide.flows._store import Statements
from springtide.flows.flow import Workflow
from springtide.jobs.checking import (
    DEFAULT_PAYLOADS,
    MAX_EXAMPLES,
    Finding,
    Report,
    check_payloads,
    unreadable,
)

__all__ = ["check"]


async def check(
    databases: Mapping[Database, Sequence[Workflow[Any]]], *, payloads: int | None = DEFAULT_PAYLOADS
) -> Report:
    """Look at all flows that have not ended; at the data of `payloads` of each kind, version and shard, None
    for every one of them.

    databases: of the platform's modules, with the workflows of each.
    """
    check_payloads(payloads)
    findings: list[Finding] = []
    flows = read = 0
    for database, workflows in databases.items():
        known = {(workflow.kind, workflow.version): workflow for workflow in workflows}
        statements = Statements(database.schema)
        for shard, pool in database.pools.items():
            if not await pool.fetch_value("SELECT to_regclass($1) IS NOT NULL", f"{database.schema}._flow"):
                continue  # before the migration that makes it
            counted: dict[tuple[str, int], Counter[str]] = {}
            for row in await pool.fetch(statements.versions):
                counted.setdefault((row["kind"], row["version"]), Counter())[row["state"]] = row["flows"]
            for (kind, version), states in counted.items():
                flows += states.total()
                workflow = known.get((kind, version))
                if workflow is None:
                    findings.append(
                        Finding(
                            module=database.name, shard=shard, kind=kind, version=version, what="no workflow",
                            jobs=states.total(), dead=states["stuck"],
                        )
                    )  # fmt: skip
                    continue
                seen, bad, error = await unreadable(
                    pool, statements.data, workflow.decode, kind, version, payloads
                )
                read += seen
                if bad:
                    findings.append(
                        Finding(
                            module=database.name, shard=shard, kind=kind, version=version,
                            what="unreadable flow", jobs=len(bad),
                            dead=sum(state == "stuck" for state in bad.values()),
                            error=error, examples=tuple(bad)[:MAX_EXAMPLES],
                        )
                    )  # fmt: skip
    return Report(queued=0, flows=flows, read=read, findings=findings)
