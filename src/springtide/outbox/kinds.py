"""What is stored as JSON under a kind and a version, and read again by code that may be newer.

The kind is a name in the database, kept when the class is renamed or moved; the version is raised when older
code could not read the struct any more. Upcasts make of the fields of one version those of the next. Pure.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, TypeVar

import msgspec

from springtide.context import Priority
from springtide.errors import SpringtideError

__all__ = [
    "KIND",
    "Effect",
    "MAX_KEY_CHARS",
    "MAX_RUN",
    "Upcast",
    "check_counts",
    "check_effect",
    "check_handler",
    "check_key",
    "check_method",
    "check_seconds",
    "declared",
    "declaring",
    "decoder",
    "is_named",
    "is_number",
    "priority_of",
]

S = TypeVar("S", bound=msgspec.Struct)
K = TypeVar("K")

Effect = Literal["any", "transactional"]

KIND = re.compile(r"[a-z][a-z0-9_]{0,47}(\.[a-z][a-z0-9_]{0,47}){0,3}")
"""1 to 4 words of lower-case letters, digits and _ with dots between."""


MAX_KEY_CHARS = 500
"""Of what tells jobs, events or workflows of a kind apart, or orders them."""

MAX_BATCH = 1000
"""How much one call of a handler gets at most."""

MAX_RUN = 7 * 86_400.0
"""Seconds that one run may take at most: a lease is renewed for as long, also of a handler that hangs."""


def check_key(what: str, key: object, error: type[SpringtideError]) -> None:
    """It is text that an index takes, or None where there is none."""
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= MAX_KEY_CHARS and "\0" not in key):
        raise error(f"{what} must be a string of 1 to {MAX_KEY_CHARS} characters without NUL, got {key!r}")


def check_counts(what: str, error: type[SpringtideError], **counts: object) -> None:
    """Each is a whole number from 1 on."""
    for key, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise error(f"{what}: {key} must be a whole number, got {value!r}")
        if value < 1:
            raise error(f"{what}: {key} must be >= 1, got {value}")


def is_named(pattern: re.Pattern[str], value: object) -> bool:
    """Whether it is a string, and all of it as `pattern` has it."""
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is one, and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_seconds(
    what: str, error: type[SpringtideError], *, most: float = math.inf, **seconds: object
) -> None:
    """Each is a number above 0, not infinite and at most `most`."""
    for key, value in seconds.items():
        if not is_number(value):
            raise error(f"{what}: {key} must be a finite number of seconds, got {value!r}")
        if not 0 < value <= most:
            bound = f" and at most {most:g}" if most < math.inf else ""
            raise error(f"{what}: {key} must be > 0 seconds{bound}, got {value}")


def priority_of(what: str, value: object, error: type[SpringtideError]) -> Priority:
    """The class that `value` is, or is the number of."""
    try:
        return Priority(value)  # type: ignore[arg-type]
    except ValueError as cause:
        known = ", ".join(one.name for one in Priority)
        raise error(f"{what}: priority must be one of Priority's {known}, got {value!r}") from cause


def check_method(what: str, key: str, method: object, error: type[SpringtideError]) -> None:
    """It is a function of the implementation, and async: of a plain one the effect would be there before it
    is found that there is nothing to await. One whose annotation says that it returns something may return an
    awaitable."""
    if not callable(method):
        raise error(f"{what}: {key} must be a function of the implementation, got {method!r}")
    inner = inspect.unwrap(method)
    if (
        inspect.isfunction(inner)
        and not inspect.iscoroutinefunction(inner)
        and inner.__name__ != "<lambda>"
        and inner.__annotations__.get("return") in (None, "None")
    ):
        raise error(f"{what}: {key} must be async (async def), got {inner.__qualname__}")


def check_effect(what: str, effect: object, error: type[SpringtideError]) -> None:
    if effect not in ("any", "transactional"):
        raise error(f'{what}: effect must be "any" or "transactional", got {effect!r}')


def check_handler(
    name: str,
    cls: type[msgspec.Struct],
    error: type[SpringtideError],
    *,
    newest: int,
    method: object,
    effect: object,
    upcasts: Sequence[Upcast],
    batch: int | None,
) -> None:
    """What handles `name`, stored as `cls` in the version `newest`, can be called with what is read."""
    what = f"handler of {name}"
    check_method(what, "method", method, error)
    check_effect(what, effect, error)
    _check_upcasts(what, upcasts, newest, error)
    if batch is not None:
        check_counts(what, error, batch=batch)
        if batch > MAX_BATCH:
            raise error(f"{what}: batch must be at most {MAX_BATCH}, got {batch}")
    try:
        msgspec.json.schema(cls)  # refuses what a decoder would only refuse when something is read
    except (TypeError, NameError) as cause:
        raise error(f"{cls.__qualname__} cannot be stored as JSON: {cause}") from cause


def declaring(
    what: str, kind: str, spec: object, error: type[SpringtideError]
) -> Callable[[type[S]], type[S]]:
    """Declares a struct to be a `what` ("job", "event") of `kind`, which `spec` says more of."""

    def declare(cls: type[S]) -> type[S]:
        if not issubclass(cls, msgspec.Struct):
            raise error(f"{what} {kind}: {_a(what)} is a msgspec.Struct, got {cls!r}")
        if not cls.__struct_config__.frozen:
            raise error(f"{what} {kind}: {cls.__name__} must be frozen (frozen=True)")
        setattr(cls, _attribute(what), spec)
        return cls

    return declare


def declared(what: str, of: object, specs: type[K], error: type[SpringtideError]) -> K:
    """What `declaring` said of a struct or of its class. Raises `error` when there is nothing."""
    cls = of if isinstance(of, type) else type(of)
    spec = cls.__dict__.get(_attribute(what))  # not inherited: a subclass has other fields
    if not isinstance(spec, specs):
        raise error(f"{cls.__qualname__} is not declared as {_a(what)}; put @{what}(kind=...) above it")
    return spec


def _attribute(what: str) -> str:
    return f"__springtide_{what}__"


def _a(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


@dataclass(frozen=True, slots=True)
class Upcast:
    """What is of `version` was stored when it was the newest: `fields` makes of its fields, as JSON has them,
    those of the version after it. It must not look at anything else, so that it gives the same every time."""

    version: int
    fields: Callable[[dict[str, Any]], dict[str, Any]]


def _check_upcasts(what: str, upcasts: Sequence[Upcast], newest: int, error: type[SpringtideError]) -> None:
    """There is one for each version from the oldest that is read to the one before `newest`, in order."""
    versions = [upcast.version for upcast in upcasts]
    for version in versions:
        check_counts(what, error, **{"an upcast's version": version})
    if versions and versions != list(range(versions[0], newest)):
        raise error(
            f"{what}: upcasts must be of each version up to {newest - 1}, oldest first, got {versions}"
        )


def decoder(cls: type[Any], newest: int, upcasts: Sequence[Upcast], version: int) -> Callable[[bytes], Any]:
    """Reads what was stored as `version` of `cls`, whose present one is `newest`.

    What it returns raises msgspec.MsgspecError, UnicodeDecodeError, or what an upcast raises.
    """
    if version == newest:
        return msgspec.json.Decoder(cls).decode
    steps = [upcast.fields for upcast in upcasts if upcast.version >= version]
    fields = msgspec.json.Decoder(dict[str, Any]).decode

    def decode(payload: bytes) -> Any:
        found = fields(payload)
        for step in steps:
            found = step(found)
        return msgspec.convert(found, cls)

    return decode
