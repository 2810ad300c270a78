"""PgBouncer under `springtide up`: an application behind it, its crashes, and those of what is around it."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from tests._pooler import PoolerServer
from tests.integration._platforms import Project, kill, project, until
from tests.integration.test_runner_jobs import APP

from springtide.errors import RunnerError
from springtide.ops.runner import pgbouncer
from springtide.ops.runner.pgbouncer import PROGRAM, PgBouncer, pgbouncer_version
from springtide.ops.runner.pooler_settings import ini, upstream

POOLER = """
[nodes.db]
[nodes.bouncer]
kind = "pgbouncer"
[clusters.main]
primary = "db"
[databases.default]
shards = ["main"]
[poolers.main]
node = "bouncer"
server_connections = 3
"""


@pytest.fixture
def pooled(template: Path) -> Project:
    with project() as made:
        made.write(POOLER, app=APP).prepare(template)
        toml = made.folder / "springtide.toml"
        toml.write_text('modules = "plainapp:modules"\n' + toml.read_text())
        (made.folder / "migrations").mkdir()
        (made.folder / "migrations" / "0001_note.sql").write_text(
            "create table deeds.note"
            " (bucket smallint not null, text text not null, primary key (bucket, text));"
        )
        yield made


def owners(made: Project) -> dict[str, int]:
    """Who owns what PgBouncer reads, and that nobody else may."""
    folder = (made.home / "data" / "bouncer").resolve()
    found = {}
    for path in (folder / "pgbouncer.ini", folder / "userlist.txt"):
        assert path.stat().st_mode & 0o777 == 0o600
        found[path.name] = path.stat().st_uid
    return found


@pytest.mark.needs("pgbouncer")
def test_an_application_lives_behind_it(pooled: Project) -> None:
    """Migrations, requests, jobs with their listener and heartbeat; then the pooler, the database and the
    supervisor are killed in turn, and requests go on; `down` leaves nothing."""
    pooled.run("up", "-d")
    node = next(node for node in pooled.status()["nodes"] if node["node"] == "bouncer")
    assert (node["kind"], node["state"]) == ("pgbouncer", "running")
    uid = Path(f"/proc/{node['pid']}").stat().st_uid
    assert uid != 0
    assert set(owners(pooled).values()) == {uid}
    pooled.get("/order/first")
    until(lambda: pooled.get("/") == '["first"]')

    kill(node["pid"])
    until(lambda: pooled.pids().get("bouncer") not in (None, node["pid"]))
    assert pooled.get("/order/second")
    until(lambda: pooled.get("/") == '["first", "second"]')

    database = pooled.pids()["db"]
    kill(database)
    until(lambda: pooled.pids().get("db") not in (None, database))
    assert pooled.get("/order/third")
    until(lambda: pooled.get("/") == '["first", "second", "third"]')

    before = pooled.pids()["bouncer"]
    url = pooled.status()["url"]
    kill(pooled.status()["supervisor"])
    with urllib.request.urlopen(url, timeout=10) as answer:  # who is left goes on serving
        assert answer.read() == b'["first", "second", "third"]'
    pooled.run("up", "-d")
    assert pooled.pids()["bouncer"] != before
    assert pooled.get("/") == '["first", "second", "third"]'
    assert "PgBouncer" in pooled.run("logs", "bouncer")
    pooled.run("down")
    assert pooled.leftovers() == []


@pytest.mark.needs("pgbouncer")
def test_a_pooler_of_a_killed_supervisor_is_ended_by_down(pooled: Project) -> None:
    pooled.run("up", "-d")
    kill(pooled.status()["supervisor"])
    pooled.run("down")
    assert pooled.leftovers() == []


def test_without_the_program_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    nowhere = replace(PROGRAM, tried=("pgbouncer",))
    with pytest.raises(RunnerError, match=r"apt-get install pgbouncer.*make servers.*remove \[poolers\]"):
        nowhere.find()


@pytest.mark.needs("pgbouncer")
def test_prepared_statements_need_a_version_that_tracks_them(
    own_pooler: Callable[..., PoolerServer],
) -> None:
    """Refused before anything is started, with what to do."""
    if pgbouncer_version(PROGRAM.find()) >= pgbouncer.TRACKS:
        pytest.skip("this PgBouncer does track them")
    with pytest.raises(RunnerError, match=r"does not track prepared statements, 1\.21 is the first: leave"):
        own_pooler({"main": "postgresql://h/x"}, prepared_statements=10)


@pytest.mark.needs("pgbouncer")
def test_one_that_does_not_start_says_why(own_pooler: Callable[..., PoolerServer], tmp_path: Path) -> None:
    """Its own words are in the error, and nothing of it is left."""
    with pytest.raises(RunnerError, match=r"could not start\n(.*\n)*.*server_tls_sslmode"):
        own_pooler({"main": "postgresql://h/x?sslmode=never"})


@pytest.mark.needs("pgbouncer")
async def test_its_own_account_may_ask_everything_and_clients_may_look(
    database_url: str, own_pooler: Callable[..., PoolerServer]
) -> None:
    """The console answers the account it runs as over the socket; by TCP the application may only SHOW."""
    pooler = own_pooler({"main": database_url}, server_connections=7)
    console = await asyncpg.connect(pooler.url("pgbouncer"), statement_cache_size=0)
    try:
        await console.execute("SHOW POOLS")
        with pytest.raises(asyncpg.PostgresError, match="admin access needed"):
            await console.execute("PAUSE")
    finally:
        await console.close()


def test_what_a_password_holds_does_not_reach_other_settings() -> None:
    """Quotes are doubled, line breaks refused; two kinds of TLS need two poolers."""
    to = upstream("postgresql://us%20er:it%27s%20%22x%22@h:7/d?sslmode=require")
    assert (to.user, to.password, to.port, to.sslmode) == ("us er", 'it\'s "x"', 7, "require")
    options = {
        "port": 1,
        "folder": Path("/f"),
        "sockets": Path("/s"),
        "server_connections": 2,
        "max_clients": 3,
        "query_wait": 30.0,
        "prepared_statements": 0,
        "tls": False,
    }
    text = ini({"main": to}, **options)
    assert "password='it''s \"x\"'" in text
    assert "max_prepared_statements" not in text
    assert "max_prepared_statements = 9" in ini({"main": to}, **{**options, "prepared_statements": 9})
    with pytest.raises(RunnerError, match="line breaks"):
        ini({"main": upstream("postgresql://u:a%0Ab@h/d")}, **options)
    with pytest.raises(RunnerError, match=r"ask for different TLS .*give each a pooler"):
        ini({"main": to, "two": upstream("postgresql://u:p@h/d?sslmode=disable")}, **options)


async def test_options_that_cannot_work_are_refused(tmp_path: Path) -> None:
    for options, text in (
        ({"name": "a/b"}, "plain file name"),
        ({"urls": {}}, "at least one server"),
        ({"query_wait": 0}, "query_wait must be > 0"),
    ):
        given = {"name": "p", "urls": {"main": "postgresql://h/x"}, "home": tmp_path, **options}
        with pytest.raises(ValueError, match=text):
            PgBouncer(given.pop("name"), given.pop("urls"), **given)
