"""How fresh the reads of one route are, said where the route is.

    @app.get("/articles")
    @reads(Consistency.bounded(5))
    async def articles() -> ...:

Works for functions of FastAPI and Starlette, `async` and plain. It holds for everything that the request
reads from there on, in other modules too, unless a call or a `reading` block says otherwise; what was read
before, such as a dependency that finds the session, keeps the database's default.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from springtide.context import Consistency, current

__all__ = ["reads"]

P = ParamSpec("P")
T = TypeVar("T")


def reads(consistency: Consistency) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator for the function of a route; outside of a request it does nothing."""

    def decorate(route: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(route)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            _say(consistency)
            return await cast(Any, route)(*args, **kwargs)

        @functools.wraps(route)
        def plain(*args: P.args, **kwargs: P.kwargs) -> T:
            _say(consistency)
            return route(*args, **kwargs)

        return cast(Callable[P, T], asynchronous) if inspect.iscoroutinefunction(route) else plain

    return decorate


def _say(consistency: Consistency) -> None:
    context = current()
    if context is not None:
        context.consistency = consistency
