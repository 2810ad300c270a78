"""What a seller's pages do beside listings: reports, sales; the inbox, and the picture of an account."""

from __future__ import annotations

import io
from datetime import UTC, datetime

from PIL import Image
from tests.market.harness import Api, one_platform, one_shard
from tests.market.pages import browser
from tests.market.test_storefront_pages import listing, shop
from tests.market.working import work

from market.money import Money
from market.notifications.api import Notice, Notifications
from market.orders.api import Address, OrderLine
from market.orders.bulk import BulkOrder, copy_orders
from market.users.api import Users
from springtide.ops.load.seeding import BulkLoad

pytestmark = [one_platform, one_shard]


async def id_of(api: Api, name: str) -> int:
    found = await api.service(Users).find(name)
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
    id, notifications = await id_of(api, "Jake"), api.service(Notifications)
    await notifications.notify(Notice(recipient=id, kind="welcome", key="1", link="/"))
    form = (await jake.get("/notifications")).form("/notifications/read")
    assert "1 unread notice" in jake.page.text
    await notifications.notify(Notice(recipient=id, kind="welcome", key="2", link="/"))
    await jake.post("/notifications/read", form)
    assert "1 unread notice" in jake.page.text
    await jake.send("/notifications/read")
    assert "Everything is read." in jake.page.text
    assert (await notifications.unread([id]))[0].count == 0


async def test_a_sale_is_marked_as_shipped_once_by_its_seller_alone(api: Api) -> None:
    """The form sent twice is one shipment, and nobody else can send what is not theirs."""
    mara, ada = await browser(api).sign_up("Mara"), await browser(api).sign_up("Ada")
    await shop(mara)
    lamp = await listing(mara)
    db = api.platform.database("orders")
    order = await db.ids.take(await id_of(api, "Ada"))
    line = OrderLine(
        listing_id=lamp,
        quantity=2,
        price=Money(1250, "EUR"),
        seller_id=await id_of(api, "Mara"),
        title="A lamp",
    )
    home = Address(name="Ada", street="Lane 1", city="Town", postal_code="1", country="DE")
    at = datetime(2026, 11, 1, tzinfo=UTC)
    async with BulkLoad([db]) as load:
        sold = BulkOrder(order, await id_of(api, "Ada"), [line], home, "card_visa", None, at)
        await copy_orders(load, db, [sold])
    action = f"/selling/sales/{order}/ship"
    form = (await mara.get("/selling/sales")).form(action)
    otto = await browser(api).sign_up("Otto")
    await shop(otto, "Other")
    csrf = (await otto.get("/selling")).form("/selling/reports")["csrf"]
    await otto.post(action, form | {"csrf": csrf}, expect=404)
    for _ in range(2):
        await mara.post(action, form)
    assert "On its way" in mara.page.text and "To be sent" not in mara.page.text
    await work(api.platform)
    assert "on its way" in (await ada.get(f"/orders/{order}")).text.lower()
    inbox = await api.service(Notifications).inbox(await id_of(api, "Ada"))
    assert [notice.kind for notice in inbox.items].count("order_shipped") == 1


async def test_an_account_shows_the_picture_that_it_was_given(api: Api) -> None:
    """Initials until a job has made the small one; what is no picture is refused beside the field."""
    ada = await browser(api).sign_up("Ada")
    csrf = (await ada.get("/account")).form("/account/face")

    async def give(content: bytes, expect: int = 200) -> None:
        await ada.get("/account")
        await ada.post("/account/face", csrf, expect=expect, files={"file": ("me.png", content)})

    await give(b"no picture at all", 422)
    picture = io.BytesIO()
    Image.new("RGB", (40, 40), "teal").save(picture, "PNG")
    await give(picture.getvalue())
    account = await api.service(Users).account(await id_of(api, "Ada"))
    assert account is not None and account.image is not None
    before = await ada.client.get(account.image)
    assert before.headers["content-type"].startswith("image/svg+xml")
    await work(api.platform)
    after = await ada.client.get(account.image, follow_redirects=True)
    assert after.headers["content-type"] == "image/webp"
    await ada.get("/account")
    await ada.send("/account/face/remove")
    account = await api.service(Users).account(await id_of(api, "Ada"))
    assert account is not None and account.image is None
