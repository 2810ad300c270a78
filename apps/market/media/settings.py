"""Where blobs are kept, by environment variables; wrong values stop the start.

MARKET_MEDIA_FOLDER        a folder of this machine; `media` in the platform's home by default
MARKET_MEDIA_KEY           signs the addresses of private blobs in a folder: one secret of 32 characters or
                           more per line, the first signs, all are believed; without it, one is made and kept
                           in the home, as `secrets/media.key`
MARKET_MEDIA_S3_BUCKET     a bucket instead of the folder; every server and worker can reach it
MARKET_MEDIA_S3_REGION     `us-east-1` by default
MARKET_MEDIA_S3_ENDPOINT   for another provider than Amazon, such as http://127.0.0.1:9000
MARKET_MEDIA_S3_KEY_ID     with
MARKET_MEDIA_S3_SECRET     whom we are there; without both, what the machine's role or AWS_* variables say
MARKET_MEDIA_S3_PATH_STYLE `yes` for addresses like endpoint/bucket/key: the default with an endpoint, or `no`

A folder is enough for one machine. Servers on several need a bucket, or a folder that they share and
one MARKET_MEDIA_KEY.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from springtide.errors import ConfigurationError

__all__ = ["Bucket", "MediaSettings"]

SHORTEST_KEY = 32

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = "MARKET_MEDIA_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A bucket of S3 or of what speaks its protocol."""

    name: str
    region: str = "us-east-1"
    endpoint: str | None = None
    key_id: str | None = None
    secret: str | None = field(default=None, repr=False)
    path_style: bool = False

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.name):
            raise ConfigurationError(f"{_PREFIX}S3_BUCKET must be a bucket's name, got {self.name!r}")
        if self.endpoint is not None and not re.match(r"https?://[^/]", self.endpoint):
            raise ConfigurationError(
                f"{_PREFIX}S3_ENDPOINT must be an http or https URL, got {self.endpoint!r}"
            )
        if (self.key_id is None) != (self.secret is None):
            raise ConfigurationError(
                f"{_PREFIX}S3_KEY_ID and {_PREFIX}S3_SECRET go together: set both or none"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSettings:
    """`folder` and `keys` None: in the platform's home. `bucket` instead of a folder.

    ffmpeg: the program for videos, looked for on the PATH each time, so that it may be installed later.
    """

    folder: Path | None = None
    keys: tuple[str, ...] | None = field(default=None, repr=False)
    bucket: Bucket | None = None
    ffmpeg: str = "ffmpeg"

    def __post_init__(self) -> None:
        if self.folder is not None and self.bucket is not None:
            raise ConfigurationError(f"set {_PREFIX}FOLDER or {_PREFIX}S3_BUCKET, not both")
        if self.keys is not None and (not self.keys or min(map(len, self.keys)) < SHORTEST_KEY):
            raise ConfigurationError(
                f"{_PREFIX}KEY must be one secret per line, each of {SHORTEST_KEY} characters at least"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> MediaSettings:
        values = os.environ if environment is None else environment

        def given(name: str) -> str | None:
            return values.get(_PREFIX + name) or None

        folder, keys, name = given("FOLDER"), given("KEY"), given("S3_BUCKET")
        bucket = None
        if name is not None:
            endpoint, style = given("S3_ENDPOINT"), given("S3_PATH_STYLE")
            if style not in (None, "yes", "no"):
                raise ConfigurationError(f"{_PREFIX}S3_PATH_STYLE must be yes or no, got {style!r}")
            bucket = Bucket(
                name=name,
                region=given("S3_REGION") or "us-east-1",
                endpoint=endpoint,
                key_id=given("S3_KEY_ID"),
                secret=given("S3_SECRET"),
                path_style=endpoint is not None if style is None else style == "yes",
            )
        return cls(
            folder=None if folder is None else Path(folder).absolute(),
            keys=None if keys is None else tuple(line.strip() for line in keys.splitlines() if line.strip()),
            bucket=bucket,
        )
