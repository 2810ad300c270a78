"""What is told: one finding, its evidence, and the SQL to run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Advice", "Finding", "text"]

SHOWN_STATEMENT = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`share` is the part of the observed statement time that the finding explains, 0 to 1.

    kind:     missing_index, foreign_key, unused_index, duplicate_index, repeated_statement, deep_offset,
              select_star or machine.
    form:     what is special about it: composite, partial, expression, covering, order, single, prefix.
    checked:  who said so: `hypopg`, `scratch copy of N rows`, `catalog`, `requests` or `server`.
    sql:      what to run, or for code the form to write instead; in order.
    evidence: figures by name; `statements` are texts with calls and seconds.
    """

    kind: str
    title: str
    share: float
    checked: str
    form: str = ""
    table: str = ""
    columns: tuple[str, ...] = ()
    index: str = ""
    sql: tuple[str, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """`notes` say what could not be looked at, and why."""

    cluster: str
    seconds: float
    calls: int
    window: float
    sources: tuple[str, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def text(advices: Sequence[Advice]) -> str:
    """For people: the finding that explains most comes first."""
    lines: list[str] = []
    for advice in advices:
        lines.append(
            f"cluster {advice.cluster}: {advice.calls} statements, {advice.seconds:.1f} s of SQL in "
            f"{advice.window / 60:.0f} min, from {', '.join(advice.sources) or 'the catalog alone'}"
        )
        for number, finding in enumerate(advice.findings, 1):
            lines += ["", f"{number}. {finding.title}", f"   {_figures(finding)}"]
            for key, value in finding.evidence.items():
                lines += _evidence(key, value)
            lines += [f"   > {part}" for statement in finding.sql for part in statement.splitlines()]
        if not advice.findings:
            lines.append("nothing to advise")
        lines += [f"note: {note}" for note in advice.notes]
        lines.append("")
    return "\n".join(lines).rstrip()


def _figures(finding: Finding) -> str:
    share = f"{finding.share:.0%} of the time; " if finding.share >= 0.005 else ""
    return f"{share}checked by {finding.checked}"


def _evidence(name: str, value: Any) -> list[str]:
    if name == "statements":
        return [
            f"   {one['calls']} x {one['mean_ms']:.2f} ms, {one['rows']} rows: "
            f"{textwrap.shorten(one['text'], SHOWN_STATEMENT, placeholder=' ...')}"
            for one in value
        ]
    if isinstance(value, str) and "\n" in value:
        return [f"   {name.replace('_', ' ')}:", *(f"     {line}" for line in value.splitlines())]
    if isinstance(value, dict):
        value = ", ".join(f"{key} ({count})" for key, count in value.items())
    if isinstance(value, float):
        value = f"{value:.3g}"
    return [f"   {name.replace('_', ' ')}: {value}"]
