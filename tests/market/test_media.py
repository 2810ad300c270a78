"""Media in a folder and in a bucket: one behaviour, whichever keeps the bytes."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer
from tests.market.media import (
    ANNA,
    BERT,
    GPS,
    Studio,
    animation,
    bomb,
    opened_picture,
    photo,
    picture,
    studio,
)

from market.faults import Conflict, Invalid, NotFound
from market.media import bulk, lifecycle
from market.media.api import IMAGE_BYTES, Medium
from market.media.blobs import NoBlob
from market.media.settings import Bucket, MediaSettings
from springtide.db.idempotency import Once
from springtide.errors import BodyTooLarge, Unavailable
from springtide.ops.load.seeding import BulkLoad

FOLDER = pytest.mark.parametrize("keeper", ["folder"], indirect=True)
"""For tests of what has nothing to do with where the bytes are."""

HOUR = 3600.0
DAY = 24 * HOUR

ACCESS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """moto's server: a faithful stand-in for S3."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint, **ACCESS).create_bucket(Bucket="market")
    yield endpoint
    server.stop()


def of_bucket(endpoint: str) -> MediaSettings:
    return MediaSettings(
        bucket=Bucket(name="market", endpoint=endpoint, key_id="key", secret="secret", path_style=True)
    )


@pytest.fixture(params=["folder", "bucket"])
def keeper(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def shards(keeper: str) -> int:
    """Where the bytes are has nothing to do with where the rows are: one of each is enough."""
    return 2 if keeper == "folder" else 1


@pytest.fixture
def settings(request: pytest.FixtureRequest, keeper: str, tmp_path: Path) -> MediaSettings:
    if keeper == "folder":
        return MediaSettings(folder=tmp_path / "media")
    endpoint: str = request.getfixturevalue("s3")
    client = boto3.client("s3", endpoint_url=endpoint, **ACCESS)
    for found in client.list_objects_v2(Bucket="market").get("Contents", ()):
        client.delete_object(Bucket="market", Key=found["Key"])
    return of_bucket(endpoint)


@pytest.fixture
async def media(urls: list[str], tmp_path: Path, settings: MediaSettings) -> AsyncIterator[Studio]:
    async with studio(urls, tmp_path, settings) as made:
        yield made


def once(key: str, body: str = "b") -> Once:
    return Once.of([key], [body])


async def test_a_picture_becomes_its_variants(media: Studio) -> None:
    """Upload, wait, ready: small and large, upright in proportion, as WebP."""
    stored = await media.stored(picture("PNG", (3000, 2000)))
    assert (stored.state, stored.variants, stored.kind) == ("processing", [], "image")
    assert (stored.width, stored.height, stored.content_type) == (3000, 2000, "image/png")
    await media.work()
    (ready,) = await media.service.media([stored.id])
    assert (ready.state, ready.variants) == ("ready", ["thumb", "large"])
    for variant, size in (("thumb", (320, 213)), ("large", (1280, 853))):
        shown = opened_picture(await media.shown(ready, variant))
        assert (shown.format, shown.size) == ("WEBP", size)
    assert await media.named() == await media.names()


@FOLDER
async def test_every_format_is_known_by_its_content(media: Studio) -> None:
    formats = ["JPEG", "PNG", "GIF", "WEBP"]
    stored = [await media.stored(picture(format, (200, 100))) for format in formats]
    await media.work()
    for format, ready in zip(
        formats, await media.service.media([medium.id for medium in stored]), strict=True
    ):
        assert (ready.state, ready.content_type) == ("ready", f"image/{format.lower()}")
        thumb = opened_picture(await media.shown(ready, "thumb")).convert("RGB")
        assert thumb.size == (200, 100)  # never larger than it was
        left, right = thumb.getpixel((10, 50)), thumb.getpixel((190, 50))
        assert isinstance(left, tuple) and isinstance(right, tuple)
        assert left[0] > 150 > left[2] and right[2] > 150 > right[0]


@FOLDER
async def test_nobody_is_told_where_a_photo_was_taken(media: Studio) -> None:
    """Orientation is applied; position, description and comment are in nothing that is shown."""
    content = photo()
    assert opened_picture(content).getexif().get_ifd(GPS)
    ready = await media.ready(content)
    for variant, size in (("thumb", (240, 320)), ("large", (480, 640))):
        shown = await media.shown(ready, variant)
        image = opened_picture(shown)
        assert image.size == size  # it stands upright now
        assert not image.getexif()
        assert b"secret" not in shown
        top = image.convert("RGB").getpixel((size[0] // 2, 5))
        assert isinstance(top, tuple)
        assert top[0] > 150 > top[2]  # what was left is on top


@FOLDER
async def test_an_animation_moves_when_large(media: Studio) -> None:
    ready = await media.ready(animation(5))
    assert getattr(opened_picture(await media.shown(ready, "large")), "n_frames", 1) == 5
    assert getattr(opened_picture(await media.shown(ready, "thumb")), "n_frames", 1) == 1


@FOLDER
async def test_what_hides_in_a_file_is_not_shown(media: Studio) -> None:
    """A picture that is a page as well: only its pixels get out."""
    evil = b"<script>alert(1)</script>"
    for content in (picture("GIF") + evil, picture("PNG") + evil, picture("JPEG", comment=evil)):
        ready = await media.ready(content)
        assert ready.state == "ready"
        for variant in ready.variants:
            assert b"script" not in await media.shown(ready, variant)


@FOLDER
async def test_a_picture_that_cannot_be_decoded_fails(media: Studio) -> None:
    """Its frame is whole and its checksums are right, but what is in it is no picture."""
    failed = await media.ready(bomb(100, 100))
    assert (failed.state, failed.variants, failed.note) == ("failed", [], "cannot be read")


async def test_what_is_no_picture_is_refused_at_once(media: Studio) -> None:
    """By its content, before anything is written or decoded; see test_media_formats.py for the kinds."""
    for content in (b"hello", picture("PNG")[:-20], bomb()):
        with pytest.raises(Invalid) as refused:
            await media.stored(content)
        assert refused.value.errors.keys() == {"file"}
    assert not await media.names()


async def test_a_picture_may_not_be_too_large(media: Studio) -> None:
    with pytest.raises(BodyTooLarge) as refused:
        await media.stored(picture("PNG") + bytes(IMAGE_BYTES))
    assert refused.value.limit == IMAGE_BYTES


async def test_the_same_request_again_is_the_same_medium(media: Studio) -> None:
    first = await media.stored(picture(), once=once("k"))
    again = await media.stored(picture(), once=once("k"))
    assert first == again
    assert len(await media.names()) == 1


async def test_public_addresses_stay_and_private_ones_expire(media: Studio) -> None:
    """A public picture is seen by whoever has its address, a private one by its owner, for a while."""
    public = await media.ready(picture())
    private = await media.ready(picture(), purpose="private")
    url = await media.service.url(public.id, "thumb")
    assert url == await media.service.url(public.id, "thumb", BERT)
    assert await fetched(media, url) == await media.shown(public, "thumb")
    for viewer in (None, BERT):
        with pytest.raises(NotFound):
            await media.service.url(private.id, "thumb", viewer)
    signed = await media.service.url(private.id, "thumb", ANNA)
    assert await fetched(media, signed) == await media.shown(private, "thumb")
    assert await media.service.urls([public.id, private.id, 99], "thumb") == {public.id: url}
    if not signed.startswith("/"):  # moto gives what it has to anybody: that this is checked is S3's promise
        asked = httpx.URL(signed).params
        assert asked["X-Amz-Expires"] == "900"
        assert re.fullmatch("[0-9a-f]{64}", asked["X-Amz-Signature"])
        return
    for changed in (signed.split("?")[0], signed.replace("thumb", "large"), signed[:-1] + "~"):
        assert await fetched(media, changed) is None


@FOLDER
async def test_an_address_opens_one_blob_until_its_time(urls: list[str], tmp_path: Path) -> None:
    async with studio(urls, tmp_path, MediaSettings()) as media:
        private = await media.ready(picture(), purpose="private")
        url = await media.service.url(private.id, "thumb", ANNA)
        large = await media.service.url(private.id, "large", ANNA)
        assert await fetched(media, f"{large.split('?')[0]}?{url.split('?')[1]}") is None
        media.clock.step(899)
        assert await fetched(media, url) is not None
        media.clock.step(2)
        assert await fetched(media, url) is None
        later = url.replace("expires=", "expires=9")
        assert await fetched(media, later) is None
        bare = url.split("?")[0].removeprefix("/media/")
        for query in (
            "",
            "expires=9999999999",
            "signature=" + "0" * 64,
            "a=b&" + url.split("?")[1],
            "%ff=%ff",
        ):
            with pytest.raises(NotFound):
                await media.service.part(bare, query)


async def test_originals_have_no_address(media: Studio) -> None:
    await media.ready(picture())
    for path in await media.names():
        if path.startswith("originals/"):
            with pytest.raises(NotFound):
                await media.service.part(path, "")


@pytest.mark.parametrize(
    "address", ["../secrets/media.key", "public/../originals/x", "public/0005/1-thumb-.webp", ""]
)
@FOLDER
async def test_only_addresses_of_ours_are_read(media: Studio, address: str) -> None:
    with pytest.raises(NotFound):
        await media.service.part(address, "")


async def test_a_document_is_kept_once_and_for_its_owner(media: Studio) -> None:
    report = b"order,sum\n1,2\n"

    async def keep() -> Medium:
        return await media.service.keep_document(ANNA, 'Umsätze "März".csv', report, "text/csv", "job-1")

    first, again = await asyncio.gather(keep(), keep())
    assert first == again == await keep()
    assert (first.kind, first.purpose, first.state) == ("document", "private", "ready")
    assert await media.names() == await media.named()
    url = await media.service.url(first.id, "document", ANNA)
    assert await fetched(media, url) == report
    with pytest.raises(NotFound):
        await media.service.url(first.id, "document", BERT)
    other = await media.service.keep_document(BERT, "r.csv", report, "text/csv", "job-1")
    assert other.id != first.id
    media.clock.step(30 * DAY + 1)
    await lifecycle.expire(media.service)
    await media.work()
    assert not await media.names()


async def test_what_nothing_is_attached_to_goes_after_a_day(
    media: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is due in one pass, however many are looked up at once."""
    monkeypatch.setattr(lifecycle, "BATCH", 1)
    used, unused, other = [await media.ready(picture()) for _ in range(3)]
    assert not used.attached
    assert await media.service.attach(ANNA, "listing:7", [used.id], 1) == [used.id]
    media.clock.step(DAY - 60)
    await lifecycle.expire(media.service)
    assert len(await media.service.media([used.id, unused.id, other.id])) == 3
    media.clock.step(120)
    await lifecycle.expire(media.service)
    (left,) = await media.service.media([used.id, unused.id, other.id])
    assert (left.id, left.attached) == (used.id, True)
    await media.work()
    assert await media.names() == await media.named()
    assert len(await media.names()) == 3


async def test_what_is_released_goes_a_day_later(media: Studio) -> None:
    one, other = await media.ready(picture()), await media.ready(picture())
    await media.service.attach(ANNA, "listing:7", [one.id, other.id], 1)
    await media.service.attach(ANNA, "listing:8", [one.id], 1)
    await media.service.attach(ANNA, "listing:7", [], 2)
    states = {medium.id: medium.attached for medium in await media.service.media([one.id, other.id])}
    assert states == {one.id: True, other.id: False}
    await media.service.release(ANNA, "listing:8")
    media.clock.step(DAY + 1)
    await lifecycle.expire(media.service)
    assert await media.service.media([one.id, other.id]) == []


async def test_the_newest_version_decides_what_is_attached(media: Studio) -> None:
    """Told in any order and more than once, it ends the same."""
    one, other = await media.ready(picture()), await media.ready(picture())
    for version, ids in ((2, [other.id]), (1, [one.id]), (2, [other.id]), (1, [])):
        await media.service.attach(ANNA, "listing:7", ids, version)
        found = {medium.id for medium in await media.service.media([one.id, other.id]) if medium.attached}
        assert found == {other.id}
    await media.service.release(ANNA, "listing:7")
    assert await media.service.attach(ANNA, "listing:7", [one.id], 9) == []


@FOLDER
async def test_only_own_media_are_attached(media: Studio) -> None:
    berts, annas = await media.ready(picture(), BERT), await media.ready(picture())
    report = await media.service.keep_document(ANNA, "r.csv", b"a", "text/csv", "k")
    ids = [berts.id, annas.id, report.id, 77, 1 << 60]
    assert await media.service.attach(ANNA, "listing:7", ids, 1) == [annas.id]
    assert not (await media.service.media([berts.id]))[0].attached


async def test_what_is_attached_is_not_deleted(media: Studio) -> None:
    medium = await media.ready(picture())
    await media.service.attach(ANNA, "listing:7", [medium.id], 1)
    with pytest.raises(NotFound):
        await media.service.delete(medium.id, BERT)
    with pytest.raises(Conflict):
        await media.service.delete(medium.id, ANNA)
    await media.service.release(ANNA, "listing:7")
    for _ in range(2):
        await media.service.delete(medium.id, ANNA, once("delete"))
    assert await media.service.media([medium.id]) == []
    await media.work()
    assert not await media.names()


async def test_a_crash_leaves_a_blob_and_never_a_row_without_one(
    media: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the row, the blob is swept an hour later; what rows name is left alone."""
    kept = await media.ready(picture())

    class Killed(BaseException):
        pass

    async def die(*_: Any) -> bool:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(media.service.rows, "insert", die)
        with pytest.raises(Killed):
            await media.stored(picture())
        patch.setattr(media.service.rows, "settle", die)
    later = await media.stored(picture())
    with monkeypatch.context() as patch:
        patch.setattr(media.service.rows, "settle", die)
        with pytest.raises(Killed):
            await media.work()
    assert await media.named() <= await media.names()
    assert await media.work() == 1  # the job again
    assert len(await media.names() - await media.named()) == 3
    assert await media.sweep() == 0  # they may belong to somebody who is at work
    media.clock.step(HOUR + 60)
    assert await media.sweep() == 3
    assert await media.names() == await media.named()
    assert {medium.state for medium in await media.service.media([kept.id, later.id])} == {"ready"}


@FOLDER
async def test_what_was_half_written_goes_after_an_hour(urls: list[str], tmp_path: Path) -> None:
    """As a kill leaves it: the beginning of a blob, under obstore's name for it, and a run's own folder."""
    async with studio(urls, tmp_path, MediaSettings()) as media:
        await media.ready(picture())
        (whole,) = (tmp_path / "media").glob("originals/*/*")
        half, run = whole.with_name(f"{whole.name}#1"), media.blobs.scratch / "run"
        half.write_bytes(b"a part")
        run.mkdir()
        (run / "source").write_bytes(b"a part")
        assert await media.sweep() == 0
        media.clock.step(HOUR + 60)
        assert await media.sweep() == 2
        assert not half.exists()
        assert not run.exists()
        assert await media.names() == await media.named()


@FOLDER
async def test_an_original_that_cannot_be_found_is_looked_for_again(urls: list[str], tmp_path: Path) -> None:
    """A folder that is not there today may be there tomorrow: the job fails instead of forgetting."""
    async with studio(urls, tmp_path, MediaSettings()) as media:
        medium = await media.stored(picture())
        (original,) = (tmp_path / "media").glob("originals/*/*")
        elsewhere = original.rename(tmp_path / "elsewhere")
        with pytest.raises(NoBlob):
            await media.work()
        assert not list(media.blobs.scratch.iterdir())
        elsewhere.rename(original)
        await media.work()
        assert [found.state for found in await media.service.media([medium.id])] == ["ready"]


async def test_deleted_while_its_variants_are_made(media: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of it, though the job finished after it was gone."""
    medium = await media.stored(picture())
    put = media.blobs.put

    async def put_after_the_end(path: str, *args: Any, **options: Any) -> None:
        if "large" in path:
            await media.service.delete(medium.id, ANNA)
        await put(path, *args, **options)

    monkeypatch.setattr(media.blobs, "put", put_after_the_end)
    await media.work()
    await media.work()
    assert not await media.names()


@FOLDER
async def test_blobs_out_of_reach_are_unavailable(urls: list[str], tmp_path: Path) -> None:
    """Neither an error of the program nor a wait without end, and no row for what was not written."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with studio(urls, tmp_path, of_bucket(endpoint)) as media:
            with pytest.raises(Unavailable):
                await media.stored(picture())
            assert not await media.named()


async def test_the_buckets_own_rules_are_taken(s3: str) -> None:
    client = boto3.client("s3", endpoint_url=s3, **ACCESS)
    rules = lifecycle.bucket_rules()
    client.put_bucket_lifecycle_configuration(Bucket="market", LifecycleConfiguration=rules)
    assert client.get_bucket_lifecycle_configuration(Bucket="market")["Rules"] == rules["Rules"]


async def fetched(media: Studio, url: str) -> bytes | None:
    """What a browser gets: from the application for its own addresses, else from the bucket."""
    if url.startswith("/media/"):
        path, _, query = url.removeprefix("/media/").partition("?")
        try:
            return (await media.service.part(path, query)).content
        except NotFound:
            return None
    async with httpx.AsyncClient() as client:
        answer = await client.get(url)
    return answer.content if answer.is_success else None


@FOLDER
async def test_a_seed_has_pictures(media: Studio, tmp_path: Path) -> None:
    """As if sellers had uploaded them: shown, attached, and gone a day after they are taken away."""
    platform = media.platform
    motifs = await bulk.draw(seed=1)
    assert len({motif.variants["thumb"][0] for motif in motifs}) == bulk.MOTIFS
    assert motifs[3] == (await bulk.draw(seed=1))[3]
    made = []
    for n, owner in enumerate((ANNA, BERT, ANNA)):
        id, at = await media.service.rows.new_id(owner), media.service.now()
        made.append(bulk.BulkPicture(id, owner, f"listing:{n}", motifs[n], at))
    async with BulkLoad([media.db]) as load:
        await bulk.copy_pictures(load, media.db, media.blobs, made)
    assert await media.names() == await media.named()
    urls = await media.service.urls([one.id for one in made], "thumb")
    for one in made:
        assert await fetched(media, urls[one.id]) == one.motif.variants["thumb"][0]
    await media.service.attach(ANNA, "listing:0", [], 2)
    states = [medium.attached for medium in await media.service.media([one.id for one in made])]
    assert states == [False, True, True]
    assert (await bulk.blobs_of(platform)).opened("x", "") == (False, None)
