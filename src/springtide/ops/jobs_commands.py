"""`springtide jobs ls | show | retry | discard | replay | pause | resume | check | scaling`.

They ask the databases themselves, through the platform's own pools: whether workers run or not. A list that
does not fit ends with the cursor of its next page. What changes jobs does so by their ids, or by a filter and
then at most `--limit` of them; `--dry-run` shows which.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from springtide.errors import JobError

if TYPE_CHECKING:
    from springtide.db import Database
    from springtide.jobs.operating import Changed, Wanted
    from springtide.platform import Platform

__all__ = ["add_commands"]

T = TypeVar("T")

PAGE = 50
"""Jobs that `ls` shows at once."""

ABSENT = 3
"""Exit code of `show` when nobody knows the job."""

NOT_READY = 3
"""Exit code of `check` when jobs or flows wait that this code cannot run; 1 and 2 are for what went wrong."""

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


def add_commands(subparsers: Any) -> None:
    """Add `jobs` and its commands to the command line's sub-parsers."""
    jobs = subparsers.add_parser("jobs", help="show jobs, step in, check them before a deploy")
    commands = jobs.add_subparsers(dest="jobs_command", required=True, metavar="COMMAND")

    ls = commands.add_parser(
        "ls", help="what is queued, per kind; with a filter, --limit or --all the jobs themselves"
    )
    _filter(ls)
    ls.add_argument("--all", action="store_true", help="every job that is queued")
    ls.add_argument("--limit", type=_count, help=f"jobs of a page (default: {PAGE})")
    ls.add_argument("--after", type=_id, metavar="CURSOR", help="what the page before ended with")
    ls.set_defaults(run=_ls)

    show = commands.add_parser("show", help="all that is known of a job; exit code 3 = nobody knows it")
    show.add_argument("id", type=_id, metavar="ID")
    show.add_argument("--secrets", action="store_true", help="show what looks like a secret, too")
    show.set_defaults(run=_show)

    retry = commands.add_parser("retry", help="make dead, parked and waiting jobs ready now")
    retry.add_argument("--attempts", type=_count, default=5, help="runs a dead letter gets (default: 5)")
    discard = commands.add_parser("discard", help="take jobs out of the queue; the history keeps them")
    discard.add_argument("--reason", default="", help="what the history says")
    replay = commands.add_parser(
        "replay", help="run dead or done jobs once more, as new jobs: their effects happen again"
    )
    for command, run in ((retry, _retry), (discard, _discard), (replay, _replay)):
        command.add_argument("id", nargs="*", type=_id, metavar="ID")
        _filter(command)
        command.add_argument(
            "--limit", type=_count, default=100, help="change at most so many (default: 100)"
        )
        command.add_argument("--dry-run", action="store_true", help="show which, change nothing")
        command.set_defaults(run=run)

    pause = commands.add_parser("pause", help="run no more jobs of a kind, or of a module, until resumed")
    pause.add_argument("--reason", default="", help="shown by ls")
    pause.set_defaults(run=_pause)
    resume = commands.add_parser("resume", help="undo `pause` of the same kind or module")
    resume.set_defaults(run=_resume)
    for command in (pause, resume):
        command.add_argument("--module", help="only of this module")
        command.add_argument("--kind", help="only this kind; else all of --module")

    check = commands.add_parser(
        "check", help="which queued jobs and flows this code cannot run; exit code 3 = there are some"
    )
    either = check.add_mutually_exclusive_group()
    either.add_argument(
        "--payloads", type=_number, default=None, metavar="N",
        help="read so many of each kind, version and shard (default: 1000)",
    )  # fmt: skip
    either.add_argument("--all", action="store_true", help="read every payload")
    check.set_defaults(run=_check)

    scaling = commands.add_parser("scaling", help="how many workers the jobs need, and which kinds need them")
    scaling.set_defaults(run=_scaling)

    for command in (ls, show, retry, discard, replay, pause, resume, check, scaling):
        command.add_argument(
            "--file", type=Path, help="the topology (default: $SPRINGTIDE_TOPOLOGY, then springtide.toml)"
        )
        command.add_argument("--json", action="store_true", help="as JSON instead of text")


def _filter(command: Any) -> None:
    command.add_argument("--module", action="append", default=[], help="again for more")
    command.add_argument("--kind", action="append", default=[], help="again for more")
    command.add_argument(
        "--state", action="append", default=[], help="dead, parked, done, ...; again for more"
    )
    command.add_argument("--key", help="ordering, limit or unique key")
    command.add_argument("--older", type=_duration, help="at least so long what it is: 90, 10m, 2h, 1d")
    command.add_argument("--younger", type=_duration, help="less long")


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number >= 0, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    number = _number(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return number


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be the id of a job, got {text!r}") from None


def _duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be seconds, or a number with s, m, h or d, got {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


def _wanted(args: argparse.Namespace) -> Wanted:
    from springtide.jobs.operating import Wanted

    return Wanted(
        ids=getattr(args, "id", None) or (), modules=args.module, states=args.state, kinds=args.kind,
        older=args.older, younger=args.younger, key=args.key,
    )  # fmt: skip


# -- looking -------------------------------------------------------------------------------------------


def _ls(args: argparse.Namespace) -> int:
    from springtide.jobs import operating
    from springtide.ops import _jobs_showing as showing

    wanted = _wanted(args)
    if not (wanted.narrow or args.all or args.after or args.limit):
        kinds = _on(args, lambda databases: operating.overview(databases, wanted))
        print(showing.dumped(kinds) if args.json else showing.kinds(kinds))
        return 0
    limit = args.limit or PAGE
    found = _on(args, lambda databases: operating.page(databases, wanted, limit=limit, after=args.after))
    if args.json:
        rows = [asdict(row) for row in found.rows]
        print(showing.dumped({"jobs": rows, "after": None if found.after is None else str(found.after)}))
        return 0
    print(showing.jobs(found.rows))
    if found.after is not None:
        print(f"more: --after {found.after}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from springtide.jobs import operating
    from springtide.ops import _jobs_showing as showing

    found = _on(args, lambda databases: operating.show(databases, args.id))
    if found is None:
        print("null" if args.json else f"nobody knows the job {args.id} (any more)")
        return ABSENT
    shown = showing.details(found, secrets=args.secrets)
    print(showing.dumped(shown) if args.json else showing.lines(shown))
    return 0


# -- stepping in ---------------------------------------------------------------------------------------


def _retry(args: argparse.Namespace) -> int:
    from springtide.jobs import operating

    return _change(args, "ready again", operating.RETRYABLE, operating.retry, attempts=args.attempts)


def _discard(args: argparse.Namespace) -> int:
    from springtide.jobs import operating

    return _change(args, "discarded", operating.DISCARDABLE, operating.discard, reason=args.reason)


def _replay(args: argparse.Namespace) -> int:
    from springtide.jobs import operating

    return _change(args, "enqueued once more", operating.REPLAYABLE, operating.replay)


def _change(
    args: argparse.Namespace,
    done: str,
    states: Collection[str],
    act: Callable[..., Awaitable[list[Changed]]],
    **options: Any,
) -> int:
    from springtide.jobs import operating
    from springtide.ops import _jobs_showing as showing

    wanted = _wanted(args)
    if not wanted.narrow:
        raise JobError("say which jobs: by their ids, or by --state, --kind, --key, --older or --younger")
    options["limit"] = args.limit
    if args.dry_run:
        rows = _on(args, lambda databases: operating.preview(databases, wanted, states, **options))
        if args.json:
            print(showing.dumped({"dry_run": True, "jobs": [asdict(row) for row in rows]}))
        else:
            print(showing.jobs(rows))
            print(f"{len(rows)} jobs would be {done}")
        return 0
    changed = _on(args, lambda databases: act(databases, wanted, **options))
    if args.json:
        print(showing.dumped({"dry_run": False, "jobs": [asdict(one) for one in changed]}))
        return 0
    for one in changed:
        again = f" (again: {one.replayed})" if one.replayed else ""
        print(f"{one.id}  {one.module}  {one.kind}/{one.version}{again}")
    print(f"{len(changed)} jobs {done}")
    return 0


def _pause(args: argparse.Namespace) -> int:
    from springtide.jobs import operating

    platform, options = _platform(args.file), _pausable(args)

    async def begin() -> tuple[list[str], str | None]:
        databases = _databases(platform)
        where = await operating.pause(databases, reason=args.reason, **options)
        return where, await _unknown(platform, databases, **options)

    where, unknown = asyncio.run(_opened(platform, begin))
    _say(args, "paused", where)
    if unknown is not None:
        print(f"springtide: {unknown}", file=sys.stderr)
    return 0


def _resume(args: argparse.Namespace) -> int:
    from springtide.jobs import operating

    options = _pausable(args)

    async def end(databases: list[Database]) -> tuple[list[str], list[str]]:
        where = await operating.resume(databases, **options)
        wanted = operating.Wanted(modules=[args.module] if args.module else ())
        kept = [row.module for row in await operating.overview(databases, wanted) if row.kind is None]
        return where, kept

    where, kept = _on(args, end)
    _say(args, "resumed", where)
    for module in kept if args.kind else ():
        how = f"springtide jobs resume --module {module}"
        print(f"springtide: all jobs of {module} are paused; to resume them: {how}", file=sys.stderr)
    return 0


def _pausable(args: argparse.Namespace) -> dict[str, Any]:
    if not (args.kind or args.module):
        raise JobError("say what: --kind, --module, or a kind of a module")
    return {"module": args.module, "kind": args.kind}


def _say(args: argparse.Namespace, done: str, where: list[str]) -> None:
    what = args.kind or "all jobs"
    if args.json:
        print(json.dumps({"kind": args.kind, done: where}, indent=2))
    else:
        print("\n".join(f"{done} {what} of {one}" for one in where) or f"{what} was not paused")


async def _unknown(
    platform: Platform, databases: list[Database], *, module: str | None, kind: str | None
) -> str | None:
    """What to say of a kind that neither this code nor a queue has, which may be one that comes later."""
    from springtide.jobs import operating
    from springtide.topology.suggest import nearest

    modules = [one for one in platform.modules if module in (None, one.name)]
    known = {handler.kind.kind for one in modules for handler in platform.handlers(one)}
    if kind is None or kind in known:
        return None
    wanted = operating.Wanted(modules=[module] if module else ())
    known |= {row.kind for row in await operating.overview(databases, wanted) if row.kind and row.counts}
    if kind in known:
        return None
    guess = nearest(kind, sorted(known))
    hint = f"did you mean {guess}?" if guess else f"there are: {', '.join(sorted(known)) or 'none'}"
    return f"no queue here knows jobs of kind {kind} ({hint}); should some come, they are paused"


def _check(args: argparse.Namespace) -> int:
    from springtide.flows import checking as flows_checking
    from springtide.jobs import checking
    from springtide.ops import _jobs_showing as showing

    most = None if args.all else checking.DEFAULT_PAYLOADS if args.payloads is None else args.payloads
    platform = _platform(args.file)
    modules = {
        platform.database(module.name): module for module in platform.modules if module.migrations is not None
    }

    async def look() -> checking.Report:
        handlers = {database: platform.handlers(module) for database, module in modules.items()}
        workflows = {database: module.workflows for database, module in modules.items()}
        jobs = await checking.check(handlers, payloads=most)
        flows = await flows_checking.check(workflows, payloads=most)
        return checking.Report(
            queued=jobs.queued, flows=flows.flows, read=jobs.read + flows.read,
            findings=[*jobs.findings, *flows.findings],
        )  # fmt: skip

    report = asyncio.run(_opened(platform, look))
    if args.json:
        print(showing.dumped({"ready": report.ready, **asdict(report)}))
    else:
        print(showing.report(report))
    return 0 if report.ready else NOT_READY


def _scaling(args: argparse.Namespace) -> int:
    from springtide.jobs import scaling
    from springtide.ops import _jobs_showing as showing

    platform = _platform(args.file)
    loads = asyncio.run(_opened(platform, lambda: scaling.loads(platform.job_databases)))
    found = scaling.wanted(loads, platform.bounds)
    print(showing.dumped(found.page()) if args.json else showing.scaling(found))
    return 0


def _on(args: argparse.Namespace, ask: Callable[[list[Database]], Awaitable[T]]) -> T:
    platform = _platform(args.file)
    return asyncio.run(_opened(platform, lambda: ask(_databases(platform))))


def _databases(platform: Platform) -> list[Database]:
    return [platform.database(module.name) for module in platform.modules if module.migrations is not None]


async def _opened(platform: Platform, ask: Callable[[], Awaitable[T]]) -> T:
    """With the platform's pools open, and nothing else of it."""
    from springtide.ops._reaching import reaching

    async with reaching(platform):
        return await ask()


def _platform(file: Path | None) -> Platform:
    from springtide.ops.runner.home import Home
    from springtide.platform import Platform

    Home.beside(file).use_environment()
    return Platform.from_topology(file)
