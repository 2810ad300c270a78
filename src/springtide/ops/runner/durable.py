"""Files that are on the disk once they are said to be: a power failure leaves the old one or the new one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["replace_file", "sync_folder"]


def replace_file(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Make or replace `path`; whatever it raises (OSError), there is what was there before.

    mode: permissions, less the umask.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the entries of `folder` on the disk: what was made, renamed or removed in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
