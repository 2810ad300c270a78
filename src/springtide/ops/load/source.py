"""Find what a topology names as `module:attribute`: an application's journeys, its seed.

Importing runs the application's code; nothing else does.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from springtide.errors import ConfigurationError
from springtide.ops.load.journeys import Journey

__all__ = ["find", "find_journeys"]


def find(reference: str, *, path: Path, key: str) -> object:
    """What `reference` names, imported with `path` in front of the import path.

    `key` is the topology's key, for the message. Raises ConfigurationError.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise ConfigurationError(f"{key}: must be 'module:attribute', got {reference!r}")
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise
        raise ConfigurationError(f"{key}: there is no module {error.name!r} under {path}") from error
    try:
        found: object = getattr(module, attribute)
    except AttributeError:
        raise ConfigurationError(f"{key}: module {module_name!r} has no {attribute!r}") from None
    return found


def find_journeys(reference: str, *, path: Path) -> Sequence[Journey]:
    """A list of Journey, or what a function without arguments gives. Raises ConfigurationError."""
    found = find(reference, path=path, key="journeys")
    if callable(found):
        found = found()
    if not isinstance(found, list | tuple) or not all(isinstance(each, Journey) for each in found):
        raise ConfigurationError(f"journeys: {reference!r} must give a list of Journey, got {found!r}")
    if not found:
        raise ConfigurationError(f"journeys: {reference!r} gives no journey")
    return found
