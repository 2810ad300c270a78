"""Mails as files: `<number>.eml` in one folder, numbered from 1, the oldest dropped beyond the bounds.

Before the mail's own headers a file has those of its envelope: X-Envelope-From and one X-Envelope-To per
recipient. A file that is there is whole: it is written under another name first.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import os
import re
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path

import msgspec

__all__ = ["Kept", "Mails"]

_NAME = re.compile(r"([0-9]{1,12})\.eml")


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A mail as it is shown; `headers` in their order, decoded, `text` and `html` empty when it has none."""

    id: int
    sender: str
    recipients: list[str]
    subject: str
    headers: list[tuple[str, str]]
    text: str
    html: str
    size: int


class Mails:
    """`max_mails` and `max_bytes` bound what is kept; the newest mail always is."""

    def __init__(self, folder: Path, *, max_mails: int = 500, max_bytes: int = 100_000_000) -> None:
        if max_mails < 1:
            raise ValueError(f"max_mails must be >= 1, got {max_mails}")
        self._folder = folder
        self._max_mails = max_mails
        self._max_bytes = max_bytes
        self._kept: dict[int, Kept] = {}
        self._next = 1
        self._writing = asyncio.Lock()

    def open(self) -> None:
        """Read what was kept before. Blocks; call it before serving."""
        self._folder.mkdir(parents=True, exist_ok=True)
        found = {
            int(name[1]): path for path in self._folder.iterdir() if (name := _NAME.fullmatch(path.name))
        }
        for id in sorted(found):
            self._kept[id] = parsed(id, found[id].read_bytes())
        self._next = max(found, default=0) + 1
        for id in self._surplus():
            self._drop(id)

    def all(self) -> list[Kept]:
        """The newest first."""
        return list(reversed(self._kept.values()))

    def one(self, id: int) -> Kept | None:
        return self._kept.get(id)

    async def source(self, id: int) -> bytes | None:
        if id not in self._kept:
            return None
        return await asyncio.to_thread(self._path(id).read_bytes)

    async def keep(self, sender: str, recipients: Sequence[str], content: bytes) -> Kept:
        envelope = [f"X-Envelope-From: {sender}", *(f"X-Envelope-To: {address}" for address in recipients)]
        whole = "".join(f"{line}\r\n" for line in envelope).encode() + content
        async with self._writing:
            id, self._next = self._next, self._next + 1
            kept = await asyncio.to_thread(parsed, id, whole)
            await asyncio.to_thread(self._write, id, whole)
            self._kept[id] = kept
            for old in self._surplus():
                await asyncio.to_thread(self._drop, old)
        return kept

    async def clear(self) -> None:
        async with self._writing:
            for id in list(self._kept):
                await asyncio.to_thread(self._drop, id)

    def _surplus(self) -> list[int]:
        ids, bytes_left = list(self._kept), sum(kept.size for kept in self._kept.values())
        dropped: list[int] = []
        for id in ids[:-1]:
            if len(ids) - len(dropped) <= self._max_mails and bytes_left <= self._max_bytes:
                break
            dropped.append(id)
            bytes_left -= self._kept[id].size
        return dropped

    def _drop(self, id: int) -> None:
        self._path(id).unlink(missing_ok=True)
        self._kept.pop(id, None)

    def _write(self, id: int, whole: bytes) -> None:
        draft = self._folder / f".{id}.draft"
        with draft.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(whole)
        draft.replace(self._path(id))

    def _path(self, id: int) -> Path:
        return self._folder / f"{id}.eml"


def parsed(id: int, whole: bytes) -> Kept:
    """Whatever somebody sent: what cannot be read is shown as far as it can be."""
    message = email.message_from_bytes(whole, policy=email.policy.default)
    headers = [(name, _plain(value)) for name, value in _headers(message)]
    envelope = ("x-envelope-from", "x-envelope-to")
    return Kept(
        id=id,
        sender=next((value for name, value in headers if name.lower() == envelope[0]), ""),
        recipients=[value for name, value in headers if name.lower() == envelope[1]],
        subject=next((value for name, value in headers if name.lower() == "subject"), ""),
        headers=[(name, value) for name, value in headers if name.lower() not in envelope],
        text=_part(message, "plain"),
        html=_part(message, "html"),
        size=len(whole),
    )


def _headers(message: EmailMessage) -> list[tuple[str, str]]:
    try:
        return [(name, str(value)) for name, value in message.items()]
    except Exception:  # the parser of structured headers fails in many ways on what is malformed
        return [(name, str(value)) for name, value in message.raw_items()]


def _part(message: EmailMessage, kind: str) -> str:
    try:
        body = message.get_body((kind,))
        return "" if body is None else _plain(body.get_content())
    except Exception:  # an unknown charset, broken base64: the source can still be looked at
        return ""


def _plain(value: object) -> str:
    """Text that any encoder takes: the parser keeps bytes that it cannot decode as lone surrogates."""
    return str(value).encode("utf-8", "replace").decode()
