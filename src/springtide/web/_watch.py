"""See when an application looks at what says who asks, also when the request has none of it.

Starlette and FastAPI find a header by comparing the wanted name with one pair's after the other. So the first
pair's name is an object that knows what it is compared with: one more call per header that is looked up. The
pairs that are personal notice it themselves, for frameworks that look by dictionary or read all of them. One
that makes a dictionary of all headers first is only seen reading what is there.

FastAPI reads the cookies of every request, wanted or not. When it is FastAPI that looks, its route's
declaration says whether they can be reached: by a `Cookie` parameter, by a function that takes the Request
(ours apart: they are watched by what they read), or by a route class of one's own.

A layer outside may have found out who asks already and left it in the scope, as Starlette's do.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Iterable
from types import FrameType
from typing import Any

from springtide.provenance import Provenance
from springtide.web._types import Scope

__all__ = ["Watch", "Watching"]

Pairs = list[tuple[bytes, bytes]]

CONNECTIONS = ("request_param_name", "websocket_param_name", "http_connection_param_name")

FOUND_OUT = frozenset({"user", "auth", "session"})
"""Where Starlette's layers leave who asks; the first two are its authentication's."""


class Watch:
    """What one request's headers tell when they are looked at. Routing leaves its route in `scope`."""

    __slots__ = ("_personal", "_provenance", "_scope")

    def __init__(self, personal: Collection[bytes], provenance: Provenance, scope: Scope) -> None:
        self._personal = personal
        self._provenance = provenance
        self._scope = scope

    def compared(self, name: bytes) -> None:
        """Somebody compared the name of a header with this one."""
        if name in self._personal:
            self.looked(name)

    def looked(self, name: bytes) -> None:
        """Somebody looked for this personal header."""
        if not (name == b"cookie" and _out_of_reach(self._scope) and _fastapi_looks()):
            self._provenance.restrict(name.decode("latin-1"))

    def over(self) -> None:
        """The answer is made. The scope has the headers, which have the watch: that circle ends here."""
        self._scope = {}


class _Name(bytes):
    """A header's name; equal to the same bytes."""

    watch: Watch

    def __eq__(self, other: object) -> bool:
        if isinstance(other, bytes):
            self.watch.compared(bytes(other))
        return bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = bytes.__hash__


class _Value(bytes):
    """The value of a personal header: whatever is done with it tells, but for what takes its memory in C."""

    name: bytes
    watch: Watch

    def __bytes__(self) -> bytes:
        self.watch.looked(self.name)
        return self[:]

    def __radd__(self, other: bytes) -> bytes:
        return other + bytes(self)


TELLING = {f"__{what}__" for what in ("eq", "ne", "lt", "le", "gt", "ge", "hash", "format", "repr", "str")}
"""What every object can do that tells what the bytes are."""

SILENT = frozenset({*dir(object), "__bytes__", "__getnewargs__", "fromhex", "maketrans"} - TELLING)
"""What bytes can do without telling what they are."""


def _telling(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def told(self: _Value, *args: Any, **kwargs: Any) -> Any:
        self.watch.looked(self.name)
        return method(self, *args, **kwargs)

    return told


for _method in set(dir(bytes)) - SILENT:
    setattr(_Value, _method, _telling(getattr(bytes, _method)))


class _Scope(dict[str, Any]):
    """A scope in which a layer outside has left who asks."""

    provenance: Provenance

    def __getitem__(self, key: str) -> Any:
        if key in FOUND_OUT:
            self.provenance.restrict(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        if key in FOUND_OUT:
            self.provenance.restrict(key)
        return super().get(key, default)


class Watching:
    """Puts the watch into requests. `personal` are names of headers that say who asks."""

    def __init__(self, personal: Collection[bytes]) -> None:
        self._personal = frozenset(personal)

    def scope(self, plain: Scope, provenance: Provenance) -> tuple[Scope, Watch]:
        """A copy of the scope that tells `provenance` who looks, until the watch is over."""
        made: Scope = dict(plain)
        if not FOUND_OUT.isdisjoint(plain):
            made = watched = _Scope(plain)
            watched.provenance = provenance
        watch = Watch(self._personal, provenance, made)
        made["headers"] = self._headers(plain["headers"], provenance, watch)
        return made, watch

    def _headers(self, plain: Iterable[tuple[bytes, bytes]], provenance: Provenance, watch: Watch) -> Pairs:
        """The same headers. Authorization restricts the provenance by being there; so do no headers at all.

        What the client has already (If-None-Match) is taken note of on the way.
        """
        made: Pairs = list(plain)
        if not made:
            provenance.restrict("no headers")  # nothing would be compared
            return made
        for at, (name, value) in enumerate(made):
            if name in self._personal:
                seen = _Value(value)
                seen.name, seen.watch = name, watch
                made[at] = (_named(name, watch), seen)
                if name == b"authorization":
                    provenance.restrict("authorization")
            elif name == b"if-none-match":
                provenance.known = value if provenance.known is None else provenance.known + b"," + value
        first = made[0]
        if type(first[0]) is not _Name:
            made[0] = (_named(first[0], watch), first[1])
        return made


def _named(plain: bytes, watch: Watch) -> _Name:
    name = _Name(plain)
    name.watch = watch
    return name


def _fastapi_looks() -> bool:
    """Whether it is FastAPI itself that looks, with nobody between it and us but Starlette."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("fastapi."):
            return True
        if module != __name__ and not module.startswith("starlette."):
            return False
        frame = frame.f_back
    return False


def _out_of_reach(scope: Scope) -> bool:
    """Whether the route is one of FastAPI that cannot get at its cookies."""
    route = (scope.get("fastapi") or {}).get("effective_route_context") or scope.get("route")
    dependant = getattr(route, "dependant", None)
    if dependant is None:
        return False
    declared = getattr(route, "original_route", route)
    handler = getattr(type(declared), "get_route_handler", None)  # a class of one's own may look in there
    return str(getattr(handler, "__module__", "")).startswith("fastapi.") and not _reaches(dependant)


def _reaches(dependant: Any) -> bool:
    ours = str(getattr(dependant.call, "__module__", "")).startswith("springtide.")
    if dependant.cookie_params or (not ours and any(getattr(dependant, name, None) for name in CONNECTIONS)):
        return True
    return any(map(_reaches, dependant.dependencies))
