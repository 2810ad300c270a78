"""What a seller's pages do beside listings: reports; and the inbox."""

from __future__ import annotations

from tests.market.harness import Api, one_platform, one_shard
from tests.market.pages import browser
from tests.market.test_storefront_pages import shop
from tests.market.working import work

from market.notifications.api import Notice, Notifications
from market.users.api import Users

pytestmark = [one_platform, one_shard]


async def id_of(api: Api, name: str) -> int:
    found = await api.platform.service(Users).find(name)
    assert found is not None
    return found


async def test_a_report_is_made_once_listed_and_downloaded(api: Api) -> None:
    """Sent twice it is one; it says that it is being made, then leads to a CSV file; nobody else gets it."""
    mara = await browser(api).sign_up("Mara")
    await shop(mara)
    form = (await mara.get("/selling")).form("/selling/reports")
    for _ in range(2):
        await mara.post("/selling/reports", form)
    assert [given.get("class") for _, given in mara.page.tags].count("updating") == 1
    await work(api.platform, {"dashboard"})
    (link,) = [one for one in (await mara.get("/selling")).links if one.startswith("/selling/reports/")]
    assert "being made" not in mara.page.text
    await mara.get(link, follow_redirects=True)
    assert mara.response is not None
    assert mara.response.headers["content-type"].startswith("text/csv")
    other = await browser(api).sign_up("Otto")
    await shop(other, "Other")
    await other.get(link, expect=404)
    await mara.get("/selling")
    await mara.send("/selling/reports", {"first": "tomorrow"}, expect=422)


async def test_the_inbox_is_read_up_to_what_was_shown(api: Api) -> None:
    """What came since stays unread, and another's inbox is not touched."""
    jake = await browser(api).sign_up("Jake")
    id, notifications = await id_of(api, "Jake"), api.platform.service(Notifications)
    await notifications.notify(Notice(recipient=id, kind="welcome", key="1", link="/"))
    form = (await jake.get("/notifications")).form("/notifications/read")
    assert "1 unread notice" in jake.page.text
    await notifications.notify(Notice(recipient=id, kind="welcome", key="2", link="/"))
    await jake.post("/notifications/read", form)
    assert "1 unread notice" in jake.page.text
    await jake.send("/notifications/read")
    assert "Everything is read." in jake.page.text
    assert (await notifications.unread([id]))[0].count == 0
