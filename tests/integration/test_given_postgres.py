"""A server given by URL, of the oldest version that works: Debian's PostgreSQL 15."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests._debian import debian_postgres
from tests.integration._platforms import Project, project

from springtide.errors import RunnerError
from springtide.ops.runner import given
from springtide.ops.runner.backups import server as backed
from springtide.ops.runner.backups.store import Store
from springtide.ops.runner.backups.taking import take, verify
from springtide.topology.budget import Demand

pytestmark = pytest.mark.needs("postgresql-15")

PASSWORD = "of the test"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A running server with one database `shop`; its URL without password and database."""
    with debian_postgres(password=PASSWORD, locale="C.UTF-8") as (address, programs):
        host, _, port = address.partition(":")
        subprocess.run(
            [programs / "createdb", "-h", host, "-p", port, "-U", "owner", "shop"],
            env={"PGPASSWORD": PASSWORD},
            check=True,
        )
        yield address


def url(server: str, *, password: str = PASSWORD, dbname: str = "shop") -> str:
    return f"postgresql://owner:{password.replace(' ', '%20')}@{server}/{dbname}"


async def test_it_is_accepted(server: str) -> None:
    await given.check({"main": url(server)})


async def test_a_wrong_password_is_named_with_the_user(server: str) -> None:
    with pytest.raises(RunnerError, match=r"cluster main: .* refuses user 'owner'") as caught:
        await given.check({"main": url(server, password="wrong-secret")})
    assert "wrong-secret" not in str(caught.value)


async def test_a_missing_database_is_named(server: str) -> None:
    with pytest.raises(RunnerError, match=r"cluster main: .* has no database 'stock'"):
        await given.check({"main": url(server, dbname="stock")})


def test_a_whole_application_runs_on_it(server: str) -> None:
    """new, a url in the file, up: migrated, written, read; `down` leaves the server alone."""
    with project() as outside:
        outside.run("new", "guests")
        made = Project(outside.folder / "guests")
        with (made.folder / "springtide.toml").open("a") as file:
            file.write(f'\n[nodes.db]\nurl = "{url(server)}"\n')
        try:
            made.run("up", "--detach", "--port", "0")
            assert {node["kind"] for node in made.status()["nodes"]} == {"app", "worker"}
            data = json.dumps({"text": "kept"}).encode()
            request = urllib.request.Request(
                f"{made.status()['url']}/api/notes", data=data, headers={"content-type": "application/json"}
            )
            urllib.request.urlopen(request, timeout=10).close()
            assert json.loads(made.get("/api/notes"))[0]["text"] == "kept"
        finally:
            made.run("down")
        assert made.leftovers() == []
        made.run("up", "--detach", "--port", "0")
        try:
            assert json.loads(made.get("/api/notes"))[0]["text"] == "kept"
        finally:
            made.run("down")


async def test_a_server_with_too_few_connections_is_refused_with_the_sum(server: str) -> None:
    """What the server really takes counts, less what is kept for the superuser and what its role may have."""
    demand = Demand()
    demand.add(60, "(servers.count 2 + workers.count 1) * pool.size 20")
    await given.check({"main": url(server)}, demands={"main": demand})
    demand.add(4000, "4000 (people)")
    with pytest.raises(
        RunnerError, match=r"takes \d+ connections .*pool.size 20 \+ 4000 \(people\) = 4060 do"
    ):
        await given.check({"main": url(server)}, demands={"main": demand})


async def test_a_given_server_is_backed_up(server: str, tmp_path: Path) -> None:
    """By its own version's programs, pg_verifybackup among them; a user without REPLICATION is told so."""
    url = f"postgresql://owner:{PASSWORD.replace(' ', '%20')}@{server}/shop"
    found, store, log = await backed.given(url), Store(tmp_path, "main"), tmp_path / "log"
    await asyncio.to_thread(store.create, found.account)
    taken = await take(store, found, keep=1, max_rate_bytes=2**30, log=log, fast=True)
    assert (taken.backup.major, found.programs.parts[-2]) == (15, "15")
    account = backed.own_account()
    assert await verify(store, taken.backup, found.programs, account, log=log) == []
    victim = store.data(taken.backup) / "global" / "pg_control"
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    (problem,) = await verify(store, taken.backup, found.programs, account, log=log)
    assert "is damaged" in problem and "pg_verifybackup" in problem
    await found.ask("CREATE ROLE plain LOGIN PASSWORD 'x'")
    plain = await backed.given(f"postgresql://plain:x@{server}/shop")
    with pytest.raises(RunnerError, match="needs the attribute REPLICATION"):
        await take(store, plain, keep=1, max_rate_bytes=2**30, log=log, fast=True)
    assert await asyncio.to_thread(store.backups) == [taken.backup]
