"""`springtide replicas add | remove | list | promote` on a running platform, and on one that is down."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.integration._platforms import Project, kill, project, until

from springtide.errors import RunnerError
from springtide.ops.runner import control, pgdata
from springtide.topology import load, read_addresses

TOML = """
# our servers
[nodes.db]  # the first one
kind = "postgres"

[clusters.main]
primary = "db"
failover_after = 2.0

[databases.default]
shards = ["main"]
"""


@pytest.fixture
def made(template: Path) -> Iterator[Project]:
    """A project with a database that has run before, and a file with comments."""
    with project() as fresh:
        yield fresh.write(TOML).prepare(template)


def file(made: Project) -> str:
    return (made.folder / "springtide.toml").read_text()


def rows(made: Project) -> dict[str, dict[str, Any]]:
    return {row["node"]: row for row in json.loads(made.run("replicas", "list", "--json"))}


def roles(made: Project) -> dict[str, str]:
    return {node["node"]: node["role"] for node in made.status()["nodes"] if node["role"]}


def folders(made: Project) -> list[str]:
    return sorted(path.name for path in (made.home / "data").iterdir())


def ask(made: Project, sql: str) -> list[Any]:
    """The first column of what the primary answers."""

    async def asked() -> list[Any]:
        connection = await asyncpg.connect(f"{url}/postgres")
        try:
            return [row[0] for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    url = read_addresses(made.home / "run" / "addresses.json").nodes["db"].rpartition("/")[0]
    return asyncio.run(asked())


def slots(made: Project) -> list[str]:
    """Those that the runner made."""
    return ask(made, "select slot_name from pg_replication_slots where starts_with(slot_name, 'springtide_')")


def servers(data: Path) -> list[int]:
    return pgdata.servers(data.resolve())


def test_added_and_removed_on_the_running_platform(made: Project) -> None:
    """A replica comes and goes: file, process, slot, addresses; the application is not touched."""
    made.run("up", "-d")
    before, pids = file(made), made.pids()
    assert "replica-1 follows" in made.run("replicas", "add")
    assert 'replicas = ["replica-1"]' in file(made) and "[nodes.db]  # the first one" in file(made)
    row = rows(made)["replica-1"]
    assert (row["role"], row["state"], row["timeline"]) == ("replica", "streaming", 1)
    assert roles(made) == {"db": "primary", "replica-1": "replica"}
    found = read_addresses(made.home / "run" / "addresses.json").clusters["main"]
    assert (found.primary, found.replicas) == ("db", ("replica-1",))
    assert "is in the topology already" in made.run("replicas", "add", "--name", "replica-1", code=2)
    assert "use of indexes was counted for 0.0 days" in made.run("db", "advise", code=None)  # also there
    made.run("replicas", "add", "main", "--name", "other")
    assert "ROLE" in made.run("replicas", "list")
    made.run("replicas", "remove", "replica-1")
    made.run("replicas", "remove", "other")
    load(made.folder / "springtide.toml")
    assert file(made).replace("replicas = []\n", "") == before
    assert folders(made) == ["db"] and roles(made) == {}
    after = made.pids()
    assert {node: after[node] for node in pids} == pids


def test_what_is_refused_changes_nothing(made: Project) -> None:
    """An unknown cluster or node, the primary, a bad name: a sentence, and the file as it was."""
    made.run("up", "-d")
    before = file(made)
    for arguments, sentence in (
        (("add", "nope"), "there is no cluster 'nope'"),
        (("add", "--name", "a b"), "must be letters, digits and -"),
        (("add", "--name", "app-1"), "belongs to the app servers"),
        (("remove", "nope"), "belongs to no cluster"),
        (("remove", "db"), "is no replica"),
        (("promote", "nope"), "is not a node"),
        (("promote", "db"), "is the primary of cluster main already"),
    ):
        assert sentence in made.run("replicas", *arguments, code=None), arguments
    assert file(made) == before and folders(made) == ["db"]
    assert [path.name for path in made.folder.iterdir() if path.name.startswith(".springtide.toml")] == []


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_add_is_undone(made: Project, sig: signal.Signals) -> None:
    """The command is interrupted or killed while the database is copied: nothing of it is left."""
    made.run("up", "-d")
    before = file(made)
    adding = made.popen("replicas", "add")
    until(lambda: list((made.home / "data").glob(".new-replica-1-*")))
    adding.send_signal(sig)
    adding.communicate(timeout=30)
    until(lambda: folders(made) == ["db"] and len(made.status()["nodes"]) == 2 and slots(made) == [])
    assert file(made) == before
    made.run("replicas", "add")  # and nothing that is left is in the way of the next
    assert rows(made)["replica-1"]["state"] == "streaming"


@contextmanager
def copying_held(made: Project) -> Iterator[None]:
    """A base backup waits for a checkpoint, which does not come meanwhile."""
    (checkpointer,) = ask(made, "select pid from pg_stat_activity where backend_type = 'checkpointer'")
    kill(checkpointer, signal.SIGSTOP)
    try:
        yield
    finally:
        kill(checkpointer, signal.SIGCONT)


@contextmanager
def starting_held(made: Project) -> Iterator[None]:
    """A copy waits, before anything else, for what its archive has, which does not say meanwhile."""
    held = made.home / "held"
    held.touch()
    ask(made, f"alter system set restore_command = 'while test -e \"{held}\"; do sleep 0.05; done; false'")
    try:
        yield
    finally:
        held.unlink()
        ask(made, "alter system reset restore_command")


@pytest.mark.timeout(600)
def test_a_kill_of_the_supervisor_while_it_adds(made: Project) -> None:
    """kill -9 of the supervisor while it copies, or while the copy runs already: the file is as before, and
    the next `up` clears the rest, slot and all. A slot that somebody else made stays."""
    made.run("up", "-d")
    before, data = file(made), made.home / "data" / "replica-1"
    ask(made, "select pg_create_physical_replication_slot('theirs', true)")
    for hold, reached in (
        (copying_held, lambda: slots(made)),
        (starting_held, lambda: servers(data)),
    ):
        with hold(made):
            adding = made.popen("replicas", "add")
            until(reached)
            kill(made.status()["supervisor"])
            out, _ = adding.communicate(timeout=100)
        assert adding.returncode == 1 and "supervisor" in out and file(made) == before
        made.run("up", "-d")
        assert folders(made) == ["db"] and slots(made) == [] and servers(data) == []
        assert [path.name for path in (made.home / "secrets").glob("replica*")] == []
    assert ask(made, "select slot_name from pg_replication_slots") == ["theirs"]
    made.run("down")
    assert made.leftovers() == []


def test_on_a_platform_that_is_down(made: Project) -> None:
    """The file alone is changed, and that is said; the next `up` makes the replica. When the primary's data
    are broken, `up` says which command lets the replica take over, and that does."""
    assert "nothing runs" in made.run("replicas", "add")
    assert made.run("replicas", "list", code=3) == "nothing runs here\n"
    made.run("up", "-d")
    assert rows(made)["replica-1"]["state"] == "streaming"
    made.run("down")
    (made.home / "data" / "db" / "global" / "pg_control").unlink()
    command = ("replicas", "promote", "replica-1", "--force")
    assert f"`springtide {' '.join(command)}`" in made.run("up", "-d", code=1)
    assert "is lost then" in made.run(*command[:-1], code=1)
    made.run(*command)
    made.run("up", "-d")
    assert roles(made) == {"db": "replica", "replica-1": "primary"} and made.get()
    made.run("down")
    made.run("replicas", "remove", "db")
    assert folders(made) == ["replica-1"] and "nodes.db" not in file(made)
    assert load(made.folder / "springtide.toml").clusters["main"].replicas == ()


def test_promoted_by_hand_and_back_after_a_restart(made: Project) -> None:
    """`promote` changes the roles; they survive `down` and `up`, and change back by another one."""
    made.run("replicas", "add")
    made.run("up", "-d")
    made.run("replicas", "promote", "replica-1")
    until(lambda: rows(made)["db"]["state"] == "streaming")
    assert roles(made) == {"db": "replica", "replica-1": "primary"}
    assert "is no replica" in made.run("replicas", "remove", "replica-1", code=None)
    made.run("down")
    made.run("up", "-d")
    assert roles(made) == {"db": "replica", "replica-1": "primary"}
    found = read_addresses(made.home / "run" / "addresses.json").clusters["main"]
    assert (found.primary, found.replicas, found.epoch) == ("replica-1", ("db",), 2)
    made.run("replicas", "promote", "db")
    until(lambda: rows(made)["replica-1"]["state"] == "streaming")
    assert read_addresses(made.home / "run" / "addresses.json").clusters["main"].epoch == 3
    made.run("replicas", "remove", "replica-1")
    assert made.get()


def test_the_first_primary_can_be_removed_after_a_failover(made: Project) -> None:
    """The node that the file names as primary goes like any replica; the file then names the new one."""
    made.run("replicas", "add")
    made.run("up", "-d")
    made.run("replicas", "promote", "replica-1")
    until(lambda: rows(made)["db"]["state"] == "streaming")
    made.run("replicas", "remove", "db")
    assert load(made.folder / "springtide.toml").clusters["main"].primary == "replica-1"
    made.run("down")
    made.run("up", "-d")
    assert made.get() and folders(made) == ["replica-1"]


def test_the_control_socket_is_private_and_bounded(made: Project) -> None:
    """Only the owner may connect; nonsense and what is too long are answered, and harm nothing."""
    made.run("up", "-d")
    path = made.home / "run" / control.NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    talk = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r});"
    for sent in ("b'nonsense\\n'", "b'[]\\n'", "b'x' * 200000 + b'\\n'"):
        code = f"{talk} s.sendall({sent}); print(s.recv(1000))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
        assert "one JSON object" in done.stdout or "Broken pipe" in done.stderr or "reset" in done.stderr
    with pytest.raises(RunnerError, match="does not know the command"):
        control.ask(path.parent, {"do": "x"})
    assert rows(made) == {}
    assert pgdata.postmaster((made.home / "data" / "db").resolve()) is not None
