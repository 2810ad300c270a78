"""docs/workflows.md is true: its module runs as it stands there, alone too, and operators see it."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import runpy
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_platform import topology_of
from tests.jobs_support import until

from springtide.db import bucket_of
from springtide.flows import FlowUpkeep, Step, Workflow
from springtide.lifecycle import Group
from springtide.platform import Platform

GUIDE = (Path(__file__).parents[2] / "docs" / "workflows.md").read_text("utf-8")

TABLES = """
create table shop.stock (bucket smallint not null primary key, pieces integer not null);
create table shop.sent (
    bucket smallint not null, id bigint not null, parcel text not null, primary key (bucket, id)
);
"""


SECRETS = """
update shop._flow set reason = 'Authorization: Bearer hush',
    data = convert_to('{"id": 1, "cents": 500, "card_token": "tok-1"}', 'UTF8')
"""


class Bank:
    def __init__(self) -> None:
        self.charged: dict[str, int] = {}
        self.cancelled: list[str] = []

    async def charge(self, cents: int, *, idempotency_key: str) -> None:
        self.charged[idempotency_key] = cents

    async def cancel(self, charge: str, *, idempotency_key: str) -> None:
        self.cancelled.append(charge)


@pytest.fixture
async def shop(
    tmp_path: Path, database_urls: tuple[str, str]
) -> AsyncIterator[tuple[Platform, Bank, dict[str, Any]]]:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_shop.sql").write_text(TABLES)
    found = re.search(r"`shop/service.py`:\n\n```python\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None
    (tmp_path / "shop.py").write_text(found[1])
    names = runpy.run_path(str(tmp_path / "shop.py"))
    bank = Bank()
    made = Platform(topology_of(*database_urls), modules=[names["module"](bank)])
    await made.migrate()
    async with made:
        database = made.database("shop")
        for key in (1, 2):
            async with database.write(key) as tx:
                await tx.execute("insert into shop.stock values ($1, 1)", bucket_of(key))
        yield made, bank, names


async def test_the_module_runs_as_written(shop: tuple[Platform, Bank, dict[str, Any]]) -> None:
    """One order is sent, one is sold out, in the request, and one is cancelled: stock and money are as they
    say."""
    made, bank, names = shop
    service: Any = made.service(names["Shop"])
    flows = made.flows("shop")
    assert flows is not None

    async def reach(key: int, id: Any, state: str) -> Any:
        async def there() -> Any:
            status = await flows.look(key, id)
            return status if status is not None and status.state == state else None

        return await until(there)

    work = Group("work", made.background(drain=5.0))
    await work.start()
    try:
        first, other = await service.place(1, 500), await service.place(2, 700)
        assert await service.place(1, 500) == first
        await reach(1, first, "waiting")
        await reach(2, other, "waiting")
        assert await service.place_now(1 + 1024, 900) == "undone"
        await service.packed(1, "p-1")
        await reach(1, first, "done")
        assert await service.cancel(2, other) and not await service.cancel(1, first)
        assert (await reach(2, other, "undone")).reason == "the buyer changed their mind"
    finally:
        await work.stop()
    assert bank.charged == {f"shop:{first}/charge": 500, f"shop:{other}/charge": 700}
    assert bank.cancelled == [f"shop:{other}/charge"]
    database = made.database("shop")
    assert [row["parcel"] for row in await database.scatter("select parcel from shop.sent")] == ["p-1"]
    assert await database.scatter_sum("select sum(pieces) from shop.stock") == 1


async def test_flows_without_a_platform(
    shop: tuple[Platform, Bank, dict[str, Any]], database_urls: tuple[str, str]
) -> None:
    made, _, names = shop
    code = [text for text in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "def work" in text]
    scope: dict[str, Any] = {}
    exec(code[0], scope)
    service: Any = made.service(names["Shop"])
    id = await service.place(1, 500)
    dsns = dict(zip(("main", "second"), database_urls, strict=True))

    async def waits(flows: Any) -> Any:
        async def there() -> Any:
            return (await flows.look(1, id)).state == "waiting"

        return await until(there)

    assert await scope["work"](made.database("shop"), dsns, [names["PLACE"]], service, waits)


def write_app(folder: Path, urls: tuple[str, str]) -> None:
    """What the command line needs besides the module."""
    (folder / "app.py").write_text(
        "import shop\nmodules = [shop.module(None)]\nasync def app(a, b, c): ...\n"
    )
    (folder / "springtide.toml").write_text(
        'name = "shop"\napp = "app:app"\nmodules = "app:modules"\n'
        f'[nodes.db]\nkind = "postgres"\nurl = "{urls[0]}"\n'
        f'[nodes.other]\nkind = "postgres"\nurl = "{urls[1]}"\n'
        '[clusters.main]\nprimary = "db"\n[clusters.second]\nprimary = "other"\n'
        '[databases.default]\nshards = ["main", "second"]\n'
    )


async def called(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "springtide.ops.cli", *arguments]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


async def test_the_check_before_a_deploy_reads_what_flows_carry(
    shop: tuple[Platform, Bank, dict[str, Any]], database_urls: tuple[str, str], tmp_path: Path
) -> None:
    """A field without a default keeps the deploy while a flow has not ended; one with a default does not."""
    made, _, names = shop
    service: Any = made.service(names["Shop"])
    await service.place(1, 500)
    write_app(tmp_path, database_urls)
    code, text = await called(tmp_path, "jobs", "check")
    assert code == 0 and "1 flows go on" in text and "can run them all" in text
    module = (tmp_path / "shop.py").read_text()
    for field, expected in (("street: str = ''", 0), ("street: str", 3)):
        changed = module.replace("    cents: int\n", f"    cents: int\n    {field}\n", 1)
        (tmp_path / "shop.py").write_text(changed.replace('    parcel: str = ""\n', "", 1))
        code, text = await called(tmp_path, "jobs", "check")
        assert code == expected
        assert ("unreadable flow" in text) == (code == 3)


async def test_operators_see_and_move_flows(
    shop: tuple[Platform, Bank, dict[str, Any]], database_urls: tuple[str, str], tmp_path: Path
) -> None:
    """`ls` and `show` for people and as JSON, without secrets; `cancel` once, `resume` only of what is
    stuck."""
    made, _, names = shop
    service: Any = made.service(names["Shop"])
    id = await service.place(1, 500)
    write_app(tmp_path, database_urls)

    async def said(*arguments: str) -> tuple[int, str]:
        return await called(tmp_path, "flows", *arguments)

    code, text = await said("ls")
    assert code == 0 and text.splitlines()[1].split()[:6] == [
        "shop", "shop.place/1", str(id), "1", "running", "reserve"
    ]  # fmt: skip
    assert await said("resume", str(id)) == (
        2, f"springtide: flow {id} is running: only one that is stuck can be resumed\n"
    )  # fmt: skip
    assert await said("cancel", str(id), "--reason", "a test") == (0, f"{id} is being undone\n")
    code, text = await said("show", str(id), "--json")
    status = json.loads(text)
    assert (code, status["state"], status["reason"]) == (0, "undoing", "a test")
    code, text = await said("show", str(id))
    assert code == 0 and "reserve  cancelled" in text and "reason  a test" in text
    for pool in made.database("shop").pools.values():
        await pool.execute(SECRETS)
    for arguments in (("show", str(id)), ("show", str(id), "--json"), ("ls", "--json")):
        code, text = await said(*arguments)
        assert code == 0 and text.count("[redacted]") == 2
        assert "tok-1" not in text and "hush" not in text
    code, text = await said("show", str(id), "--secrets")
    assert code == 0 and "tok-1" in text and "hush" in text


def test_the_numbers_of_the_guide_are_the_defaults() -> None:
    step = {name: parameter.default for name, parameter in inspect.signature(Step).parameters.items()}
    assert step["undo_attempts"] == 50 and "(50, at most an hour apart" in GUIDE
    assert step["max_attempts"] == 15 and "`max_attempts` runs (15)" in GUIDE
    assert inspect.signature(Workflow).parameters["keep"].default == 30 * 86_400
    assert inspect.signature(FlowUpkeep).parameters["keep_events"].default == 7 * 86_400
