"""The check before a deploy knows flows, too: what they carry was written by an earlier release."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.flowing import PLACE, RESERVE, SEND, Order, Shop, begin, cancel, reach, running
from tests.jobs_support import deeds

from springtide.db import Database, bucket_of
from springtide.errors import JobError
from springtide.flows import Flows, WaitFor, Workflow
from springtide.flows.checking import check
from springtide.jobs.checking import Report

Urls = tuple[str, str]


class Addressed(msgspec.Struct, frozen=True):
    id: str
    street: str


class Defaulted(msgspec.Struct, frozen=True):
    id: str
    street: str = ""


def waiting(data: type[Any], **options: Any) -> Workflow[Any]:
    """For an event, without a time: there is no job."""
    wait = WaitFor("packed", event="parcel.packed", key=lambda order: order.id, timeout=None)
    return Workflow("shop.place", data, [wait, SEND], **options)


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls, tmp_path / "migrations", size=8) as made:
        yield made


def found(report: Report) -> Sequence[tuple[str, str, int, int, int]]:
    return [(one.what, one.kind, one.version, one.jobs, one.dead) for one in report.findings]


async def test_data_that_the_new_code_cannot_read_are_found(database: Database, database_urls: Urls) -> None:
    """Of flows that wait, with a job or without; not of those that have ended."""
    flow = waiting(Order)
    flows = Flows(database, [flow])
    async with running(flows, Shop(database), database_urls):
        over = await begin(flows, "a", flow)
        assert await cancel(flows, bucket_of("a"), over)
        open_ = await begin(flows, "a", flow)
        await reach(flows, "a", over, "undone")
        await reach(flows, "a", open_, "waiting")
    for same in (flow, waiting(Defaulted)):
        assert found(await check({database: [same]})) == []
    report = await check({database: [waiting(Addressed)]})
    assert not report.ready and (report.flows, report.read) == (1, 1)
    assert found(report) == [("unreadable flow", "shop.place", 1, 1, 0)]
    (one,) = report.findings
    assert one.examples == (open_,) and one.error is not None and "`street`" in one.error
    beside = waiting(Addressed, version=2)
    assert (await check({database: [flow, beside]})).ready
    assert found(await check({database: [beside]})) == [("no workflow", "shop.place", 1, 1, 0)]


async def test_as_many_are_read_as_it_is_told(database: Database) -> None:
    flow = waiting(Order)
    for _ in range(5):
        await begin(Flows(database, [flow]), "a", flow)
    for payloads, read in ((0, 0), (3, 3), (None, 5)):
        report = await check({database: [waiting(Addressed)]}, payloads=payloads)
        assert (report.flows, report.read, report.ready) == (5, read, read == 0)
    with pytest.raises(JobError, match="payloads must be >= 0, got -1"):
        await check({}, payloads=-1)


async def test_flows_that_are_stuck_keep_no_deploy(database: Database) -> None:
    await begin(Flows(database, [PLACE]), "a")
    for pool in database.pools.values():
        await pool.execute("update deeds._flow set state = 'stuck'")
    for workflows in ([], [Workflow("shop.place", Addressed, [RESERVE])]):
        report = await check({database: workflows})
        assert report.ready and [one.dead for one in report.findings] == [1]


async def test_a_database_without_the_table_has_no_flows(database: Database) -> None:
    """The new code asks before its migrations are applied."""
    for pool in database.pools.values():
        await pool.execute("drop table deeds._flow")
    assert (await check({database: [PLACE]})).flows == 0
