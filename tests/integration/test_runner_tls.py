"""TLS between the tiers: certificates of the platform's own, Debian's PostgreSQL, PgBouncer, who gets in."""

from __future__ import annotations

import asyncio
import gc
import shutil
import socket
import ssl
import struct
from asyncio.sslproto import SSLProtocol
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.integration._platforms import Project, project, until
from tests.integration.test_runner_jobs import APP
from tests.servers import LoopThread, scratch

from springtide.db.pool import Pool
from springtide.errors import DatabaseUnavailable, RunnerError, Unavailable
from springtide.ops.runner import certificates, installs
from springtide.ops.runner.access import Access
from springtide.ops.runner.installs import find_install
from springtide.ops.runner.pgbouncer import PgBouncer
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.standby import Upstream
from springtide.topology import read_addresses

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NODES = ["db", "pooler"]
HOST = "127.0.0.1"
ENCRYPTED = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"

Secured = tuple[EmbeddedPostgres, PgBouncer, Path]


def served(port: int, root: Path) -> bytes:
    """The certificate that a PostgreSQL or PgBouncer there shows, verified against `root`."""
    context = ssl.create_default_context(cafile=str(root))
    with socket.create_connection((HOST, port), timeout=10) as raw:
        raw.sendall(struct.pack("!ii", 8, 80877103))  # SSLRequest
        assert raw.recv(1) == b"S"
        with context.wrap_socket(raw, server_hostname=HOST) as wrapped:
            found = wrapped.getpeercert(binary_form=True)
    assert found is not None
    return found


def test_certificates_are_kept_and_renewed_before_they_end(tmp_path: Path) -> None:
    """A second look changes nothing; one that ends within 30 days is made anew; keys are the owner's."""
    assert certificates.renew(tmp_path, NODES, authority=True, now=NOW) == NODES
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["ca.crt", "ca.key", "db.crt", "db.key", "pooler.crt", "pooler.key"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    soon = NOW + timedelta(days=59)
    assert certificates.renew(tmp_path, NODES, authority=True, now=soon) == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "pooler.key").unlink()
    assert certificates.renew(tmp_path, NODES, authority=False, now=soon) == ["pooler"]
    late = NOW + timedelta(days=61)
    assert certificates.renew(tmp_path, NODES, authority=False, now=late) == ["db"]
    assert (tmp_path / "ca.crt").read_bytes() == before["ca.crt"]


def test_an_authority_is_replaced_only_when_nothing_runs(tmp_path: Path) -> None:
    """With less than a year left `up` makes another, and all it signed; a running platform keeps it."""
    certificates.renew(tmp_path, NODES, authority=True, now=NOW)
    before, late = (tmp_path / "ca.crt").read_bytes(), NOW + timedelta(days=9 * 365 + 30)
    certificates.renew(tmp_path, NODES, authority=False, now=late)
    assert (tmp_path / "ca.crt").read_bytes() == before
    assert certificates.renew(tmp_path, NODES, authority=True, now=late) == NODES
    assert (tmp_path / "ca.crt").read_bytes() != before


def test_the_embedded_server_has_no_tls_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Debian's server, and with a folder that only the embedded one can open."""
    monkeypatch.setattr(installs, "DEBIAN", tmp_path / "nothing")
    with pytest.raises(RunnerError, match=r"apt-get install postgresql.*network.tls = false.*url"):
        find_install(None, tls=True)
    (tmp_path / "PG_VERSION").write_text("18\n")
    with pytest.raises(RunnerError, match=r"made by PostgreSQL 18.*postgresql-18.*network.tls = false"):
        find_install(tmp_path, tls=True)
    assert find_install(tmp_path).major == 18


@pytest.mark.needs("postgresql-15")
def test_a_folder_of_debian_s_server_is_opened_by_it_without_tls_too(tmp_path: Path) -> None:
    """Turning TLS off again does not lock anybody out of the data."""
    (tmp_path / "PG_VERSION").write_text("15\n")
    assert find_install(tmp_path).root == Path("/usr/lib/postgresql/15")
    assert find_install(tmp_path, tls=True).root == Path("/usr/lib/postgresql/15")


@pytest.fixture
def secured(_server_loop: LoopThread) -> Iterator[Secured]:
    """Debian's server and a PgBouncer before it, both with certificates of one authority."""
    folder = scratch("springtide-tls-")
    home = folder / "home"
    (home / "secrets").mkdir(parents=True)
    home.chmod(0o755)
    _server_loop.run(certificates.ensure(home / "secrets", NODES, authority=True))
    server = EmbeddedPostgres("db", home=home, durable=False, access=Access(tls=True, app_only=True))
    pooler: PgBouncer | None = None
    try:
        _server_loop.run(server.start())
        pooler = PgBouncer("pooler", {"main": server.url()}, home=home, server_connections=2, tls=True)
        _server_loop.run(pooler.start())
        yield server, pooler, home / "secrets"
    finally:
        if pooler is not None:
            _server_loop.run(pooler.stop())
        _server_loop.run(server.stop())
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.needs("postgresql-15", "pgbouncer")
async def test_every_leg_is_encrypted_and_verified(secured: Secured) -> None:
    """Application to pooler, pooler to server, and past the pooler; a server that cannot prove itself, and a
    client that does not encrypt, get nowhere."""
    server, pooler, kept = secured
    async with Pool(pooler.url("main"), pooled=True) as pool:
        assert await pool.fetch_value(ENCRYPTED) is True
    async with Pool(server.url()) as direct:
        assert await direct.fetch_value(ENCRYPTED) is True
    other = kept / "other"
    await asyncio.to_thread(other.mkdir)
    await asyncio.to_thread(certificates.renew, other, [], authority=True, now=datetime.now(UTC))
    for url in (server.url(), pooler.url("main")):
        with pytest.raises(asyncpg.PostgresError):
            await asyncpg.connect(urlsplit(url)._replace(query="sslmode=disable").geturl())
        wrong = urlsplit(url)._replace(query=certificates.verified(other)).geturl()
        with pytest.raises(DatabaseUnavailable, match=r"(?i)certificate.verify.failed"):
            await Pool(wrong, acquire_timeout=5.0).start()


@pytest.mark.needs("postgresql-15", "pgbouncer")
async def test_a_pooler_does_not_trust_a_server_of_another_authority(
    secured: Secured, _server_loop: LoopThread
) -> None:
    """Its servers must prove themselves, too: no statement reaches one that cannot."""
    server, _, kept = secured
    other = kept / "other"
    await asyncio.to_thread(other.mkdir)
    await asyncio.to_thread(certificates.renew, other, [], authority=True, now=datetime.now(UTC))
    wrong = urlsplit(server.url())._replace(query=certificates.verified(other)).geturl()
    doubting = PgBouncer("doubting", {"main": wrong}, home=server.home)
    await asyncio.to_thread(lambda: _server_loop.run(doubting.start()))
    try:
        with pytest.raises(Unavailable):
            async with Pool(doubting.url("main"), pooled=True, acquire_timeout=2.0) as pool:
                await pool.fetch_value("SELECT 1")
        assert "certificate verify failed" in await asyncio.to_thread(doubting.log.read_text)
    finally:
        await asyncio.to_thread(lambda: _server_loop.run(doubting.stop()))


@pytest.mark.needs("postgresql-15", "pgbouncer")
async def test_a_renewed_certificate_is_used_without_a_restart(
    secured: Secured, _server_loop: LoopThread
) -> None:
    """Server and pooler read it again; who is connected stays connected."""
    server, pooler, kept = secured
    root, ports = kept / "ca.crt", (server.port, pooler.port)
    async with Pool(pooler.url("main"), pooled=True) as pool:
        await pool.fetch_value("SELECT 1")
        before = [await asyncio.to_thread(served, port, root) for port in ports]
        for node in NODES:
            await asyncio.to_thread((kept / f"{node}.key").unlink)
        await asyncio.to_thread(lambda: _server_loop.run(certificates.ensure(kept, NODES, authority=False)))
        await asyncio.to_thread(lambda: _server_loop.run(server.reload()))
        await asyncio.to_thread(pooler.reload)
        async with asyncio.timeout(20):
            for port, old in zip(ports, before, strict=True):
                while await asyncio.to_thread(served, port, root) == old:
                    await asyncio.sleep(0.02)
        await pool.fetch_value("SELECT 1")
        assert pool.stats().opened == 1


@pytest.mark.needs("postgresql-15", "pgbouncer")
async def test_a_database_answers_the_platform_s_own_role_alone(secured: Secured) -> None:
    """`database_from_app_only`: another role is turned away before it is asked for its password."""
    server, _, _ = secured
    async with Pool(server.url()) as pool:
        await pool.execute("CREATE ROLE guest LOGIN PASSWORD 'right'")
        assert await pool.fetch_value("SHOW listen_addresses") == HOST
    guest = urlsplit(server.url())._replace(netloc=f"guest:right@{HOST}:{server.port}").geturl()
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match=r"no pg_hba.conf entry"):
        await asyncpg.connect(guest)
    async with asyncio.timeout(20):  # asyncpg says farewell by TLS, and leaves the answer to the loop
        while any(isinstance(one, SSLProtocol) and one._transport is not None for one in gc.get_objects()):
            await asyncio.sleep(0.02)


@pytest.mark.needs("postgresql-15")
async def test_replicas_verify_their_primary(tmp_path: Path) -> None:
    """Base backup, streaming and rewind verify the other server by the authority, or get nothing."""
    home = scratch("springtide-tls-") / "home"
    kept = home / "secrets"
    await asyncio.to_thread(kept.mkdir, parents=True)
    await certificates.ensure(kept, ["db", "r1"], authority=True)
    own = await asyncio.to_thread((kept / "ca.crt").read_bytes)
    await asyncio.to_thread(certificates.renew, tmp_path, [], authority=True, now=datetime.now(UTC))
    other = await asyncio.to_thread((tmp_path / "ca.crt").read_bytes)
    server = EmbeddedPostgres("db", home=home, durable=False, access=Access(tls=True, app_only=True))
    follows = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_replication USING (pid) WHERE state = 'streaming'"
    try:
        await server.start()
        replica = EmbeddedPostgres(
            "r1", home=home, durable=False, access=Access(tls=True), follows=Upstream("db", server.port)
        )
        (kept / "ca.crt").write_bytes(other)
        with pytest.raises(RunnerError, match="certificate verify failed"):
            await server.query("SELECT 1")
        with pytest.raises(RunnerError, match="certificate verify failed"):
            await replica.start()
        (kept / "ca.crt").write_bytes(own)
        try:
            await replica.start()
            await settles(server, follows, "t")
            (replica.data / "springtide_ca.crt").write_bytes(other)
            await server.query("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
            await settles(server, "SELECT count(*) FROM pg_stat_replication", "0")
            said = b"certificate verify failed"
            async with asyncio.timeout(30):
                while said not in await asyncio.to_thread(replica.log.read_bytes):
                    await asyncio.sleep(0.02)
            await replica.reload()  # the runner's copy is written again
            await settles(server, follows, "t")
            await server.fence()
            await server.stop()
            await replica.promote()
            server.follows = Upstream("r1", replica.port)
            await server.start()
            await settles(replica, follows, "t")
            assert "pg_rewind: Done!" in await asyncio.to_thread(server.log.read_text)
        finally:
            await replica.stop()
    finally:
        await server.stop()
        await asyncio.to_thread(shutil.rmtree, home.parent, ignore_errors=True)


async def settles(server: EmbeddedPostgres, sql: str, answer: str) -> None:
    async with asyncio.timeout(30):
        while await server.query(sql) != answer:
            await asyncio.sleep(0.02)


@pytest.fixture
def second() -> Iterator[Project]:
    """Stage 2 as its preset is, and a Redis, but for the port."""
    with project() as made:
        (made.folder / "springtide.toml").write_text(
            'name = "second"\napp = "plainapp:app"\nstage = 2\nmodules = "plainapp:modules"\n'
            "[servers]\nport = 0\n[pool]\nacquire_timeout = 20\n"  # however busy the machine is
            '[nodes.store]\nkind = "redis"\n'
        )
        (made.folder / "plainapp.py").write_text(APP)
        (made.folder / "migrations").mkdir()
        (made.folder / "migrations" / "0001_note.sql").write_text(
            "create table deeds.note"
            " (bucket smallint not null, text text not null, primary key (bucket, text));"
        )
        yield made


@pytest.mark.needs("postgresql-15", "pgbouncer", "redis-server")
def test_stage_two_runs_encrypted_from_end_to_end(second: Project) -> None:
    """Its preset starts: migrations, requests and jobs work where nothing else than TLS is let in by TCP."""
    second.run("up", "-d")
    second.get("/order/first")
    until(lambda: second.get("/") == '["first"]')
    data = (second.home / "data" / "db").resolve()
    assert "\nssl = on\n" in (data / "springtide.conf").read_text()
    rules = (data / "springtide_hba.conf").read_text().splitlines()
    assert {line.split()[0] for line in rules if not line.startswith("#")} == {"local", "hostssl"}
    assert read_addresses(second.home / "run" / "addresses.json").nodes["store"].startswith("rediss://")
    assert second.status()["caches"]["store"]["keys"] == 0  # asked over TLS
    second.run("down")
    assert second.leftovers() == []
