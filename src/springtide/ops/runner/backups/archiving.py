"""How PostgreSQL hands over its log: a small script that it calls with each complete file.

The script copies under a temporary name, syncs, links the copy to its final name and syncs the folder: a
file that is there is whole and survives a power failure. It never overwrites: a file that is there already
and is the same counts as archived, one that differs is an error, as a full disk is. PostgreSQL then keeps
the file and asks again, for ever; `springtide status` says so. The zeros at the end of a file that was
closed early take no room. It makes no folder, so a disk that is not mounted is not filled by mistake.
The copy keeps its time: that of a history file says when its timeline began, however late it is archived.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SCRIPT", "SCRIPT_NAME", "UNFINISHED", "UNFINISHED_SCRIPT", "Archiving", "restore_script"]

SCRIPT_NAME = "springtide-archive.sh"

SCRIPT = """\
# Written by Springtide at every start. Archives one file of the log: PATH NAME FOLDER
set -eu
target="$3/$2"
if [ -e "$target" ]; then
    if cmp -s -- "$1" "$target"; then
        sync -- "$target" "$3"
        exit 0
    fi
    echo "springtide: $target is there already, with another content: it is not overwritten" >&2
    exit 1
fi
temporary="$3/.new-$2.$$"
trap 'rm -f -- "$temporary"' EXIT
trap 'exit 1' HUP INT TERM
cp --sparse=always --preserve=timestamps -- "$1" "$temporary"
sync -- "$temporary"
ln -- "$temporary" "$target"
sync -- "$3"
"""

UNFINISHED = ".unfinished"
"""Ends the name of a file that its server will not complete any more (see rescuing.py)."""

UNFINISHED_SCRIPT = f"""\
set -eu
temporary="$3/.new-$2{UNFINISHED}.$$"
trap 'rm -f -- "$temporary"' EXIT
cp --sparse=always --preserve=timestamps -- "$1" "$temporary"
sync -- "$temporary"
mv -f -- "$temporary" "$3/$2{UNFINISHED}"
sync -- "$3"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archiving:
    """Where the log goes; `timeout`: a file that is not full is archived after this many seconds."""

    folder: Path
    timeout: float

    def __post_init__(self) -> None:
        if self.timeout <= 0:
            raise ValueError(f"timeout must be > 0 seconds, got {self.timeout}")

    def settings(self) -> str:
        """Lines of postgresql.conf."""
        folder = shlex.quote(str(self.folder)).replace("%", "%%")
        command = f"/bin/sh {SCRIPT_NAME} %p %f {folder}".replace("'", "''")
        return f"archive_command = '{command}'\narchive_timeout = {math.ceil(self.timeout)}"


def restore_script(archive: Path, olds: Sequence[Path]) -> str:
    """Fetches one file for a recovery: NAME PATH. First from `archive`, then from the log of data folders.

    Exit code 1 means that there is no such file, which is where a recovery ends. Any other failure must not
    be taken for that, nor an archive that is gone: above 125 PostgreSQL gives up instead of going on with
    less.
    """
    folders = [archive, *(old / "pg_wal" for old in olds)]
    places = [f'{shlex.quote(str(folder))}/"$1"' for folder in folders]
    places += [f'{shlex.quote(str(archive))}/"$1"{end}' for end in (UNFINISHED, ".partial")]
    return f"""\
[ -d {shlex.quote(str(archive))} ] || exit 200
for place in {" ".join(places)}; do
    if [ -e "$place" ]; then
        cp -- "$place" "$2" || exit 200
        exit 0
    fi
done
exit 1
"""
