"""Health pages: readiness never asks a dependency, and the page about them cannot be used against them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from springtide.testing import ManualClock
from springtide.web.health import Health


def client(health: Health) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(health), base_url="http://t")


class Dependency:
    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None
        self.hangs = False

    async def __call__(self) -> None:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


async def test_ready_follows_the_state_the_lag_and_the_drain_but_no_dependency() -> None:
    state, lag, database = "starting", 0.0, Dependency()
    database.error = ConnectionError()
    health = Health(state=lambda: state, lag=lambda: lag, max_lag=1.0, dependencies={"main": database})
    http = client(health)

    async def ready() -> tuple[int, str]:
        answer = await http.get("/health/ready")
        return answer.status_code, answer.json()["status"]

    assert await ready() == (503, "starting")
    state = "running"
    assert await ready() == (200, "ready")
    lag = 1.5
    assert await ready() == (503, "loop is late")
    lag = 0.0
    health.drain()
    assert await ready() == (503, "draining")
    assert (await http.get("/health/live")).status_code == 200
    assert database.asked == 0


async def test_dependencies_are_asked_once_however_many_ask_and_kept_for_a_moment() -> None:
    clock, database = ManualClock(), Dependency()
    http = client(Health(state=lambda: "running", dependencies={"main": database}, keep=2.0, clock=clock))
    answers = await asyncio.gather(*(http.get("/health/dependencies") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert database.asked == 1
    await clock.advance(2.0)
    database.error = ConnectionError("host db.internal refused the password hunter2")
    answer = await http.get("/health/dependencies")
    assert database.asked == 2
    assert answer.status_code == 503
    assert answer.json()["dependencies"]["main"] | {"seconds": 0} == {
        "ok": False, "seconds": 0, "error": "ConnectionError",
    }  # fmt: skip
    assert "hunter2" not in answer.text


async def test_a_frozen_dependency_is_reported_within_its_time_beside_the_others() -> None:
    frozen, fine = Dependency(), Dependency()
    frozen.hangs = True
    checks: Any = {"frozen": frozen, "fine": fine}
    http = client(Health(state=lambda: "running", dependencies=checks, check_timeout=0.05))
    page = (await http.get("/health/dependencies")).json()
    assert page["status"] == "degraded"
    assert page["dependencies"]["frozen"]["error"] == "TimeoutError"
    assert page["dependencies"]["fine"]["ok"] is True


async def test_a_client_that_leaves_during_the_check_spoils_nothing() -> None:
    frozen = Dependency()
    frozen.hangs = True
    health = Health(state=lambda: "running", dependencies={"x": frozen}, check_timeout=5.0)
    asking = asyncio.create_task(health.dependencies())
    while not frozen.asked:
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    frozen.hangs = False
    assert (await health.dependencies())["x"].ok


async def test_other_paths_and_methods_are_refused() -> None:
    http = client(Health(state=lambda: "running"))
    assert (await http.get("/health/nope")).status_code == 404
    assert (await http.post("/health/live")).status_code == 405
    head = await http.head("/health/live")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("option", [{"check_timeout": 0}, {"keep": -1}, {"max_lag": 0}])
def test_a_wrong_option_is_refused(option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        Health(state=lambda: "running", **option)  # type: ignore[arg-type]


async def test_a_check_that_is_cancelled_from_within_is_a_failed_one() -> None:
    """A pool that stops cancels what waits for it; the page still answers for the others."""

    async def cancelled() -> None:
        raise asyncio.CancelledError

    health = Health(state=lambda: "running", dependencies={"main": cancelled, "other": Dependency()})
    states = await health.dependencies()
    assert (states["main"].ok, states["main"].error) == (False, "CancelledError")
    assert states["other"].ok
