"""The error tree: as drawn, complete, and able to tell its story."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from springtide import errors
from springtide.errors import SpringtideError, TopologyError, TopologyFault

CLASSES = {
    name: cls
    for name, cls in vars(errors).items()
    if inspect.isclass(cls) and issubclass(cls, SpringtideError)
}


def drawn() -> dict[str, str | None]:
    """class -> parent, read from the docstring's drawing."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^ {4}((?:[│ ] {3})*)(?:[├└]── )?([A-Z]\w+)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4 + ("──" in line)
        parents[match[2]] = path[depth - 1] if depth else None
        path[depth:] = [match[2]]
    return parents


def test_the_docstring_draws_the_real_tree() -> None:
    """Every class is drawn under its base, and nothing else is."""
    real = {name: cls.__base__.__name__ for name, cls in CLASSES.items() if cls is not SpringtideError}
    assert drawn() == {"SpringtideError": None, **real}


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_an_error_says_what_it_means_to_the_caller(name: str) -> None:
    """Each has a sentence of its own."""
    doc = vars(CLASSES[name]).get("__doc__")
    assert doc and doc.strip().endswith(".")


def test_a_topology_error_lists_every_fault_with_its_line() -> None:
    """The reader mends the file in one go."""
    error = TopologyError(
        "springtide.toml",
        [
            TopologyFault(3, "servers.port", 99999, "must be 0 to 65535"),
            TopologyFault(None, "app", None, "must be there"),
        ],
    )
    assert str(error).splitlines() == [
        "springtide.toml: 2 faults",
        "  line 3: servers.port: must be 0 to 65535, got 99999",
        "  app: must be there",
    ]


def test_no_error_is_public_that_cannot_be_raised_from_a_cause() -> None:
    """Causes are chained: no class swallows them."""
    for cls in CLASSES.values():
        assert cls.__dict__.get("__suppress_context__") is None
        assert pickle.loads(pickle.dumps(cls)) is cls
