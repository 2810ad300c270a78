"""Debian's PostgreSQL 15, running for tests that need another version or its extensions."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests._servers import program

__all__ = ["debian_postgres"]


@contextmanager
def debian_postgres(
    *, password: str | None = None, settings: Mapping[str, str] | None = None, locale: str | None = None
) -> Iterator[tuple[str, Path]]:
    """Its host:port and the folder of its programs; the superuser is `owner`, without a password if None."""
    postgres = program("postgresql-15")
    assert postgres is not None
    programs = Path(postgres).parent
    account = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="springtide-debian-"))
    if account:
        shutil.chown(folder, account)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    making = [str(programs / "initdb"), "-D", str(data), "-U", "owner", "--no-sync"]
    if locale is not None:
        making.append(f"--locale={locale}")
    if password is None:
        making.append("--auth=trust")
    else:
        secret = folder / "password"
        secret.write_text(password)
        secret.chmod(0o644)
        making += ["--pwfile", str(secret), "--auth=scram-sha-256"]
    subprocess.run(making, user=account, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=60)
    options = {"port": port, "unix_socket_directories": folder, "fsync": "off", **(settings or {})}
    flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [postgres, "-D", data, *flags], user=account, cwd=folder, stdout=log, stderr=log
    )
    try:
        ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        limit = time.monotonic() + 30
        while subprocess.run(ready, check=False).returncode != 0:
            assert process.poll() is None and time.monotonic() < limit, (folder / "log").read_text()
            time.sleep(0.05)
        yield f"127.0.0.1:{port}", programs
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)
