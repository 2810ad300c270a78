"""`springtide flows ls | show | resume | cancel`: where workflows are, and the hand of an operator.

Secrets in their data are hidden as in logs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from springtide.db import Bucket
from springtide.errors import JobError
from springtide.flows import Flows, FlowStatus
from springtide.ops._reaching import reaching
from springtide.ops.runner.home import Home
from springtide.platform import Platform
from springtide.telemetry._redact import redact_text, redact_value

__all__ = ["add_commands"]

T = TypeVar("T")

STATES = ("running", "waiting", "undoing", "stuck", "done", "undone")

_COLUMNS = ("module", "flow", "id", "key", "state", "at", "since", "waits for")


def add_commands(subparsers: Any) -> None:
    """Add `flows` and its commands to the command line's sub-parsers."""
    flows = subparsers.add_parser("flows", help="show workflows, resume and cancel them")
    commands = flows.add_subparsers(dest="flows_command", required=True, metavar="COMMAND")
    ls = commands.add_parser("ls", help="those that have not ended, or all of a state, newest first")
    ls.add_argument("--state", choices=STATES, help="only those in this state")
    ls.add_argument("--kind", help="only those of this kind, such as orders.place")
    ls.add_argument("--limit", type=int, default=100, help="at most so many of each module (default: 100)")
    ls.set_defaults(run=_ls)
    show = commands.add_parser("show", help="one: its data, its history, why it turned")
    show.add_argument("--secrets", action="store_true", help="show what looks like a secret, too")
    show.set_defaults(run=_show)
    resume = commands.add_parser("resume", help="try again to undo the step at which one is stuck")
    resume.set_defaults(run=_resume)
    cancel = commands.add_parser("cancel", help="undo what one has done")
    cancel.add_argument("--reason", default="cancelled by an operator", help="kept with the flow")
    cancel.add_argument("--done", action="store_true", help="also when it is done")
    cancel.set_defaults(run=_cancel)
    for command in (show, resume, cancel):
        command.add_argument("id", type=UUID, help="of the flow")
    for command in (ls, show, resume, cancel):
        command.add_argument(
            "--file", type=Path, help="the topology (default: $SPRINGTIDE_TOPOLOGY, then springtide.toml)"
        )
    for command in (ls, show):
        command.add_argument("--json", action="store_true", help="as JSON instead of text")


def _ls(args: argparse.Namespace) -> int:
    async def ask(flows: dict[str, Flows]) -> list[tuple[str, FlowStatus]]:
        return [
            (module, one)
            for module, known in flows.items()
            for one in await known.list(kind=args.kind, state=args.state, limit=args.limit)
        ]

    found = _with_flows(args.file, ask)
    if args.json:
        print(json.dumps([{"module": module, **_plain(_hidden(one))} for module, one in found], indent=2))
    else:
        print(_table([_COLUMNS, *(_row(module, one) for module, one in found)]) if found else "no flows")
    return 0


def _show(args: argparse.Namespace) -> int:
    async def ask(flows: dict[str, Flows]) -> FlowStatus:
        return (await _find(flows, args.id))[1]

    one = _with_flows(args.file, ask)
    one = one if args.secrets else _hidden(one)
    if args.json:
        print(json.dumps(_plain(one), indent=2))
        return 0
    print(f"{one.kind}/{one.version} {one.id}: {one.state}")
    if one.step is not None:
        print(f"at      {one.step}")
    if one.reason:
        print(f"reason  {one.reason}")
    if one.waits_for is not None:
        print(f"waits   for {one.waits_for}, until {_at(one.wait_until)}")
    if one.job_id is not None:
        print(f"job     {one.job_id}")
    print(f"data    {json.dumps(one.data)}")
    steps = [
        (step.step, step.outcome, str(step.attempt), _at(step.at), step.error or "") for step in one.steps
    ]
    print(_table([("step", "outcome", "run", "at", "error"), *steps]))
    return 0


def _resume(args: argparse.Namespace) -> int:
    async def ask(flows: dict[str, Flows]) -> None:
        known, one = await _find(flows, args.id)
        async with known.database.write(Bucket(one.bucket)) as tx:
            if not await known.resume(tx, one.id):
                raise JobError(f"flow {one.id} is {one.state}: only one that is stuck can be resumed")

    _with_flows(args.file, ask)
    print(f"{args.id} goes on")
    return 0


def _cancel(args: argparse.Namespace) -> int:
    async def ask(flows: dict[str, Flows]) -> None:
        known, one = await _find(flows, args.id)
        async with known.database.write(Bucket(one.bucket)) as tx:
            if not await known.cancel(tx, one.id, args.reason, done=args.done):
                raise JobError(f"flow {one.id} is {one.state}: give --done to take back what is done")

    _with_flows(args.file, ask)
    print(f"{args.id} is being undone")
    return 0


async def _find(flows: dict[str, Flows], id: UUID) -> tuple[Flows, FlowStatus]:
    for known in flows.values():
        one = await known.find(id)
        if one is not None:
            return known, one
    raise JobError(f"no flow {id} is known (any more)")


def _with_flows(file: Path | None, ask: Callable[[dict[str, Flows]], Awaitable[T]]) -> T:
    Home.beside(file).use_environment()
    platform = Platform.from_topology(file)
    flows = {
        module.name: known
        for module in platform.modules
        if (known := platform.flows(module.name)) is not None
    }

    async def asked() -> T:
        async with reaching(platform):
            return await ask(flows)

    return asyncio.run(asked())


def _hidden(one: FlowStatus) -> FlowStatus:
    """Without what looks like a secret."""
    steps = [replace(step, error=_without(step.error)) for step in one.steps]
    return replace(one, data=redact_value("", one.data), reason=_without(one.reason), steps=tuple(steps))


def _without(text: str | None) -> str | None:
    return None if text is None else redact_text(text)


def _plain(one: FlowStatus) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(one)
    return fields


def _row(module: str, one: FlowStatus) -> tuple[str, ...]:
    name, since = f"{one.kind}/{one.version}", _at(one.updated_at)
    return module, name, str(one.id), one.key or "-", one.state, one.step or "-", since, one.waits_for or "-"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _at(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC") if moment is not None else "-"
