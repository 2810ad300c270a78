"""Values in the spelling of TOML, for files that we write and for sentences about files that people wrote.

Control characters and those that turn text around are escaped, so that what a file holds drives no terminal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, time

__all__ = ["key", "value"]

MAX_DECIMAL_BITS = 2048

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_ESCAPED = re.compile('["\\\\\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]')
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def key(name: str) -> str:
    """One part of a dotted key, quoted where it must be."""
    return name if _BARE.fullmatch(name) else _string(name)


def value(given: object) -> str:
    """`given` as a TOML value in one line; what TOML does not know becomes its `repr`."""
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, int) and given.bit_length() > MAX_DECIMAL_BITS:
        return hex(given)  # Python refuses to write it in decimal
    if isinstance(given, str):
        return _string(given)
    if isinstance(given, list | tuple):
        return f"[{', '.join(value(element) for element in given)}]"
    if isinstance(given, Mapping):
        return f"{{{', '.join(f'{key(name)} = {value(item)}' for name, item in given.items())}}}"
    if isinstance(given, date | time):
        return given.isoformat()
    return repr(given)


def _string(text: str) -> str:
    escaped = _ESCAPED.sub(lambda found: _ESCAPES.get(found[0]) or f"\\u{ord(found[0]):04x}", text)
    return f'"{escaped}"'
