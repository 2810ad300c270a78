"""Bytes under names: in a folder of this machine, or in a bucket of S3. The only place that knows which.

A name is written once and never again, so nobody ever reads half of a blob or an older one. In a folder a
blob is written beside and renamed into place, and is on the disk when `put` returns. A blob in a folder is
read through the application; a private one in a bucket by an address that the bucket itself checks.

Nothing here blocks the event loop. Unavailable when the blobs cannot be reached.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from market.media.settings import Bucket, MediaSettings
from market.media.signing import Signer, load_or_create
from springtide.clock import Clock
from springtide.errors import Unavailable

__all__ = ["ROUTE", "Blobs", "Found", "NoBlob", "disposition"]

ROUTE = "/media/"
"""Where the application answers what is in the folder, and everything public."""

FOREVER = "public, max-age=31536000, immutable"
NEVER = "private, no-store"

CALL_TIMEOUT = "20s"
CONNECT_TIMEOUT = "3s"
RETRIES = 2
RETRY_AFTER = 2.0


class NoBlob(Exception):
    """There is none of that name."""


class Found(NamedTuple):
    path: str
    modified_at: datetime


class Blobs:
    """`home` is where the folder and the key are when the settings name none.

    `scratch` in it is for files that are being made; each run has a folder of its own there.
    """

    def __init__(self, settings: MediaSettings, *, home: Path, clock: Clock) -> None:
        self._settings = settings
        self._folder = settings.folder or home / "media"
        self._key_file = home / "secrets" / "media.key"
        self.scratch = home / "media-scratch"
        self._clock = clock
        self._opened: Any = None
        self._signer: Signer | None = None

    async def start(self) -> None:
        """Make the folders and the key if there are none; a bucket is not asked."""
        await asyncio.to_thread(self.scratch.mkdir, parents=True, exist_ok=True, mode=0o700)
        if self._settings.bucket is not None:
            self._opened = _bucket(self._settings.bucket)
        else:
            self._opened, self._signer = await asyncio.to_thread(self._open_folder)

    async def put(
        self, path: str, content: bytes, content_type: str, *, public: bool = False, name: str | None = None
    ) -> None:
        """`name`: what a browser shall save it as."""
        attributes = None
        if self._settings.bucket is not None:
            attributes = {
                "Content-Type": content_type,
                "Content-Disposition": disposition(name),
                "Cache-Control": FOREVER if public else NEVER,
            }
        with _reached():
            await obstore.put_async(self._store, path, content, attributes=attributes)
        if self._settings.bucket is None:
            await asyncio.to_thread(_to_disk, self._folder / path)

    async def read(self, path: str) -> bytes:
        """Raises NoBlob."""
        with _reached():
            found = await obstore.get_async(self._store, path)
            return bytes(await found.bytes_async())

    async def part(self, path: str, first: int, length: int) -> tuple[bytes, int]:
        """At most `length` bytes from `first`, none behind the end; the size of the whole. Raises NoBlob."""
        with _reached():
            if first:
                size = (await obstore.head_async(self._store, path))["size"]
                if first >= size:
                    return b"", size
            found = await obstore.get_async(self._store, path, options={"range": (first, first + length)})
            return bytes(await found.bytes_async()), found.meta["size"]

    async def delete(self, path: str) -> None:
        """What is not there is gone already."""
        with suppress(NoBlob), _reached():
            await obstore.delete_async(self._store, path)

    async def under(self, prefix: str) -> AsyncIterator[Found]:
        with _reached():
            async for batch in obstore.list(self._store, prefix=prefix):
                for one in batch:
                    yield Found(one["path"], one["last_modified"])

    async def clear_halves(self, prefix: str, before: datetime) -> int:
        """Delete what a process that was killed has half-written, if it is older; how many.

        A folder has such files beside its blobs and `under` does not show them; a bucket shows none either,
        and forgets them by its own rules.
        """
        if self._settings.bucket is not None:
            return 0
        return await asyncio.to_thread(_clear, self._folder / prefix, "*#*", before.timestamp())

    async def clear_scratch(self, before: datetime) -> int:
        """The same in `scratch`: folders of runs that did not end."""
        return await asyncio.to_thread(_clear, self.scratch, "*", before.timestamp())

    async def address(self, path: str, lifetime: float, *, public: bool, name: str | None = None) -> str:
        """Where a client reads the blob: for ever if it is public, else for `lifetime` seconds."""
        if public:
            return ROUTE + path
        if self._signer is None:
            with _reached():
                url: str = await obstore.sign_async(
                    self._store, "GET", path, expires_in=timedelta(seconds=lifetime)
                )
                return url
        return f"{ROUTE}{path}?{self._signer.sign(path, int(self._clock.now() + lifetime), name)}"

    def opened(self, path: str, query: str) -> tuple[bool, str | None]:
        """Whether `query` opens a private blob in the folder, and the name to save it as."""
        if self._signer is None:
            return False, None
        return self._signer.opened(path, query, self._clock.now())

    @property
    def _store(self) -> Any:
        if self._opened is None:
            raise Unavailable("the blobs are not open: the platform has not started")
        return self._opened

    def _open_folder(self) -> tuple[LocalStore, Signer]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return LocalStore(self._folder), Signer(self._settings.keys or load_or_create(self._key_file))


def disposition(name: str | None) -> str:
    """`Content-Disposition` as RFC 6266 has it: to be saved under `name`, or shown."""
    if name is None:
        return "inline"
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._- ") else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _bucket(bucket: Bucket) -> S3Store:
    given: dict[str, Any] = {"region": bucket.region, "virtual_hosted_style_request": not bucket.path_style}
    if bucket.endpoint is not None:
        given["endpoint"] = bucket.endpoint
    if bucket.key_id is not None:
        given |= {"access_key_id": bucket.key_id, "secret_access_key": bucket.secret}
    return S3Store(
        bucket.name,
        config=given,  # type: ignore[arg-type]  # its keys are those of S3Config
        client_options={
            "timeout": CALL_TIMEOUT,
            "connect_timeout": CONNECT_TIMEOUT,
            "allow_http": (bucket.endpoint or "").startswith("http://"),
        },
        retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=20)},
    )


def _clear(folder: Path, pattern: str, before: float) -> int:
    """Delete files and folders of such a name that were last changed before then; how many."""
    cleared = 0
    for path in list(folder.glob(pattern)):
        with suppress(FileNotFoundError):  # another worker was first
            if path.lstat().st_mtime < before:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
                cleared += 1
    return cleared


def _to_disk(file: Path) -> None:
    """Bytes first, then the folder that names them."""
    for path, flags in ((file, os.O_RDONLY), (file.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NoBlob from None
    except (BaseError, OSError) as error:
        said = str(error).partition("\n")[0]
        raise Unavailable(f"the blobs cannot be reached: {said}", retry_after=RETRY_AFTER) from error
