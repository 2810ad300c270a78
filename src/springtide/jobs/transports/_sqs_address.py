"""What a URL says of SQS, and what a line is called there.

    https://sqs.eu-central-1.amazonaws.com           the service; the region is in the host's name
    http://[key:secret@]host[:port]?region=eu-1      what speaks as it does, or the service by a private way

`?visibility=30` is for how many seconds nobody else gets a message that was received. The region, where the
URL has none, is AWS_REGION or AWS_DEFAULT_REGION; credentials, where it has none, are found as every tool of
AWS finds them: environment, profile, role of the machine or container.

Pure. A URL that cannot be is refused with all that is wrong with it; the secret is never shown.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from springtide.errors import ConfigurationError

__all__ = ["Address", "parse", "queue_name"]

MAX_NAME = 80
"""Characters of a queue's name: letters, digits, `_` and `-`."""

DIGEST = 8

VISIBILITY, LEAST_VISIBILITY, MOST_VISIBILITY = 30, 1, 43_200

OPTIONS = ("region", "visibility")

_REGION_IN_HOST = re.compile(r"(?:^|\.)sqs(?:-fips)?\.([a-z]{2}(?:-[a-z]+)+-\d)\.")


@dataclass(frozen=True, slots=True)
class Address:
    """`key` "" means that credentials are to be found elsewhere."""

    endpoint: str
    region: str
    visibility: int = VISIBILITY
    key: str = ""
    secret: str = field(default="", repr=False)


def parse(url: str, *, key: str, environment: Mapping[str, str]) -> Address:
    """The address that `url` gives. Raises ConfigurationError, which calls the URL `key`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ConfigurationError(f"{key}: the scheme must be http or https, got {parts.scheme!r}")
    faults: list[str] = []
    userinfo, _, host = parts.netloc.rpartition("@")
    user, _, secret = userinfo.partition(":")
    if not parts.hostname:
        faults.append(f"a host must be named, got {host!r}")
    try:
        _ = parts.port
    except ValueError:
        faults.append(f"a port must be 1 to 65535, got {host.rpartition(':')[2]!r}")
    if bool(user) != bool(secret):
        faults.append("an access key and its secret must be given together, key:secret@host")
    if parts.path.strip("/"):
        faults.append(f"a path is not known here, queues are found by name, got {parts.path!r}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name, value in options.items():
        if name not in OPTIONS:
            faults.append(f"?{name}= is not known here, only {', '.join(OPTIONS)}")
        elif not value:
            faults.append(f"?{name}= must have a value")
    named = _REGION_IN_HOST.search(parts.hostname or "")
    region = (
        options.get("region")
        or (named.group(1) if named else "")
        or environment.get("AWS_REGION")
        or environment.get("AWS_DEFAULT_REGION")
        or ""
    )
    if not region and "region" not in options:
        faults.append("the region must be given by the host's name, ?region= or AWS_REGION, got none")
    visibility = _seconds(options["visibility"], faults) if options.get("visibility") else VISIBILITY
    if faults:
        raise ConfigurationError(f"{key}: {'; '.join(faults)}")
    return Address(f"{parts.scheme}://{host}", region, visibility, unquote(user), unquote(secret))


def _seconds(text: str, faults: list[str]) -> int:
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else -1
    if not LEAST_VISIBILITY <= seconds <= MOST_VISIBILITY:
        faults.append(
            f"?visibility= must be {LEAST_VISIBILITY} to {MOST_VISIBILITY} whole seconds, got {text!r}"
        )
    return seconds


def queue_name(platform: str, line: str) -> str:
    """The same for the same line always, of another one for another: a digest stands for what is left out."""
    whole = f"{platform}-jobs-{line}"
    digest = hashlib.sha256(f"{platform}\0{line}".encode()).hexdigest()[:DIGEST]
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", whole)
    return f"{plain[: MAX_NAME - DIGEST - 1]}-{digest}"
