"""Missing indexes: each statement that costs something, its candidates tried, the few best kept.

A candidate is kept when the planner uses it and the cost falls by at least `min_gain`. Of candidates that do
about as well (within `NEAR`), the one with fewer columns wins, then a partial one. Indexes of several
statements are combined, and any without which nothing gets worse is left out. An index also costs: one is
advised only where the time it saves exceeds what the observed writes would pay for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from springtide.ops.advise.candidates import Candidate, candidates, combined, condition, index_name
from springtide.ops.advise.catalog import Catalog, ForeignKey, Index, Table, quoted
from springtide.ops.advise.findings import Finding
from springtide.ops.advise.judging import Judge, Judgement
from springtide.ops.advise.observed import Observed
from springtide.ops.advise.probing import Probe, probe
from springtide.ops.advise.reading import Reading, Slot

__all__ = ["Allowance", "Asked", "ask", "missing_for_keys", "missing_indexes", "write_cost"]

MAX_JUDGED = 300
MAX_SECONDS = 60.0
"""How long the planner is asked about statements, the costliest first."""

MIN_COST = 24.0
"""Planner units, about as many pages read in turn: what costs less is quick as it is."""

MAX_TRIED = 24
MAX_NEW = 3
NEAR = 1.15
KEPT = 0.85
"""Of its gain, what a statement must keep when an index is combined or left out."""

WRITE_SECONDS = 30e-6
"""What one more B-tree entry costs a write: finding the leaf, WAL, and vacuum's part. Measured by
`python -m bench.insight` as `index_write_us`; a cold cache makes it more."""

COVERING_ROWS = 50
COVERING_BYTES = 64
COVERING_GAIN = 0.5


@dataclass(slots=True)
class Asked:
    """A statement with what it asks; `before` and `after` are judgements once they are made."""

    observed: Observed
    reading: Reading
    probe: Probe
    before: Judgement | None = None
    after: Judgement | None = None

    @property
    def tables(self) -> list[Table]:
        return list({use.table.key: use.table for use in self.reading.uses}.values())

    def gain(self) -> float:
        if self.before is None or self.after is None or self.before.cost <= 0:
            return 0.0
        return max(1.0 - self.after.cost / self.before.cost, 0.0)


def ask(observed: Observed, reading: Reading, catalog: Catalog) -> Asked:
    return Asked(observed, reading, probe(observed, reading, catalog))


class Allowance:
    """How long the planner may be asked: `MAX_SECONDS`, and no longer once somebody waits for us. `ended`
    says why it was over, "" while it is not."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._until = time.monotonic() + MAX_SECONDS
        self.ended = ""

    async def over(self) -> bool:
        if self.ended:
            return True
        if time.monotonic() > self._until:
            self.ended = f"the planner was asked for {MAX_SECONDS:g} s"
        elif await self._judge.in_the_way():
            self.ended = "somebody waited for a lock that looking holds"
        return bool(self.ended)


class _Weighing:
    """The judge's answers for one statement, each asked for once."""

    def __init__(self, judge: Judge, asked: Asked) -> None:
        self._judge = judge
        self._asked = asked
        self._tables = [table for table in asked.tables if table.rows and table.pages]
        self._known: dict[tuple[Candidate, ...], Judgement | None] = {}

    async def __call__(self, given: Sequence[Candidate]) -> Judgement | None:
        here = tuple(one for one in given if any(one.table.key == table.key for table in self._tables))
        tried = [table for table in self._tables if candidates_possible(table)]
        if here not in self._known:
            self._known[here] = await self._judge.judge(self._asked.probe, tried, here)
        return self._known[here]


def candidates_possible(table: Table) -> bool:
    return table.rows >= 1 and table.pages >= 1


async def missing_indexes(
    asked: Sequence[Asked],
    judge: Judge,
    catalog: Catalog,
    allowance: Allowance,
    *,
    total: float,
    min_gain: float,
) -> tuple[list[Finding], list[str]]:
    """Findings, and texts that the planner did not take."""
    costly = sorted(asked, key=lambda one: -one.observed.seconds)[:MAX_JUDGED]
    weighings: dict[int, _Weighing] = {}
    chosen: list[Candidate] = []
    helped: list[Asked] = []
    refused: list[str] = []
    for one in costly:
        if await allowance.over():
            break
        tried = [candidate for use in one.reading.uses for candidate in candidates(use)]
        tried = list(dict.fromkeys(tried))[:MAX_TRIED]
        if not tried:
            continue
        weigh = weighings[id(one)] = _Weighing(judge, one)
        one.before = await weigh(())
        if one.before is None:
            refused.append(one.observed.text)
            continue
        if one.before.cost < MIN_COST:
            continue
        picked = await _pick(one, tried, weigh, min_gain)
        if picked:
            one.after = await weigh(picked)
            helped.append(one)
            chosen += picked
    final = await _fewest(list(dict.fromkeys(chosen)), helped, weighings)
    return await _told(final, helped, weighings, judge, catalog, asked, total), refused


async def _pick(one: Asked, tried: Sequence[Candidate], weigh: _Weighing, min_gain: float) -> list[Candidate]:
    assert one.before is not None
    cost = one.before.cost
    all_of_them = await weigh(tried)
    if all_of_them is None or all_of_them.cost > cost * (1 - min_gain):
        return []
    wanted = {(tried[place].table.key, key) for place in all_of_them.used for key in tried[place].columns}
    left = [one for one in tried if {(one.table.key, key) for key in one.columns} <= wanted]
    picked: list[Candidate] = []
    while left and len(picked) < MAX_NEW:
        costs: list[tuple[float, Candidate]] = []
        for candidate in left:
            judged = await weigh([*picked, candidate])
            if judged is not None and len(picked) in judged.used:
                costs.append((judged.cost, candidate))
        if not costs:
            break
        best = min(cost for cost, _ in costs)
        if best > cost * (1 - (min_gain if not picked else max(min_gain, 0.5))):
            break
        near = [candidate for found, candidate in costs if found <= best * NEAR + 0.5]
        choice = min(
            near, key=lambda candidate: (len(candidate.keys), not candidate.where, left.index(candidate))
        )
        picked.append(choice)
        left.remove(choice)
        judged = await weigh(picked)
        assert judged is not None
        cost = judged.cost
    return [await _covering(one, picked, weigh)] if len(picked) == 1 else picked


async def _covering(one: Asked, picked: list[Candidate], weigh: _Weighing) -> Candidate:
    """The index with the selected columns in it, where reading the table costs more than the rest."""
    (candidate,) = picked
    use = next(use for use in one.reading.uses if use.table.key == candidate.table.key)
    if use.columns is None or one.observed.rows < COVERING_ROWS * max(one.observed.calls, 1):
        return candidate
    implied = {key for key, value in use.constants.items() if condition(key, value) == candidate.where}
    there = {*candidate.columns, *implied}
    more = sorted(column for column in use.columns if quoted(column) not in there)
    width = sum(use.table.columns[column].width for column in more)
    hot = use.table.updated > use.table.read
    if not more or len(more) > 3 or width > COVERING_BYTES or hot:
        return candidate
    wider = replace(candidate, include=tuple(quoted(column) for column in more))
    plain, covering = await weigh([candidate]), await weigh([wider])
    if plain is None or covering is None or covering.cost > plain.cost * (1 - COVERING_GAIN):
        return candidate
    return wider


async def _holds(
    helped: Sequence[Asked], given: Sequence[Candidate], weighings: dict[int, _Weighing]
) -> bool:
    for one in helped:
        judged = await weighings[id(one)](given)
        assert one.before is not None
        assert one.after is not None
        if judged is None or one.before.cost - judged.cost < KEPT * (one.before.cost - one.after.cost):
            return False
    return True


async def _fewest(
    chosen: list[Candidate], helped: Sequence[Asked], weighings: dict[int, _Weighing]
) -> list[Candidate]:
    """Combine pairs, then leave out what is not missed, as long as every statement keeps its gain."""
    merging = True
    while merging:
        merging = False
        for first in chosen:
            for second in chosen:
                both = combined(first, second) if first is not second else None
                if both is None:
                    continue
                fewer = [one for one in chosen if one is not first and one is not second]
                if await _holds(helped, [*fewer, both], weighings):
                    chosen = list(dict.fromkeys([*fewer, both]))
                    merging = True
                    break
            if merging:
                break
    for candidate in sorted(chosen, key=lambda one: -len(one.keys)):
        fewer = [one for one in chosen if one is not candidate]
        if await _holds(helped, fewer, weighings):
            chosen = fewer
    return chosen


def write_cost(table: Table, asked: Sequence[Asked]) -> tuple[int, float]:
    """Rows of `table` written in the window, and seconds that one more index would add to them."""
    rows = sum(
        max(one.observed.rows, one.observed.calls)
        for one in asked
        if one.reading.target is not None
        and one.reading.target.key == table.key
        and one.reading.kind in ("insert", "update")
    )
    return rows, rows * WRITE_SECONDS


async def _told(
    final: Sequence[Candidate],
    helped: Sequence[Asked],
    weighings: dict[int, _Weighing],
    judge: Judge,
    catalog: Catalog,
    asked: Sequence[Asked],
    total: float,
) -> list[Finding]:
    findings: list[Finding] = []
    names = {name for one in final for name in _names(catalog, one.table.schema)}
    after = {id(one): await weighings[id(one)](final) for one in helped}
    for candidate in final:
        served = [one for one in helped if _uses(after[id(one)], one, candidate, final)]
        saved = 0.0
        for one in served:
            judged = after[id(one)]
            assert judged is not None
            assert one.before is not None
            saved += one.observed.seconds * max(1 - judged.cost / one.before.cost, 0.0)
        rows, paid = write_cost(candidate.table, asked)
        if not served or paid >= saved:
            continue
        first = served[0]
        judged = after[id(first)]
        assert first.before is not None
        assert judged is not None
        misordered = _misordered(candidate)
        name = _fresh(index_name(candidate), names)
        evidence: dict[str, Any] = {
            "statements": [one.observed.shown() for one in served[:5]],
            "estimated_gain": f"{1 - judged.cost / first.before.cost:.0%} of the first one's planner cost",
            "plan_before": first.before.plan,
            "plan_after": judged.plan,
            "write_cost": f"{rows} rows, about {paid * 1000:.1f} ms against {saved * 1000:.0f} ms saved",
        }
        if misordered is not None:
            evidence["has_these_columns_in_another_order"] = misordered.name
        findings.append(
            Finding(
                kind="missing_index",
                form="order" if misordered is not None else candidate.form,
                title=f"{candidate.table.key} lacks an index on ({', '.join(candidate.keys)})"
                + (f" where {candidate.where}" if candidate.where else ""),
                share=saved / total if total else 0.0,
                checked=judge.checked([candidate]),
                table=candidate.table.key,
                columns=candidate.columns,
                index=name,
                sql=candidate.creation(name),
                evidence=evidence,
            )
        )
    return findings


def _uses(judged: Judgement | None, one: Asked, candidate: Candidate, final: Sequence[Candidate]) -> bool:
    if judged is None:
        return False
    here = [other for other in final if any(other.table.key == table.key for table in one.tables)]
    return candidate in here and here.index(candidate) in judged.used


def _misordered(candidate: Candidate) -> Index | None:
    wanted = set(candidate.columns)
    for index in candidate.table.indexes:
        keys = [key.split(" ")[0] for key in index.keys]
        if len(wanted) > 1 and index.method == "btree" and set(keys) == wanted and not index.predicate:
            return index
    return None


def _names(catalog: Catalog, schema: str) -> set[str]:
    """Of tables and indexes, which share one room of names in a schema."""
    tables = [table for table in catalog.tables.values() if table.schema == schema]
    return {table.name for table in tables} | {index.name for table in tables for index in table.indexes}


def _fresh(name: str, taken: set[str]) -> str:
    number, fresh = 1, name
    while fresh in taken:
        number += 1
        fresh = f"{name}{number}"
    taken.add(fresh)
    return fresh


async def missing_for_keys(
    keys: Sequence[ForeignKey],
    asked: Sequence[Asked],
    judge: Judge,
    catalog: Catalog,
    allowance: Allowance,
    *,
    total: float,
    min_gain: float,
) -> list[Finding]:
    """Foreign keys whose check reads the whole referencing table whenever a referenced row goes."""
    findings: list[Finding] = []
    taken = {name for key in keys for name in _names(catalog, catalog.tables[key.table].schema)}
    for key in keys:
        if await allowance.over():
            break
        table = catalog.tables[key.table]
        candidate = Candidate(
            table=table, keys=tuple(quoted(column) for column in key.columns), free=len(key.columns)
        )
        conditions = " and ".join(f"{quoted(column)} = ${n}" for n, column in enumerate(key.columns, 1))
        check = Observed(
            text=f"select 1 from only {table.sql} where {conditions}",  # noqa: S608 - names
            calls=1, seconds=0.0, slowest=0.0, rows=0,
        )  # fmt: skip
        reading = Reading(kind="select", parameters=len(key.columns))
        for number, column in enumerate(key.columns, 1):
            reading.slots[number] = Slot(table=table.key, column=column, how="equal")
        question = probe(check, reading, catalog)
        before = await judge.judge(question, [table], ())
        after = await judge.judge(question, [table], [candidate])
        if before is None or after is None or not after.used or after.cost > before.cost * (1 - min_gain):
            continue
        deletes = [
            one
            for one in asked
            if one.reading.kind == "delete"
            and one.reading.target is not None
            and one.reading.target.key == key.target
        ]
        spent = sum(one.observed.seconds for one in deletes)
        name = _fresh(index_name(candidate), taken)
        evidence: dict[str, Any] = {
            "foreign_key": f"{key.name} references {key.target}",
            "deleted_from_the_referenced_table": catalog.tables[key.target].deleted,
            "plan_of_each_check_before": before.plan,
            "plan_of_each_check_after": after.plan,
        }
        if deletes:
            evidence = {"statements": [one.observed.shown() for one in deletes[:3]], **evidence}
        findings.append(
            Finding(
                kind="foreign_key",
                form="composite" if len(key.columns) > 1 else "single",
                title=f"{table.key} lacks an index on ({', '.join(candidate.keys)}): each row that goes"
                f" from {key.target} reads all of it",
                share=spent / total if total else 0.0,
                checked=judge.checked([candidate]),
                table=table.key,
                columns=candidate.columns,
                index=name,
                sql=candidate.creation(name),
                evidence=evidence,
            )
        )
    return findings
