"""See when an application looks at a header that says who asks, also when the request has none.

Starlette and FastAPI find a header by comparing the wanted name with one pair's after the other. So the first
pair's name is an object that knows what it is compared with: one more call per header that is looked up. The
pairs that are personal notice it themselves, for frameworks that look by dictionary or read all of them. One
that makes a dictionary of all headers first is only seen reading what is there.

FastAPI reads the cookies of every request, wanted or not. There its route's declaration says whether they can
be reached: by a `Cookie` parameter, or by a function that takes the Request (ours apart: they are watched by
what they read).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from springtide.context import current
from springtide.provenance import Provenance

__all__ = ["Watch", "Watching"]

Pairs = list[tuple[bytes, bytes]]

CONNECTIONS = ("request_param_name", "websocket_param_name", "http_connection_param_name")

MAX_NAMES = 256
"""Names of first headers that are kept at hand; servers and proxies send few different ones."""


class Watch:
    """What one request's headers tell when they are looked at. Routing leaves its route in `scope`."""

    __slots__ = ("_provenance", "_scope")

    def __init__(self, provenance: Provenance, scope: Mapping[str, Any]) -> None:
        self._provenance = provenance
        self._scope = scope

    def __call__(self, name: bytes) -> None:
        """Somebody looked for this personal header."""
        if not (name == b"cookie" and _out_of_reach(self._scope)):
            self._provenance.restrict(name.decode("latin-1"))


def _looked_for(name: bytes) -> None:
    context = current()
    if (
        context is not None
        and (provenance := context.provenance) is not None
        and provenance.watch is not None
    ):
        provenance.watch(name)


class _Name(bytes):
    """A header's name; equal to the same bytes. It belongs to no request: the context says who looks."""

    personal: Collection[bytes]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, bytes) and bytes(other) in self.personal:
            _looked_for(bytes(other))
        return bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = bytes.__hash__


class _Value(bytes):
    """The value of a personal header."""

    name: bytes

    def decode(self, *args: Any, **kwargs: Any) -> str:
        _looked_for(self.name)
        return super().decode(*args, **kwargs)


class Watching:
    """Puts the watch into requests' headers. `personal` are names of headers that say who asks."""

    def __init__(self, personal: Collection[bytes]) -> None:
        self._personal = frozenset(personal)
        self._names: dict[bytes, _Name] = {}

    def headers(self, plain: Iterable[tuple[bytes, bytes]], provenance: Provenance) -> Pairs:
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
                seen.name = name
                made[at] = (self._name(name), seen)
                if name == b"authorization":
                    provenance.restrict("authorization")
            elif name == b"if-none-match":
                provenance.known = value if provenance.known is None else provenance.known + b"," + value
        first = made[0]
        if type(first[0]) is not _Name:
            made[0] = (self._name(first[0]), first[1])
        return made

    def _name(self, plain: bytes) -> _Name:
        name = self._names.get(plain)
        if name is None:
            name = _Name(plain)
            name.personal = self._personal
            if len(self._names) < MAX_NAMES:
                self._names[bytes(plain)] = name
        return name


def _out_of_reach(scope: Mapping[str, Any]) -> bool:
    """Whether the route is one of FastAPI that cannot get at its cookies."""
    route = (scope.get("fastapi") or {}).get("effective_route_context") or scope.get("route")
    dependant = getattr(route, "dependant", None)
    return dependant is not None and not _reaches(dependant)


def _reaches(dependant: Any) -> bool:
    ours = str(getattr(dependant.call, "__module__", "")).startswith("springtide.")
    if dependant.cookie_params or (not ours and any(getattr(dependant, name, None) for name in CONNECTIONS)):
        return True
    return any(map(_reaches, dependant.dependencies))
