"""What things there are to sell: departments and their categories. Pure.

The tree is part of the program: it changes with a release, and a listing names its category by slug. A slug
that was ever used stays, because listings have it; a category that is no longer wanted gets a new name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["DEPARTMENTS", "TREE", "Node", "department_of"]


class Node(NamedTuple):
    slug: str
    name: str
    parent: str | None


_TREE: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("books", "Books"): {
        "fiction": "Fiction",
        "non-fiction": "Non-fiction",
        "comics": "Comics",
        "children-books": "Children's books",
    },
    ("home", "Home"): {
        "kitchen": "Kitchen",
        "furniture": "Furniture",
        "lighting": "Lighting",
        "textiles": "Textiles",
    },
    ("clothing", "Clothing"): {
        "women": "Women",
        "men": "Men",
        "children-clothing": "Children",
        "accessories": "Accessories",
    },
    ("electronics", "Electronics"): {
        "audio": "Audio",
        "computers": "Computers",
        "phones": "Phones",
        "cameras": "Cameras",
    },
    ("art", "Art and crafts"): {
        "prints": "Prints",
        "ceramics": "Ceramics",
        "jewellery": "Jewellery",
        "supplies": "Supplies",
    },
    ("garden", "Garden"): {
        "plants": "Plants",
        "seeds": "Seeds",
        "tools": "Tools",
    },
}

DEPARTMENTS: Mapping[str, tuple[str, ...]] = {slug: tuple(under) for (slug, _), under in _TREE.items()}
"""Department -> its categories."""

TREE: tuple[Node, ...] = tuple(
    node
    for (slug, name), under in _TREE.items()
    for node in (Node(slug, name, None), *(Node(own, title, slug) for own, title in under.items()))
)

_PARENTS = {node.slug: node.parent for node in TREE}


def department_of(category: str) -> str | None:
    """The department of a category; None for a department and for what is no category."""
    return _PARENTS.get(category)
