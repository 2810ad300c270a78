"""What never reaches a log: credentials in headers, cookies, keys and the text around them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

__all__ = ["MAX_TEXT", "REDACTED", "printed", "redact_text", "redact_value"]

REDACTED = "[redacted]"

MAX_DEPTH = 6
MAX_TEXT = 20_000
MAX_INTEGER_BITS = 1024

_SECRET_NAME = re.compile(
    r"authorization|cookie|password|passwd|secret|(?:api|private|signing)[-_]?key|token$",
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


def printed(value: object, how: Callable[[object], str] = str) -> str:
    """`how(value)`, or a replacement when the object cannot do it: no record is lost to its own contents."""
    try:
        return how(value)
    except Exception:  # the object's own code; what it says is shown instead of it
        return f"<unprintable {type(value).__name__}>"


def redact_text(text: str) -> str:
    """`text` without the values of Authorization and Cookie headers, bearer tokens and passwords in URLs.

    At most `MAX_TEXT` characters of it; it is cut after the replacement, so that no half of a secret stays.
    """
    replaced = _IN_TEXT.sub(
        lambda match: next(part for part in match.groups() if part is not None) + REDACTED,
        text[: 2 * MAX_TEXT],
    )
    return replaced if len(replaced) <= MAX_TEXT else replaced[: MAX_TEXT - 1] + "\N{HORIZONTAL ELLIPSIS}"


def redact_value(name: str, value: object, depth: int = 0) -> object:
    """`value` of a log field, with everything under a secret's name replaced; nested mappings, lists and
    pairs such as ASGI headers included. Anything that JSON does not know becomes its `repr`."""
    if _SECRET_NAME.search(name):
        return REDACTED
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() <= MAX_INTEGER_BITS else hex(value)
    if isinstance(value, float):
        return float(value)
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
    return redact_text(printed(value, repr))


def _text(key: object) -> str:
    return key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else printed(key)
