"""`springtide backup | restore`: backups on the command line, beside a running platform or without one."""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from springtide.errors import ConfigurationError, RunnerError
from springtide.ops.runner import pgdata
from springtide.ops.runner.accounts import Account, server_account
from springtide.ops.runner.backups.choosing import said
from springtide.ops.runner.backups.plan import Group, Plan
from springtide.ops.runner.backups.restoring import Site, restore
from springtide.ops.runner.backups.server import own_account
from springtide.ops.runner.backups.store import Backup, Store
from springtide.ops.runner.backups.taking import take, verify
from springtide.ops.runner.home import Home
from springtide.ops.runner.installs import SHARED, find_install, reachable_install
from springtide.ops.runner.leftovers import left_databases
from springtide.topology import load

__all__ = ["add_commands", "moment"]


def add_commands(subparsers: Any) -> None:
    """Add the two commands to the command line's sub-parsers."""
    backup = subparsers.add_parser("backup", help="take a base backup now, list backups, verify them")
    backup.add_argument("action", nargs="?", choices=("now", "list", "verify"), default="now")
    backup.add_argument("name", nargs="?", help="with verify: only this one")
    backup.add_argument("--fast", action="store_true", help="begin at once, with a checkpoint that is felt")
    backup.add_argument("--json", action="store_true", help="as JSON instead of text")
    backup.set_defaults(run=_backup)

    back = subparsers.add_parser("restore", help="put a cluster back to a moment; the platform must be down")
    when = back.add_mutually_exclusive_group(required=True)
    when.add_argument("--to", metavar="TIME", help="such as 2026-03-14T15:09:26+01:00, with its time zone")
    when.add_argument("--latest", action="store_true", help="to the newest moment there is")
    back.add_argument("--backup", metavar="NAME", help="from this backup (default: the newest that fits)")
    back.set_defaults(run=_restore)

    for command in (backup, back):
        command.add_argument("--cluster", help="only this one (default: each, or the only one)")
        command.add_argument(
            "--file",
            type=Path,
            default=Path("springtide.toml"),
            help="the topology (default: springtide.toml)",
        )


def moment(text: str) -> float:
    """A moment as it is written, in seconds since 1970. Raises ConfigurationError without a time zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"--to must look like 2026-03-14T15:09:26+01:00, got {text!r}") from None
    if found.tzinfo is None:
        raise ConfigurationError(f"--to must name its time zone, as {text}+01:00 or {text}Z do, got {text!r}")
    return found.timestamp()


def _plan(args: argparse.Namespace) -> Plan:
    topology = replace(load(args.file), source=args.file.absolute())
    home = Home.beside(args.file)
    home.create()
    return Plan(topology, home)


def _chosen(plan: Plan, args: argparse.Namespace) -> list[Group]:
    return list(plan.groups) if args.cluster is None else [plan.group(args.cluster)]


def _backup(args: argparse.Namespace) -> int:
    if args.name is not None and args.action != "verify":
        raise ConfigurationError(f"only `verify` takes a name, got {args.name!r}")
    plan = _plan(args)
    return {"now": _now, "list": _list, "verify": _verify}[args.action](plan, args)


def _now(plan: Plan, args: argparse.Namespace) -> int:
    async def one(group: Group) -> Backup:
        store, server = await asyncio.to_thread(plan.store, group), await plan.server(group)
        await asyncio.to_thread(store.create, server.account)
        taken = await take(
            store,
            server,
            keep=plan.spec.keep,
            max_rate_bytes=plan.spec.max_rate_bytes,
            log=plan.log,
            fast=args.fast,
        )
        return taken.backup

    taken = [asyncio.run(one(group)) for group in _chosen(plan, args)]
    if args.json:
        print(json.dumps([asdict(backup) for backup in taken]))
    for backup in [] if args.json else taken:
        print(f"{backup.name}: {_size(backup)}, verified")
    return 0


def _list(plan: Plan, args: argparse.Namespace) -> int:
    found = [_found(plan, group) for group in _chosen(plan, args)]
    if args.json:
        print(json.dumps(found))
        return 0
    for cluster in found:
        print(f"{cluster['cluster']}:")
        for backup in cluster["backups"]:
            print(f"  {backup['name']}  complete at {said(backup['ended'])}  {backup['size_bytes'] >> 20} MB")
        if not cluster["backups"]:
            print("  no backup")
        elif cluster["archived_until"] is not None:
            print(f"  any moment from {said(cluster['from'])} to {said(cluster['archived_until'])}, and what")
            print("  the data folder knows beyond that")
        if cluster["gap"]:
            print(f"  the log has a gap: {cluster['gap']} is missing")
    return 0


def _found(plan: Plan, group: Group) -> dict[str, Any]:
    store = plan.store(group)
    backups = store.backups()
    names = store.archived()
    gaps = [name for backup in backups for name in store.gaps(backup)]
    until = max((_archived_at(store, name) for name in names), default=None)
    return {
        "cluster": group.cluster,
        "folder": str(store.folder),
        "backups": [asdict(backup) for backup in backups],
        "from": min((backup.ended for backup in backups), default=None),
        "archived_until": until,
        "gap": gaps[0] if gaps else None,
    }


def _archived_at(store: Store, name: str) -> float:
    try:
        return (store.wal / name).stat().st_mtime
    except FileNotFoundError:  # it expired between the two looks
        return 0.0


def _verify(plan: Plan, args: argparse.Namespace) -> int:
    problems, count = [], 0
    for group in _chosen(plan, args):
        store = plan.store(group)
        for backup in store.backups():
            if args.name in (None, backup.name):
                count += 1
                found = asyncio.run(_verified(plan, group, store, backup))
                problems += [{"backup": backup.name, "problem": text} for text in found]
                if not args.json:
                    print("\n".join(found) if found else f"{backup.name}: nothing is wrong")
    if count == 0:
        raise RunnerError(
            f"there is no backup {args.name!r}" if args.name else "there is no backup to verify"
        )
    if args.json:
        print(json.dumps({"verified": count, "problems": problems}))
    return 1 if problems else 0


async def _verified(plan: Plan, group: Group, store: Store, backup: Backup) -> list[str]:
    if group.given:
        programs, account = (await plan.server(group)).programs, own_account()
    else:
        programs, account = await asyncio.to_thread(_tools, store.data(backup))
    return await verify(store, backup, programs, account, log=plan.log)


def _tools(data: Path) -> tuple[Path, Account]:
    """The programs of the version that made `data`, and as whom they run."""
    account = pgdata.owner(data, server_account())
    return reachable_install(find_install(data), account).root / "bin", account


def _restore(args: argparse.Namespace) -> int:
    wanted = None if args.latest else moment(args.to)
    plan = _plan(args)
    group = plan.group(args.cluster)
    store = plan.store(group)
    if group.given:
        raise RunnerError(
            f"cluster {group.cluster} is a server that somebody else runs, and only who runs it can put "
            f"data into it. Each {store.base}/<name>/data is a data folder of PostgreSQL: see docs/backups.md"
        )
    with plan.home.lock():
        if left := left_databases(plan.home):
            raise RunnerError(
                f"PostgreSQL still runs (process {left[0].pid}): stop it with `springtide down` before"
            )
        site = _site(plan, group, store)
        restored = asyncio.run(restore(store, site, moment=wanted, name=args.backup))
    reached = said(restored.reached) if restored.reached is not None else "the end of that backup"
    print(f"{group.cluster} is restored from backup {restored.backup.name} to {reached}")
    for path in restored.aside:
        print(f"what was there is kept in {path}; remove it when you do not need it any more")
    return 0


def _site(plan: Plan, group: Group, store: Store) -> Site:
    account = server_account()
    node = plan.primary(group)
    data, *replicas = (
        pgdata.locate(plan.home.path, name, platform=plan.topology.name, account=account, shared=SHARED)
        for name in dict.fromkeys((node, *group.nodes))
    )
    backups = store.backups()
    origin = store.data(backups[-1]) if backups else data
    if (origin / "PG_VERSION").exists():
        account = pgdata.owner(origin, account)
    return Site(
        data=data,
        replicas=tuple(replicas),
        account=account,
        install=reachable_install(find_install(origin), account),
        password=_password(plan.home.path / "secrets" / f"{node}.password"),
        log=plan.log,
        archives=store.elsewhere(plan.home.path) is None,
    )


def _password(path: Path) -> str:
    """That of the platform, which the restored database gets; made when it was lost with everything."""
    return pgdata.secret(path, path.parent)


def _size(backup: Backup) -> str:
    return f"{backup.size_bytes / 2**20:.0f} MB in {backup.ended - backup.began:.0f} s"
