"""The template of the route that answered, as a label: `/articles/{slug}`, never `/articles/how-to`.

Read from the ASGI scope after Starlette or FastAPI have routed, mounts and included routers with their
prefixes. A plain ASGI application may name its own: scope["springtide.route"] = "/metrics".
What no route matched is `(unmatched)`. The number of labels is bounded; past it all are `(other)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from springtide.context import OTHER

__all__ = ["ROUTE_KEY", "UNMATCHED", "RouteLabels"]

ROUTE_KEY = "springtide.route"
UNMATCHED = "(unmatched)"
MAX_ROUTERS = 64


class RouteLabels:
    """Labels of one application. Bounded: `max_labels` distinct templates."""

    def __init__(self, *, max_labels: int = 500) -> None:
        if max_labels < 1:
            raise ValueError(f"max_labels must be >= 1, got {max_labels}")
        self._max_labels = max_labels
        self._seen: set[str] = {UNMATCHED}
        self._plain: dict[int, dict[int, tuple[object, str | None]]] = {}

    def label(self, scope: Mapping[str, Any], root_path: str) -> str:
        """`root_path` is the one the server gave: what routing added to it is the mounts' share."""
        template = scope.get(ROUTE_KEY) or self._template(scope, root_path)
        if template in self._seen:
            return template
        if len(self._seen) > self._max_labels:
            return OTHER
        self._seen.add(template)
        return template

    def _template(self, scope: Mapping[str, Any], root_path: str) -> str:
        endpoint = scope.get("endpoint")
        if endpoint is None:
            return UNMATCHED
        mount = _mount(scope, root_path)
        # FastAPI 0.116 and later keep the prefix of include_router beside the route, not in it.
        included = (scope.get("fastapi") or {}).get("effective_route_context")
        if included is not None:
            path = getattr(included.starlette_route, "path_format", None) or included.path_format
            return mount + str(path)
        route = scope.get("route")
        if route is not None and getattr(route, "endpoint", None) is endpoint:
            return mount + str(getattr(route, "path_format", None) or route.path)
        found = self._by_endpoint(scope.get("router"), endpoint)
        if found is not None:
            return found
        return f"{mount}/{{path}}" if mount else UNMATCHED

    def _by_endpoint(self, router: Any, endpoint: object) -> str | None:
        """For routers that do not put the route into the scope: the one route that has this endpoint."""
        known = self._plain.get(id(router))
        if known is None:
            if len(self._plain) >= MAX_ROUTERS:  # an application that makes a router per request
                self._plain.clear()
            known = self._plain[id(router)] = {}
            for path, found in _walk(getattr(router, "routes", ()), ""):
                # Two routes with one endpoint cannot be told apart here.
                known[id(found)] = (found, None if id(found) in known else path)
        entry = known.get(id(endpoint))
        return entry[1] if entry is not None and entry[0] is endpoint else None


def _walk(routes: Iterable[Any], prefix: str) -> Iterator[tuple[str, object]]:
    for route in routes:
        inner = getattr(route, "routes", None)
        path = getattr(route, "path_format", None) or getattr(route, "path", None)
        if inner and hasattr(route, "path"):
            yield from _walk(inner, prefix + str(route.path))
        elif path is not None and hasattr(route, "endpoint"):
            yield prefix + str(path), route.endpoint


def _mount(scope: Mapping[str, Any], root_path: str) -> str:
    """The mounts that were passed, with the values of their parameters replaced by their names."""
    path = str(scope.get("root_path", ""))
    path = path[len(root_path) :] if path.startswith(root_path) else path
    params = scope.get("path_params")
    if not path or not params:
        return path
    names = {str(value): f"{{{name}}}" for name, value in params.items()}
    return "/".join(names.get(segment, segment) for segment in path.split("/"))
