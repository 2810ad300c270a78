"""Cart and checkout up to the button, and where pages say that what they show trails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import pytest_asyncio
from tests.market.harness import Api, one_platform, one_shard
from tests.market.pages import Browser, browser
from tests.market.test_storefront_pages import listing, shop

from market.catalog.api import Catalog, ListingChanges
from market.money import Money
from market.search.api import Document, Search

pytestmark = [one_platform, one_shard]


@pytest_asyncio.fixture(loop_scope="module")
async def seller(api: Api) -> Browser:
    made = await browser(api).sign_up("Mara")
    await shop(made)
    return made


@pytest_asyncio.fixture(loop_scope="module")
async def buyer(api: Api) -> Browser:
    return await browser(api).sign_up("Ada")


async def changed(api: Api, id: int, **changes: Any) -> None:
    catalog = api.service(Catalog)
    owner = (await catalog.listings([id]))[0].seller_id
    await catalog.update(id, owner, ListingChanges(**changes), None)


async def into_cart(buyer: Browser, id: int, quantity: str = "1", **wrong: str) -> None:
    await buyer.get(f"/listings/{id}")
    await buyer.send("/cart/add", {"quantity": quantity} | wrong)


async def test_adding_twice_is_adding_once(seller: Browser, buyer: Browser) -> None:
    """A form says how many are wanted, so a double click wants no more."""
    id = await listing(seller)
    await buyer.get(f"/listings/{id}")
    form = buyer.page.form("/cart/add") | {"quantity": "2"}
    for _ in range(2):
        await buyer.post("/cart/add", form)
    assert buyer.page.form("/cart")["quantity"] == "2"
    assert "EUR 25.00" in buyer.page.text
    await buyer.post("/cart", buyer.page.form("/cart") | {"remove": "1"})
    assert "Your cart is empty." in buyer.page.text


async def test_a_price_that_has_changed_is_said_and_taken_only_when_seen(
    api: Api, seller: Browser, buyer: Browser
) -> None:
    """The cart keeps the price that was seen; no way to the checkout until the new one is taken."""
    id = await listing(seller)
    await into_cart(buyer, id)
    await changed(api, id, price=Money(1500, "EUR"))
    await buyer.get("/cart")
    assert "The price has changed: it is EUR 15.00 now." in buyer.page.text
    assert "/checkout" not in buyer.page.links
    await buyer.get("/checkout", expect=303)
    assert buyer.response is not None
    assert buyer.response.headers["location"] == "/cart"
    await buyer.get("/cart")
    await buyer.send("/cart")
    assert "/checkout" in buyer.page.links
    await buyer.get("/checkout")
    assert "Pay EUR 15.00" in buyer.page.text


async def test_a_price_changed_while_the_page_was_open_is_noticed(
    api: Api, seller: Browser, buyer: Browser
) -> None:
    id = await listing(seller)
    await buyer.get(f"/listings/{id}")
    await changed(api, id, price=Money(1500, "EUR"))
    await buyer.send("/cart/add")
    assert "The price has changed: it is EUR 15.00 now." in buyer.page.text


async def test_what_cannot_be_bought_any_more_is_said(api: Api, seller: Browser, buyer: Browser) -> None:
    """Fewer left, sold out, taken off sale: each in its line, with what can be done."""
    id = await listing(seller, stock="5")
    await into_cart(buyer, id, "4")
    catalog = api.service(Catalog)
    owner = (await catalog.listings([id]))[0].seller_id
    for change, says in ((-3, "Only 2 pieces left"), (-2, "Sold out at the moment")):
        await catalog.adjust(id, owner, change, "")
        await buyer.get("/cart")
        assert says in buyer.page.text
        assert "/checkout" not in buyer.page.links
    await changed(api, id, status="withdrawn")
    await buyer.get("/cart")
    assert "Not for sale any more." in buyer.page.text


@pytest.mark.parametrize(
    "wrong",
    [{"quantity": "-1"}, {"quantity": "1e9"}, {"quantity": "10001"}, {"quantity": ""}, {"amount": "-5"},
     {"amount": "9" * 16}, {"currency": "XXX"}],
)  # fmt: skip
async def test_quantities_and_prices_that_cannot_be_are_refused(
    seller: Browser, buyer: Browser, wrong: dict[str, str]
) -> None:
    """422 with the cart as it is, and a message; never a 500."""
    id = await listing(seller)
    await buyer.get(f"/listings/{id}")
    await buyer.send("/cart/add", wrong, expect=422)
    assert "Please look at this again" in buyer.page.text


async def test_a_cart_has_one_currency(api: Api, seller: Browser, buyer: Browser) -> None:
    await into_cart(buyer, await listing(seller))
    other = await browser(api).sign_up("Otto")
    await other.get("/selling/open")
    await other.send("/selling/open", {"name": "Dollars", "currency": "USD"})
    id = await listing(other)
    await buyer.get(f"/listings/{id}")
    await buyer.send("/cart/add", expect=409)
    assert "order it separately" in buyer.page.text


async def test_the_checkout_comes_back_with_what_was_typed(seller: Browser, buyer: Browser) -> None:
    """Wrong fields are named beside them, the same key and version of the cart stay in the form."""
    await into_cart(buyer, await listing(seller))
    await buyer.get("/checkout")
    form = buyer.page.form("/checkout")
    typed = {
        "name": "Ada",
        "street": "",
        "city": "H",
        "postal_code": "1",
        "country": "Germany",
        "source": "c",
    }
    await buyer.send("/checkout", typed, expect=422)
    again = buyer.page.form("/checkout")
    assert (again["key"], again["cart_version"]) == (form["key"], form["cart_version"])
    assert (again["name"], again["country"]) == ("Ada", "Germany")
    wrong = {given["name"] for tag, given in buyer.page.tags if tag == "input" and given.get("aria-invalid")}
    assert wrong == {"street", "country"}
    await buyer.send("/checkout", {"key": "x"}, expect=400)


async def test_a_cart_that_has_changed_in_another_tab_is_not_ordered(seller: Browser, buyer: Browser) -> None:
    """The form shows one version; another one is looked at again first."""
    await into_cart(buyer, await listing(seller))
    form = (await buyer.get("/checkout")).form("/checkout")
    await into_cart(buyer, await listing(seller, title="A second lamp"))
    typed = {"name": "A", "street": "S", "city": "C", "postal_code": "1", "country": "DE", "source": "card"}
    await buyer.post("/checkout", form | typed)
    assert "Nothing is ordered" in buyer.page.text
    await buyer.get("/orders")
    assert "You have not ordered anything yet." in buyer.page.text


async def test_orders_of_others_are_not_there(buyer: Browser) -> None:
    for path in ("/orders/1", "/orders/x", "/orders/99999999999999999"):
        await buyer.get(path, expect=404)


async def test_a_hit_that_is_older_than_the_thing_says_so(api: Api, seller: Browser) -> None:
    """By the versions, not by the clock: marked while the index has an older one, and no longer."""
    id = await listing(seller, title="Brass lamp")
    search = api.service(Search)
    (now,) = await api.service(Catalog).listings([id])
    await search.put([Document(kind="listing", id=id, version=now.version, title="Brass lamp", text="")])
    await changed(api, id, title="Copper lamp")
    await seller.get("/search?q=brass")
    assert "Copper lamp" in seller.page.text
    assert "It has changed since it was indexed" in seller.page.text
    (now,) = await api.service(Catalog).listings([id])
    await search.put([Document(kind="listing", id=id, version=now.version, title="Copper lamp", text="")])
    await seller.get("/search?q=copper")
    assert "Copper lamp" in seller.page.text
    assert "It has changed since it was indexed" not in seller.page.text
    await changed(api, id, status="withdrawn")
    await seller.get("/search?q=copper")
    assert "Copper lamp" not in seller.page.text


async def test_pages_do_without_what_does_not_come(
    api: Api, seller: Browser, buyer: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recommendations, the badge and suggestions hang: every page is there all the same."""

    class Away:
        def __getattr__(self, name: str) -> Any:
            return self._hang

        async def _hang(self, *_: Any) -> list[Any]:
            await asyncio.Event().wait()
            raise AssertionError

    id = await listing(seller)
    for name in ("recommendations", "notifications", "search"):
        monkeypatch.setattr(api.store, name, Away())
    for path in (f"/listings/{id}", "/", "/search/suggest?q=lam"):
        await buyer.get(path)
