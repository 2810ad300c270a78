"""Short videos: a preview and a still where ffmpeg is installed, an honest state where it is not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.market.media import Studio, opened_picture, studio

from market.media import lifecycle
from market.media.jobs import NO_VIDEO_TOOLS, Unreadable, _video
from market.media.settings import MediaSettings

pytestmark = pytest.mark.needs("ffmpeg")


@pytest.fixture
def shards() -> int:
    return 1


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Two seconds with sound, where they were taken in their metadata."""
    folder, made = tmp_path_factory.mktemp("clips"), {}
    for name, codec in (("mp4", "libx264"), ("webm", "libvpx")):
        target = folder / f"clip.{name}"
        subprocess.run(
            [
                "ffmpeg", "-nostdin", "-loglevel", "error",
                "-f", "lavfi", "-i", "testsrc=size=960x720:rate=12",
                "-f", "lavfi", "-i", "sine", "-t", "2", "-c:v", codec, "-pix_fmt", "yuv420p",
                "-metadata", "location=+52.52+013.40/", "-metadata", "comment=a secret", str(target),
            ],
            check=True,
        )  # fmt: skip
        made[name] = target.read_bytes()
    return made


def probed(content: bytes, folder: Path) -> str:
    """What ffprobe says of a file."""
    file = folder / "probed.mp4"
    file.write_bytes(content)
    command = ["ffprobe", "-v", "error", "-show_streams", "-show_format", str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
async def media(urls: list[str], tmp_path: Path) -> AsyncIterator[Studio]:
    async with studio(urls, tmp_path, MediaSettings()) as made:
        yield made


@pytest.mark.parametrize("kind", ["mp4", "webm"])
async def test_a_video_gets_a_preview_and_a_still(
    media: Studio, clips: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    """Short, muted, small, in one format, and without what the original said of itself."""
    assert b"a secret" in clips[kind]
    ready = await media.ready(clips[kind])
    assert (ready.kind, ready.content_type, ready.state) == ("video", f"video/{kind}", "ready"), ready.note
    assert ready.variants == ["thumb", "large", "preview"]
    assert opened_picture(await media.shown(ready, "thumb")).size == (320, 240)
    preview = await media.shown(ready, "preview")
    assert b"secret" not in preview
    assert b"52.52" not in preview
    said = probed(preview, tmp_path)
    assert "codec_name=h264" in said
    assert "height=480" in said
    assert "codec_type=audio" not in said
    assert (await media.service.url(ready.id, "preview")).endswith(".mp4")


async def test_without_ffmpeg_a_video_waits_until_it_is_there(
    urls: list[str], tmp_path: Path, clips: dict[str, bytes]
) -> None:
    """It says so, and nobody has to ask again."""
    tool = tmp_path / "ffmpeg-of-later"
    async with studio(urls, tmp_path, MediaSettings(ffmpeg=str(tool))) as media:
        waiting = await media.ready(clips["mp4"])
        assert (waiting.state, waiting.note, waiting.variants) == ("waiting", NO_VIDEO_TOOLS, [])
        await lifecycle.revive(media.service)
        assert await media.work() == 0
        found = shutil.which("ffmpeg")
        assert found is not None
        tool.symlink_to(found)
        await lifecycle.revive(media.service)
        assert await media.work() == 1
        (ready,) = await media.service.media([waiting.id])
        assert (ready.state, ready.note) == ("ready", None)


async def test_a_video_that_is_none_fails(media: Studio, clips: dict[str, bytes]) -> None:
    """Its boxes are in order, and there is nothing behind them."""
    content = clips["mp4"]
    at = content.index(b"mdat") + 4
    moov = content.index(b"moov") + 4
    broken = bytearray(content)
    broken[moov : moov + 400] = bytes(400)
    broken[at : at + 400] = bytes(400)
    failed = await media.ready(bytes(broken))
    assert (failed.state, failed.note) == ("failed", "cannot be read")


async def test_a_video_cannot_make_us_fetch_anything(media: Studio, tmp_path: Path) -> None:
    """A playlist that names other files is no video, whatever it is called."""
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    source = tmp_path / "source"
    source.write_bytes(playlist)
    with pytest.raises(Unreadable):
        await _video(media.service.workshop, "ffmpeg", source, "video/mp4", tmp_path)
