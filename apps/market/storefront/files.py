"""Style sheet, script and icon: read once, named by their content, kept by browsers for ever.

`/static/style.3f9c....css`: the name changes with the content, so a deploy never meets an old file in a
browser's cache, and a page of the old release that is still open finds no wrong one (404).
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["ADDRESSES", "content_of", "serve"]

FOLDER = Path(__file__).parent / "static"
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FOR_EVER = "public, max-age=31536000, immutable"


class _File:
    def __init__(self, path: Path) -> None:
        self.plain = path.read_bytes()
        self.packed = gzip.compress(self.plain, 9, mtime=0)
        self.digest = blake2b(self.plain, digest_size=8).hexdigest()
        self.name = f"{path.stem}.{self.digest}{path.suffix}"
        self.type = TYPES[path.suffix]


_FILES = {path.name: _File(path) for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
_BY_ADDRESS = {file.name: file for file in _FILES.values()}

ADDRESSES: Mapping[str, str] = {name: f"/static/{file.name}" for name, file in _FILES.items()}
"""The address of each file: `style.css` -> `/static/style.3f9c....css`."""


def content_of(name: str) -> bytes:
    """What is in a file, for one that is served elsewhere."""
    return _FILES[name].plain


async def serve(request: Request) -> Response:
    file = _BY_ADDRESS.get(request.path_params["name"])
    if file is None:
        raise HTTPException(404)
    packs = any(
        part.strip().partition(";")[0].strip().lower() in ("gzip", "*") and "q=0" not in part.replace(" ", "")
        for part in request.headers.get("accept-encoding", "").split(",")
    )
    etag = f'"{file.digest}{"-gzip" if packs else ""}"'
    headers = {"Cache-Control": FOR_EVER, "Vary": "Accept-Encoding", "ETag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(None, 304, headers)
    if packs:
        headers["Content-Encoding"] = "gzip"
    return Response(file.packed if packs else file.plain, 200, headers, media_type=file.type)
