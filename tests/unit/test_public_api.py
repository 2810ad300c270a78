"""`__all__` is what a module promises: all of it is there, and public files promise something."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import springtide

ROOT = Path(springtide.__file__).parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(ROOT)], "springtide.")
    if "template" not in module.name.split(".") and not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_everything_promised_is_importable(name: str) -> None:
    """Each name of `__all__` is there, once; nothing private is promised."""
    module = importlib.import_module(name)
    promised = list(getattr(module, "__all__", ()))
    assert len(promised) == len(set(promised))
    assert [entry for entry in promised if not hasattr(module, entry)] == []
    assert [entry for entry in promised if entry.startswith("_") and entry != "__version__"] == []


@pytest.mark.parametrize("name", [name for name in MODULES if not name.rpartition(".")[2].startswith("_")])
def test_a_public_file_says_what_is_public(name: str) -> None:
    """A file that defines classes or functions lists those that others may use."""
    module = importlib.import_module(name)
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    defined = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
    ]
    assert not defined or getattr(module, "__all__", ())


def test_importing_starts_nothing() -> None:
    """No thread and no connection by import; the heavy and optional parts only when asked for."""
    import subprocess
    import sys

    code = (
        "import sys, threading, springtide.platform, springtide.cache;"
        "heavy = {'argon2', 'cryptography', 'fastapi', 'hiredis'};"
        "print(threading.active_count(), *sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
