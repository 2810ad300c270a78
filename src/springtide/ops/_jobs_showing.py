"""How the commands of `springtide jobs` say what was found. Secrets in payloads are hidden as in logs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from springtide.telemetry._redact import redact_text, redact_value

if TYPE_CHECKING:
    from springtide.jobs.checking import Report
    from springtide.jobs.operating import JobDetails, JobRow, KindRow
    from springtide.jobs.scaling import Wanted

__all__ = ["details", "dumped", "jobs", "kinds", "lines", "report", "scaling"]

COUNTED = ("ready", "sent", "running", "held", "paused", "parked", "dead")
MAX_ERROR_CHARS = 60


def dumped(value: Any) -> str:
    return json.dumps(value, indent=2, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(type(value).__name__)


def kinds(rows: Sequence[KindRow]) -> str:
    if not rows:
        return "nothing is queued"
    cells = [("MODULE", "KIND", *(state.upper() for state in COUNTED), "OLDEST", "")]
    for row in rows:
        counts = [f"{row.counts.get(state, 0):,}" for state in COUNTED]
        note = ""
        if row.paused is not None:
            whole = "module paused" if row.paused.kind is None else "paused"
            note = f"{whole} since {row.paused.since:%Y-%m-%d %H:%M} UTC"
            note += f": {row.paused.reason}" if row.paused.reason else ""
        cells.append((row.module, row.kind or "all kinds", *counts, _span(row.age) if row.age else "", note))
    return _table(cells)


def jobs(rows: Sequence[JobRow]) -> str:
    if not rows:
        return "no jobs"
    cells = [("ID", "MODULE", "SHARD", "KIND", "STATE", "RUNS", "SINCE", "ERROR")]
    for row in rows:
        error = redact_text(row.error or "").replace("\n", " ")
        cells.append(
            (
                str(row.id), row.module, row.shard, f"{row.kind}/{row.version}", row.state,
                f"{row.attempt}/{row.max_attempts}", _span(row.age),
                error if len(error) <= MAX_ERROR_CHARS else f"{error[: MAX_ERROR_CHARS - 1]}…",
            )
        )  # fmt: skip
    return _table(cells)


def details(found: JobDetails, *, secrets: bool) -> dict[str, Any]:
    """Everything about a job, plain; without what looks like a secret, unless `secrets`."""
    shown = {
        **asdict(found.row),
        "payload": found.payload,
        "progress": found.progress,
        "result": found.result,
    }
    if secrets:
        return shown
    for name in ("payload", "progress", "result", "error"):
        shown[name] = redact_value("", shown[name])
    return shown


def lines(shown: dict[str, Any]) -> str:
    width = max(map(len, shown))
    texts = []
    for name, value in shown.items():
        if value is None:
            continue
        text = value if isinstance(value, str) else dumped(value).strip('"')
        texts.append(f"{name.ljust(width)}  {text.replace(chr(10), chr(10) + ' ' * (width + 2))}")
    return "\n".join(texts)


def report(found: Report) -> str:
    head = f"{found.queued:,} jobs are queued, {found.flows:,} flows go on, {found.read:,} payloads were read"
    if not found.findings:
        if found.read >= found.queued + found.flows:
            return f"{head}: this code can run them all"
        seen = ", and can read those" if found.read else "; whether it can read them was not looked at"
        return f"{head}: this code knows their kinds{seen}"
    cells = [("MODULE", "SHARD", "KIND", "WHAT", "JOBS", "DEAD", "WHY")]
    for one in found.findings:
        why = redact_text(one.error or "")
        if one.examples:
            why += f" (such as {one.examples[0]})"
        cells.append(
            (
                one.module,
                one.shard,
                f"{one.kind}/{one.version}",
                one.what,
                f"{one.jobs:,}",
                f"{one.dead:,}",
                why,
            )
        )
    end = "only dead letters are concerned" if found.ready else "this code cannot run them all"
    return f"{head}\n{_table(cells)}\n{end}"


def scaling(found: Wanted) -> str:
    """How many workers are wanted, and what by."""
    bounds, cells = (
        found.bounds,
        [("MODULE", "SHARD", "KIND", "WAITING", "RUNNING", "PER S", "S EACH", "SLOTS")],
    )
    for load in found.loads:
        slots = load.slots(bounds.time_to_drain)
        service = "unknown" if load.service is None else f"{load.service:.3g}"
        cells.append(
            (
                load.module, load.shard, load.kind, f"{load.waiting:,}", f"{load.running:,}",
                f"{load.arrival:.3g}", service, f"{slots:.2f}",
            )
        )  # fmt: skip
    sum_up = (
        f"{found.workers} of {bounds.least} to {bounds.most} workers are wanted: {found.slots:.2f} slots, "
        f"{bounds.slots} each, so that what waits is done in {bounds.time_to_drain:g} s"
    )
    return f"{_table(cells)}\n{sum_up}" if found.loads else sum_up


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _table(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
