"""What people and machines do to a running platform: nothing is lost, nothing is left running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from tests.integration._platforms import Project, kill, project, until

from springtide.ops.runner.accounts import server_account
from springtide.ops.runner.home import Home

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def test_a_removed_run_folder_opens_the_home_to_nobody(plain: Project) -> None:
    """rm -rf .springtide/run while it runs: no second platform, news are noted again, `down` finds it."""
    plain.run("up", "-d")
    before = plain.pids()
    shutil.rmtree(plain.home / "run")
    assert "already runs" in plain.run("up", code=1)
    kill(before["app-1"])
    until(lambda: plain.status()["state"] == "up" and plain.pids()["app-1"] not in (None, before["app-1"]))
    shutil.rmtree(plain.home / "run")
    plain.run("down")
    assert plain.leftovers() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_keeps_nothing_from_being_started_again_or_stopped(template: Path) -> None:
    """Neither the notes nor the logs can be written: crashed nodes come back all the same, `down` works."""
    with project() as made:
        mount = ["mount", "-t", "tmpfs", "-o", "size=192m,mode=755", "tmpfs", str(made.folder)]
        subprocess.run(mount, check=True)
        try:
            made.write().prepare(template).run("up", "-d")
            url = made.status()["url"]
            with (made.folder / "filler").open("wb", buffering=0) as filler:
                for size in (65536, 1):
                    with suppress(OSError):
                        while True:
                            filler.write(b"x" * size)
            kill(made.pids()["app-1"])
            until(lambda: _answers(url))
            made.run("down")
            assert made.leftovers() == []
        finally:
            made.run("down", code=None)
            subprocess.run(["umount", "--lazy", made.folder], check=True)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except OSError:
        return False
    return True


def test_a_visitor_of_the_data_folder_is_left_alone(plain: Project) -> None:
    """A shell that stands in the data folder is no leftover of the server, and survives starts and stops."""
    account = server_account()
    uid, gid = account.switch or (None, None)
    data = plain.home / "data" / "db"
    with subprocess.Popen(["sleep", "60"], cwd=data, user=uid, group=gid) as visitor:
        try:
            plain.run("up", "-d")
            kill(plain.pids()["db"])
            until(lambda: plain.status()["nodes"][0]["restarts"] == 1)
            plain.run("down")
            assert visitor.poll() is None
        finally:
            visitor.kill()


def test_a_killed_up_detach_takes_its_platform_with_it(plain: Project) -> None:
    """kill -9 of `up --detach` while it waits: nobody would hear that the platform is up, so it stops."""
    process = plain.popen("up", "--detach")
    until(lambda: (plain.home / "run" / "state.json").exists())
    process.kill()
    process.communicate()
    until(lambda: plain.leftovers() == [])


def test_nohup_means_what_it_says(plain: Project) -> None:
    """A closed terminal (SIGHUP) stops `up`, unless it was started with nohup."""
    for words in ([], ["nohup"]):
        process = subprocess.Popen(
            [*words, *plain.command("up")],
            cwd=plain.folder,
            env=plain.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: plain.status()["state"] == "up")
        process.send_signal(signal.SIGHUP)
        if not words:
            assert process.wait(timeout=30) == 0 and plain.leftovers() == []
        else:
            assert plain.get() and process.poll() is None
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)


def test_two_at_once(plain: Project) -> None:
    """Of several `up` in the same moment one wins, the others say who has it."""
    starts = [plain.popen("up", "--detach") for _ in range(3)]
    outs = [start.communicate(timeout=60)[0] for start in starts]
    assert sorted(start.returncode for start in starts) == [0, 1, 1], outs
    assert sum("already runs" in out for out in outs) == 2
    assert plain.get() and sum("appserver" in line for line in plain.leftovers()) == 1


NEVER_READY = """
import pathlib, time
pathlib.Path("importing").touch()
time.sleep(300)
"""


def test_down_while_it_starts(plain: Project) -> None:
    """`down` in the middle of a start ends it, and `up` is told."""
    (plain.folder / "plainapp.py").write_text(NEVER_READY)
    process = plain.popen("up", "--detach")
    until(lambda: (plain.folder / "importing").exists())
    plain.run("down")
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert plain.leftovers() == []


def test_demo_from_start_to_end(plain: Project) -> None:
    """It names the addresses, serves as long as it was told, and stops what it started."""
    out = plain.run("demo", "--seconds", "0")
    assert "the application" in out and "serving for 0 s" in out and "stopped plain" in out
    assert plain.leftovers() == []


def test_demo_interrupted_as_it_answers_first(plain: Project) -> None:
    """The application answers before `up --detach` has returned: interrupted in between, nothing is left."""
    state = Home(plain.home)
    for _ in range(3):
        process = plain.popen("demo", "--port", "0")
        until(lambda: (found := state.read_state()) is not None and found.ready)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        assert plain.leftovers() == [], out
        assert process.returncode == 130 and "Traceback" not in out


def test_demo_leaves_a_platform_that_ran_before(plain: Project) -> None:
    """It is refused, and what ran goes on."""
    plain.run("up", "-d")
    assert "already runs" in plain.run("demo", code=1)
    assert plain.get()


@pytest.mark.parametrize("sig", INTERRUPTIONS)
@pytest.mark.parametrize("delay", [0.3, 0.8, 2.5])
def test_interrupted_demo_leaves_nothing(plain: Project, sig: signal.Signals, delay: float) -> None:
    """Interrupted while it starts or serves, by impatient people twice: it returns when all has stopped."""
    process = plain.popen("demo")
    with suppress(subprocess.TimeoutExpired):  # the moment has come, wherever it is
        process.wait(timeout=delay)
    for _ in range(3):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sig)
        time.sleep(0.1)
    out, _ = process.communicate(timeout=60)
    assert plain.leftovers() == [], out
    assert process.returncode in (130, -sig), out
    if "$ springtide" in out:  # before its first step Python may be ended by the signal itself
        assert process.returncode == 130 and "Traceback" not in out, out
