"""What makes a data folder a standby: whom it follows, its slot there, its signal file, its repairs.

A folder with `standby.signal` never becomes a primary by being started. A folder that must be repaired before
it may be opened again has a note beside it, `.repair-<node>`: "rewind" when it may hold what its upstream
does not (it was primary, or was ahead when another became primary), "copy" when only a new base backup helps,
because a rewind was cut off. The note lies outside, for a rewind removes what its source does not have.
Synchronous and short, as in pgdata.py.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from springtide.ops.runner.accounts import Account
from springtide.ops.runner.durable import replace_file, sync_folder

__all__ = [
    "END_READERS",
    "Upstream",
    "is_standby",
    "make_standby",
    "repair_wanted",
    "settings",
    "slot_name",
    "want_repair",
]

END_READERS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
        AND pg_is_in_recovery() AND EXISTS (
            SELECT FROM pg_stat_activity WHERE backend_type = 'startup'
                AND (wait_event LIKE 'RecoveryConflict%' OR wait_event_type IN ('BufferPin', 'Lock'))
        );
"""
"""While replay waits for somebody: end the sessions that it may wait for, which have a snapshot, a lock or a
page in use. Nobody once the server has left recovery."""

SLOT_PREFIX = "springtide_"
SIGNAL = "standby.signal"
PASSFILE = "springtide.pass"


@dataclass(frozen=True, slots=True)
class Upstream:
    """The server that a standby follows: its node, whose password counts, and its port on 127.0.0.1."""

    node: str
    port: int


def slot_name(node: str) -> str:
    """The replication slot of `node` on whichever server it follows; different nodes, different slots."""
    plain = re.sub(r"[^a-z0-9_]", "_", node.lower())
    if plain.replace("_", "-") == node and len(plain) <= 40:
        return SLOT_PREFIX + plain
    return f"{SLOT_PREFIX}{plain[:40]}_{hashlib.sha256(node.encode()).hexdigest()[:8]}"


def conninfo(upstream: Upstream, *, user: str, name: str, passfile: Path, root: Path | None) -> str:
    """How libpq reaches `upstream`; the password is in `passfile`, which only the server's account reads.

    `root`: the authority that `upstream` must prove itself by; None: it has no TLS.
    """
    values = {
        "host": "127.0.0.1",
        "port": str(upstream.port),
        "user": user,
        "dbname": "postgres",
        "application_name": name,
        "connect_timeout": "5",
        "passfile": str(passfile),
    }
    if root is not None:
        values |= {"sslmode": "verify-full", "sslrootcert": str(root)}
    escaped = {key: value.replace("\\", "\\\\").replace("'", "\\'") for key, value in values.items()}
    return " ".join(f"{key}='{value}'" for key, value in escaped.items())


def settings(
    node: str,
    data: Path,
    upstream: Upstream | None,
    *,
    user: str,
    root: Path | None,
    confirming: Sequence[str] = (),
    replicated: bool = False,
    urgent: bool = False,
) -> str:
    """What springtide.conf says about replication; all of it changes with a reload.

    `confirming`: nodes of which one must have a commit on its disk before it is acknowledged; () = nobody.
    `urgent`: replay waits for no reader.
    """
    lines = ["", "# Replication. A standby that lost its upstream asks again after this time."]
    lines.append("wal_retrieve_retry_interval = '500ms'")
    names = ", ".join(f'"{name}"' for name in confirming)
    lines.append(f"synchronous_standby_names = {_quoted(f'ANY 1 ({names})' if names else '')}")
    if replicated:
        lines.append("# Beyond what slots keep: a primary that was replaced is rewound with it.")
        lines.append("wal_keep_size = '256MB'")
    if urgent:
        lines.append("# It is being promoted: who reads what replay removes is cancelled at once.")
        lines += ["max_standby_streaming_delay = 0", "max_standby_archive_delay = 0"]
    if upstream is not None:
        reach = conninfo(upstream, user=user, name=node, passfile=data / PASSFILE, root=root)
        lines.append(f"primary_conninfo = {_quoted(reach)}")
        lines.append(f"primary_slot_name = {_quoted(slot_name(node))}")
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    """As a string of postgresql.conf, which also knows escapes by backslash."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def write_passfile(path: Path, password: str, account: Account) -> None:
    """Replace `path`, readable by `account` only."""
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"127.0.0.1:*:*:*:{escaped}\n")
    account.own(temporary)
    temporary.replace(path)


def is_standby(data: Path) -> bool:
    return (data / SIGNAL).exists()


def make_standby(data: Path, account: Account) -> None:
    """From now on `data` follows; also a running server's next start does."""
    signal = data / SIGNAL
    if not signal.exists():
        signal.touch(mode=0o600)
        account.own(signal)
        sync_folder(data)


def _note(data: Path) -> Path:
    return data.parent / f".repair-{data.name}"


def repair_wanted(data: Path) -> str | None:
    """How `data` must be repaired before it may be opened: "rewind", "copy", or not at all."""
    try:
        text = _note(data).read_text().strip()
    except FileNotFoundError:
        return None
    return text if text == "rewind" else "copy"


def want_repair(data: Path, how: str | None) -> None:
    """Note that `data` must be repaired ("rewind" or "copy"), or that it is (None); on the disk at return."""
    note = _note(data)
    if how is None:
        note.unlink(missing_ok=True)
        sync_folder(note.parent)
    else:
        replace_file(note, how + "\n")
