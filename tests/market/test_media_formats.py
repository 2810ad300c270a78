"""What a file is, by its content alone; and what of its form is held to."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.market.media import animation, bomb, photo, picture

from market.media.formats import Broken, Unknown, identify

FILES = {
    "png": picture("PNG", (64, 48)),
    "grey png": picture("PNG", (64, 48), optimize=True),
    "jpeg": picture("JPEG", (64, 48)),
    "progressive jpeg": picture("JPEG", (64, 48), progressive=True),
    "photo": photo(),
    "gif": picture("GIF", (64, 48)),
    "animation": animation(3),
    "webp": picture("WEBP", (64, 48)),
    "lossless webp": picture("WEBP", (64, 48), lossless=True),
    "animated webp": picture("WEBP", (64, 48), save_all=True, append_images=[]),
}

MP4 = (
    b"\0\0\0\x18ftypisom\0\0\0\0isommp42"
    b"\0\0\0\x10moov\0\0\0\0\0\0\0\0"
    b"\0\0\0\x0cmdat\0\0\0\0"
)  # fmt: skip
WEBM = b"\x1a\x45\xdf\xa3\x87\x42\x82\x84webm" + b"\x18\x53\x80\x67\x84abcd"


@pytest.mark.parametrize("name", FILES)
def test_size_and_type_are_read(name: str) -> None:
    found = identify(FILES[name])
    size = {"photo": (640, 480), "animation": (600, 400)}.get(name, (64, 48))
    assert (found.kind, found.width, found.height) == ("image", *size)
    assert found.content_type.removeprefix("image/") in name.replace("photo", "jpeg").replace(
        "animation", "gif"
    )


def test_videos_are_known() -> None:
    assert identify(MP4).content_type == "video/mp4"
    assert identify(WEBM).content_type == "video/webm"
    unknown_length = WEBM.replace(b"\x84abcd", b"\x01\xff\xff\xff\xff\xff\xff\xffabcd")
    assert identify(unknown_length).content_type == "video/webm"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"PK\3\4", b"\x7fELF",
        b"BM" + bytes(60), b"RIFF\4\0\0\0WAVE", WEBM.replace(b"webm", b"mkvx"),
    ],
)  # fmt: skip
def test_other_things_are_unknown(content: bytes) -> None:
    with pytest.raises(Unknown):
        identify(content)


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n<html><script>",
        b"\xff\xd8\xff<html>",
        b"GIF89a<html><script>alert(1)</script>" + bytes(50),
        b"RIFF\4\0\0\0WEBPVP8 ",
        FILES["png"].replace(b"IHDR", b"IHDX"),
        FILES["png"][:40] + bytes([FILES["png"][40] ^ 1]) + FILES["png"][41:],
        bomb(0, 5),
        MP4.replace(b"moov", b"free"),
        MP4[:-30],
        WEBM[:-2],
    ],
)
def test_what_only_begins_like_one_is_broken(content: bytes) -> None:
    with pytest.raises(Broken):
        identify(content)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_cut_off_is_broken(name: str) -> None:
    """Wherever: nothing less than the whole is taken."""
    content = FILES[name]
    for length in {12, 20, 30, len(content) // 2, len(content) - 20, len(content) - 2, len(content) - 1}:
        with pytest.raises((Broken, Unknown)):
            identify(content[:length])


def test_the_size_is_known_without_decoding() -> None:
    """A few bytes that say they are billions of pixels."""
    found = identify(bomb(60_000, 60_000))
    assert (found.width, found.height) == (60_000, 60_000)


@given(st.binary(max_size=200), st.sampled_from([*FILES.values(), MP4, WEBM]), st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_no_content_breaks_the_reader(noise: bytes, content: bytes, at: int) -> None:
    """Whatever comes: a format, or one of the two refusals."""
    at = min(at, len(content))
    with suppress(Broken, Unknown):
        identify(content[:at] + noise + content[at + len(noise) :])
