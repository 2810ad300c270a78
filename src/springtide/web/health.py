"""What the outside may ask about this process.

`/health/live`: the loop answers. `/health/ready`: this process wants traffic: started, not draining, its loop
on time. Neither ever touches a dependency: a database that is down must not take every server out of the
balancer at once. `/health/dependencies` is for people and monitors: each dependency with a time-out, all at
once, one check at a time, the result kept for a moment, so that asking often costs the dependencies nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec

from springtide.clock import Clock, SystemClock
from springtide.web._routes import ROUTE_KEY
from springtide.web._types import Receive, Scope, Send

__all__ = ["Check", "DependencyState", "Health", "send_json"]

Check = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class DependencyState:
    """`error` is the kind of failure, without its message, which may name hosts and users."""

    ok: bool
    seconds: float
    error: str | None


class Health:
    """An ASGI application for the three pages.

    `state` gives the lifecycle state ("running" is ready), `lag` the loop's lag in seconds. A check of
    `dependencies` succeeds by returning within `check_timeout`; `more` gives those that come and go, whenever
    somebody asks. `drain()` turns readiness off for good.
    """

    def __init__(
        self,
        *,
        state: Callable[[], str],
        lag: Callable[[], float] | None = None,
        max_lag: float = 2.0,
        dependencies: Mapping[str, Check] | None = None,
        more: Callable[[], Mapping[str, Check]] = dict,
        check_timeout: float = 1.0,
        keep: float = 2.0,
        prefix: str = "/health",
        clock: Clock | None = None,
    ) -> None:
        if check_timeout <= 0:
            raise ValueError(f"check_timeout must be > 0 seconds, got {check_timeout}")
        if keep < 0:
            raise ValueError(f"keep must be >= 0 seconds, got {keep}")
        if max_lag <= 0:
            raise ValueError(f"max_lag must be > 0 seconds, got {max_lag}")
        self._state = state
        self._lag = lag
        self._max_lag = max_lag
        self._dependencies = dict(dependencies or {})
        self._more = more
        self._check_timeout = check_timeout
        self._keep = keep
        self._clock = clock or SystemClock()
        self._draining = False
        self._known: tuple[float, dict[str, DependencyState]] | None = None
        self._checking = asyncio.Lock()
        self.paths = frozenset(f"{prefix}/{page}" for page in ("live", "ready", "dependencies"))

    def drain(self) -> None:
        """Not ready from now on; what is under way goes on."""
        self._draining = True

    @property
    def draining(self) -> bool:
        """Whether this process is about to end: answers without an end should end soon."""
        return self._draining

    def obstacle(self) -> str | None:
        """Why this process wants no traffic; None when it is ready."""
        if self._draining:
            return "draining"
        state = self._state()
        if state != "running":
            return state
        if self._lag is not None and self._lag() > self._max_lag:
            return "loop is late"
        return None

    async def dependencies(self) -> dict[str, DependencyState]:
        """The state of every dependency, at most `keep` seconds old."""
        async with self._checking:
            now = self._clock.monotonic()
            if self._known is None or now - self._known[0] >= self._keep:
                checks = {**self._dependencies, **self._more()}
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._check(check)) for check in checks.values()]
                states = {name: task.result() for name, task in zip(checks, tasks, strict=True)}
                self._known = (self._clock.monotonic(), states)
            return self._known[1]

    async def _check(self, check: Check) -> DependencyState:
        begun = self._clock.monotonic()
        error: str | None = None
        try:
            async with asyncio.timeout(self._check_timeout):
                await check()
        except (Exception, asyncio.CancelledError) as caught:  # whatever a check raises is its answer
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # we are meant, not the check
            error = type(caught).__name__
        return DependencyState(error is None, round(self._clock.monotonic() - begun, 6), error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path not in self.paths:
            await send_json(scope, send, 404, {"status": "not found"})
            return
        scope[ROUTE_KEY] = path
        if scope["method"] not in ("GET", "HEAD"):
            await send_json(scope, send, 405, {"status": "method not allowed"})
        elif path.endswith("/live"):
            await send_json(scope, send, 200, {"status": "live"})
        elif path.endswith("/ready"):
            obstacle = self.obstacle()
            status = 200 if obstacle is None else 503
            await send_json(
                scope, send, status, {"status": "ready"} if obstacle is None else {"status": obstacle}
            )
        else:
            states = await self.dependencies()
            well = all(state.ok for state in states.values())
            page = {"status": "ok" if well else "degraded", "dependencies": states}
            await send_json(scope, send, 200 if well else 503, page)


async def send_json(scope: Scope, send: Send, status: int, page: object) -> None:
    """Answer with `page`, which nobody may keep."""
    body = msgspec.json.encode(page)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode("ascii")),
        (b"cache-control", b"no-store"),
    ]
    if status == 405:
        headers.append((b"allow", b"GET, HEAD"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
