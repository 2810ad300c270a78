"""The main journeys in Chromium, on a real server with a real provider and a worker's jobs beside it."""

from __future__ import annotations

import asyncio
import io
import itertools
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import Browser, Page, expect
from tests.market.chromium import DESK, PHONE, Visitor, axe, chromium
from tests.market.harness import PASSWORD, one_platform, topology
from tests.market.window import Window, opened
from tests.servers import LoopThread, PostgresServer

from market.catalog.api import Listing
from market.platform import modules
from market.users.api import Account
from springtide.platform import Platform

pytestmark = [one_platform, pytest.mark.needs("chromium"), pytest.mark.timeout(240)]

_names = itertools.count(1)
expect.set_options(timeout=30_000)
ORDER = re.compile(r"/orders/\d+$")
ADDRESS = {
    "Name": "Ada Adler",
    "Street and number": "1 Harbour Lane",
    "Postal code": "20457",
    "City": "Hamburg",
    "Country": "de",
}


class Street:
    """The window with a shop, and a browser in front of it."""

    def __init__(self, window: Window, browser: Browser, seller: Account, listings: list[Listing]) -> None:
        self.window = window
        self.browser = browser
        self.seller = seller
        self.lamp, self.listings = listings[-1], listings
        self._open: list[Visitor] = []

    async def visitor(self, **options: Any) -> Visitor:
        visitor = await Visitor.new(self.window, self.browser, **options)
        self._open.append(visitor)
        return visitor

    async def buyer(self, **options: Any) -> tuple[Visitor, Page, Account]:
        """Somebody new, signed in."""
        person = await self.window.person(f"Buyer {next(_names)}")
        visitor = await self.visitor(**options)
        return visitor, await visitor.sign_in(person.username), person

    async def orders(self, person: Account) -> list[str]:
        """The states of their orders."""
        return [order.state for order in (await self.window.orders.history(person.id, 50, None)).items]

    async def leave(self) -> None:
        for visitor in self._open:
            await visitor.close()
        self._open.clear()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _window(
    postgres: PostgresServer, _server_loop: LoopThread, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Window]:
    name, home = postgres.create_database(), tmp_path_factory.mktemp("window")

    async def migrate() -> None:
        await Platform(topology([postgres.url(name)]), modules=modules(), home=home).migrate()

    _server_loop.run(migrate())
    async with opened([postgres.url(name)], home, home) as window:
        yield window
    postgres.drop_database(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _street(_window: Window) -> AsyncIterator[Street]:
    seller = await _window.person("Mara Okoye")
    listings = await _window.shop(seller, "Okoye & Daughters")
    async with chromium() as browser:
        yield Street(_window, browser, seller, listings)


@pytest_asyncio.fixture(loop_scope="module")
async def street(_street: Street) -> AsyncIterator[Street]:
    """Afterwards no page may have complained: no violation of the policy, no error in the console."""
    await _street.window.provider.behave()
    yield _street
    await _street.leave()


async def into_cart(page: Page, listing: Listing) -> None:
    await page.goto(f"/listings/{listing.id}")
    await page.get_by_role("button", name="Add to cart").click()
    await expect(page.get_by_text("It is in your cart.")).to_be_visible()


async def at_checkout(page: Page, listing: Listing) -> None:
    """The form, filled in, up to the button."""
    await into_cart(page, listing)
    await page.get_by_role("link", name="Check out").click()
    await fill(page)


async def fill(page: Page) -> None:
    for label, value in ADDRESS.items():
        await page.get_by_label(label, exact=True).fill(value)


async def test_from_signing_up_to_an_order_and_a_notice_that_arrives_by_itself(street: Street) -> None:
    """Sign up, browse, search, product, cart, checkout, confirmed; then the badge counts without a reload."""
    visitor = await street.visitor(viewport=PHONE)
    page = await visitor.open("/")
    await page.get_by_role("link", name="Sign up").click()
    await page.get_by_label("Name").fill("Ada")
    await page.get_by_label("E-mail address").fill("ada@example.com")
    await page.get_by_label("Password").fill(PASSWORD)
    await page.locator("main").get_by_role("button", name="Sign up").click()
    await expect(page.get_by_text("Your account is ready")).to_be_visible()
    await page.get_by_role("link", name="Browse").first.click()
    await page.get_by_role("link", name=re.compile("^Home")).first.click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Home")
    await until_found(page, "brushed lamp", street.lamp.title)
    await page.get_by_role("link", name=street.lamp.title).click()
    await page.get_by_label("Quantity").fill("2")
    await page.get_by_role("button", name="Add to cart").click()
    await page.get_by_role("link", name="Check out").click()
    await fill(page)
    await page.get_by_role("button", name=re.compile("^Pay EUR")).click()
    await page.wait_for_url(ORDER)
    await expect(page.get_by_text("It is paid, and it is yours.")).to_be_visible()
    ada = await street.window.users.find("Ada")
    assert ada is not None
    journal = await street.window.provider.journal()
    assert [one["amount"] for one in journal["charges"]] == [2 * street.lamp.price.amount]
    account = await street.window.users.account(ada)
    assert account is not None
    article = await street.window.article(account, "What Ada bought")
    count = page.locator("[data-count]")
    await expect(count).to_have_text("2", timeout=30_000)  # the welcome, and that the order is confirmed
    await street.window.content.comment(article.slug, street.seller.id, "Enjoy it")
    await expect(count).to_have_text("3", timeout=30_000)
    await page.get_by_role("link", name="Inbox").click()
    await expect(page.get_by_text("Enjoy it")).to_be_visible()
    await expect(page.get_by_role("link", name=re.compile("Your order .* is confirmed"))).to_be_visible()


async def until_found(page: Page, words: str, title: str) -> None:
    """The index trails: ask until a worker has put it there."""
    async with asyncio.timeout(60):
        while True:
            box = page.locator("#find")
            await box.fill(words)
            await box.press("Enter")
            await page.wait_for_url(re.compile("/search"))
            await expect(page.get_by_role("heading", level=1)).to_contain_text(words)
            if await page.get_by_role("link", name=title).count():
                return


async def test_hostile_html_is_shown_as_text(street: Street) -> None:
    """Written in an article and in a comment it is read as it was typed, and nothing of it runs."""
    visitor, page, _ = await street.buyer()
    hostile = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    await visitor.go(page, "/write")
    await page.get_by_label("Title").fill(f"On tags {hostile}")
    await page.get_by_label("Summary").fill(hostile)
    await page.get_by_label("Text").fill(f"{hostile}\n\n[a](javascript:alert(1)) **bold**")
    await page.get_by_label("Tags").fill("<b>tags</b>, plain")
    await page.get_by_role("button", name="Publish").click()
    await expect(page.get_by_text("Your article is published.")).to_be_visible()
    await page.get_by_label("Your comment").fill(f"{hostile} *well*")
    await page.get_by_role("button", name="Post comment").click()
    await expect(page.get_by_text("Your comment is posted.")).to_be_visible()
    assert await page.locator("main img, main script, main iframe").count() == 0
    assert await page.locator(".comment em").inner_text() == "well"
    assert hostile in await page.locator(".comment .prose").inner_text()
    assert hostile in await page.locator("h1").inner_text()
    assert "taken" in await page.title()  # as part of the title's text
    assert (await page.title()).startswith("On tags <img")


@pytest.mark.parametrize("scripts", [True, False], ids=["with-scripts", "without"])
async def test_a_double_click_on_pay_places_one_order(street: Street, scripts: bool) -> None:
    """With the script that sends forms once, and without any: then the form is really sent twice."""
    _, page, person = await street.buyer(java_script_enabled=scripts)
    await at_checkout(page, street.listings[-2])
    await page.get_by_role("button", name=re.compile("^Pay EUR")).dblclick(no_wait_after=True)
    await page.wait_for_url(ORDER)
    await expect(page.get_by_text("It is paid, and it is yours.")).to_be_visible()
    assert await street.orders(person) == ["confirmed"]


async def test_coming_back_to_the_form_places_no_second_order(street: Street) -> None:
    """The back button leads to a page that knows: the cart is empty now."""
    _, page, person = await street.buyer()
    await at_checkout(page, street.listings[-2])
    await page.get_by_role("button", name=re.compile("^Pay EUR")).click()
    await page.wait_for_url(ORDER)
    await page.go_back()
    await page.reload()
    await expect(page.get_by_text("Your cart is empty.")).to_be_visible()
    assert await street.orders(person) == ["confirmed"]


async def test_two_tabs_place_one_order(street: Street) -> None:
    """Both forms show one version of the cart: both buttons lead to the same order."""
    visitor, first, person = await street.buyer()
    await at_checkout(first, street.listings[-2])
    second = await visitor.open("/checkout")
    await fill(second)
    await second.get_by_label("City", exact=True).fill("Bremen")
    pay = re.compile("^Pay EUR")
    await asyncio.gather(
        first.get_by_role("button", name=pay).click(), second.get_by_role("button", name=pay).click()
    )
    await asyncio.gather(first.wait_for_url(ORDER), second.wait_for_url(ORDER))
    assert first.url == second.url
    assert await street.orders(person) == ["confirmed"]


async def test_an_order_by_keyboard_alone(street: Street) -> None:
    """Every step is reached with Tab, seen by its focus, and done with Enter and Space."""
    _, page, person = await street.buyer()
    await page.goto(f"/listings/{street.listings[-3].id}")
    await page.keyboard.press("Tab")
    assert await focused(page) == "Skip to content"
    await page.keyboard.press("Enter")
    await reach(page, "Add to cart")
    await page.keyboard.press("Enter")
    await page.wait_for_url(re.compile("/cart"))
    await reach(page, "Check out")
    await page.keyboard.press("Enter")
    await page.wait_for_url(re.compile("/checkout"))
    for label, value in ADDRESS.items():
        await reach(page, label)
        await page.keyboard.type(value)
    await reach(page, "Pay")
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    await page.keyboard.press("Enter")
    await page.wait_for_url(ORDER)
    assert await street.orders(person) == ["confirmed"]


async def focused(page: Page) -> str:
    """What has the focus, by its label or text."""
    said: str = await page.evaluate(
        "() => { const e = document.activeElement;"
        " return (e.labels && e.labels[0] ? e.labels[0].innerText : e.innerText || e.name || '').trim() }"
    )
    return said


async def reach(page: Page, name: str) -> None:
    seen: list[str] = []
    for _ in range(60):
        await page.keyboard.press("Tab")
        seen.append(await focused(page))
        if seen[-1].startswith(name):
            return
    raise AssertionError(f"Tab does not lead to {name!r}: {seen}")


async def test_a_pending_payment_is_said_and_ends_by_itself(street: Street) -> None:
    """Provider down: the page says that nobody knows yet. Provider back: it says confirmed, unasked."""
    _, page, person = await street.buyer()
    await at_checkout(page, street.listings[-3])
    await street.window.provider.behave(down=True)
    await page.get_by_role("button", name=re.compile("^Pay EUR")).click()
    await page.wait_for_url(ORDER)
    await expect(page.get_by_text("The payment is pending")).to_be_visible()
    await street.window.provider.behave()
    await expect(page.get_by_text("It is paid, and it is yours.")).to_be_visible(timeout=90_000)
    assert await street.orders(person) == ["confirmed"]


async def test_everything_works_without_scripts(street: Street) -> None:
    """Sign in, search, buy, comment, follow, read notices; a page of what is under way loads again."""
    visitor, page, person = await street.buyer(java_script_enabled=False, viewport=PHONE)
    await until_found(page, "bowl", "Hand-thrown bowl, sea green")
    await at_checkout(page, street.listings[-2])
    await street.window.provider.behave(down=True)
    await page.get_by_role("button", name=re.compile("^Pay EUR")).click()
    await page.wait_for_url(ORDER)
    assert await page.locator("meta[http-equiv=refresh]").count() == 1
    await street.window.provider.behave()
    await expect(page.get_by_text("It is paid, and it is yours.")).to_be_visible(timeout=90_000)
    assert await page.locator("meta[http-equiv=refresh]").count() == 0
    article = await street.window.article(street.seller, f"Notes {person.id}")
    await visitor.go(page, f"/articles/{article.slug}")
    await page.get_by_role("button", name="Follow Mara Okoye").click()
    await page.get_by_role("button", name="Favourite").click()
    await page.get_by_label("Your comment").fill("Without scripts")
    await page.get_by_role("button", name="Post comment").click()
    await expect(page.locator(".comment").get_by_text("Without scripts")).to_be_visible()
    await visitor.go(page, "/notifications")
    await page.get_by_role("button", name="Mark all as read").click()
    await expect(page.get_by_text("Everything is read.").first).to_be_visible()


async def test_a_photo_is_uploaded_prepared_and_shown(street: Street) -> None:
    """The page says that it is being prepared, then shows it; what is no picture is said beside the field."""
    visitor = await street.visitor()
    address = f"/selling/listings/{street.lamp.id}"
    page = await visitor.sign_in(street.seller.username, address)
    field = page.get_by_label("Add a photo or a short video")
    await field.set_input_files({"name": "lamp.png", "mimeType": "image/png", "buffer": b"no picture"})
    await page.get_by_role("button", name="Upload").click()
    await expect(page.locator("#file-error")).to_be_visible()
    await field.set_input_files({"name": "lamp.png", "mimeType": "image/png", "buffer": picture()})
    await page.get_by_role("button", name="Upload").click()
    await expect(page.get_by_text("Your file is here.")).to_be_visible()
    await expect(page.locator("img.thumb")).to_be_visible(timeout=60_000)
    await visitor.go(page, f"/listings/{street.lamp.id}")
    photo = page.get_by_alt_text(f"Photo 1 of {street.lamp.title}")
    await expect(photo).to_be_visible()
    assert await photo.evaluate("image => image.complete && image.naturalWidth > 0")


async def test_what_is_pushed_is_shown(street: Street) -> None:
    """The worker registers under the policy and shows what comes, once.

    A browser without a push service, as this one is, says so.
    """
    visitor, page, _ = await street.buyer()
    await visitor.context.grant_permissions(["notifications"], origin=street.window.url)
    session = await visitor.context.new_cdp_session(page)
    known: asyncio.Queue[str] = asyncio.Queue()

    def changed(event: dict[str, Any]) -> None:
        for one in event["versions"]:
            if one["status"] == "activated":
                known.put_nowait(one["registrationId"])

    session.on("ServiceWorker.workerVersionUpdated", changed)
    await session.send("ServiceWorker.enable")
    await visitor.go(page, "/account/notices")
    await page.get_by_role("button", name="Notify me on this device").click()
    await expect(page.get_by_text("Your browser could not turn notices on.")).to_be_visible()
    scope = await page.evaluate("navigator.serviceWorker.ready.then(found => found.scope)")
    assert scope == f"{street.window.url}/"
    async with asyncio.timeout(30):
        id = await known.get()
    told = '{"id": 7, "kind": "sale", "title": "Sold", "body": "A <b>lamp</b>", "link": "/selling/sales"}'
    for _ in range(2):
        await session.send(
            "ServiceWorker.deliverPushMessage",
            {"origin": street.window.url, "registrationId": id, "data": told},
        )
    await page.wait_for_function(
        "async () => (await (await navigator.serviceWorker.ready).getNotifications()).length > 0"
    )
    shown = await page.evaluate(
        "async () => (await (await navigator.serviceWorker.ready).getNotifications())"
        ".map(one => [one.title, one.body, one.data.link])"
    )
    assert shown == [["Sold", "A <b>lamp</b>", "/selling/sales"]]
    visitor.complaints[:] = [said for said in visitor.complaints if "Push API in incognito mode" not in said]


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (640, 480), "teal").save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(("scheme", "size"), [("light", PHONE), ("dark", DESK)], ids=["phone", "desk-dark"])
async def test_every_page_is_accessible_and_fits(street: Street, scheme: Any, size: Any) -> None:
    """WCAG 2.1 AA by axe, contrast in light and dark, too; no sideways scrolling; no complaint."""
    window, name = street.window, f"Reader {next(_names)}"
    person = await window.person(name)
    article = await window.article(person, f"A year with one lamp {person.id}")
    await window.content.comment(article.slug, street.seller.id, "Well *said*.\n\n> quoted `code`")
    await window.orders.put(person.id, street.listings[-3].id, 1)
    stranger = await street.visitor(viewport=size, color_scheme=scheme)
    page = await stranger.open("/")
    open_to_all = [
        "/", "/browse", "/browse/home", "/browse/lighting", f"/listings/{street.lamp.id}",
        f"/listings/{street.listings[2].id}", "/shops/okoye-daughters", "/articles", "/articles?tag=craft",
        f"/articles/{article.slug}", f"/people/{name}", "/search?q=lamp", "/search?q=", "/sign-in",
        "/sign-up",
    ]  # fmt: skip
    for path in open_to_all:
        await stranger.go(page, path)
        await judge(page, path, size)
    await stranger.go(page, "/nothing", expect=404)
    await judge(page, "/nothing", size)
    await page.goto("/sign-up")
    await page.locator("main").get_by_role("button", name="Sign up").evaluate("b => b.form.submit()")
    await expect(page.locator(".error").first).to_be_visible()
    await judge(page, "sign-up with errors", size)
    reader = await street.visitor(viewport=size, color_scheme=scheme)
    page = await reader.sign_in(name)
    private = [
        "/", "/feed", "/write", f"/articles/{article.slug}", f"/articles/{article.slug}/edit", "/cart",
        "/checkout", "/orders", "/notifications", "/account", "/account/devices", "/account/notices",
        f"/listings/{street.lamp.id}", "/selling/open",
    ]  # fmt: skip
    for path in private:
        await reader.go(page, path)
        await judge(page, path, size)
    await page.goto("/checkout")
    await fill(page)
    await page.get_by_role("button", name=re.compile("^Pay EUR")).click()
    await page.wait_for_url(ORDER)
    await judge(page, "order", size)
    owner = await street.visitor(viewport=size, color_scheme=scheme)
    page = await owner.sign_in(street.seller.username)
    selling = [
        "/selling", "/selling/sales", "/selling/listings", "/selling/listings/new", "/selling/shop",
        f"/selling/listings/{street.lamp.id}",
    ]  # fmt: skip
    for path in selling:
        await owner.go(page, path)
        await judge(page, path, size)


async def judge(page: Page, path: str, size: dict[str, int]) -> None:
    found = await axe(page)
    assert not found, f"{path}: {found}"
    assert await page.locator("h1").count() == 1, path
    width: int = await page.evaluate("document.documentElement.scrollWidth")
    assert width <= size["width"], f"{path} is {width} wide"
