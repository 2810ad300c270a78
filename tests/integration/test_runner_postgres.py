"""The embedded PostgreSQL: made, configured, adopted, stopped, and clear about what went wrong."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from tests.servers import PostgresServer, scratch

from springtide.errors import RunnerError
from springtide.ops.runner import pgdata, processes
from springtide.ops.runner.accounts import Account, server_account
from springtide.ops.runner.installs import Install, find_install, reachable_install
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.processes import Stage

root = pytest.mark.skipif(os.geteuid() != 0, reason="changes accounts and mounts, so it needs root")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any account can enter."""
    made = scratch("springtide-pg-")
    yield made
    shutil.rmtree(made, ignore_errors=True)


def embedded(folder: Path, **options: object) -> EmbeddedPostgres:
    return EmbeddedPostgres("db", home=folder / "home", durable=False, **options)


async def users(data: Path) -> list[int]:
    """Processes that work in `data`, or name it."""
    return await asyncio.to_thread(lambda: pgdata.servers(data) + pgdata.inside(data))


async def test_scram_is_asked_for(postgres: PostgresServer, database_url: str) -> None:
    """A client with a wrong password is turned away, by TCP and by the unix socket."""
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("select 1") == 1
    await connection.close()
    for host in ("127.0.0.1", str(postgres.server.socket_folder)):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(
                host=host, port=postgres.port, user="springtide", password="wrong", database="postgres"
            )


def test_settings_that_would_need_a_restart_are_right() -> None:
    """Replication, slots, archiving and checksums are on from the start; fsync too, except for tests."""
    text = pgdata.settings_file(max_connections=10, durable=True)
    assert "fsync = on" in text and "wal_level = logical" in text and "archive_mode = on" in text


def test_server_runs_with_them(postgres: PostgresServer) -> None:
    """The running server has the settings, and its collation does not depend on the machine."""
    names = ["wal_level", "archive_mode", "data_checksums", "listen_addresses", "wal_log_hints", "jit"]
    values = postgres.query("; ".join(f"show {name}" for name in names)).split()
    assert values == ["logical", "on", "on", "127.0.0.1", "on", "off"]
    collation = "select datlocprovider, datlocale from pg_database where datname = 'postgres'"
    assert postgres.query(collation) == "b|C.UTF-8"


def test_killed_server_comes_back(own_postgres: Callable[..., PostgresServer]) -> None:
    """Committed rows survive kill -9 of the server, and it comes back on its port."""
    server = own_postgres()
    server.query("create table kept (id int); insert into kept values (1)")
    port = server.port
    server.kill()
    server.restart()
    assert server.port == port
    assert server.query("select id from kept") == "1"


async def test_a_frozen_server_does_not_answer(own_postgres: Callable[..., PostgresServer]) -> None:
    """`freeze` stops every answer, `thaw` resumes; the runner's own questions end in time."""
    server = own_postgres()
    connection = await asyncpg.connect(server.url())
    server.freeze()
    with pytest.raises(RunnerError, match=r"did not answer within 0\.3 s"):
        await server.server.query("select 1", timeout=0.3)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connection.fetchval("select 1"), 0.2)
    server.thaw()
    connection.terminate()


async def test_running_server_is_adopted(folder: Path) -> None:
    """A second owner of the same home takes the running server over instead of starting one."""
    first, second = embedded(folder), embedded(folder)
    await first.start()
    try:
        await second.start()
        assert (second.adopted, second.pid, second.port) == (True, first.pid, first.port)
    finally:
        await second.stop()
    assert await users(first.data) == []
    await first.stop()


async def test_lock_file_of_a_recycled_pid_is_no_obstacle(folder: Path) -> None:
    """After a crash another process may have the old postmaster's pid: PostgreSQL alone would refuse."""
    server = embedded(folder)
    await server.start()
    await server.stop()
    # PostgreSQL minds neither its ancestors nor processes that its account may not signal: another, then.
    other = await processes.spawn(["/bin/sleep", "60"], log=None, env={}, account=server_account().switch)
    lines = [str(other.pid), str(server.data), "0", "5432", "/tmp", "127.0.0.1", "0 0", "ready   "]
    (server.data / "postmaster.pid").write_text("\n".join(lines) + "\n")
    try:
        await server.start()
        assert not server.adopted and server.pid != other.pid and other.returncode is None
    finally:
        await server.stop()
        await processes.stop(other, [Stage(signal.SIGKILL, 5.0)])


async def test_cancelled_start_leaves_nothing(folder: Path) -> None:
    """Stopped at many moments of its first start: no process, no staging folder; then it starts well."""
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2, 0.3):
        server = embedded(folder)
        starting = asyncio.ensure_future(server.start())
        await asyncio.wait([starting], timeout=delay)
        await server.stop()
        await asyncio.wait([starting])
        assert server._sockets is None or not await asyncio.to_thread(server._sockets.exists)
        data = folder / "home" / "data"
        if data.exists():
            assert [path for path in data.iterdir() if path.name.startswith(".new-")] == []
            assert await users(data) == []
    await server.start()
    await server.stop()


async def test_failed_start_shows_the_log(folder: Path) -> None:
    """A setting that PostgreSQL refuses: the error has PostgreSQL's own words, and nothing is left."""
    server = embedded(folder)
    await server.start()
    await server.stop()
    (server.data / "postgresql.auto.conf").write_text("shared_buffers = 'a lot'\n")
    with pytest.raises(RunnerError, match=r"(?s)could not start .*a lot"):
        await server.start()
    assert await users(server.data) == []
    assert server.state == "failed" and not server.socket_folder.exists()


async def test_taken_port_is_named(folder: Path) -> None:
    """A configured port that is in use: who has it, and which key to change."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunnerError, match=rf"port {port} of node db is taken by process {os.getpid()}"):
            await embedded(folder, port=port).start()


async def test_lost_password_is_named(folder: Path) -> None:
    """Without its password file the database cannot be used: the file is named, nothing is overwritten."""
    server = embedded(folder)
    await server.start()
    await server.stop()
    secret = folder / "home" / "secrets" / "db.password"
    for break_it in (lambda: secret.write_text(""), secret.unlink):  # cut off by a full disk; removed
        break_it()
        with pytest.raises(RunnerError, match=r"db\.password is missing"):
            await embedded(folder).start()


async def test_wrong_password_is_named(folder: Path) -> None:
    """A password file of another database: the file is named, and the server is not left running for it."""
    server = embedded(folder)
    await server.start()
    (folder / "home" / "secrets" / "db.password").write_text("another\n")
    stranger = embedded(folder)
    await server.stop()
    await stranger.start()
    with pytest.raises(RunnerError, match=r"db\.password is not the password of the database"):
        await stranger.query("select 1")
    await stranger.stop()


def made_by_16(folder: Path) -> Path:
    """A data folder of PostgreSQL 16 in the usual place."""
    account = server_account()
    install = find_install()
    old = reachable_install(Install(16, install.root.parent / "pginstall"), account)
    data, secrets = folder / "home" / "data" / "db", folder / "home" / "secrets"
    for path in (data, secrets):
        path.mkdir(parents=True)
    password = folder / "password"
    for path in (password, secrets / "db.password"):
        path.write_text("pw\n")
    for path in (data, password):
        account.own(path)
    uid, gid = account.switch or (None, None)
    subprocess.run(
        [old.program("initdb"), "-D", data, "-U", "springtide", f"--pwfile={password}", "-A", "md5", "-N"],
        check=True,
        capture_output=True,
        user=uid,
        group=gid,
        extra_groups=None if uid is None else [],
        cwd="/",
    )
    return data


async def test_older_data_is_opened_by_its_own_version(folder: Path) -> None:
    """A folder made by PostgreSQL 16 is opened by 16; one of an unknown version is refused."""
    data = await asyncio.to_thread(made_by_16, folder)
    server = embedded(folder)
    await server.start()
    try:
        assert (await server.query("show server_version")).startswith("16.")
    finally:
        await server.stop()
    (data / "PG_VERSION").write_text("14\n")
    with pytest.raises(RunnerError, match="was made by PostgreSQL 14"):
        await server.start()


@root
@pytest.mark.usefixtures("strict_umask")
async def test_private_checkout_of_root(folder: Path) -> None:
    """Below a folder that only root enters, the data goes where the server's account can reach it."""
    private, shared = folder / "private", folder / "shared"
    private.mkdir(mode=0o700)
    server = embedded(private, shared=shared)
    await server.start()
    try:
        link = private / "home" / "data" / "db"
        assert link.is_symlink() and link.resolve() == server.data and server.data.is_relative_to(shared)
        await server.query("create table kept (id int)")
        await server.stop()
        await server.start()
        assert await server.query("select count(*) from kept") == "0"
    finally:
        await server.stop()
    moved = folder / "moved"
    private.rename(moved)
    with pytest.raises(RunnerError, match="moved or copied"):
        await embedded(moved, shared=shared).start()


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@root
@pytest.mark.usefixtures("strict_umask")
def test_unreachable_programs_are_copied(folder: Path) -> None:
    """Programs below a private folder are copied once, complete, and the copy runs, whatever the umask."""
    install, account = find_install(), server_account()
    private = folder / "private"
    wheel = install.root.parent
    shutil.copytree(install.root, private / wheel.name / install.root.name, symlinks=True)
    shutil.copytree(wheel.with_name(f"{wheel.name}.libs"), private / f"{wheel.name}.libs", symlinks=True)
    for path in private.rglob("*"):  # as pip leaves them under such an umask
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
    private.chmod(0o700)
    hidden = Install(install.major, private / wheel.name / install.root.name)
    copied = reachable_install(hidden, account, shared=folder / "shared")
    assert copied.root.is_relative_to(folder / "shared") and account.can_run(copied.program("initdb"))
    stamp = copied.root.stat().st_mtime_ns
    assert reachable_install(hidden, account, shared=folder / "shared") == copied
    assert copied.root.stat().st_mtime_ns == stamp
    (folder / "shared").chmod(0o777)
    shutil.rmtree(copied.root.parent.parent)
    with pytest.raises(RunnerError, match="only 0"):
        reachable_install(hidden, account, shared=folder / "shared")


USER = """
import asyncio, sys
from pathlib import Path
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.processes import Stage
async def main():
    server = EmbeddedPostgres("db", home=Path(sys.argv[1]), durable=False)
    await server.start()
    print(await server.query("select 40 + 2"), flush=True)
    await server.stop()
asyncio.run(main())
"""


def may_run(python: str) -> bool:
    nobody = Account("nobody", 65534, 65534, (65534, 65534))
    return Path(python).exists() and nobody.can_run(Path(python))


@root
def test_an_ordinary_user_runs_it(folder: Path) -> None:
    """Without root the server runs as the user, in the user's own folder."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    python = next((p for p in (sys.executable, f"/usr/bin/{version}") if may_run(p)), None)
    if python is None:
        pytest.skip("no Python of this version that other users can run")
    home = folder / "user"
    home.mkdir(mode=0o700)
    os.chown(home, 65534, 65534)
    done = subprocess.run(
        [python, "-c", USER, str(home / "home")],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.defpath, "HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "42\n", done.stderr
    assert (home / "home" / "data" / "db").stat().st_uid == 65534


@root
async def test_full_disk(folder: Path) -> None:
    """No room for a new database, or for a server's start: the place is named, nothing is left there."""
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", small], check=True)
    try:
        with pytest.raises(RunnerError, match=f"no room for a new database in {small}"):
            await embedded(small).start()
        assert list((small / "home" / "data").iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


@root
async def test_disk_that_fills_up_later(folder: Path) -> None:
    """A server that cannot start because its disk is full says so."""
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m,mode=755", "tmpfs", small], check=True)
    try:
        server = embedded(small)
        await server.start()
        await server.stop()
        with (small / "filler").open("wb") as filler, pytest.raises(OSError, match="No space left"):
            while True:
                filler.write(b"x" * 65536)
                filler.flush()
        with pytest.raises(RunnerError, match=r"full|No space left"):
            await server.start()
        assert await users(server.data) == []
    finally:
        subprocess.run(["umount", small], check=True)


@root
async def test_read_only_disk(folder: Path) -> None:
    """A data folder on a read-only file system: the place is named."""
    mounted = folder / "readonly"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m,mode=755", "tmpfs", mounted], check=True)
    try:
        server = embedded(mounted)
        await server.start()
        await server.stop()
        subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
        with pytest.raises(RunnerError, match="read-only"):
            await server.start()
        fresh = EmbeddedPostgres("other", home=mounted / "fresh")
        with pytest.raises(RunnerError, match=f"cannot start PostgreSQL other: {mounted}.*read-only"):
            await fresh.start()
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_names_and_times_are_checked(tmp_path: Path) -> None:
    """Wrong options are refused at construction, with the value."""
    for name in ("", "a/b", ".."):
        with pytest.raises(ValueError, match="name must be"):
            EmbeddedPostgres(name, home=tmp_path)
    with pytest.raises(ValueError, match="got 0"):
        EmbeddedPostgres("db", home=tmp_path, start_timeout=0)


@root
async def test_a_stranger_in_the_place_of_the_socket(folder: Path) -> None:
    """A folder that somebody else put where the socket goes is neither used nor removed."""
    server = embedded(folder)
    await server.start()
    await server.stop()
    account = server_account()
    stranger = await asyncio.to_thread(pgdata.socket_path, server.data, account)
    stranger.mkdir()
    os.chown(stranger, 12345, 12345)
    try:
        with pytest.raises(RunnerError, match="belongs to somebody else"):
            await server.start()
        assert stranger.exists()
    finally:
        stranger.rmdir()
