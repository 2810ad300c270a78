"""Server-side sessions in PostgreSQL: the browser holds a random cookie, the database its hashes.

The cookie is 48 random bytes in base64url: a locator (16 bytes), which finds the row, and a secret (32 bytes,
256 bits), which proves that it is ours. SHA-256 of either is stored. The row lies in the bucket of the
locator's hash; the locator stays when the secret is replaced, so a rotation is one UPDATE of one row, and
revoking cannot miss a session that is being rotated at that moment.

    opened -> (seen, rotated)* -> revoked | expired (absolute or idle)

A rotation gives the session its new rights under the new secret only. The old secret keeps the *old* rights
for `grace` seconds, for requests that were under way; who planted it before a login gains nothing by it. When
the subject changes from one user to another there is no grace.

Every question goes to the primary: what is revoked is revoked for the next request. All times are the
database's. When a session was last seen is written at most every `touch` seconds, and waits for no disk.
The tables are those of a module of their own, `sessions`: a topology may give them a server of their own,
and every other module asks this one (`springtide.services.sessions` declares it).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import msgspec

from springtide.context import Identity, current
from springtide.db import Consistency, Database, bucket_of
from springtide.db.expiry import delete_in_batches
from springtide.errors import SessionEnded
from springtide.identity._session_sql import Sql
from springtide.identity.cookies import COOKIE_CHARS
from springtide.signals import NullSink, SessionChanged, Sink

__all__ = ["MIGRATIONS", "Opened", "Session", "SessionService", "Sessions"]

MIGRATIONS = Path(__file__).parent / "sql"
"""The migrations of the module `sessions`."""

LOCATOR_BYTES = 16
SECRET_BYTES = 32
MAX_SCOPES = 50
MAX_LISTED = 1000


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a session; `handle` names it to people and programs and proves nothing.

    subject:      the user's id, None before a login.
    signed_in_at: when it got its present rights; None before a login.
    ends_at:      when it ends if it is not used again; `expires_at` is when it ends in any case.
    retiring:     read by a cookie from before a rotation, which has the rights of that time.
    """

    handle: str
    subject: int | None
    scopes: tuple[str, ...]
    created_at: datetime
    signed_in_at: datetime | None
    seen_at: datetime
    expires_at: datetime
    ends_at: datetime
    retiring: bool = False

    @property
    def identity(self) -> Identity | None:
        """For RequestContext; None before a login."""
        return None if self.subject is None else Identity(self.subject, "session", frozenset(self.scopes))


class Opened(msgspec.Struct, frozen=True):
    """A session and the cookie value that the browser must get now: nobody can learn it later."""

    session: Session
    cookie: str

    def __repr__(self) -> str:
        return f"Opened(session={self.session!r}, cookie=...)"


class SessionService(Protocol):
    """The interface of the module `sessions`. `cookie` is always the cookie's value."""

    async def open(self, subject: int | None = None, scopes: Sequence[str] = ()) -> Opened:
        """A new session; without a subject for a visitor, who needs one for forms."""

    async def find(self, cookie: str) -> Session | None:
        """The session of a cookie; None when it is malformed, unknown, expired, revoked or replaced."""

    async def rotate(self, cookie: str, subject: int | None, scopes: Sequence[str] = ()) -> Opened:
        """Give the session these rights and a new cookie. Raises SessionEnded, also when one that came at
        the same time was first."""

    async def login(self, cookie: str | None, subject: int, scopes: Sequence[str] = ()) -> Opened:
        """`rotate` the visitor's session if there is one, else `open` another."""

    async def revoke(self, cookie: str) -> bool:
        """End the session (log out); whether there was one."""

    async def revoke_handle(self, subject: int, handle: str) -> bool:
        """End one of the subject's sessions, as `list_of` named it."""

    async def revoke_all(self, subject: int, keep: str | None = None) -> int:
        """End every session of the subject, except that of the cookie `keep`; how many there were."""

    async def list_of(self, subject: int) -> list[Session]:
        """The subject's sessions, the one seen last first; at most 1,000."""


class Sessions:
    """The sessions in the schema of `database`; a `SessionService`.

    lifetime: seconds after which a session ends in any case, counted from opening or rotation.
    idle:     seconds without a request after which it ends; up to `touch` more.
    grace:    seconds for which a replaced cookie still has its old rights; 0 means none.
    touch:    seconds between two writes of when it was last seen.
    """

    def __init__(
        self,
        database: Database,
        *,
        lifetime: float = 7 * 86_400.0,
        idle: float = 86_400.0,
        grace: float = 10.0,
        touch: float = 60.0,
        sink: Sink | None = None,
    ) -> None:
        if not 0 < idle <= lifetime:
            raise ValueError(f"idle must be > 0 seconds and <= lifetime, got {idle} and {lifetime}")
        if not 0 <= grace <= 60:
            raise ValueError(f"grace must be 0 to 60 seconds, got {grace}")
        if not 0 < touch <= idle:
            raise ValueError(f"touch must be > 0 seconds and <= idle, got {touch} and {idle}")
        self.database = database
        self.lifetime = lifetime
        self._lifetime = timedelta(seconds=lifetime)
        self._idle = timedelta(seconds=idle + touch)
        self._grace = timedelta(seconds=grace)
        self._touch = timedelta(seconds=touch)
        self._sink = sink or NullSink()
        self._sql = Sql(database.schema)

    async def open(self, subject: int | None = None, scopes: Sequence[str] = ()) -> Opened:
        """See `SessionService`."""
        granted = _granted(subject, scopes)
        locator = secrets.token_bytes(LOCATOR_BYTES)
        secret = secrets.token_bytes(SECRET_BYTES)
        id = _hash(locator)
        async with self.database.write(id) as tx:
            row = await tx.fetch_one(
                self._sql.open, bucket_of(id), id, _hash(secret), subject, granted, self._lifetime, self._idle
            )
        self._note("opened")
        _grant(subject)
        return Opened(_session(row), _cookie(locator, secret))

    async def find(self, cookie: str) -> Session | None:
        """See `SessionService`."""
        parts = _parts(cookie)
        if parts is None:
            return None
        id, secret = _hash(parts[0]), _hash(parts[1])
        reader = self.database.read(id, consistency=Consistency.STRONG)
        row = await reader.fetch_one(self._sql.find, bucket_of(id), id, self._touch)
        if row is None:
            self._note("unknown")
            return None
        present = hmac.compare_digest(row["secret"], secret)
        if not present and not (row["graceful"] and hmac.compare_digest(row["previous"], secret)):
            self._note("replaced")
            return None
        if row["stale"]:
            pool = self.database.pools[self.database.shards.shard_of(id)]
            await pool.execute(self._sql.touch, bucket_of(id), id, self._touch, self._idle)
        return _session(row, retiring=not present)

    async def rotate(self, cookie: str, subject: int | None, scopes: Sequence[str] = ()) -> Opened:
        """See `SessionService`."""
        granted = _granted(subject, scopes)
        parts = _parts(cookie)
        if parts is None:
            raise SessionEnded("this is no cookie of a session")
        locator, old = parts
        id, secret = _hash(locator), secrets.token_bytes(SECRET_BYTES)
        async with self.database.write(id) as tx:
            row = await tx.fetch_one(
                self._sql.rotate, bucket_of(id), id, _hash(old), _hash(secret), subject, granted,
                self._lifetime, self._idle, self._grace,
            )  # fmt: skip
        if row is None:
            raise SessionEnded("the session has ended, or its cookie was replaced")
        self._note("rotated")
        _grant(subject)
        return Opened(_session(row), _cookie(locator, secret))

    async def login(self, cookie: str | None, subject: int, scopes: Sequence[str] = ()) -> Opened:
        """See `SessionService`."""
        if cookie is not None:
            try:
                return await self.rotate(cookie, subject, scopes)
            except SessionEnded:
                pass  # a visitor whose session is over, or a second tab that was quicker
        return await self.open(subject, scopes)

    async def revoke(self, cookie: str) -> bool:
        """See `SessionService`."""
        parts = _parts(cookie)
        if parts is None:
            return False
        id = _hash(parts[0])
        async with self.database.write(id) as tx:
            gone = await tx.execute(self._sql.revoke, bucket_of(id), id, _hash(parts[1]))
        return self._revoked(gone) > 0

    async def revoke_handle(self, subject: int, handle: str) -> bool:
        """See `SessionService`."""
        try:
            id = bytes.fromhex(handle)
        except ValueError:
            return False
        async with self.database.write(id) as tx:
            gone = await tx.execute(self._sql.revoke_handle, bucket_of(id), id, subject)
        return self._revoked(gone) > 0

    async def revoke_all(self, subject: int, keep: str | None = None) -> int:
        """See `SessionService`. Every shard is asked; one that is away raises, after the others are done."""
        parts = _parts(keep) if keep is not None else None
        kept = _hash(parts[0]) if parts is not None else b""
        pools = self.database.pools.values()
        results = await asyncio.gather(
            *(pool.execute(self._sql.revoke_all, subject, kept) for pool in pools), return_exceptions=True
        )
        count = sum(self._revoked(result) for result in results if isinstance(result, str))
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return count

    async def list_of(self, subject: int) -> list[Session]:
        """See `SessionService`."""
        rows = await self.database.scatter(
            self._sql.list_of, subject, order=[("seen_at", "desc"), ("id", "desc")], limit=MAX_LISTED,
            consistency=Consistency.STRONG,
        )  # fmt: skip
        return [_session(row) for row in rows]

    async def purge(self) -> None:
        """Delete sessions that have ended, in batches; a background task of the workers."""
        deleted = await delete_in_batches(self.database, self._sql.purge)
        if deleted:
            self._sink.emit(SessionChanged("expired", deleted))

    def _revoked(self, tag: str) -> int:
        count = int(tag.rpartition(" ")[2])
        if count:
            self._sink.emit(SessionChanged("revoked", count))
        return count

    def _note(self, event: str) -> None:
        self._sink.emit(SessionChanged(event))


def _session(row: Any, *, retiring: bool = False) -> Session:
    subject = row["previous_subject"] if retiring else row["subject"]
    return Session(
        handle=row["id"].hex(),
        subject=subject,
        scopes=tuple(row["previous_scopes"] if retiring else row["scopes"]),
        created_at=row["created_at"],
        signed_in_at=None if subject is None else row["signed_in_at"],
        seen_at=row["seen_at"],
        expires_at=row["expires_at"],
        ends_at=row["ends_at"],
        retiring=retiring,
    )


def _grant(subject: int | None) -> None:
    """The request's answer gives its client this subject's cookie."""
    context = current()
    if context is not None and subject is not None:
        context.granted = subject


def _granted(subject: int | None, scopes: Sequence[str]) -> list[str]:
    if subject is not None and subject < 0:
        raise ValueError(f"subject must be a user's id, >= 0, got {subject}")
    if subject is None and scopes:
        raise ValueError(f"a session without a subject has no scopes, got {list(scopes)!r}")
    granted = sorted(set(scopes))
    if len(granted) > MAX_SCOPES or any(not scope or scope != "".join(scope.split()) for scope in granted):
        raise ValueError(f"scopes are at most {MAX_SCOPES} words, got {granted!r}")
    return granted


def _cookie(locator: bytes, secret: bytes) -> str:
    return base64.urlsafe_b64encode(locator + secret).decode()


def _parts(cookie: str) -> tuple[bytes, bytes] | None:
    """Locator and secret; None for what is no cookie of ours. 48 bytes need no padding: one text each."""
    if len(cookie) != COOKIE_CHARS or not cookie.isascii():
        return None
    try:
        data = base64.b64decode(cookie, altchars=b"-_", validate=True)
    except ValueError:
        return None
    return (data[:LOCATOR_BYTES], data[LOCATOR_BYTES:]) if len(data) == LOCATOR_BYTES + SECRET_BYTES else None


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
