"""docs/runner.md is true: its commands exist, its examples run, its messages are the ones that appear."""

from __future__ import annotations

import inspect
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration._platforms import Project, project

from springtide.ops import cli
from springtide.ops.runner import logs, pgdata
from springtide.ops.runner.cgroups import Limits
from springtide.ops.runner.children import Child
from springtide.ops.runner.installs import FOLDERS, NEWEST
from springtide.ops.runner.supervisor import DRAIN
from springtide.topology import loads

PAGE = (Path(__file__).parents[2] / "docs" / "runner.md").read_text("utf-8")


def block(language: str) -> str:
    """The only example in `language`."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.fixture(scope="module")
def written() -> Iterator[Project]:
    """What `springtide new` writes."""
    with project() as outside:
        outside.run("new", "guests")
        yield Project(outside.folder / "guests")


@pytest.mark.parametrize(
    "at, names",
    [
        (1, ["new", *cli.AREAS["springtide.ops.runner.commands"]]),
        (3, ["replicas"] * 4),
    ],
)
def test_every_command_of_the_page_is_understood(at: int, names: list[str]) -> None:
    """Each line of the overviews parses, with all its options, and every runner command is in them."""
    asked = []
    for line in PAGE.split("```")[at].strip().splitlines():
        usage = re.sub(r"[\[\]]", "", line.split("   ")[0])
        values = {"NAME": "x", "N": "0", "FILE": "x", "NODE": "x", "LINES": "5", "CLUSTER": "x"}
        given = [values.get(word, word) for word in usage.split()][1:]
        assert callable(cli._parser(given).parse_args(given).run)
        asked.append(given[0])
    assert asked == names


def test_the_example_of_a_test_database_runs(
    written: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`temporary_databases` gives the address of an empty database."""
    example = tmp_path / "example.py"
    example.write_text(block("python"))
    monkeypatch.chdir(written.folder)
    runpy.run_path(str(example))
    assert re.fullmatch(r"postgresql://\S+@127\.0\.0\.1:\d+/cluster-main\n", capsys.readouterr().out)


def test_the_example_of_limits_is_read() -> None:
    """The limits are those of the comments; the period is the one that the page names."""
    topology = loads(block("toml"))
    assert (topology.nodes["db"].cpu, topology.nodes["db"].memory_bytes) == (0.25, 512 * 2**20)
    assert topology.servers.cpu == 1.0
    assert Limits(cpu=0.25).quota == (2_500, 10_000) and "is 10 ms" in PAGE.replace("\n", " ")


def test_the_figures_of_the_page_are_those_of_the_code() -> None:
    """Sizes, times and versions."""
    text = " ".join(PAGE.split())
    assert f"have {DRAIN:g} s" in text
    assert f"{logs.MAX_BYTES // 2**20} MB, then `.1` to `.{logs.KEEP}`" in text
    assert f"a new database needs {pgdata.NEEDED_BYTES // 2**20} MB" in text
    assert f"New data is made by PostgreSQL {NEWEST}" in text
    assert f"only {' and '.join(map(str, sorted(FOLDERS)))} are embedded" in text
    assert f"grow to {inspect.signature(Child).parameters['max_backoff'].default:g} s" in text


def test_the_home_looks_as_described(written: Project) -> None:
    """Each path of the table is there while the platform runs, and nothing else is."""
    table = PAGE.partition("## The home")[2].partition("## ")[0]
    described = {row.split("/")[0] for row in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)}
    written.run("up", "-d", "--port", "0")
    try:
        assert {path.name for path in written.home.iterdir()} == described - {"clusters"}  # no replicas here
        nodes = {node["node"] for node in written.status()["nodes"]}
        found = {path.stem for path in (written.home / "logs").iterdir()}
        assert nodes | {"supervisor", "migrate"} == found
    finally:
        written.run("down")
