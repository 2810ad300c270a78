"""`springtide schedule ls`: what is enqueued by the clock, when next, and what was not run."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from springtide.jobs import Scheduled, scheduled
from springtide.ops._reaching import reaching
from springtide.ops.runner.home import Home
from springtide.platform import Platform

__all__ = ["add_commands"]

_COLUMNS = ("module", "schedule", "when", "next", "in", "last", "run", "skipped")


def add_commands(subparsers: Any) -> None:
    """Add `schedule` and its commands to the command line's sub-parsers."""
    schedules = subparsers.add_parser("schedule", help="show what is enqueued by the clock")
    commands = schedules.add_subparsers(dest="schedule_command", required=True, metavar="COMMAND")
    ls = commands.add_parser("ls", help="every schedule: its times, the next and the last slot")
    ls.add_argument(
        "--file", type=Path, help="the topology (default: $SPRINGTIDE_TOPOLOGY, then springtide.toml)"
    )
    ls.add_argument("--json", action="store_true", help="as JSON instead of text")
    ls.set_defaults(run=_ls)


def _ls(args: argparse.Namespace) -> int:
    Home.beside(args.file).use_environment()
    found = asyncio.run(_ask(Platform.from_topology(args.file)))
    if args.json:
        print(json.dumps([{"module": module, **_plain(one)} for module, one in found], indent=2))
    else:
        print(_table(found))
    return 0


async def _ask(platform: Platform) -> list[tuple[str, Scheduled]]:
    async with reaching(platform):
        return [
            (module.name, one)
            for module in platform.modules
            if module.migrations is not None
            for one in await scheduled(platform.database(module.name))
        ]


def _plain(one: Scheduled) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(one)
    return fields


def _table(found: Sequence[tuple[str, Scheduled]]) -> str:
    if not found:
        return "no module has schedules"
    rows = [_COLUMNS, *(_row(module, one) for module, one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(module: str, one: Scheduled) -> tuple[str, ...]:
    due = f"{one.due_in:.0f} s" if one.declared else "not declared"
    numbers = str(one.runs), str(one.skipped)
    return (module, one.name, one.timing, _at(one.next_at), due, _at(one.last_at), *numbers)


def _at(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC") if moment is not None else "-"
