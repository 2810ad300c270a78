"""`springtide events ls | show | read | replay | retry | skip | pause | resume | remove | check`.

What the logs of a platform hold, how far each group is, and what operators do about it, by
`springtide.events.operating`. A log is named by the module that publishes it. All of it is asked of the
databases, so it does not matter on which machine it is run. Secrets in events and errors are hidden as in
logs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from springtide.events import operating
from springtide.ops._reaching import reaching
from springtide.ops.runner.home import Home
from springtide.telemetry._redact import redact_text, redact_value

if TYPE_CHECKING:
    from springtide.db import Database
    from springtide.platform import Platform

__all__ = ["add_commands"]

FOUND_GAPS = 3
"""Exit code of `check` when positions are missing; 1 is for what went wrong."""

MAX_TEXT = 100


def add_commands(subparsers: Any) -> None:
    """Add `events` and its commands to the command line's sub-parsers."""
    events = subparsers.add_parser("events", help="show logs and groups of events; replay, retry, skip")
    commands = events.add_subparsers(dest="events_command", required=True, metavar="COMMAND")

    ls = commands.add_parser("ls", help="logs, groups, and how far each group is behind")
    ls.set_defaults(run=_ls)

    show = commands.add_parser("show", help="a group's lanes that wait, and its dead letters")
    show.add_argument("-n", type=int, default=20, help="dead letters of each shard (default: 20)")
    show.set_defaults(run=_show)

    read = commands.add_parser("read", help="events of a log, as they are stored")
    read.add_argument("module", help="the module that publishes them")
    read.add_argument("--shard", help="default: all")
    read.add_argument("--from", dest="start", type=int, default=1, help="position (default: 1)")
    read.add_argument("--key", help="only of this key")
    read.add_argument("-n", type=int, default=20, help="events of each shard (default: 20)")
    read.set_defaults(run=_read)

    replay = commands.add_parser("replay", help="set a group to a place in the log")
    replay.add_argument(
        "--from",
        dest="start",
        type=_start,
        required=True,
        metavar="PLACE",
        help="beginning, now, a position, or a time such as 2026-11-26T09:00Z",
    )
    replay.add_argument("--shard", help="default: all")
    replay.add_argument("--lane", type=int, help="default: all")
    replay.set_defaults(run=_replay)

    retry = commands.add_parser("retry", help="try dead letters again, and lanes that wait, at once")
    retry.add_argument("--position", type=int, help="only the dead letter at this position")
    retry.add_argument("--shard", help="default: all")
    retry.set_defaults(run=_retry)

    skip = commands.add_parser("skip", help="make a dead letter of what a lane is stuck at, and go past it")
    skip.add_argument("--shard", required=True)
    skip.add_argument("--lane", type=int, required=True)
    skip.set_defaults(run=_skip)

    discard = commands.add_parser("discard", help="throw a dead letter away")
    discard.add_argument("--shard", required=True)
    discard.add_argument("--position", type=int, required=True)
    discard.set_defaults(run=_discard)

    pause = commands.add_parser("pause", help="begin nothing more for a group")
    pause.set_defaults(run=_pause)
    resume = commands.add_parser("resume", help="the inverse of pause")
    resume.set_defaults(run=_resume)
    remove = commands.add_parser("remove", help="forget a group, its positions and its dead letters")
    remove.set_defaults(run=_remove)

    check = commands.add_parser("check", help="read all logs: are positions without a gap? exit code 3 = no")
    check.set_defaults(run=_check)

    for command in (show, read):
        command.add_argument("--secrets", action="store_true", help="show what looks like a secret, too")
    for command in (show, replay, retry, skip, discard, pause, resume, remove):
        command.add_argument("module", help="the module whose events the group reads")
        command.add_argument("group")
    for command in (ls, show, read, replay, retry, skip, discard, pause, resume, remove, check):
        command.add_argument(
            "--file", type=Path, help="the topology (default: $SPRINGTIDE_TOPOLOGY, then springtide.toml)"
        )
        command.add_argument("--json", action="store_true", help="as JSON instead of text")


def _start(text: str) -> Any:
    if text in ("beginning", "now"):
        return text
    if text.isdigit():
        return int(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise argparse.ArgumentTypeError(
            f"must be beginning, now, a position or a time with its zone, got {text!r}"
        )
    return when


# -- looking -------------------------------------------------------------------------------------------


def _ls(args: argparse.Namespace) -> int:
    async def look(platform: Platform) -> tuple[list[Any], list[Any]]:
        logs, groups = [], []
        for name, database in _databases(platform).items():
            logs += [{"module": name, **asdict(log)} for log in await operating.logs(database)]
            groups += [{"module": name, **asdict(group)} for group in await operating.groups(database)]
        return logs, groups

    logs, groups = _run(args, look)
    if args.json:
        print(_json({"logs": logs, "groups": groups}))
        return 0
    cells: list[tuple[str, ...]] = [("MODULE", "SHARD", "POSITION", "NOT NUMBERED")]
    cells += [(log["module"], log["shard"], f"{log['position']:,}", f"{log['waiting']:,}") for log in logs]
    print(_table(cells))
    if groups:
        print()
        cells = [("MODULE", "SHARD", "GROUP", "BEHIND", "SECONDS", "WAITING LANES", "DEAD", "SEEN", "")]
        print(_table([*cells, *map(_group_row, groups)]))
    return 0


def _group_row(group: dict[str, Any]) -> tuple[str, ...]:
    return (
        group["module"],
        group["shard"],
        group["group"],
        f"{group['waiting']:,}",
        f"{group['age']:.1f}",
        f"{group['blocked']:,}",
        f"{group['dead']:,}",
        _time(group["seen_at"]),
        "paused" if group["paused"] else "",
    )


def _show(args: argparse.Namespace) -> int:
    async def look(platform: Platform) -> tuple[list[Any], list[Any]]:
        database = platform.database(args.module)
        lanes = await operating.lanes(database, args.group)
        return lanes, await operating.dead_letters(database, args.group, most=args.n)

    lanes, dead = _run(args, look)
    if not args.secrets:
        lanes = [replace(lane, error=_without(lane.error)) for lane in lanes]
        dead = [replace(one, event=_hidden(one.event), error=redact_text(one.error)) for one in dead]
    if args.json:
        print(_json({"lanes": [asdict(lane) for lane in lanes], "dead": [asdict(one) for one in dead]}))
        return 0
    stuck = [lane for lane in lanes if lane.blocked or lane.needs or lane.retry_at or lane.worker]
    cells: list[tuple[str, ...]] = [("SHARD", "LANE", "POSITION", "TRIES", "STATE", "ERROR")]
    for lane in stuck:
        state = "blocked" if lane.blocked else f"needs {lane.needs}" if lane.needs else ""
        state = state or (f"again at {_time(lane.retry_at)}" if lane.retry_at else f"held by {lane.worker}")
        row = (lane.shard, str(lane.lane), str(lane.position), str(lane.attempt), state, _short(lane.error))
        cells.append(row)
    print(_table(cells) if stuck else f"no lane of {args.group} waits or is at work")
    if dead:
        print()
        cells = [("SHARD", "POSITION", "KIND", "KEY", "TRIES", "DEAD SINCE", "ERROR")]
        for one in dead:
            event = one.event
            kind, since = f"{event.kind}/{event.version}", _time(one.dead_at)
            where = (event.shard, str(event.position), kind, event.key or "")
            cells.append((*where, str(one.attempt), since, _short(one.error)))
        print(_table(cells))
    return 0


def _read(args: argparse.Namespace) -> int:
    async def look(platform: Platform) -> list[operating.LoggedEvent]:
        database = platform.database(args.module)
        shards = [args.shard] if args.shard is not None else list(database.pools)
        found = []
        for shard in shards:
            found += await operating.read(database, shard=shard, start=args.start, most=args.n, key=args.key)
        return found

    events = _run(args, look)
    if not args.secrets:
        events = [_hidden(event) for event in events]
    if args.json:
        print(_json([asdict(event) for event in events]))
        return 0
    cells = [("SHARD", "POSITION", "APPENDED", "KIND", "KEY", "EVENT")]
    for event in events:
        when, kind = _time(event.appended_at), f"{event.kind}/{event.version}"
        text = event.payload.decode("utf-8", "replace")
        cells.append((event.shard, str(event.position), when, kind, event.key or "", _short(text)))
    print(_table(cells) if events else "there are none")
    return 0


def _check(args: argparse.Namespace) -> int:
    async def look(platform: Platform) -> list[dict[str, Any]]:
        return [
            {"module": name, **asdict(gap)}
            for name, database in _databases(platform).items()
            for gap in await operating.check(database)
        ]

    gaps = _run(args, look)
    if args.json:
        print(_json(gaps))
    for gap in [] if args.json else gaps:
        between = f"between {gap['first']} and {gap['last']}"
        print(f"{gap['module']} on {gap['shard']}: {gap['count']} events {between}")
    if not gaps and not args.json:
        print("every position is there, once")
    return FOUND_GAPS if gaps else 0


# -- doing ---------------------------------------------------------------------------------------------


def _replay(args: argparse.Namespace) -> int:
    start, shard, lane = args.start, args.shard, args.lane
    return _do(
        args,
        lambda database: operating.replay(database, args.group, start, shard=shard, lane=lane),
        lambda lanes: f"{args.group}: {lanes} lanes begin again at {start}",
    )


def _retry(args: argparse.Namespace) -> int:
    shard, position = args.shard, args.position
    return _do(
        args,
        lambda database: operating.retry(database, args.group, shard=shard, position=position),
        lambda count: f"{args.group}: {count} dead letters and lanes are tried again",
    )


def _skip(args: argparse.Namespace) -> int:
    return _do(
        args,
        lambda database: operating.skip(database, args.group, shard=args.shard, lane=args.lane),
        lambda at: "that lane is not stuck" if at is None else f"{args.group}: {at} is a dead letter now",
    )


def _discard(args: argparse.Namespace) -> int:
    where = {"shard": args.shard, "position": args.position}
    return _do(
        args,
        lambda database: operating.discard(database, args.group, **where),
        lambda there: f"{args.group}: it is gone" if there else "there is no such dead letter",
    )


def _pause(args: argparse.Namespace) -> int:
    return _do(args, lambda db: operating.pause(db, args.group), lambda _: f"{args.group} is paused")


def _resume(args: argparse.Namespace) -> int:
    return _do(args, lambda db: operating.resume(db, args.group), lambda _: f"{args.group} goes on")


def _remove(args: argparse.Namespace) -> int:
    return _do(
        args,
        lambda database: operating.remove(database, args.group),
        lambda _: f"{args.group} is forgotten",
    )


def _do(
    args: argparse.Namespace, act: Callable[[Database], Awaitable[Any]], sentence: Callable[[Any], str]
) -> int:
    async def look(platform: Platform) -> Any:
        return await act(platform.database(args.module))

    result = _run(args, look)
    print(_json({"group": args.group, "result": result}) if args.json else sentence(result))
    return 0


# -- the platform --------------------------------------------------------------------------------------


def _run(args: argparse.Namespace, body: Callable[[Platform], Awaitable[Any]]) -> Any:
    from springtide.platform import Platform

    async def run() -> Any:
        Home.beside(args.file).use_environment()
        platform = Platform.from_topology(args.file)
        async with reaching(platform):
            return await body(platform)

    return asyncio.run(run())


def _databases(platform: Platform) -> dict[str, Database]:
    """Of the modules that publish something, or whose events somebody reads."""
    read = {group.source or module.name for module in platform.modules for group in module.groups}
    return {
        module.name: platform.database(module.name)
        for module in platform.modules
        if module.publishes or module.name in read
    }


# -- text ----------------------------------------------------------------------------------------------


def _hidden(event: operating.LoggedEvent) -> operating.LoggedEvent:
    """Without what looks like a secret."""
    try:
        payload = redact_value("", msgspec.json.decode(event.payload))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return replace(event, payload=redact_text(event.payload.decode("utf-8", "replace")).encode())
    return replace(event, payload=msgspec.json.encode(payload))


def _without(text: str | None) -> str | None:
    return None if text is None else redact_text(text)


def _json(value: Any) -> str:
    def plain(one: Any) -> Any:
        if isinstance(one, bytes):
            return one.decode("utf-8", "replace")
        return one.isoformat() if isinstance(one, datetime) else str(one)

    return json.dumps(value, indent=2, default=plain)


def _time(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%SZ")


def _short(text: str | None) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"


def _table(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
