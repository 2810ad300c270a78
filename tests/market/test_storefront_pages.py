"""Pages: what each carries, what is escaped, what trouble looks like, what a page costs."""

from __future__ import annotations

import gzip
import re
from typing import Any

import pytest
from tests.market.harness import Api, one_platform, one_shard
from tests.market.pages import Browser, browser

from market.storefront.files import ADDRESSES
from market.storefront.markdown import Markdown
from springtide.errors import CommitUnknown, DatabaseUnavailable, DeadlineExceeded

pytestmark = one_platform

HOSTILE = "<script>alert('x')</script>\"'&<img src=x onerror=alert(1)>{{1234*1234}}"


@pytest.fixture
def visitor(api: Api) -> Browser:
    return browser(api)


async def shop(seller: Browser, name: str = "Lamps") -> None:
    await seller.get("/selling/open")
    await seller.send("/selling/open", {"name": name})


async def listing(seller: Browser, **fields: str) -> int:
    await seller.get("/selling/listings/new")
    values = {"title": "A lamp", "price": "12.50", "category": "lighting", "stock": "5"} | fields
    await seller.send("/selling/listings/new", values)
    return int(seller.path.rpartition("/")[2])


@one_shard
async def test_every_page_has_the_headers_and_the_frame(api: Api, visitor: Browser) -> None:
    """A strict policy without exceptions, no inline script or style, one h1, a language, landmarks."""
    await visitor.sign_up("Jake")
    await shop(visitor)
    id = await listing(visitor)
    slug = (await api.article(await api.person("Anna")))["slug"]
    paths = [
        "/", "/browse", "/browse/books", "/browse/lighting", f"/listings/{id}", "/shops/lamps", "/articles",
        f"/articles/{slug}", "/people/Anna", "/feed", "/write", "/account", "/account/devices",
        "/selling/listings", "/selling/listings/new", f"/selling/listings/{id}", "/selling/shop",
    ]  # fmt: skip
    for path, expect in [*((path, 200) for path in paths), ("/nothing", 404)]:
        page = await visitor.get(path, expect=expect)
        headers = visitor.response.headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; "), path
        for part in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"):
            assert part in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "strict-origin-when-cross-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert "no-store" in headers["cache-control"], path
        assert len(page.headings) == 1, path
        names = [tag for tag, _ in page.tags]
        assert names.count("main") == 1, path
        assert ("html", {"lang": "en"}) in page.tags
        assert "style" not in names
        for tag, given in page.tags:
            assert not [name for name in given if name == "style" or name.startswith("on")], (path, tag)
            assert tag != "script" or given["src"].startswith("/static/")
        assert not re.search(r"(src|href|action)=\"(https?:)?//", page.html), path


@one_shard
async def test_what_people_write_is_text(api: Api, visitor: Browser) -> None:
    """In titles, texts, tags, comments, shops, listings and biographies: nothing of it becomes a tag."""
    await visitor.sign_up("Jake")
    await visitor.get("/write")
    article = {"title": HOSTILE, "description": HOSTILE, "body": HOSTILE, "tags": "<b>bold</b>"}
    await visitor.send("/write", article)
    where = visitor.path
    await visitor.send(f"{where}/comments", {"body": HOSTILE})
    await visitor.get("/account")
    await visitor.send("/account/profile", {"bio": HOSTILE})
    await shop(visitor, "<i>Shop</i>")
    id = await listing(visitor, title=HOSTILE, description=HOSTILE)
    shown = [where, "/articles", "/", "/people/Jake", f"/listings/{id}", "/browse", "/shops/i-shop-i"]
    for path in (*shown, f"/selling/listings/{id}", f"{where}/edit", "/account"):
        page = await visitor.get(path)
        assert "<script>alert" not in page.html, path
        assert "<img" not in page.html, path
        assert "<b>" not in page.html
        assert "1522756" not in page.text, path
        scripts = [given for tag, given in page.tags if tag == "script"]
        assert [one["src"] for one in scripts] == [ADDRESSES["app.js"]], path
    await visitor.get(f"{where}/edit")
    assert visitor.page.form(f"{where}/edit")["body"] == HOSTILE


async def test_long_texts_are_rendered_beside_the_loop_and_kept_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is kept stays below its size however much is read."""
    monkeypatch.setattr("market.storefront.markdown.MAX_KEPT", 400_000)
    markdown = Markdown()
    text = "word *emphasis* " * 1_000
    assert "<em>" in await markdown.html(text)
    assert await markdown.html(text) is await markdown.html(text)
    for number in range(40):
        await markdown.html(f"{number} {text}")
    assert 300_000 < markdown._size <= 400_000
    assert markdown._size == sum(len(one) + len(html) for one, html in markdown._kept.items())


@one_shard
async def test_files_are_named_by_their_content(visitor: Browser) -> None:
    """Kept for ever, compressed where that is understood; another name is 404."""
    for name, address in ADDRESSES.items():
        packed = await visitor.client.get(address, headers={"Accept-Encoding": "gzip"})
        plain = await visitor.client.get(address, headers={"Accept-Encoding": "identity"})
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.content == plain.content, name
        assert "content-encoding" not in plain.headers
        assert packed.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert packed.headers["vary"] == "Accept-Encoding"
        again = {"If-None-Match": packed.headers["etag"], "Accept-Encoding": "gzip"}
        assert (await visitor.client.get(address, headers=again)).status_code == 304
        assert "set-cookie" not in packed.headers
    assert gzip.decompress(gzip.compress(plain.content)) == plain.content
    await visitor.get("/static/style.0000000000000000.css", expect=404)


@one_shard
@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/nothing", "GET", 404), ("/listings/x", "GET", 404), ("/listings/99999999999999999999", "GET", 404),
        ("/articles/not-there", "GET", 404), ("/people/nobody", "GET", 404), ("/browse/nowhere", "GET", 404),
        ("/shops/none", "GET", 404), ("/listings/1", "POST", 405), ("/browse?after=zzz", "GET", 422),
        ("/people/%00", "GET", 404), ("/articles/%00", "GET", 404), ("/shops/%00", "GET", 404),
        ("/articles?tag=%00", "GET", 404), ("/articles?page=x", "GET", 200),
        ("/articles?page=999999", "GET", 200),
    ],
)  # fmt: skip
async def test_trouble_is_a_page(visitor: Browser, path: str, method: str, status: int) -> None:
    """In the same look, with the request's id; HTML, not JSON."""
    response = await visitor.client.request(method, path)
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("text/html")
    if status >= 400:
        assert response.headers["x-request-id"] in response.text
    assert (status == 405) == ("allow" in response.headers)


@one_shard
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DatabaseUnavailable("no connection", retry_after=2.0), 503),
        (DeadlineExceeded("waiting"), 504),
        (CommitUnknown("lost"), 500),
        (RuntimeError("secret detail"), 500),
    ],
)
async def test_trouble_below_is_a_page(
    api: Api, visitor: Browser, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    """503 with Retry-After, 504 and 500: our look, our headers, the request's id, nothing of the inside."""

    async def fail(*_: Any, **__: Any) -> None:
        raise error

    catalog: Any = api.platform._registry.implementation("catalog")
    monkeypatch.setattr(catalog._store, "counts", fail)
    response = await visitor.client.get("/browse")
    assert response.status_code == status
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert ("retry-after" in response.headers) == (status == 503)


@one_shard
async def test_forms_that_are_none_are_refused(visitor: Browser) -> None:
    """JSON and text that is no UTF-8, with a good token: 415 and 400, never a 500."""
    await visitor.sign_up("Jake")
    token = {"X-CSRF-Token": visitor.page.form("/sign-out")["csrf"]}
    answer = await visitor.client.post("/write", json={"title": "T"}, headers=token)
    assert answer.status_code == 415
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for body in (b"title=%ff", b"title=\xff", b"a=1&" * 1_000):
        answer = await visitor.client.post("/write", content=body, headers=token | form)
        assert answer.status_code == 400, body[:20]
    for body in (b"title=%00&body=x", b"title=%ed%a0%80"):
        answer = await visitor.client.post("/write", content=body, headers=token | form)
        assert answer.status_code in (400, 422), body


async def test_what_pages_cost(api: Api, visitor: Browser) -> None:
    """Statements of the hot pages, however full they are. Who is signed in costs three more: the session, the
    name, the unread notices; on the front page also whom they follow of those shown, and whom to read."""
    await visitor.sign_up("Jake")
    await shop(visitor)
    for number in range(3):
        await listing(visitor, title=f"Lamp {number}")
    id = await listing(visitor)
    authors = [await api.person() for _ in range(3)]
    for author in authors:
        slug = (await api.article(author, tagList=["t"]))["slug"]
        await api.comment(authors[0], slug)
    shards = len(api.platform.topology.database("catalog").shards)
    stranger = browser(api)
    await stranger.get("/")
    categories, newest, articles, people = shards, shards, 2 * shards, shards
    cost = {
        "/": (categories + newest + articles + people, 5),
        f"/listings/{id}": (1 + shards, 3),
        "/browse": (categories + newest, 3),
    }
    for path, (statements, more) in cost.items():
        api.recorder.statements.clear()
        await stranger.get(path)
        assert len(api.recorder.statements) <= statements, path
        await visitor.get(path)
        api.recorder.statements.clear()
        await visitor.get(path)
        assert len(api.recorder.statements) <= statements + more, path


async def test_lists_go_on_page_by_page(api: Api, visitor: Browser) -> None:
    """`Show more` leads through all listings, each once, and ends."""
    await visitor.sign_up("Jake")
    await shop(visitor)
    made = [await listing(visitor, title=f"Lamp {number}") for number in range(27)]
    seen: list[int] = []
    path: str | None = "/browse/home"
    while path is not None:
        page = await visitor.get(path)
        seen += [int(link.rpartition("/")[2]) for link in page.links if link.startswith("/listings/")]
        following = [given["href"] for tag, given in page.tags if tag == "a" and given.get("rel") == "next"]
        path = following[0] if following else None
    assert seen == sorted(made, reverse=True)


async def test_old_addresses_of_articles_lead_to_the_new_one(api: Api, visitor: Browser) -> None:
    author = await api.person("Jake")
    slug = (await api.article(author, "First title"))["slug"]
    changed = {"article": {"title": "Second title"}}
    await api.call("PUT", f"/articles/{slug}", changed, by=author, expect=200)
    await visitor.get(f"/articles/{slug}", expect=303)
    assert visitor.response.headers["location"] == "/articles/second-title"


@one_shard
async def test_writing_again_over_a_newer_listing_is_refused(api: Api, visitor: Browser) -> None:
    """Two tabs: the second form was made before the first was sent; it keeps what was typed and says so."""
    await visitor.sign_up("Jake")
    await shop(visitor)
    id = await listing(visitor)
    address = f"/selling/listings/{id}"
    stale = (await visitor.get(address)).form(address)
    await visitor.send(address, {"title": "From the first tab"})
    await visitor.post(address, stale | {"title": "From the second tab"}, expect=409)
    assert "has changed meanwhile" in visitor.page.text
    assert visitor.page.form(address)["title"] == "From the second tab"
    assert (await visitor.get(f"/listings/{id}")).headings == ["From the first tab"]


@one_shard
async def test_a_form_sent_twice_has_one_effect(api: Api, visitor: Browser) -> None:
    """A new listing, and pieces added to its stock: the same rendered form again changes nothing."""
    await visitor.sign_up("Jake")
    await shop(visitor)
    await visitor.get("/selling/listings/new")
    form = visitor.page.form("/selling/listings/new")
    form |= {"title": "A lamp", "price": "3", "category": "lighting"}
    first = (await visitor.post("/selling/listings/new", form), visitor.path)[1]
    await visitor.post("/selling/listings/new", form)
    assert visitor.path == first
    adding = visitor.page.form(f"{first}/stock") | {"change": "5"}
    for _ in range(2):
        await visitor.post(f"{first}/stock", adding)
    assert "6 pieces on hand" in visitor.page.text
    await visitor.get("/selling/listings")
    assert visitor.page.text.count("A lamp") == 1
