"""`springtide cache stats | hot | get | invalidate`: what a platform's cache holds, and how well it works.

Numbers of processes come from the files that each writes every few seconds (`run/cache/`), so they are this
machine's; what is in the shared level is asked of Redis. `invalidate` is a write like any other: its row is
committed, told to Redis at once and by the relay again, so it is fenced and heard by every process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from springtide.cache._report import Report, merged, read_reports
from springtide.errors import CacheDefinitionError, ConfigurationError
from springtide.ops.runner.home import Home
from springtide.ops.runner.processes import identify

if TYPE_CHECKING:
    from springtide.cache import CacheClass
    from springtide.platform import Platform

__all__ = ["add_commands"]

NOT_RUNNING = 3
"""Exit code of `stats` when no process of this machine reports, as of `status`."""

ABSENT = 3
"""Exit code of `get` when the shared level does not have the value; 1 is for what went wrong."""

HEADER = ("CLASS", "READS", "HITS", "MEMORY", "REDIS", "LOADS", "MS", "STALE", "REFUSED", "BYPASSED", "KEPT")

_NUMBER = re.compile(r"-?[0-9]+")


def add_commands(subparsers: Any) -> None:
    """Add `cache` and its four commands to the command line's sub-parsers."""
    cache = subparsers.add_parser("cache", help="show what the cache does and holds, and invalidate")
    commands = cache.add_subparsers(dest="cache_command", required=True, metavar="COMMAND")

    stats = commands.add_parser(
        "stats", help="hit rates and loads per class, over the processes of this machine; exit code 3 = none"
    )
    stats.set_defaults(run=_stats)

    hot = commands.add_parser("hot", help="the keys that all processes were asked for most of late")
    hot.add_argument("cls", nargs="?", metavar="CLASS", help="only of this class")
    hot.add_argument("-n", type=_count, default=10, help="keys of each class (default: 10)")
    hot.set_defaults(run=_hot)

    get = commands.add_parser(
        "get", help="a value in the shared level, and what decides over it; exit code 3 = not there"
    )
    get.add_argument("cls", metavar="CLASS")
    get.add_argument("key", nargs="*", metavar="KEY", help="an argument; a number as text: '\"7\"'")
    get.set_defaults(run=_get)

    invalidate = commands.add_parser("invalidate", help="no process gives out these values any more")
    invalidate.add_argument("cls", metavar="CLASS")
    invalidate.add_argument("key", nargs="*", metavar="KEY", help="an argument; a number as text: '\"7\"'")
    invalidate.add_argument(
        "--tag", action="append", default=[], type=_tag, help="values with this tag; again for more"
    )
    invalidate.set_defaults(run=_invalidate)

    for command in (stats, hot, get, invalidate):
        command.add_argument(
            "--file", type=Path, help="the topology (default: $SPRINGTIDE_TOPOLOGY, then springtide.toml)"
        )
        command.add_argument("--json", action="store_true", help="as JSON instead of text")


def _count(text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def _tag(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be the name of a tag, got ''")
    return text


# -- over the processes of this machine ----------------------------------------------------------------


def _stats(args: argparse.Namespace) -> int:
    _check_cached(args.file)
    running = [report for report in _reports(args.file) if _lives(report)]
    rows = _added(running)
    if args.json:
        print(json.dumps({"processes": [report.node for report in running], "classes": rows}, indent=2))
    elif not running:
        print("no process with a cache runs here")
    else:
        print(f"{len(running)} processes: {', '.join(report.node for report in running)}")
        print(_table([HEADER, *map(_row, rows)]))
    return 0 if running else NOT_RUNNING


def _reports(file: Path | None) -> list[Report]:
    return read_reports(Home.beside(file).run / "cache")


def _lives(report: Report) -> bool:
    """A process of that number that began before the report was written."""
    return identify(report.pid) is not None and report.age() < 60.0


def _added(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """All processes together, by class."""
    rows: dict[str, dict[str, Any]] = {}
    for report in reports:
        for name, one in report.classes.items():
            row = rows.setdefault(name, {"class": name, "entries": 0, "bytes": 0})
            row["entries"] += one.entries
            row["bytes"] += one.bytes
            for key, count in one.counts.items():
                row[key] = row.get(key, 0) + count
            for key, reasons in one.reasons.items():
                known = row.setdefault(key, {})
                for reason, count in reasons.items():
                    known[reason] = known.get(reason, 0) + count
    for row in rows.values():
        row["hits"] = row["l1_hits"] + row["l2_hits"] + row["joined"] + sum(row["stale_served"].values())
        row["reads"] = row["hits"] + row["misses"] + sum(row["bypassed"].values())
        row["hit_rate"] = row["hits"] / row["reads"] if row["reads"] else None
    return sorted(rows.values(), key=lambda row: -row["reads"])


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    reads, loads = row["reads"], row["loads"]

    def part(count: int) -> str:
        return f"{count / reads:.1%}" if reads else ""

    return (
        row["class"],
        f"{reads:,}",
        part(row["hits"]),
        part(row["l1_hits"]),
        part(row["l2_hits"]),
        f"{loads:,}",
        f"{row['load_seconds'] / loads * 1000:.1f}" if loads else "",
        f"{sum(row['stale_served'].values()):,}",
        f"{sum(row['refused'].values()):,}",
        f"{sum(row['bypassed'].values()):,}",
        f"{row['entries']:,}, {row['bytes'] / 2**20:.1f} MB",
    )


def _table(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


# -- over the shared level -----------------------------------------------------------------------------


def _hot(args: argparse.Namespace) -> int:
    platform = _platform(args.file)
    names = [_class(platform, args.cls).name] if args.cls else list(platform.cache.classes)
    found = asyncio.run(_hottest(platform, names, args.n))
    if not any(found.values()):
        sums = merged(_reports(args.file))
        found = {name: sums.get(name, [])[: args.n] for name in names}
    if args.json:
        rows = {
            name: [{"key": list(key), "reads": round(reads, 1)} for key, reads in top]
            for name, top in found.items()
        }
        print(json.dumps(rows, indent=2))
        return 0
    cells = [("CLASS", "READS", "KEY")]
    for name, top in found.items():
        cells += [(name, f"{reads:,.0f}", platform.cache.classes[name].key(*key)) for key, reads in top]
    print(_table(cells) if len(cells) > 1 else "nothing was asked for of late")
    return 0


async def _hottest(platform: Platform, names: Sequence[str], count: int) -> dict[str, Any]:
    from springtide.ops._cache_looking import hottest

    return await hottest(platform, names, count)


def _get(args: argparse.Namespace) -> int:
    from springtide.ops._cache_looking import look, sentences

    platform = _platform(args.file)
    cls = _class(platform, args.cls)
    key = _key(cls, args.key)
    found = asyncio.run(look(platform, cls, key))
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(line for place in found for line in sentences(place)))
    return 0 if any(place["there"] for place in found) else ABSENT


def _invalidate(args: argparse.Namespace) -> int:
    from springtide.ops._cache_looking import invalidate

    platform = _platform(args.file)
    cls = _class(platform, args.cls)
    key = _named(cls, args.key, args.tag)
    where = asyncio.run(invalidate(platform, cls, key, args.tag))
    if args.json:
        print(json.dumps({"class": cls.name, "key": list(key), "tags": args.tag, "told": where}))
        return 0
    what = [cls.key(*key)] if key or not args.tag else []
    print(f"invalidated {', '.join([*what, *(f'tag {tag}' for tag in args.tag)])}")
    for shard in (shard for shard, told in where.items() if not told):
        print(f"{shard}: committed; Redis could not be told now, the relay does it")
    return 0


def _check_cached(file: Path | None) -> None:
    """Raises ConfigurationError where the topology has no cache."""
    from springtide.topology import load

    chosen = file or Path(os.environ.get("SPRINGTIDE_TOPOLOGY", "springtide.toml"))
    if load(chosen).cache is None:
        raise ConfigurationError(f"{chosen} has no [cache]: nothing is kept")


def _platform(file: Path | None) -> Platform:
    from springtide.platform import Platform

    _check_cached(file)
    Home.beside(file).use_environment()
    return Platform.from_topology(file)


def _class(platform: Platform, name: str) -> CacheClass[Any]:
    classes = platform.cache.classes
    if name not in classes:
        known = ", ".join(sorted(classes)) or "none"
        raise CacheDefinitionError(f"there is no cache class {name!r} (known: {known})")
    return classes[name]


def _named(cls: CacheClass[Any], texts: Sequence[str], tags: Sequence[str]) -> tuple[int | str, ...]:
    """The key that is to be invalidated, () where tags alone are."""
    if tags and not cls.definition.tagger.any:
        raise CacheDefinitionError(f"{cls.name} is defined without tags, got --tag {tags[0]}")
    return _key(cls, texts) if texts or not tags else ()


def _key(cls: CacheClass[Any], texts: Sequence[str]) -> tuple[int | str, ...]:
    """The arguments that the words of a command line mean."""
    pattern = cls.definition.pattern
    if len(texts) != len(pattern.arguments):
        takes = " ".join(name.upper() for name in pattern.arguments) or "no KEY"
        got = " ".join(texts) or "nothing"
        raise CacheDefinitionError(f"the key of {pattern.text} is {takes}, got {got}")
    key: list[int | str] = []
    for text, kinds in zip(texts, pattern.kinds, strict=True):
        if int in kinds and _NUMBER.fullmatch(text):
            key.append(int(text))
        elif len(text) > 1 and text[0] == text[-1] == '"':
            key.append(text[1:-1])
        else:
            key.append(text)
    if not cls.takes(key):
        raise CacheDefinitionError(f"{pattern.text} has no such key, got {' '.join(texts)}")
    return tuple(key)
