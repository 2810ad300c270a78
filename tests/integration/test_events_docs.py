"""docs/events.md is true: its modules run as they stand there, on a platform with two shards and alone."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_platform import topology_of
from tests.jobs_support import until

from springtide.events import Group as EventGroup
from springtide.events import operating
from springtide.lifecycle import Group
from springtide.platform import Platform

GUIDE = (Path(__file__).parents[2] / "docs" / "events.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", GUIDE, re.DOTALL)
FILES = re.findall(r"`([\w/]+\.(?:py|sql))`:\n\n```\w+\n(.*?)```", GUIDE, re.DOTALL)


class Told:
    def __init__(self) -> None:
        self.orders: list[int] = []
        self.keys: list[str] = []

    async def __call__(self, order: int, *, idempotency_key: str) -> None:
        self.orders.append(order)
        self.keys.append(idempotency_key)


@pytest.fixture
async def platform(
    tmp_path: Path, database_urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Platform, Told, Any, Any]]:
    """The guide's modules on two shards, migrated and started."""
    for name, text in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("orders", "figures"):
        (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    told = Told()
    try:
        import figures.service  # type: ignore[import-not-found]  # the guide's
        import orders.service  # type: ignore[import-not-found]  # the guide's

        modules = [orders.service.module, figures.service.module(told)]
        made = Platform(topology_of(*database_urls), modules=modules)
        await made.migrate()
        async with made:
            yield made, told, orders.api, figures.service
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in ("orders", "figures")]:
            del sys.modules[name]


async def test_the_modules_run_as_written(platform: tuple[Platform, Told, Any, Any]) -> None:
    """Orders of both shards are counted once and told once; a replay of the figures counts them anew."""
    made, told, orders, figures = platform
    work = Group("work", made.background(drain=5.0))
    await work.start()
    database = made.database("orders")
    try:
        await until(lambda: known(database))
        placed = [await made.service(orders.Orders).place(total) for total in range(1, 11)]
        await until(lambda: total(made, figures, 55))
        await until(lambda: len(told.orders) == 10)
        await until(lambda: caught_up(database))  # what is not written down yet would come again as new
        await operating.pause(database, "figures.sales")
        await operating.replay(database, "figures.sales", "beginning")
        for pool in made.database("figures").pools.values():
            await pool.execute("delete from figures.sales")
        await operating.replay(database, "figures.tell", "beginning")
        await operating.resume(database, "figures.sales")
        await until(lambda: total(made, figures, 55))
    finally:
        await work.stop()
    assert sorted(told.orders) == sorted(placed) and len(set(told.keys)) == 10
    assert await operating.check(database) == []
    from springtide.telemetry.prometheus import render

    metrics = render(made.metrics)[0].decode()
    assert 'springtide_events_handled_total{group="figures.tell",kind="orders.placed"' in metrics


async def known(database: Any) -> bool:
    return len(await operating.groups(database)) == 4


async def caught_up(database: Any) -> bool:
    return not any(group.waiting for group in await operating.groups(database))


async def total(platform: Platform, figures: Any, wanted: int) -> bool:
    found: int = await platform.service(figures.Figures).total()
    return found == wanted


async def test_a_worker_without_a_platform(
    platform: tuple[Platform, Told, Any, Any], database_urls: tuple[str, str]
) -> None:
    """The guide's `work`, with a service that it is given."""
    made, told, orders, figures = platform
    (code,) = [text for kind, text in BLOCKS if kind == "python" and "async def work" in text]
    scope: dict[str, Any] = {}
    exec(code, scope)
    await made.service(orders.Orders).place(7)
    group = EventGroup("alone", figures.module(told).groups[1].handlers)
    dsns = dict(zip(("main", "second"), database_urls, strict=True))

    async def heard() -> None:
        await until(lambda: len(told.orders) == 1)

    service = made._registry.implementation("figures")
    await scope["work"](made.database("orders"), dsns, [group], service, heard)


def test_the_tables_name_the_options_that_there_are() -> None:
    """Every option of Group and On is in the guide, with its default, and no other."""
    from dataclasses import fields

    from springtide.events import On

    for cls in (EventGroup, On):
        table = re.search(rf"\| `{cls.__name__}\([\w, ]+\.\.\.\)(.*?)\n\n", GUIDE, re.DOTALL)
        assert table is not None
        named = {
            name for line in table[1].splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])
        }
        there = {field.name for field in fields(cls)} - {"event", "method"}
        assert named == there, cls
    assert "`max_run` | 20 s" in GUIDE and "`max_attempts` | 10" in GUIDE
