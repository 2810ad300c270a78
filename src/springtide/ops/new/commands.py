"""`springtide new NAME`: write a small working application."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from springtide.ops.new.project import write_project

__all__ = ["add_commands"]


def add_commands(subparsers: Any) -> None:
    """Add `new` to the command line's sub-parsers."""
    new = subparsers.add_parser("new", help="write a small working application into a new folder")
    new.add_argument("name", metavar="NAME", help="its package: lower-case letters, digits and _")
    new.set_defaults(run=_new)


def _new(args: argparse.Namespace) -> int:
    files = write_project(args.name, Path.cwd())
    print(f"wrote {len(files)} files to {args.name}/. Next:\n\n  cd {args.name}\n  springtide up")
    return 0
