"""Addresses that expire: HMAC-SHA256 over the path, the time it ends and the name to save it under.

The first key signs, all are believed, so a key can be changed without breaking what was given out.
`load_or_create` makes a key file at most once, whoever starts at the same time, for its owner's eyes only.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from springtide.errors import ConfigurationError

__all__ = ["Signer", "load_or_create"]

_TIME = re.compile(r"[0-9]{1,12}")
_SIGNATURE = re.compile(r"[0-9a-f]{64}")


class Signer:
    """`keys` are secrets; at least one."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = tuple(key.encode() for key in keys)

    def sign(self, path: str, expires: int, name: str | None) -> str:
        """The query that opens `path` until `expires` (seconds since 1970)."""
        fields = {"expires": str(expires)} | ({} if name is None else {"name": name})
        signature = _signature(self._keys[0], path, str(expires), name)
        return urlencode({**fields, "signature": signature})

    def opened(self, path: str, query: str, now: float) -> tuple[bool, str | None]:
        """Whether `query` opens `path` now, and the name that was signed with it."""
        try:
            pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=3, errors="strict")
        except ValueError:
            return False, None
        fields = dict(pairs)
        expires, signature, name = fields.get("expires"), fields.get("signature"), fields.get("name")
        if len(fields) < len(pairs) or not fields.keys() <= {"expires", "signature", "name"}:
            return False, None
        if expires is None or signature is None or not _TIME.fullmatch(expires):
            return False, None
        if not _SIGNATURE.fullmatch(signature) or int(expires) < now:
            return False, None
        genuine = [hmac.compare_digest(_signature(key, path, expires, name), signature) for key in self._keys]
        return any(genuine), name


def load_or_create(path: Path) -> tuple[str, ...]:
    """The keys in `path`, one a line, which is made with a new one when there is none. Blocks."""
    try:
        if not path.exists():
            _create(path)
        mode, text = path.stat().st_mode & 0o777, path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: the key for media cannot be read or made: {error}") from error
    if mode & 0o077:
        raise ConfigurationError(f"{path}: only its owner may read it (chmod 600), got mode {mode:o}")
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not keys:
        raise ConfigurationError(f"{path}: must have at least one key")
    return keys


def _create(path: Path) -> None:
    """Write beside, then link into place: nobody sees half a key, the first process wins."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first: its key is the one
            os.link(draft, path)
    finally:
        draft.unlink()


def _signature(key: bytes, path: str, expires: str, name: str | None) -> str:
    message = "\n".join((path, expires, "" if name is None else f"={name}"))
    return hmac.new(key, message.encode(), hashlib.sha256).hexdigest()
