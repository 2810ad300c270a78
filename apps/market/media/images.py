"""Run as a script: make the variants of a picture, in a process of its own, because strangers made it.

    python -I images.py <source> <type> <folder> <most pixels> <name>=<side>...

Writes `<folder>/<name>.webp` for each name, at most `side` pixels wide and high, and prints one JSON list of
[name, width, height]. Exit 3: it cannot be read as that type, and the reason is printed.

Only the decoder of the type that the content was found to be is asked. Orientation is applied; EXIF, GPS,
comments, profiles and all else are left behind, since only pixels are copied. The first side that is not the
smallest keeps an animation, if it has not too many pixels in all; the others show its first frame.
Nothing but Pillow and the standard library is imported.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

DECODERS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/gif": "GIF", "image/webp": "WEBP"}

QUALITY = 80
MAX_FRAMES = 200
MAX_ANIMATED_PIXELS = 60_000_000
"""Of all frames together, as they are shown; a longer animation becomes a still picture."""

UNREADABLE = 3


class Made(NamedTuple):
    name: str
    width: int
    height: int


def variants(
    source: Path, content_type: str, folder: Path, max_pixels: int, sides: dict[str, int]
) -> list[Made]:
    """Raises OSError, ValueError, SyntaxError and what else Pillow does for what it cannot read."""
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    made: list[Made] = []
    smallest = min(sides.values())
    for name, side in sides.items():
        with Image.open(source, formats=[DECODERS[content_type]]) as picture:
            if picture.width * picture.height > max_pixels:
                raise ValueError("it has too many pixels")
            frames = getattr(picture, "n_frames", 1)
            scale = min(1.0, side / max(picture.size))
            shown = picture.width * picture.height * scale * scale * frames
            target = folder / f"{name}.webp"
            moving = 1 < frames <= MAX_FRAMES and shown <= MAX_ANIMATED_PIXELS and side > smallest
            size = _animation(picture, side, target) if moving else _still(picture, side, target)
            made.append(Made(name, *size))
    return made


def _still(picture: Image.Image, side: int, target: Path) -> tuple[int, int]:
    picture.draft("RGB", (side, side))  # a JPEG is decoded no larger than needed
    frame = _fitted(picture, side)
    frame.save(target, "WEBP", quality=QUALITY, method=4)
    return frame.size


def _animation(picture: Image.Image, side: int, target: Path) -> tuple[int, int]:
    frames, durations = [], []
    for number in range(getattr(picture, "n_frames", 1)):
        picture.seek(number)
        frames.append(_fitted(picture, side))
        durations.append(min(max(int(picture.info.get("duration", 100) or 100), 20), 10_000))
    frames[0].save(
        target, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=QUALITY,
        method=2,
    )  # fmt: skip
    return frames[0].size


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """A copy of the current frame: upright, in RGB or RGBA, nothing but pixels."""
    picture.load()
    clear = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    upright = ImageOps.exif_transpose(picture) if picture.getexif().get(0x0112, 1) != 1 else picture
    if upright.mode.startswith("I;16"):
        upright = upright.point(lambda value: value / 256).convert("L")
    frame = upright.convert("RGBA" if clear else "RGB")
    frame.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    frame.info.clear()
    return frame


def main(source: str, content_type: str, folder: str, max_pixels: str, *sides: str) -> int:
    wanted = {name: int(side) for name, _, side in (one.partition("=") for one in sides)}
    try:
        made = variants(Path(source), content_type, Path(folder), int(max_pixels), wanted)
    except MemoryError:
        sys.stdout.write("it needs too much memory")
        return UNREADABLE
    except Exception as error:  # whatever a decoder makes of a broken file
        sys.stdout.write(str(error)[:200])
        return UNREADABLE
    sys.stdout.write(json.dumps(made))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
