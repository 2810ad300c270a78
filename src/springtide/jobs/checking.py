"""Before a deploy: which jobs that wait now could the code of this process not run?

    no handler     no handler of the module takes the kind
    no upcast      it takes the kind, but not this version
    unreadable     it takes both, and the payload does not decode
    no module      jobs are in the schema of a module that does not exist here

Nothing of that is lost when the code is deployed all the same: what nobody takes is parked, what cannot be
read becomes a dead letter. Both are visible, and neither is done. Dead letters are looked at too, because
they may be retried, and counted apart: they keep no deploy.

Only columns of the first migrations are read, so a new version can ask before its own are applied. Payloads
are read in pages of PAGE by the primary key, at most `payloads` of each kind and version and shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from springtide.db import Database
from springtide.errors import JobError
from springtide.jobs import _retry
from springtide.jobs._operating_sql import Texts
from springtide.jobs._run import decoder
from springtide.jobs.job import Handler

__all__ = [
    "DEFAULT_PAYLOADS", "MAX_EXAMPLES", "Finding", "Report", "check", "check_payloads", "unreadable",
    "verdict",
]  # fmt: skip

DEFAULT_PAYLOADS = 1000
PAGE = 500
MAX_EXAMPLES = 5
FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Jobs of one kind and version on one shard that cannot be run; `what` is one of the module's four. Or
    flows that cannot go on: see `springtide.flows.checking`.

    jobs: how many; of those that are unreadable, as many as were found among the payloads looked at.
    dead: how many of them are dead letters.
    """

    module: str
    shard: str
    kind: str
    version: int
    what: str
    jobs: int
    dead: int
    error: str | None = None
    examples: Sequence[UUID] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`queued` jobs were found and `flows` that have not ended, `read` payloads and data of flows looked at.
    `ready` says whether the code may be deployed."""

    queued: int
    read: int
    findings: Sequence[Finding]
    flows: int = 0

    @property
    def ready(self) -> bool:
        return all(finding.jobs == finding.dead for finding in self.findings)


def verdict(
    handlers: Sequence[Handler[Any]], kind: str, version: int
) -> tuple[str | None, Handler[Any] | None]:
    """Why jobs of this kind and version cannot be run, None when they can; and the handler of them. Pure."""
    name = f"{kind}/{version}"
    for handler in handlers:
        if name in handler.names:
            return None, handler
    known = any(handler.kind.kind == kind for handler in handlers)
    return ("no upcast" if known else "no handler"), None


async def check(
    databases: Mapping[Database, Sequence[Handler[Any]]], *, payloads: int | None = DEFAULT_PAYLOADS
) -> Report:
    """Look at all that is queued; `payloads` of each kind, version and shard, None for every one of them.

    databases: of the platform's modules, with the handlers of each.
    """
    check_payloads(payloads)
    findings: list[Finding] = []
    queued = read = 0
    for database, handlers in databases.items():
        for shard, pool in database.pools.items():
            if not await pool.fetch_value("SELECT to_regclass($1) IS NOT NULL", f"{database.schema}._job"):
                continue  # a new module, before its first migration
            texts = Texts(database.schema)
            counted: dict[tuple[str, int], Counter[str]] = {}
            for row in await pool.fetch(texts.kinds):
                counted.setdefault((row["kind"], row["version"]), Counter())[row["state"]] = row["jobs"]
            for (kind, version), states in counted.items():
                jobs, dead, error = states.total(), states["dead"], None
                examples: tuple[UUID, ...] = ()
                queued += jobs
                what, handler = verdict(handlers, kind, version)
                if handler is not None:
                    decode = decoder(handler, f"{kind}/{version}")
                    seen, bad, error = await unreadable(pool, texts.payloads, decode, kind, version, payloads)
                    read += seen
                    if not bad:
                        continue
                    what, jobs, examples = "unreadable", len(bad), tuple(bad)[:MAX_EXAMPLES]
                    dead = sum(state == "dead" for state in bad.values())
                assert what is not None
                findings.append(
                    Finding(
                        module=database.name, shard=shard, kind=kind, version=version, what=what,
                        jobs=jobs, dead=dead, error=error, examples=examples,
                    )
                )  # fmt: skip
    gone = await _without_module(databases)
    queued += sum(finding.jobs for finding in gone)
    return Report(queued=queued, read=read, findings=[*findings, *gone])


def check_payloads(payloads: int | None) -> None:
    """Raises JobError."""
    if payloads is not None and payloads < 0:
        raise JobError(f"payloads must be >= 0, got {payloads}")


async def unreadable(
    pool: Any, sql: str, decode: Callable[[bytes], Any], kind: str, version: int, most: int | None
) -> tuple[int, dict[UUID, str], str | None]:
    """How many payloads were read, the ids of those that do not decode, with the state of each, and why the
    first does not. `sql`: a page of a kind and version, after a bucket and id."""
    bucket, last, seen, why = -1, FIRST, 0, None
    bad: dict[UUID, str] = {}
    while most is None or seen < most:
        page = PAGE if most is None else min(PAGE, most - seen)
        rows = await pool.fetch(sql, kind, version, bucket, last, page)
        for row in rows:
            try:
                decode(bytes(row["payload"]))
            except Exception as error:  # a decoder's, or whatever an upcast raises
                why = why or _retry.describe(error)
                bad[UUID(int=row["id"].int)] = row["state"]
        seen += len(rows)
        if len(rows) < page:
            break
        bucket, last = rows[-1]["bucket"], rows[-1]["id"]
    return seen, bad, why


async def _without_module(databases: Collection[Database]) -> list[Finding]:
    """Jobs in schemas that belong to no module of this code."""
    known = {database.schema for database in databases}
    findings = []
    pools = {shard: pool for database in databases for shard, pool in database.pools.items()}
    for shard, pool in pools.items():
        if not await pool.fetch_value("SELECT to_regclass('springtide.migration') IS NOT NULL"):
            continue  # nothing was ever migrated here
        rows = await pool.fetch(
            "SELECT DISTINCT m.module FROM springtide.migration AS m"
            " WHERE to_regclass(quote_ident(m.module) || '._job') IS NOT NULL"
            " AND m.module <> ALL ($1::text[]) ORDER BY m.module",
            sorted(known),
        )
        for row in rows:
            schema = await pool.fetch_value("SELECT quote_ident($1)", row["module"])
            counted: dict[tuple[str, int], Counter[str]] = {}
            for found in await pool.fetch(Texts(schema).kinds):
                counted.setdefault((found["kind"], found["version"]), Counter())[found["state"]] = found[
                    "jobs"
                ]
            findings += [
                Finding(
                    module=row["module"], shard=shard, kind=kind, version=version, what="no module",
                    jobs=states.total(), dead=states["dead"],
                )
                for (kind, version), states in counted.items()
            ]  # fmt: skip
    return findings
