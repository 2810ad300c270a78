"""Files of keys, one a line: created at most once, whoever starts at the same time, for their owner alone.

A line is a scheme and the key's bytes, `<scheme> <base64url>`; padding may be left out.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from springtide.errors import ConfigurationError

__all__ = ["key_of", "read_or_create"]


def read_or_create(path: Path, new_line: Callable[[], str], *, what: str) -> list[str]:
    """The lines of `path`, which is made with one new line when there is none. Blocks: call it off the loop.

    `what` names the keys in ConfigurationError, which says why they cannot be read, or that others may.
    """
    try:
        if not path.exists():
            _create(path, new_line() + "\n")
        mode = path.stat().st_mode & 0o777
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {what} cannot be read or made: {error}") from error
    if mode & 0o077:
        raise ConfigurationError(f"{path}: only its owner may read it (chmod 600), got mode {mode:o}")
    return text.splitlines()


def _create(path: Path, text: str) -> None:
    """Write beside, then link into place: nobody sees half a file, the first process wins."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first: its key is the one
            os.link(draft, path)
    finally:
        draft.unlink()


def key_of(line: str, where: str, *, scheme: str, least: int, most: int | None = None) -> bytes:
    """The key of a line, `least` to `most` bytes. Raises ConfigurationError saying `where`, never the key."""
    given, _, encoded = line.strip().partition(" ")
    size = f"{least} bytes" if most == least else f"at least {least} bytes"
    fault = ConfigurationError(f"{where}: must be '{scheme} <base64url of {size}>'")
    if given != scheme:
        raise fault
    encoded = encoded.strip().rstrip("=")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise fault from None
    if len(key) < least or (most is not None and len(key) > most):
        raise fault
    return key
