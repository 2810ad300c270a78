"""Who may connect to a supervised PostgreSQL, and how: TLS, and the lines of pg_hba.conf. Files of its data.

Without a `[network]` nothing is written here, and initdb's own rules hold: everybody on this machine, with a
password. A server listens on this machine alone in any case.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from springtide.errors import RunnerError
from springtide.ops.runner.accounts import Account

__all__ = [
    "AUTHORITY",
    "CERTIFICATE",
    "ROOT",
    "Access",
    "has_tls",
    "hba",
    "install",
    "install_root",
    "replace",
    "settings",
]

CERTIFICATE, KEY, ROOT = "springtide.crt", "springtide.key", "springtide_ca.crt"
HBA = "springtide_hba.conf"
AUTHORITY = "ca.crt"
LOOPBACK = ("127.0.0.1/32", "::1/128")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """`tls`: connections by TCP must be encrypted. `app_only`: only the platform's own role is let in."""

    tls: bool = False
    app_only: bool = False


def settings(access: Access | None, data: Path) -> str:
    """Lines for springtide.conf."""
    if access is None:
        return ""
    lines = ["", "# Who may connect, and how.", f"hba_file = {_quoted(data / HBA)}"]
    if access.tls:
        lines += [
            "ssl = on",
            f"ssl_cert_file = {_quoted(data / CERTIFICATE)}",
            f"ssl_key_file = {_quoted(data / KEY)}",
            "ssl_min_protocol_version = 'TLSv1.2'",
        ]
    return "\n".join([*lines, ""])


def hba(access: Access, user: str) -> str:
    """pg_hba.conf: what is not listed is refused."""
    host, who = "hostssl" if access.tls else "host", user if access.app_only else "all"
    lines = ["# Written by Springtide at every start, from [network] of the topology."]
    for database in ("all", "replication"):
        lines.append(f"local {database} {who} scram-sha-256")
        lines += [f"{host} {database} {who} {network} scram-sha-256" for network in LOOPBACK]
    return "\n".join([*lines, ""])


def install(access: Access | None, data: Path, account: Account, *, user: str, kept: Path) -> None:
    """Write the files that `settings` names, and what a standby proves its upstream with.

    Certificate and key are copied from `kept` (without suffix), the authority's from beside it.
    """
    if access is None:
        return
    replace(data / HBA, hba(access, user), account)
    if access.tls:
        copy_certificate(kept, data / CERTIFICATE, data / KEY, account)
        install_root(kept.with_name(AUTHORITY), data / ROOT, account)


def install_root(authority: Path, target: Path, account: Account) -> None:
    """Copy the authority's certificate to where programs of `account` read it."""
    replace(target, _text(authority), account)


def copy_certificate(kept: Path, certificate: Path, key: Path, account: Account) -> None:
    """From `kept`.crt and `kept`.key to where a server of `account` reads them."""
    for suffix, target in (("key", key), ("crt", certificate)):
        replace(target, _text(kept.with_name(f"{kept.name}.{suffix}")), account)


def _text(source: Path) -> str:
    try:
        return source.read_text()
    except OSError as error:
        raise RunnerError(f"cannot read the certificate {source}: {error.strerror}") from error


def has_tls(data: Path) -> bool:
    """Whether the server of this folder was started with TLS."""
    try:
        return "\nssl = on\n" in (data / "springtide.conf").read_text()
    except FileNotFoundError:
        return False


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def replace(path: Path, text: str, account: Account) -> None:
    """Replace the file whole: 0600, of `account`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(text)
        account.own(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
