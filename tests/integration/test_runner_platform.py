"""`springtide up | down | status | logs`: what is promised about a running platform, on real processes."""

from __future__ import annotations

import os
import random
import signal
import socket
import stat
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.integration._platforms import PLAIN, Project, kill, project, until

from springtide.topology import read_addresses


@pytest.fixture
def fresh() -> Iterator[Project]:
    """A project whose first start is yet to come."""
    with project() as made:
        yield made.write()


def test_any_asgi_application_runs(fresh: Project) -> None:
    """up, a request, status, logs, down: and then nothing is left."""
    out = fresh.run("up", "--detach")
    status = fresh.status()
    assert status["state"] == "up" and status["url"] in out
    assert fresh.get() == str(fresh.pids()["app-1"])
    assert [(node["node"], node["state"]) for node in status["nodes"]] == [
        ("db", "running"),
        ("app-1", "running"),
    ]
    assert "ready to accept connections" in fresh.run("logs", "db")
    assert "app-1      | " in fresh.run("logs", "-n", "5")
    fresh.run("down")
    assert fresh.leftovers() == []
    assert fresh.run("status", code=3).endswith("not running\n")
    assert fresh.run("down") == "nothing runs here\n"


def test_secrets_and_addresses_are_private(fresh: Project) -> None:
    """Passwords and addresses can be read by the owner only."""
    fresh.run("up", "-d")
    files = [fresh.home / "run" / "addresses.json", fresh.home / "run" / "state.json"]
    files += list((fresh.home / "secrets").iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((fresh.home / "data" / "db").stat().st_mode) == 0o700


def test_a_second_up_is_refused(plain: Project) -> None:
    """One platform per home: the second `up` says which process has it, and harms nothing."""
    plain.run("up", "-d")
    before = plain.pids()
    out = plain.run("up", code=1)
    assert "already runs" in out and str(plain.status()["supervisor"]) in out
    assert "already runs" in plain.run("up", "-d", code=1)
    assert plain.pids() == before and plain.get()


def test_two_platforms_run_side_by_side(plain: Project, template: Path) -> None:
    """Different folders do not disturb each other, and stopping one leaves the other."""
    with project() as other:
        other.write(name="other").prepare(template)
        plain.run("up", "-d")
        before = plain.pids()
        other.run("up", "-d")
        other.run("down")
        assert plain.get() == str(before["app-1"])
        assert plain.pids() == before and [node["restarts"] for node in plain.status()["nodes"]] == [0, 0]


def test_ctrl_c_stops_in_order(plain: Project) -> None:
    """Ctrl-C in the terminal: exit code 0, nothing left, PostgreSQL shut down cleanly."""
    process = plain.popen("up")
    until(lambda: plain.status()["state"] == "up")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "is up: http://127.0.0.1:" in out and "Traceback" not in out
    assert plain.leftovers() == []
    assert "database system is shut down" in plain.run("logs", "db")


@pytest.mark.parametrize("attempt", range(6))
def test_ctrl_c_at_any_moment_of_the_start(fresh: Project, attempt: int) -> None:
    """Interrupted at a random moment of the first start: nothing is left, and the next start works."""
    delay = random.Random().uniform(0.05, 1.2)
    process = fresh.popen("up")
    with suppress(subprocess.TimeoutExpired):  # the moment has come, wherever the start is
        process.wait(timeout=delay)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    too_early = process.returncode == 1 and "Could not import runpy module" in out  # Python had not begun
    assert too_early or process.returncode in (0, 130, -signal.SIGINT), out
    assert fresh.leftovers() == [], f"after {delay:.3f} s"
    data = fresh.home / "data"
    if data.exists():
        left = sorted(path.name for path in data.iterdir())
        assert left in ([], ["db"]), f"after {delay:.3f} s"
        assert not left or (data / "db" / "springtide.conf").exists() or (data / "db" / "PG_VERSION").exists()
    if attempt % 3 == 0:
        fresh.run("up", "-d")
        assert fresh.get()


def test_interrupted_detach_leaves_nothing(plain: Project) -> None:
    """Ctrl-C while `up --detach` waits ends the supervisor that it started."""
    process = plain.popen("up", "--detach")
    until(lambda: (plain.home / "run" / "state.json").exists())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (0, 130)
    if process.returncode == 130:
        assert plain.leftovers() == []


def test_next_up_adopts_after_kill_of_the_supervisor(plain: Project) -> None:
    """kill -9 of the supervisor: it serves on; the next `up` keeps PostgreSQL and replaces the rest."""
    plain.run("up", "-d")
    before, status = plain.pids(), plain.status()
    kill(status["supervisor"])
    with urllib.request.urlopen(status["url"], timeout=5) as answer:
        assert answer.read().decode() == str(before["app-1"])
    assert "orphaned" in plain.run("status", code=3)
    plain.run("up", "-d")
    after = plain.pids()
    assert after["db"] == before["db"]
    assert after["app-1"] != before["app-1"]
    assert sum("appserver" in line for line in plain.leftovers()) == 1
    plain.run("down")
    assert plain.leftovers() == []


def test_down_cleans_after_kill_of_the_supervisor(plain: Project) -> None:
    """kill -9 of the supervisor, then `down`: nothing is left."""
    plain.run("up", "-d")
    kill(plain.status()["supervisor"])
    assert "killed supervisor" in plain.run("down")
    assert plain.leftovers() == []


@pytest.mark.parametrize("delay", [0.2, 0.4, 0.7])
def test_kill_of_the_supervisor_while_it_starts(fresh: Project, delay: float) -> None:
    """kill -9 in the middle of the first start, initdb included: the next start works, with one of each."""
    process = fresh.popen("up")
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=delay)
    process.kill()
    process.communicate()
    fresh.run("up", "-d")
    assert fresh.get() == str(fresh.pids()["app-1"])
    assert sum("appserver" in line for line in fresh.leftovers()) == 1
    assert sorted(path.name for path in (fresh.home / "data").iterdir()) == ["db"]


def test_down_finds_a_supervisor_whose_notes_are_lost(plain: Project) -> None:
    """Without state.json the lock tells who runs; status still works."""
    plain.run("up", "-d")
    (plain.home / "run" / "state.json").unlink()
    plain.run("status", code=3)
    plain.run("down")
    assert plain.leftovers() == []


def test_no_socket_folder_is_left(plain: Project) -> None:
    """The private folder of PostgreSQL's unix socket goes, also when the supervisor was killed."""
    plain.run("up", "-d")
    pids, status = plain.pids(), plain.status()
    lines = (plain.home / "data" / "db" / "postmaster.pid").read_text().splitlines()
    sockets = Path(lines[4])
    assert int(lines[0]) == pids["db"] and stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert len(str(sockets)) <= 100
    kill(status["supervisor"])
    plain.run("down")
    assert not sockets.exists()


def test_a_frozen_node_is_shown(plain: Project) -> None:
    """A node that was stopped by a signal is shown as frozen, and `down` ends it all the same."""
    plain.run("up", "-d")
    kill(plain.pids()["app-1"], signal.SIGSTOP)
    until(lambda: plain.status()["nodes"][1]["state"] == "frozen")
    plain.run("down")
    assert plain.leftovers() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")
def test_limits_hold_for_every_process_of_a_node(template: Path) -> None:
    """PostgreSQL's children are in its group, and the groups go with the platform, also after a kill."""
    groups = Path("/sys/fs/cgroup/cpu/springtide")
    if not groups.parent.is_dir():
        pytest.skip("no version 1 control groups here")
    with project() as made:
        made.write(
            '[nodes.db]\nkind = "postgres"\ncpu = 0.5\n[clusters.main]\nprimary = "db"\n'
            '[databases.default]\nshards = ["main"]\n[servers]\nport = 0\ncpu = 0.5\n',
            name="limited",
        ).prepare(template)
        made.run("up", "-d")
        own = next(groups.glob("limited-*"))
        pids = made.pids()
        inside = {int(pid) for pid in (own / "db" / "cgroup.procs").read_text().split()}
        children = Path(f"/proc/{pids['db']}/task/{pids['db']}/children").read_text().split()
        assert inside == {pids["db"], *map(int, children)} and len(inside) > 3
        assert pids["app-1"] in map(int, (own / "app-1" / "cgroup.procs").read_text().split())
        assert (own / "db" / "cpu.cfs_quota_us").read_text() == "5000\n"
        kill(made.status()["supervisor"])
        made.run("down")
        assert not own.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_project(tmp_path: Path) -> None:
    """On a read-only file system: the place and the reason, nothing is left running."""
    made = Project(tmp_path / "ro")
    made.folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", made.folder], check=True)
    try:
        made.write()
        subprocess.run(["mount", "-o", "remount,ro", made.folder], check=True)
        out = made.run("up", code=1)
        assert f"{made.home}: the file system is mounted read-only" in out and "Traceback" not in out
    finally:
        subprocess.run(["umount", made.folder], check=True)


def test_a_frozen_leftover_server_is_replaced(plain: Project) -> None:
    """A PostgreSQL that was left behind and does not answer is ended; the next one recovers its data."""
    plain.run("up", "-d")
    pids = plain.pids()
    kill(plain.status()["supervisor"])
    kill(pids["db"], signal.SIGSTOP)
    plain.run("up", "-d")
    assert plain.pids()["db"] != pids["db"]


def test_crashed_children_are_started_again(plain: Project) -> None:
    """kill -9 of an app server and of PostgreSQL: both come back, at the same addresses."""
    plain.run("up", "-d")
    before = plain.status()
    for node in before["nodes"]:
        kill(node["pid"])
    until(lambda: all(n["state"] == "running" and n["restarts"] == 1 for n in plain.status()["nodes"]))
    after = plain.status()
    assert [n["address"] for n in after["nodes"]] == [n["address"] for n in before["nodes"]]
    assert plain.get()


def test_several_servers_share_the_socket(template: Path) -> None:
    """With two app servers, one that is killed takes no request with it while it is away."""
    with project() as made:
        made.write("[servers]\nport = 0\ncount = 2\n").prepare(template).run("up", "-d")
        pids = made.pids()
        kill(pids["app-1"])
        assert {made.get() for _ in range(5)} <= {str(pids["app-2"]), str(made.pids().get("app-1"))}


def test_a_broken_application_is_reported(template: Path) -> None:
    """An application that cannot be imported: exit code 1 with its traceback's end, nothing left."""
    with project() as made:
        made.write(app="import nothing_of_that_name\n").prepare(template)
        for detach in ([], ["--detach"]):
            out = made.run("up", *detach, code=1)
            assert "app-1" in out and "No module named 'nothing_of_that_name'" in out
            assert made.leftovers() == []


def test_failed_lifespan_is_reported(template: Path) -> None:
    """An application that says that its start-up failed is not served: exit code 1 with its message."""
    failed = '{"type": "lifespan.startup.failed", "message": "no licence"}'
    with project() as made:
        made.write(app=PLAIN.replace('{"type": message["type"] + ".complete"}', failed)).prepare(template)
        out = made.run("up", code=1)
        assert "no licence" in out and "Traceback" not in out
        assert made.leftovers() == []


def test_public_port_taken_names_the_holder(plain: Project) -> None:
    """The message says who has the port and how to choose another; --port does; nothing is left."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        out = plain.run("up", "--port", str(port), code=1)
        assert f"port {port} on 127.0.0.1 is taken by process {os.getpid()}" in out and "--port" in out
        assert plain.leftovers() == []
    plain.run("up", "-d", "--port", str(port))
    assert plain.status()["url"] == f"http://127.0.0.1:{port}"


def test_database_port_taken_is_reported(template: Path) -> None:
    """A configured port of PostgreSQL that is in use: the node and its key are named, nothing is left."""
    with socket.socket() as taken, project() as made:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        made.write(
            f'[nodes.db]\nkind = "postgres"\nport = {port}\n[clusters.main]\nprimary = "db"\n'
            '[databases.default]\nshards = ["main"]\n[servers]\nport = 0\n'
        )
        out = made.prepare(template).run("up", code=1)
        assert f"port {port} of node db is taken by process {os.getpid()}" in out and "nodes.db.port" in out
        assert made.leftovers() == []


def test_given_server_that_is_not_there() -> None:
    """An unreachable server given by url: cluster and address are named, the password is not shown."""
    with socket.socket() as closed, project() as made:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        made.write(
            f'[nodes.db]\nkind = "postgres"\nurl = "postgresql://me:hush@127.0.0.1:{port}/x"\n'
            '[clusters.main]\nprimary = "db"\n[databases.default]\nshards = ["main"]\n[servers]\nport = 0\n'
        )
        out = made.run("up", code=1)
        assert "cluster main" in out and f"127.0.0.1:{port}" in out and "hush" not in out
        assert made.leftovers() == []


def test_given_server_is_used(plain: Project) -> None:
    """A reachable server given by url runs the application and is left alone by `down`."""
    plain.run("up", "-d")
    url = read_addresses(plain.home / "run" / "addresses.json").nodes["db"].replace("/postgres", "/main")
    with project() as made:
        made.write(
            f'[nodes.far]\nkind = "postgres"\nurl = "{url}"\n'
            '[clusters.main]\nprimary = "far"\n[databases.default]\nshards = ["main"]\n[servers]\nport = 0\n'
        )
        made.run("up", "-d")
        assert made.get()
        made.run("down")
    assert plain.status()["nodes"][0]["restarts"] == 0 and plain.get()


def test_configuration_errors_exit_2(tmp_path: Path) -> None:
    """No topology, or a broken one: exit code 2 with one message and no traceback."""
    made = Project(tmp_path)
    assert "there is no springtide.toml" in made.run("up", code=2)
    (tmp_path / "springtide.toml").write_text('name = 3\napp = "a:b"\n')
    out = made.run("up", code=2)
    assert "name" in out and "Traceback" not in out
    assert not (tmp_path / ".springtide").exists()
