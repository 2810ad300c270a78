"""ARCHITECTURE.md draws the tree that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()


def drawn() -> set[str]:
    """The paths of src/springtide that the page lists, folders with a trailing slash."""
    tree = PAGE.split("<!-- tree", 1)[1].split("## Directions", 1)[0]
    inside = tree.split("src/springtide/\n", 1)[1].split("    apps/", 1)[0]
    paths: set[str] = set()
    folder = ""
    for line in inside.splitlines():
        found = re.match(r"^ {6}( {2})?(\S+)", line)
        if found:
            nested, name = found.groups()
            folder = folder if nested else ""
            paths.add(folder + name)
            if name == "ops/":
                folder = name
    return paths


def there(folder: Path, prefix: str = "") -> set[str]:
    """Rooms and plain files below `folder`, as the page names them."""
    rooms = {f"{prefix}{path.parent.name}/" for path in folder.glob("*/__init__.py")}
    files = {prefix + path.name for path in folder.glob("[a-z]*.py")}
    return rooms | files


def test_the_tree_lists_every_room_and_every_plain_file_of_the_library() -> None:
    library = ROOT / "src" / "springtide"
    shown = {path for path in drawn() if not path.startswith("ops/") or path == "ops/"}
    assert shown == there(library)


def test_the_rooms_of_ops_are_listed() -> None:
    rooms = {path for path in there(ROOT / "src" / "springtide" / "ops", "ops/") if path.endswith("/")}
    assert rooms <= drawn()


def test_every_path_of_the_tree_exists() -> None:
    assert {path for path in drawn() if not (ROOT / "src" / "springtide" / path).exists()} == set()
