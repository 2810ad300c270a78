"""Media over HTTP: sending files, in any form and size, and what is served of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from tests.market import tiers
from tests.market.harness import Api, Person, one_platform, one_shard
from tests.market.media import done, picture
from tests.market.test_catalog_api import good, offer, refused, seller, send
from tests.market.working import work

from market.media.api import Media
from market.rest import uploads
from market.rest.uploads import AT_ONCE, OF_ONE_PERSON, UPLOAD_BYTES

pytestmark = [one_platform, one_shard]

PICTURE = picture("PNG", (400, 300))

FILE = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    + PICTURE
    + b"\r\n--b--\r\n"
)

NOTHING = (
    "",
    "public/0005/5-thumb-x.webp",
    "../secrets/token.key",
    "%2e%2e/secrets/token.key",
    f"originals/0005/5-{'0' * 32}.png",
    f"public/0005/5-thumb-{'0' * 32}.webp",
)


async def sent(api: Api, by: Person, content: Any = PICTURE, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {by.token}", **options.pop("headers", {})}
    return await api.client.post("/market/media", content=content, headers=headers, **options)


async def uploaded(api: Api, by: Person, **options: Any) -> dict[str, Any]:
    """A medium whose variants have been made."""
    answer = await sent(api, by, **options)
    assert answer.status_code == 201, answer.text
    await done(api.platform)
    medium: dict[str, Any] = await good(api, "GET", f"/media/{answer.json()['id']}", by=by)
    return medium


async def address(api: Api, medium: dict[str, Any], variant: str = "thumb") -> str:
    (found,) = (await good(api, "GET", f"/media?ids={medium['id']}&variant={variant}"))["items"]
    url: str = found["url"]
    return url


async def test_a_picture_is_sent_shown_and_deleted(api: Api) -> None:
    anna, bert = await api.person(), await api.person()
    answer = await sent(api, anna, params={"name": "My lamp"}, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 201
    medium = answer.json()
    assert answer.headers["location"] == f"/market/media/{medium['id']}"
    assert (medium["state"], medium["name"], medium["content_type"]) == ("processing", "My lamp", "image/png")
    assert (await good(api, "GET", f"/media?ids={medium['id']}"))["items"] == []
    await done(api.platform)
    assert (await good(api, "GET", f"/media/{medium['id']}", by=anna))["variants"] == ["thumb", "large"]
    await refused(api, 404, "GET", f"/media/{medium['id']}", by=bert)
    await refused(api, 404, "DELETE", f"/media/{medium['id']}", by=bert)
    url = await address(api, medium)
    assert (await api.client.get(url)).status_code == 200
    for _ in range(2):
        gone = await send(api, "DELETE", f"/media/{medium['id']}", by=anna, Idempotency_Key="delete-it")
        assert gone.status_code == 204
    await done(api.platform)
    assert (await api.client.get(url)).status_code == 404


async def test_nobody_sends_without_an_account(api: Api) -> None:
    assert (await api.client.post("/market/media", content=PICTURE)).status_code == 401


async def test_a_form_is_as_good_as_a_body(api: Api) -> None:
    """And its file counts, whatever boundary is around it: the same key again is the same medium."""
    anna = await api.person()
    headers = {"Authorization": f"Bearer {anna.token}", "Idempotency-Key": "the-same-key"}
    ids = set()
    for type in ("image/png", "text/html"):
        form = {
            "files": {"file": ("../../a.php", PICTURE, type)},
            "data": {"purpose": "private", "csrf": "x"},
        }
        answer = await api.client.post("/market/media", headers=headers, **form)  # type: ignore[arg-type]
        assert answer.status_code == 201, answer.text
        assert (answer.json()["name"], answer.json()["purpose"]) == ("../../a.php", "private")
        ids.add(answer.json()["id"])
    assert len(ids) == 1
    other = {
        "files": {"file": ("a.png", picture("PNG", (3, 3)), "image/png")},
        "data": {"purpose": "private"},
    }
    answer = await api.client.post("/market/media", headers=headers, **other)  # type: ignore[arg-type]
    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("multipart/form-data", b"", 422),
        ("multipart/form-data; boundary=" + "b" * 100, b"", 422),
        ("multipart/form-data; boundary=b", b"", 422),
        ("multipart/form-data; boundary=b", b"nonsense", 422),
        ("multipart/form-data; boundary=b", b"--b\r\nX: y\r\n\r\nz\r\n--b--\r\n", 422),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nz', 422),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="f"\r\nX: '
            + b"y" * 9000
            + b"\r\n\r\nz\r\n--b--\r\n",
            422,
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + b"y" * 20_000 + b"\r\n--b--\r\n",
            422,
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\n\xff\0\r\n--b--\r\n',
            422,
        ),
        ("multipart/form-data; boundary=b", b"--b\r\n" * 5000, 422),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nz\r\n' * 31 + FILE,
            422,
        ),
        ("application/json", b"{}", 415),
        ("image/png", b"", 422),
        ("image/png", b"no picture", 422),
        ("image/png", PICTURE[:-5], 422),
    ],
)
async def test_bad_bodies_are_refused(api: Api, kind: str, body: bytes, status: int) -> None:
    answer = await sent(api, await api.person(), body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("streamed", [False, True])
async def test_fifty_megabytes_are_refused_unread(api: Api, streamed: bool) -> None:
    """Declared, not one byte is read; streamed, no more than the limit is ever held."""
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < 50_000_000:
            taken += 1_000_000
            yield bytes(1_000_000)

    headers = {} if streamed else {"Content-Length": "50000000"}
    answer = await sent(api, await api.person(), body(), headers=headers)
    assert answer.status_code == 413
    if streamed:  # what comes after the refusal is thrown away for a second at most
        assert taken >= UPLOAD_BYTES
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_picture_has_ten_megabytes_at_most(api: Api) -> None:
    answer = await sent(api, await api.person(), PICTURE + bytes(10_500_000))
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/market/listings"),
        ("DELETE", "/market/media/5"),
        ("POST", "/account/face/remove"),
        ("POST", "/selling/arrangement/5"),
    ],
)
async def test_everything_else_stays_small(api: Api, method: str, path: str) -> None:
    """Bodies are larger where files are sent, and nowhere else, not even below."""
    anna = await api.person()
    headers = {"Authorization": f"Bearer {anna.token}", "Idempotency-Key": "a-large-body"}
    answer = await api.client.request(method, path, content=bytes(1_100_000), headers=headers)
    assert answer.status_code == 413


async def test_uploads_at_once_are_few(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what memory is meant for: 503, and when to come again. Others and later ones go on."""
    anna, bert, carla = [await api.person() for _ in range(3)]
    go, begun = asyncio.Event(), asyncio.Semaphore(0)

    async def noted(request: Request) -> uploads.Sent:
        begun.release()
        return await uploads.read_upload(request)

    monkeypatch.setattr("market.rest.media.read_upload", noted)

    async def slowly() -> AsyncIterator[bytes]:
        yield PICTURE[:100]
        await go.wait()
        yield PICTURE[100:]

    waiting = []
    for person, others in ((anna, 201), (bert, 503)):
        for _ in range(OF_ONE_PERSON):
            waiting.append(asyncio.create_task(sent(api, person, slowly())))
            await begun.acquire()
        refusal = await sent(api, person)
        assert (refusal.status_code, refusal.headers.get("retry-after")) == (503, "5")
        assert (await sent(api, carla)).status_code == others
        if others == 201:
            await begun.acquire()
    assert len(waiting) == AT_ONCE
    go.set()
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {201}
    assert (await sent(api, anna)).status_code == 201


async def test_what_is_served_cannot_do_anything(api: Api) -> None:
    """Its type is fixed, it runs nothing, and it may be kept for ever because it never changes."""
    url = await address(api, await uploaded(api, await api.person()))
    answer = await api.client.get(url)
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-disposition"] == "inline"
    etag = answer.headers["etag"]
    again = await api.client.get(url, headers={"If-None-Match": f'"x", {etag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    head = await api.client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))
    assert (await api.client.post(url)).status_code == 405


async def test_parts_are_served(api: Api) -> None:
    """As players of videos ask for them (RFC 9110, 14)."""
    url = await address(api, await uploaded(api, await api.person()))
    whole = (await api.client.get(url)).content
    size = len(whole)
    for asked, first, last in (
        ("0-0", 0, 0), ("5-9", 5, 9), ("10-", 10, size - 1), ("-7", size - 7, size - 1),
        ("3-999999999", 3, size - 1), ("-999999999", 0, size - 1),
    ):  # fmt: skip
        part = await api.client.get(url, headers={"Range": f"bytes={asked}"})
        assert part.status_code == 206, asked
        assert part.content == whole[first : last + 1]
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
    for asked in (f"{size}-", f"{size + 5}-{size + 9}", "-0"):
        part = await api.client.get(url, headers={"Range": f"bytes={asked}"})
        assert (part.status_code, part.headers["content-range"]) == (416, f"bytes */{size}")
    for ignored in ("bytes=5-4", "bytes=a-b", "bytes=-", "lines=1-2", "bytes=0-1,3-4"):
        assert (await api.client.get(url, headers={"Range": ignored})).status_code == 200
    etag = (await api.client.get(url)).headers["etag"]
    for condition, status in ((etag, 206), ('"other"', 200)):
        headers = {"Range": "bytes=0-1", "If-Range": condition}
        assert (await api.client.get(url, headers=headers)).status_code == status


async def test_more_than_one_part_is_put_together(api: Api) -> None:
    """A document of several times what one call carries arrives whole, and by ranges across the seams."""
    anna, media = 5, api.service(Media)
    report = b"".join(b"%07d\n" % number for number in range(400_000))
    medium = await media.keep_document(anna, 'a \u2603 "report"\r\n.csv', report, "text/csv", "k")
    url = await media.url(medium.id, "document", anna)
    answer = await api.client.get(url)
    assert answer.content == report
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith('attachment; filename="a _ _report')
    assert "filename*=UTF-8''a%20%E2%98%83%20%22report%22%0D%0A.csv" in disposition
    part = await api.client.get(url, headers={"Range": "bytes=1048570-2097160"})
    assert part.content == report[1_048_570:2_097_161]
    for other in (url[:-1], url + "&a=b", url.partition("?")[0], url.replace("report", "rapport")):
        assert (await api.client.get(other)).status_code == 404


@pytest.mark.parametrize("path", NOTHING)
async def test_nothing_else_is_served(api: Api, path: str) -> None:
    assert (await api.client.get(f"/media/{path}")).status_code == 404


async def test_a_listing_keeps_its_pictures(api: Api) -> None:
    """Named when it is made or changed, they are attached; taken away, they are free again."""
    anna = await seller(api)
    one, other = await uploaded(api, anna), await uploaded(api, anna)

    async def attached() -> list[bool]:
        await work(api.platform, ["catalog"])
        return [
            (await good(api, "GET", f"/media/{medium['id']}", by=anna))["attached"] for medium in (one, other)
        ]

    listing = await offer(api, anna, media=[str(one["id"]), "<b>", "77", str(1 << 70)])
    assert await attached() == [True, False]
    await refused(api, 409, "DELETE", f"/media/{one['id']}", by=anna)
    path = f"/listings/{listing['id']}"
    await good(api, "PATCH", path, {"media": [str(other["id"])]}, by=anna, If_Match="*")
    assert await attached() == [False, True]
    await good(api, "PATCH", path, {"title": "Another"}, by=anna, If_Match="*")
    assert await attached() == [False, True]


async def test_addresses_of_a_page_are_one_statement(api: Api) -> None:
    anna = await api.person()
    media = [await uploaded(api, anna) for _ in range(3)]
    for ids in ([media[0]], media):
        api.recorder.statements.clear()
        listed = ",".join(str(medium["id"]) for medium in ids)
        found = (await good(api, "GET", f"/media?ids={listed}&variant=thumb"))["items"]
        assert [item["id"] for item in found] == [medium["id"] for medium in ids]
        assert tiers.cached() or len(api.recorder.statements) == 1
    assert "variant" in await refused(api, 422, "GET", "/media?ids=1&variant=original")
    assert "ids" in await refused(api, 422, "GET", "/media")
    assert "ids" in await refused(api, 422, "GET", "/media?ids=" + ",".join(map(str, range(1, 300))))
