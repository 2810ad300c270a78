"""The commands that make a still picture and a preview of a video. Pure.

ffmpeg reads one file, by the one demuxer that its content was found to need, and can open nothing else: no
network, no playlist that names other files. The preview is short, muted, 480 pixels high at most, without
the original's metadata, and begins to play before it has arrived.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["PREVIEW_SECONDS", "preview_command", "still_command"]

PREVIEW_SECONDS = 12
HEIGHT = 480
MAX_SIDE = 8192
"""No frame of the original may be larger either way."""

DEMUXERS = {"video/mp4": "mov", "video/webm": "matroska"}


def still_command(ffmpeg: str, source: Path, content_type: str, target: Path) -> list[str]:
    """One frame near the beginning, as PNG."""
    return [
        *_reading(ffmpeg, source, content_type),
        "-map", "0:v:0", "-frames:v", "1", "-vf", f"thumbnail=30,{_scaled(1280)}", "-f", "image2",
        "-update", "1", "-c:v", "png", str(target),
    ]  # fmt: skip


def preview_command(ffmpeg: str, source: Path, content_type: str, target: Path) -> list[str]:
    """H.264 in MP4, what every browser plays."""
    return [
        *_reading(ffmpeg, source, content_type),
        "-map", "0:v:0", "-an", "-sn", "-dn", "-t", str(PREVIEW_SECONDS), "-vf", f"fps=24,{_scaled(HEIGHT)}",
        "-c:v", "libx264", "-preset", "veryfast", "-crf", "28", "-pix_fmt", "yuv420p", "-map_metadata", "-1",
        "-map_chapters", "-1", "-fflags", "+bitexact", "-movflags", "+faststart", "-f", "mp4", str(target),
    ]  # fmt: skip


def _reading(ffmpeg: str, source: Path, content_type: str) -> list[str]:
    return [
        ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-threads", "2",
        "-max_pixels", str(MAX_SIDE * MAX_SIDE // 2), "-protocol_whitelist", "file,pipe",
        "-f", DEMUXERS[content_type], "-i", f"file:{source}",
    ]  # fmt: skip


def _scaled(height: int) -> str:
    """At most `height` high, never larger than it was, both sides even."""
    return f"scale=w=-2:h='trunc(min({height},ih)/2)*2'"
