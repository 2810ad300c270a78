"""Programs beside the application, and texts that name what is known only when the platform starts.

A text may hold placeholders. There are these, and nothing else stands between braces:

    {url}                  public address of the platform
    {programs.NAME.PORT}   number of a program's port
    {secrets.NAME}         text made once and kept in secrets/
    {python}  {state}      in programs only: the platform's interpreter; the program's own folder

None of them refers to another text, so there are no cycles. `{{` and `}}` are single braces. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from springtide.errors import TopologyFault
from springtide.topology.keys import Key, Rule, between, entries, matching, redacted_entry
from springtide.topology.layers import NAME, Checked, Cpu, MemoryBytes
from springtide.topology.suggest import nearest

if TYPE_CHECKING:
    from springtide.topology.spec import Topology

__all__ = ["ENVIRONMENT", "ProgramSpec", "faults_of_programs", "filled"]

TEXT = matching(r"[^\0]*", "must not hold NUL")
ENVIRONMENT = entries(
    matching(
        r"(?!SPRINGTIDE_|PYTHONUNBUFFERED$)[A-Za-z_][A-Za-z0-9_]*",
        "must be letters, digits and _, not PYTHONUNBUFFERED or SPRINGTIDE_..., which the runner sets",
    ),
    TEXT,
)
PORTS = entries(NAME, between(0, 65535), least=1)
COMMAND = Rule(
    "must begin with a program and hold no NUL",
    lambda value: isinstance(value, tuple) and bool(value) and value[0] != "" and all(map(TEXT.holds, value)),
)
READY = matching(r"[A-Za-z][A-Za-z0-9-]*/[!-~]*", 'must look like "port/path"')

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_TAKEN = re.compile(r"(app|worker)-\d+|supervisor|migrate")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSpec(Checked):
    """A program beside the application, for development: a stand-in for a service of somebody else."""

    name: str
    command: Annotated[tuple[str, ...], Key(says="what to run, in the file's folder", rule=COMMAND)]
    ports: Annotated[
        Mapping[str, int],
        Key(says="its ports on 127.0.0.1, by name; 0 = a free one, kept over restarts", rule=PORTS),
    ]
    ready: Annotated[
        str | None,
        Key(says="ready when this answers GET; absent = when all its ports accept connections", rule=READY),
    ] = None
    environment: Annotated[
        Mapping[str, str], Key(says="environment variables of this program", rule=ENVIRONMENT)
    ] = field(default_factory=dict)
    cpu: Cpu = None
    memory_bytes: MemoryBytes = None

    def __post_init__(self) -> None:
        for name in ("ports", "environment"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, MappingProxyType(dict(value)))
        Checked.__post_init__(self)


def filled(text: str, values: Mapping[str, str]) -> str:
    """`text` with every placeholder replaced by its value. Raises KeyError for one that has none."""

    def replaced(part: re.Match[str]) -> str:
        return part[0][0] if part[1] is None else values[part[1]]

    return _PART.sub(replaced, text)


def faults_of_programs(topology: Topology) -> Iterator[TopologyFault]:
    """Names that somebody else has, a `ready` without its port, and placeholders that mean nothing."""
    shared = ["url", *(f"secrets.{name}" for name in topology.secrets)]
    for name, program in topology.programs.items():
        shared += [f"programs.{name}.{port}" for port in program.ports]
    for variable, text in topology.environment.items():
        yield from _faulty(f"environment.{variable}", text, shared)
    for name, program in topology.programs.items():
        key = f"programs.{name}"
        if name in topology.nodes:
            yield TopologyFault(None, key, None, f"must differ from nodes.{name}: they would share a log")
        elif _TAKEN.fullmatch(name):
            yield TopologyFault(
                None, key, None, "this name belongs to a part of the platform; choose another"
            )
        if program.ready is not None and program.ready.partition("/")[0] not in program.ports:
            rule = f"must begin with one of {key}.ports: {', '.join(program.ports)}"
            yield TopologyFault(None, f"{key}.ready", program.ready, rule)
        for at, argument in enumerate(program.command):
            yield from _faulty(f"{key}.command.{at}", argument, [*shared, "python", "state"])
        for variable, text in program.environment.items():
            yield from _faulty(f"{key}.environment.{variable}", text, [*shared, "python", "state"])


def _faulty(key: str, text: str, known: Iterable[str]) -> Iterator[TopologyFault]:
    for part in _PART.finditer(text):
        if part[1] in known or part[0] in ("{{", "}}"):
            continue
        if part[1] is None:
            rule = f"{part[0]} stands alone: write {part[0] * 2} for the character itself"
        elif guess := nearest(part[1], known):
            rule = f"unknown placeholder {part[0]}; did you mean {{{guess}}}?"
        else:
            rule = f"unknown placeholder {part[0]}; known here: {', '.join(f'{{{name}}}' for name in known)}"
        yield TopologyFault(None, key, redacted_entry(key.rpartition(".")[2], text), rule)
