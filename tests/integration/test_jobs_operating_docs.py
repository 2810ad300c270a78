"""docs/jobs-operating.md is true: its example runs, and every command that it names takes what it says."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from tests.jobs_support import add, deeds

from springtide.jobs import kind_of
from springtide.jobs.checking import Report
from springtide.ops import _jobs_showing, jobs_commands

GUIDE = (Path(__file__).parents[2] / "docs" / "jobs-operating.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", GUIDE, re.DOTALL)


async def test_the_round_of_the_morning_runs(database_urls: tuple[str, str], tmp_path: Path) -> None:
    names: dict[str, object] = {}
    for code in [text for kind, text in BLOCKS if kind == "python"]:
        exec(code, names)
    assert kind_of(names["Digest"]).overload == "refuse"
    assert kind_of(names["SearchText"]).overload == "slow"
    async with deeds(database_urls, tmp_path / "migrations") as database:
        await add(database, "a")
        for pool in database.pools.values():
            await pool.execute("update deeds._job set state = 'dead', finished_at = now()")
        assert await names["morning_round"]([database]) == ["deeds deed.do: 1 dead"]  # type: ignore[operator]


def test_the_commands_are_those_of_the_page() -> None:
    parser = argparse.ArgumentParser()
    jobs_commands.add_commands(parser.add_subparsers())
    known = next(a for a in parser._actions if a.choices).choices["jobs"]  # type: ignore[index, call-overload, union-attr]
    commands = next(a for a in known._actions if isinstance(a.choices, dict)).choices
    (listed,) = [text for kind, text in BLOCKS if kind == "" and "springtide jobs ls" in text]
    named = {line.split()[2]: line for line in listed.strip().splitlines()}
    assert set(named) == set(commands)
    for name, line in named.items():
        for option in re.findall(r"--[a-z-]+", line):
            assert option in commands[name]._option_string_actions, f"{name} has no {option}"


def test_check_reads_so_many_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    """Not both: one of them would have no effect."""
    parser = argparse.ArgumentParser()
    jobs_commands.add_commands(parser.add_subparsers())
    for option in (["--payloads", "3"], ["--all"], []):
        parser.parse_args(["jobs", "check", *option])
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["jobs", "check", "--payloads", "3", "--all"])
    assert "argument --all: not allowed with argument --payloads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("queued", "flows", "read", "said"),
    [
        (0, 0, 0, "this code can run them all"),
        (3, 1, 4, "this code can run them all"),
        (3, 1, 2, "this code knows their kinds, and can read those"),
        (3, 0, 0, "this code knows their kinds; whether it can read them was not looked at"),
        (0, 1, 0, "this code knows their kinds; whether it can read them was not looked at"),
    ],
)
def test_check_says_no_more_than_it_has_looked_at(queued: int, flows: int, read: int, said: str) -> None:
    found = Report(queued=queued, flows=flows, read=read, findings=[])
    assert _jobs_showing.report(found).endswith(f" {read} payloads were read: {said}")
