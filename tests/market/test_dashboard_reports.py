"""A seller's figures and reports over HTTP: what is in the file, and what a spreadsheet makes of it."""

from __future__ import annotations

import asyncio
import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.market.harness import Api, Person, one_platform
from tests.market.test_catalog_api import good, offer, refused, seller, send
from tests.market.working import work

from market.dashboard import lists, reports, sheet
from market.dashboard.api import MAX_DAYS, MAX_OPEN, Dashboard, Sale, SaleLine
from market.dashboard.reports import MakeReport
from market.dashboard.service import DashboardService
from market.faults import NotFound
from market.money import Money
from market.users.api import Users
from springtide.errors import Unavailable
from springtide.testing import ManualClock

pytestmark = one_platform

NOW = datetime.now(UTC).replace(microsecond=0)
TODAY = NOW.date()


def days(count: int) -> dict[str, str]:
    return {"first": str(TODAY - timedelta(days=count - 1)), "last": str(TODAY)}


async def id_of(api: Api, person: Person) -> int:
    found = await api.service(Users).find(person.username)
    assert found is not None
    return found


async def sell(
    api: Api,
    seller_id: int,
    *lines: tuple[int, str, int, int],
    at: datetime = NOW,
    back: datetime | None = None,
) -> Sale:
    """`lines`: listing, title, quantity, price."""
    dashboard = api.service(Dashboard)
    sale = Sale(
        order_id=next(api._numbers) << 10 | 900,
        seller=seller_id,
        at=at,
        lines=[
            SaleLine(listing_id=listing, title=title, quantity=quantity, price=Money(price, "EUR"))
            for listing, title, quantity, price in lines
        ],
    )
    await dashboard.sold(sale)
    if back is not None:
        await dashboard.undone(sale.order_id, seller_id, back)
    return sale


def made(api: Api) -> DashboardService:
    found: DashboardService = api.platform._registry.implementation("dashboard")
    return found


async def file_of(api: Api, person: Person, count: int) -> tuple[bytes, list[list[str]]]:
    report = await good(api, "POST", "/dashboard/reports", days(count), by=person)
    await work(api.platform, {"dashboard"})
    ready = await good(api, "GET", f"/dashboard/reports/{report['id']}", by=person)
    assert ready["state"] == "ready", ready
    answer = await api.client.get(ready["url"])
    assert answer.status_code == 200
    rows = list(csv.reader(io.StringIO(answer.content.decode("utf-8-sig"), newline="")))
    assert ready["rows"] == len(rows) - 1 and ready["size_bytes"] == len(answer.content)
    return answer.content, rows


async def test_a_report_has_every_sale_and_refund_of_its_days_by_time(api: Api) -> None:
    """With a mark that makes Excel read UTF-8, CRLF, and a line for each listing of an order."""
    anna = await seller(api)
    me, hour = await id_of(api, anna), timedelta(hours=1)
    first = await sell(api, me, (1, "Lampe „Größe“, 2 m", 2, 1250), (2, 'A "b"', 1, 5), at=NOW - 30 * hour)
    old = await sell(api, me, (1, "Lamp", 1, 1250), at=NOW - timedelta(days=40), back=NOW - 2 * hour)
    await sell(api, me, (3, "Other days", 1, 100), at=NOW - timedelta(days=40))
    await sell(api, await id_of(api, await api.person()), (9, "Somebody else's", 1, 100))
    content, rows = await file_of(api, anna, 7)
    assert content.startswith(b"\xef\xbb\xbftime,kind,order,listing,") and content.endswith(b"\r\n")
    assert content.count(b"\n") == content.count(b"\r\n") == 4
    assert [row[1:] for row in rows[1:]] == [
        ["sale", str(first.order_id), "1", "Lampe „Größe“, 2 m", "2", "12.50", "25.00", "EUR"],
        ["sale", str(first.order_id), "2", 'A "b"', "1", "0.05", "0.05", "EUR"],
        ["refund", str(old.order_id), "1", "Lamp", "1", "12.50", "12.50", "EUR"],
    ]
    assert [row[0] for row in rows[1:]] == sorted(row[0] for row in rows[1:])


async def test_a_report_reads_in_pages_and_each_sale_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many sales of one moment, three to a page: where one page ends the next begins."""
    monkeypatch.setattr(lists, "PAGE", 3)
    anna = await seller(api)
    me = await id_of(api, anna)
    sales = [await sell(api, me, (1, "a", 1, 1), (2, "b", 1, 1), back=NOW) for _ in range(10)]
    _, rows = await file_of(api, anna, 1)
    found = [(row[1], int(row[2]), row[3]) for row in rows[1:]]
    assert sorted(found) == sorted(
        (kind, sale.order_id, listing) for kind in ("sale", "refund") for sale in sales for listing in "12"
    )


async def test_a_report_of_nothing_has_its_columns(api: Api) -> None:
    content, _ = await file_of(api, await seller(api), 1)
    assert content == sheet.BEGINNING


async def test_a_report_is_ordered_once_per_key_and_seen_by_its_seller_alone(api: Api) -> None:
    anna, bert = await seller(api), await seller(api, "Other")
    key = {"Idempotency_Key": "report-of-today"}
    answers = [await good(api, "POST", "/dashboard/reports", days(3), by=anna, **key) for _ in range(3)]
    assert len({answer["id"] for answer in answers}) == 1 and answers[0]["state"] == "requested"
    other = await good(api, "POST", "/dashboard/reports", days(3), by=bert, **key)
    assert other["id"] != answers[0]["id"]
    await refused(api, 422, "POST", "/dashboard/reports", days(4), by=anna, **key)
    path = f"/dashboard/reports/{answers[0]['id']}"
    await refused(api, 404, "GET", path, by=bert)
    await refused(api, 401, "GET", path)
    page = await good(api, "GET", "/dashboard/reports", by=anna)
    assert [(one["id"], one["url"]) for one in page["items"]] == [(answers[0]["id"], None)]
    first = await send(api, "GET", path, by=anna)
    assert (await send(api, "GET", path, by=anna, If_None_Match=first.headers["etag"])).status_code == 304


async def test_windows_and_open_reports_have_bounds(api: Api) -> None:
    anna = await seller(api)
    tomorrow = str(TODAY + timedelta(days=1))
    for wrong in (
        days(MAX_DAYS + 1), {"first": str(TODAY), "last": str(TODAY - timedelta(days=1))},
        {"first": str(TODAY), "last": tomorrow}, {"first": "0001-01-01", "last": "0001-01-02"},
        {"first": "yesterday", "last": str(TODAY)}, {"first": str(TODAY)}, {"first": 5, "last": 6},
    ):  # fmt: skip
        assert await refused(api, 422, "POST", "/dashboard/reports", wrong, by=anna)
    for _ in range(MAX_OPEN):
        await good(api, "POST", "/dashboard/reports", days(MAX_DAYS), by=anna)
    await refused(api, 409, "POST", "/dashboard/reports", days(1), by=anna)
    await work(api.platform, {"dashboard"})
    await good(api, "POST", "/dashboard/reports", days(1), by=anna)
    for query in ("days=0", f"days={MAX_DAYS + 1}", "days=x", "limit=0"):
        await refused(api, 422, "GET", f"/dashboard?{query}", by=anna)


async def test_a_report_that_cannot_be_made_says_so(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large at once; anything else when there are no attempts left, and until then it is being made."""
    anna = await seller(api)
    me = await id_of(api, anna)
    await sell(api, me, (1, "a", 1, 1))
    monkeypatch.setattr(reports, "MAX_BYTES", len(sheet.BEGINNING))
    report = await good(api, "POST", "/dashboard/reports", days(1), by=anna)
    await work(api.platform, {"dashboard"})
    large = await good(api, "GET", f"/dashboard/reports/{report['id']}", by=anna)
    assert large["state"] == "failed" and "fewer days" in large["note"] and large["url"] is None
    monkeypatch.undo()

    async def broken(*_: Any, **__: Any) -> None:
        raise Unavailable("no blobs")

    monkeypatch.setattr(made(api)._reports._media, "keep_document", broken)
    report = await good(api, "POST", "/dashboard/reports", days(1), by=anna)
    for attempt, state in ((1, "requested"), (2, "failed")):
        run = type("Run", (), {"attempt": attempt, "max_attempts": 2})
        with pytest.raises(Unavailable):
            await made(api).make_report(MakeReport(me, report["id"]), run)  # type: ignore[arg-type]
        assert (await good(api, "GET", f"/dashboard/reports/{report['id']}", by=anna))["state"] == state
    monkeypatch.undo()
    await work(api.platform, {"dashboard"})
    assert (await good(api, "GET", f"/dashboard/reports/{report['id']}", by=anna))["state"] == "failed"


async def test_a_job_that_runs_twice_leaves_one_file(api: Api) -> None:
    anna = await seller(api)
    me = await id_of(api, anna)
    report = await good(api, "POST", "/dashboard/reports", days(1), by=anna)
    run = type("Run", (), {"attempt": 1, "max_attempts": 15})
    job = MakeReport(me, report["id"])
    await asyncio.gather(*(made(api).make_report(job, run) for _ in range(3)))  # type: ignore[arg-type]
    assert await api.platform.database("media").scatter_sum("select count(*) from media.medium") == 1
    assert (await good(api, "GET", f"/dashboard/reports/{report['id']}", by=anna))["state"] == "ready"


async def test_reports_are_gone_after_thirty_days(api: Api) -> None:
    anna = await seller(api)
    me = await id_of(api, anna)
    report = await good(api, "POST", "/dashboard/reports", days(1), by=anna)
    service = made(api)
    system = service._reports._clock
    try:
        for shift, there in ((29, True), (31, False)):
            service._reports._clock = ManualClock(now=(NOW + timedelta(days=shift)).timestamp())
            await service.forget()
            if there:
                assert (await service.report(me, report["id"])).id == report["id"]
            else:
                with pytest.raises(NotFound):
                    await service.report(me, report["id"])
    finally:
        service._reports._clock = system
    db = api.platform.database("dashboard")
    assert await db.scatter_sum("select count(*) from dashboard.report") == 0


async def test_the_dashboard_shows_days_and_best_listings_with_their_titles(api: Api) -> None:
    anna = await seller(api)
    me = await id_of(api, anna)
    await refused(api, 401, "GET", "/dashboard")
    empty = await good(api, "GET", "/dashboard", by=anna)
    assert empty == {"zone": "UTC", "days": [], "top": []}
    lamp = await offer(api, anna, title="Lamp")
    await sell(api, me, (lamp["id"], "Lamp", 2, 1250), (12345, "gone", 1, 1))
    shown = await good(api, "GET", "/dashboard?days=7&limit=5", by=anna)
    assert len(shown["days"]) == 7 and shown["days"][-1]["day"] == str(datetime.now(UTC).date())
    assert shown["days"][-1]["revenue"] == {"amount": 2501, "currency": "EUR"}
    assert [(one["title"], one["items"]) for one in shown["top"]] == [("Lamp", 2), (None, 1)]
    assert (await good(api, "GET", "/dashboard", by=await api.person()))["days"] == []
