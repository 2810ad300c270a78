"""What never reaches a log: credentials in headers, cookies, keys and the text around them."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["REDACTED", "redact_text", "redact_value"]

REDACTED = "[redacted]"

MAX_DEPTH = 6

_SECRET_NAME = re.compile(
    r"authorization|cookie|password|passwd|secret|api[-_]?key|access[-_]?token|refresh[-_]?token|^token$",
    re.IGNORECASE,
)
_IN_TEXT = re.compile(
    r"""(?ix)
      ( (?:proxy-)?authorization ["']? \s* [:=,] \s* (?:b?["'])? )
        (?: (?:bearer|token|basic|digest) \s+ )? [^\s"',;]+
    | ( \b(?:bearer|basic) \s+ ) [A-Za-z0-9._~+/=-]{8,}
    | ( (?:set-)?cookie ["']? \s* [:=,] \s* (?:b?["'])? ) [^\r\n"']+
    | ( ://[^\s/:@]+: ) [^\s/@]+ (?=@)
    """
)


def redact_text(text: str) -> str:
    """`text` without the values of Authorization and Cookie headers, bearer tokens and passwords in URLs."""
    return _IN_TEXT.sub(
        lambda match: next(part for part in match.groups() if part is not None) + REDACTED, text
    )


def redact_value(name: str, value: object, depth: int = 0) -> object:
    """`value` of a log field, with everything under a secret's name replaced; nested mappings, lists and
    pairs such as ASGI headers included. Anything that JSON does not know becomes its `repr`."""
    if _SECRET_NAME.search(name):
        return REDACTED
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, bytes):
        return redact_text(value.decode("utf-8", "backslashreplace"))
    if depth >= MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {_text(key): redact_value(_text(key), item, depth + 1) for key, item in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str | bytes):
        return [_text(value[0]), redact_value(_text(value[0]), value[1], depth + 1)]
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_value("", item, depth + 1) for item in value]
    return redact_text(repr(value))


def _text(key: object) -> str:
    return key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
