"""docs/topology.md says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from springtide.topology import Topology, check_built, loads
from springtide.topology.built import BUILT_KINDS
from springtide.topology.keys import Field, described
from springtide.topology.kinds import KINDS
from springtide.topology.plain import to_toml

PAGE = (Path(__file__).parents[2] / "docs" / "topology.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
BEGIN = "<!-- keys: begin (held to the code by tests/unit/test_topology_docs.py) -->\n"
END = "<!-- keys: end -->"


def key_tables() -> str:
    """The tables of the section "Every key", as the code has them."""
    lines = ["### The top of the file", "", *_table(Topology)]
    for field in described(Topology):
        structure = field.table or field.tables
        if structure is not None:
            name = f"{field.name}.NAME" if field.tables else field.name
            off = " Off when absent." if field.optional else ""
            about = (structure.__doc__ or "").partition("\n")[0]
            lines += ["", f"### [{name}]", "", about + off, "", *_table(structure)]
    return "\n".join(lines) + "\n"


def _table(structure: type) -> list[str]:
    rows = ["| key | type | default | unit | rule | what |", "|---|---|---|---|---|---|"]
    for field in described(structure):
        if field.key is not None:
            rule = field.key.rule.sentence if field.key.rule else ""
            kinds = f"; a node of kind {' or '.join(field.key.kinds)}" if field.key.kinds else ""
            cells = (
                f"`{field.name}`",
                _type(field),
                _default(field),
                field.key.unit,
                rule + kinds,
                field.key.says,
            )
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return rows


def _type(field: Field) -> str:
    if field.entries is not None:
        return f"table of {'strings' if field.entries is str else 'integers'}"
    names = {str: "string", int: "integer", float: "number", bool: "boolean", None: "list of strings"}
    return names[field.scalar]


def _default(field: Field) -> str:
    if field.required:
        return "required"
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return "absent" if default is None else f"`{json.dumps(default)}`"


def test_the_page_lists_every_key_with_default_unit_and_rule() -> None:
    """A key that is added, removed or changed must be so on the page; the expected text is in the failure."""
    assert PAGE.partition(BEGIN)[2].partition(END)[0] == key_tables()


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_a_topology(example: str) -> None:
    """Each TOML example is read without a fault and survives being shown."""
    topology = loads(example)
    assert loads(to_toml(topology, secrets=True)) == topology
    if topology.stage == 1:
        check_built(topology)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


def test_the_page_names_every_kind() -> None:
    kinds = PAGE.partition("## Kinds of nodes")[2]
    listed, _, starts = kinds.partition("This version starts")
    assert set(re.findall(r"`(\w+)`", listed)) == set(KINDS)
    assert set(re.findall(r"`(\w+)`", starts)) == BUILT_KINDS
