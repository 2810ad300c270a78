"""docs/backups.md is true: its commands exist, its example is read, its drill brings the data back."""

from __future__ import annotations

import re
from pathlib import Path

from tests.integration._platforms import Project
from tests.integration.test_backups import BACKUPS, QUIET, ask

from springtide.ops import cli
from springtide.topology import check_built, loads

PAGE = (Path(__file__).parents[2] / "docs" / "backups.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_every_command_of_the_page_is_understood() -> None:
    """Each line of the overview parses, with all its options."""
    (overview, _) = [text for language, text in BLOCKS if not language]
    values = {"NAME": "x", "TIME": "2026-03-14T15:09:26+01:00"}
    lines = overview.strip().splitlines()
    for line in lines:
        words = re.sub(r"[\[\]]", "", re.split(r"  +", line)[0]).split()
        given = [values.get(word, word) for word in words][1:]
        assert callable(cli._parser(given).parse_args(given).run)
    assert {line.split()[1] for line in lines} == {"backup", "restore"}


def test_the_example_can_be_run() -> None:
    (toml,) = [text for language, text in BLOCKS if language == "toml"]
    topology = loads(toml)
    check_built(topology)
    assert topology.backups is not None
    assert (topology.backups.keep, topology.backups.folder) == (7, "/mnt/backup/shop")


def test_the_drill_brings_the_data_back(plain: Project) -> None:
    """Its commands, one after the other, on a platform that has data and never took a backup."""
    (_, drill) = [text for language, text in BLOCKS if not language]
    toml = BACKUPS + QUIET
    plain.write(toml).run("up", "--detach")
    ask(plain, "CREATE TABLE written (n int)", "INSERT INTO written VALUES (1)")
    for line in drill.strip().splitlines():
        assert line.startswith("springtide ")
        plain.run(*line.split()[1:])
    assert ask(plain, "SELECT n FROM written") == [[(1,)]]
    assert len(list((plain.home / "data").glob("db.before-*"))) == 1
