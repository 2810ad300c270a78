"""`springtide db migrate | status | advise`: tables at the newest migration, and what they lack."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from springtide.db import MigrationStatus, Migrator
from springtide.ops._reaching import reaching
from springtide.ops.advise import commands as advising
from springtide.ops.runner.home import Home
from springtide.platform import Platform

__all__ = ["add_commands"]

_COLUMNS = ("shard", "module", "migration", "state", "applied")


def add_commands(subparsers: Any) -> None:
    """Add `db` and its commands to the command line's sub-parsers."""
    db = subparsers.add_parser("db", help="apply migrations, show them, advise on indexes and statements")
    commands = db.add_subparsers(dest="db_command", required=True, metavar="COMMAND")

    migrate = commands.add_parser("migrate", help="apply what is pending, on every shard of every module")
    migrate.set_defaults(run=_migrate)

    status = commands.add_parser(
        "status", help="every migration on every shard; 1 when one is not as it should be"
    )
    status.set_defaults(run=_status)

    advise = advising.add_command(commands)

    for command in (migrate, status, advise):
        command.add_argument(
            "--file", type=Path, help="the topology (default: $SPRINGTIDE_TOPOLOGY, then springtide.toml)"
        )
        command.add_argument("--json", action="store_true", help="as JSON instead of text")


def _migrate(args: argparse.Namespace) -> int:
    applied = asyncio.run(_apply(args.file))
    if args.json:
        print(json.dumps({"applied": applied}, indent=2))
    else:
        for name in applied:
            print(f"applied {name}")
        print(f"{len(applied)} applied" if applied else "nothing to apply")
    return 0


async def _apply(file: Path | None) -> list[str]:
    return await _platform(file).migrate()


def _status(args: argparse.Namespace) -> int:
    statuses = asyncio.run(_ask(args.file))
    if args.json:
        print(json.dumps([_plain(status) for status in statuses], indent=2))
    else:
        print(_table(statuses))
    faults = [status.fault for status in statuses if status.fault is not None]
    if not args.json:
        for fault in faults:
            print(fault, file=sys.stderr)
    return 0 if all(status.state == "applied" for status in statuses) else 1


async def _ask(file: Path | None) -> list[MigrationStatus]:
    platform = _platform(file)
    found: list[MigrationStatus] = []
    async with reaching(platform):
        for module in platform.modules:
            if module.migrations is not None:
                shards = platform.database(module.name).pools
                found += await Migrator(module.name, module.migrations, shards).status()
    return found


def _platform(file: Path | None) -> Platform:
    Home.beside(file).use_environment()
    return Platform.from_topology(file)


def _plain(status: MigrationStatus) -> dict[str, Any]:
    return {
        "shard": status.shard,
        "module": status.module,
        "source": status.source,
        "migration": status.name,
        "state": status.state,
        "checksum": status.checksum or None,
        "recorded_checksum": status.recorded_checksum,
        "applied_at": status.applied_at.isoformat() if status.applied_at is not None else None,
        "statements_done": status.statements_done,
        "fault": status.fault,
    }


def _table(statuses: Sequence[MigrationStatus]) -> str:
    if not statuses:
        return "no module has migrations"
    rows = [_COLUMNS]
    for status in statuses:
        name = status.name if status.source == "module" else f"springtide:{status.name}"
        state = status.state
        if status.state == "partial":
            state = f"partial ({status.statements_done} statements done)"
        applied = (
            status.applied_at.strftime("%Y-%m-%d %H:%M:%S UTC") if status.applied_at is not None else "-"
        )
        rows.append((status.shard, status.module, name, state, applied))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
