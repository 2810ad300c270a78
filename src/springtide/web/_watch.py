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

from collections.abc import Collection, Mapping
from typing import Any

from springtide.provenance import Provenance

__all__ = ["Watch", "watched"]

Pairs = list[tuple[bytes, bytes]]

CONNECTIONS = ("request_param_name", "websocket_param_name", "http_connection_param_name")


class Watch:
    """What the names of one request's headers know. Routing leaves its route in `scope`."""

    __slots__ = ("personal", "provenance", "scope")

    def __init__(self, provenance: Provenance, personal: Collection[bytes], scope: Mapping[str, Any]) -> None:
        self.provenance = provenance
        self.personal = personal
        self.scope = scope

    def looked_for(self, name: bytes) -> None:
        if name in self.personal and not (name == b"cookie" and _out_of_reach(self.scope)):
            self.provenance.restrict(name.decode("latin-1"))


class _Name(bytes):
    """A header's name; equal to the same bytes."""

    watch: Watch

    def __eq__(self, other: object) -> bool:
        if isinstance(other, bytes):
            self.watch.looked_for(bytes(other))
        return bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = bytes.__hash__


class _Value(bytes):
    """The value of a personal header."""

    watch: Watch
    name: bytes

    def decode(self, *args: Any, **kwargs: Any) -> str:
        self.watch.looked_for(self.name)
        return super().decode(*args, **kwargs)


def watched(headers: Pairs, watch: Watch) -> Pairs:
    """The same headers; looking for a personal one restricts the provenance."""
    if not headers:
        watch.provenance.restrict("no headers")  # nothing would be compared
        return headers
    made = list(headers)
    for at, (plain, value) in enumerate(headers):
        if at == 0 or plain in watch.personal:
            name = _Name(plain)
            name.watch = watch
            if plain in watch.personal:
                seen = _Value(value)
                seen.watch, seen.name = watch, plain
                value = seen
            made[at] = (name, value)
    return made


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
