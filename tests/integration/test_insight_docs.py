"""The examples of docs/insight.md run as they stand there."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

from springtide.db.insight import Insight
from springtide.ops.advise import asking, commands, indexing, present, server

PAGE = Path(__file__).resolve().parents[2] / "docs" / "insight.md"


def example(name: str) -> dict[str, Any]:
    found = re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None, f"docs/insight.md has no example {name}"
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(found[1], f"{PAGE.name}:{name}", "exec"), names)
    return names


async def test_the_loop_of_the_page_is_found(database_url: str) -> None:
    """The example counts its ten reads and knows where they come from."""
    found = await example("example")["main"](database_url)
    assert (found.text, found.calls) == ("select text from note where id = $1", 10)
    assert " main < " in next(iter(found.sites))


def test_every_option_is_in_the_table_with_its_default() -> None:
    """The page and the signature cannot drift apart."""
    text = PAGE.read_text()
    for name, parameter in inspect.signature(Insight).parameters.items():
        if name in ("clock", "sink"):
            continue
        row = next((line for line in text.splitlines() if line.startswith(f"| `{name}`")), None)
        assert row is not None, f"docs/insight.md does not explain {name}"
        assert parameter.default is None or f"| {parameter.default} |" in row


def test_every_option_of_the_command_is_explained_with_its_default() -> None:
    """And its exit code for findings."""
    text = PAGE.read_text()
    parser = argparse.ArgumentParser()
    command = commands.add_command(parser.add_subparsers())
    for action in command._actions:
        option = action.option_strings[-1]
        if option == "--help":
            continue
        row = next((line for line in text.splitlines() if line.startswith(f"| `{option}`")), None)
        assert row is not None, f"docs/insight.md does not explain {option}"
        assert action.default is None or f"| {action.default:g} |" in row
    assert f"{commands.FINDINGS} there are findings" in text


def test_every_kind_of_finding_is_explained() -> None:
    """Each has its row; the page invents none."""
    sources = "".join(inspect.getsource(module) for module in (asking, indexing, present, server))
    made = set(re.findall(r'kind="(\w+)"|_drop\(\s*"(\w+)"', sources))
    kinds = {first or second for first, second in made} - {"select"}
    table = PAGE.read_text().partition("| Finding |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == kinds
