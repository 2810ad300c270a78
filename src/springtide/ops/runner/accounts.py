"""As whom a server runs: PostgreSQL refuses root, so root hands its children to an unprivileged account."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

from springtide.errors import RunnerError

__all__ = ["Account", "server_account"]

CANDIDATES = ("springtide", "postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Account:
    """`switch` is (uid, gid) to change to before exec; None when the process already is this account."""

    name: str
    uid: int
    gid: int
    switch: tuple[int, int] | None

    def can_enter(self, folder: Path) -> bool:
        """Whether the account reaches `folder`; asked of the kernel, so ACLs and mounts count."""
        return self._runs(["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)])

    def can_run(self, program: Path) -> bool:
        """Whether the account can execute `program --version`."""
        return self._runs([str(program), "--version"])

    def own(self, path: Path) -> None:
        """Give `path` to the account; nothing to do when we are it."""
        if self.switch is not None:
            os.chown(path, *self.switch)

    def _runs(self, arguments: list[str]) -> bool:
        uid, gid = self.switch or (None, None)
        try:
            done = subprocess.run(
                arguments,
                user=uid,
                group=gid,
                extra_groups=None if gid is None else [],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=30,
                check=False,
            )
        except PermissionError:
            return False
        return done.returncode == 0


def server_account() -> Account:
    """The account that PostgreSQL runs as: ourselves, or for root the first of `CANDIDATES` that exists."""
    if os.geteuid() != 0:
        try:
            name = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            raise RunnerError(
                f"user id {os.geteuid()} has no name in /etc/passwd, which PostgreSQL needs: add one"
            ) from None
        return Account(name, os.geteuid(), os.getegid(), None)
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid, (entry.pw_uid, entry.pw_gid))
    raise RunnerError(
        "PostgreSQL does not run as root and none of the accounts "
        f"{', '.join(CANDIDATES)} exists: create one, for example with `useradd --system springtide`"
    )
