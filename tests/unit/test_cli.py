"""The command line: help, versions, exit codes, and what is imported for a command."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from springtide import __version__
from springtide.errors import ConfigurationError, RunnerError
from springtide.ops import cli


def springtide(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "springtide.ops.cli", *arguments], capture_output=True, text=True, timeout=30
    )


def test_help_lists_every_command() -> None:
    """`springtide --help` and each command's own help work."""
    out = springtide("--help")
    assert out.returncode == 0
    for names in cli.AREAS.values():
        for name in names:
            assert f"\n    {name} " in out.stdout
    assert "--detach" in springtide("up", "--help").stdout


def test_version_and_nonsense() -> None:
    """--version prints it; an unknown command and a wrong value are refused with exit code 2."""
    assert springtide("--version").stdout == f"springtide {__version__}\n"
    assert springtide().returncode == 2
    assert "invalid choice" in springtide("fly").stderr
    assert "0..65535" in springtide("up", "--port", "99999").stderr


@pytest.mark.parametrize(("error", "code"), [(ConfigurationError("bad"), 2), (RunnerError("bad"), 1)])
def test_errors_are_one_message(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Our errors: the message on stderr, no traceback, 2 for configuration and 1 for the rest."""

    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr("springtide.ops.runner.commands._status", fail)
    assert cli.main(["status"]) == code
    assert capsys.readouterr().err == "springtide: bad\n"


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupted command ends with 130 and says nothing."""

    def interrupt(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("springtide.ops.runner.commands._status", interrupt)
    assert cli.main(["status"]) == 130
    assert capsys.readouterr().err == ""


def test_the_supervisor_stays_small() -> None:
    """`springtide up` loads no web framework and no database driver: it is memory that nobody uses."""
    code = (
        "import sys; from springtide.ops import cli; cli._parser(['up']);"
        "print([m for m in ('fastapi', 'starlette', 'uvicorn', 'asyncpg', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n", done.stderr


SWALLOWED = """
import os, signal, weakref

class Thing: pass

thing = Thing()
seen = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
del thing
print("ran on")
"""
"""A module during whose import Ctrl-C comes in a callback: what is raised there, Python forgets."""


def test_ctrl_c_ends_a_command_also_while_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SWALLOWED)
    code = "from springtide.ops import cli; cli.AREAS = {'slow': ('up',)}; cli.main(['up'])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert (out.returncode, out.stdout) == (-signal.SIGINT, ""), out.stderr
