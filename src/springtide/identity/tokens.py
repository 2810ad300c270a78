"""Signed access tokens: short-lived, verified without a look-up.

A token is a compact JWS (RFC 7515) with the claims of RFC 9068, signed by Ed25519 (RFC 8037):

    header   {"alg": "EdDSA", "kid": <key id>, "typ": "at+jwt"}
    claims   {"iss", "aud", "sub", "iat", "exp", "jti"} and "scope" when there are scopes

Nothing in a token chooses how it is checked: algorithm, type, issuer and audience are this side's, and `kid`
only picks among this side's own public keys. A token that fails tells its bearer nothing but that; the reason
is the error's cause, for logs.

Left for the identity layer that comes later: refresh tokens, families, revocation (by `jti` and `sub`).

Verifying a signature takes about 90 us of a core, so tokens that passed are remembered: at most `max_cached`,
each until it expires, the oldest dropped first.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
from collections.abc import Callable, Collection
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature

from springtide.clock import Clock, SystemClock
from springtide.context import Identity, current
from springtide.errors import ConfigurationError, InvalidToken
from springtide.identity.keys import KeyRing
from springtide.lifecycle import StartStop
from springtide.signals import Sink

__all__ = ["AccessTokens", "Claims"]

MAX_BYTES = 4096
"""A longer token is refused unread; ours are about 350 bytes."""

MAX_LIFETIME = 31 * 86400.0


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: str
    kid: str
    typ: str


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a token says. `iat` and `exp` are whole seconds since 1970, `sub` is the user's id in decimal."""

    iss: str
    aud: str
    sub: str
    iat: int
    exp: int
    jti: str
    scope: str = ""

    @property
    def identity(self) -> Identity:
        """The bearer, for RequestContext."""
        return Identity(int(self.sub), "token", frozenset(self.scope.split()))


class AccessTokens:
    """Issues and verifies; a lifecycle service, because `start` reads the keys (off the loop).

    keys:     gives the key ring, such as `partial(KeyRing.load_or_create, path)`.
    lifetime: seconds; `issue` may ask for another one, up to 31 days.
    leeway:   how far ahead the issuer's clock may be, in seconds. Expiry has none.
    """

    def __init__(
        self,
        keys: Callable[[], KeyRing],
        *,
        issuer: str,
        audience: str,
        lifetime: float = 900.0,
        leeway: float = 5.0,
        max_cached: int = 4096,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        if not issuer or not audience:
            raise ValueError(f"issuer and audience must not be empty, got {issuer!r} and {audience!r}")
        if leeway < 0 or max_cached < 0:
            raise ValueError(f"leeway and max_cached must be >= 0, got {leeway} and {max_cached}")
        self.name = "tokens"
        self.lifetime = _lifetime(lifetime)
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._leeway = leeway
        self._max_cached = max_cached
        self._clock = clock or SystemClock()
        self._ring: KeyRing | None = None
        self._passed: dict[str, Claims] = {}
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    def issue(self, subject: int, *, scopes: Collection[str] = (), lifetime: float | None = None) -> str:
        """A token for user `subject`. `lifetime` in seconds; None means the one given at construction."""
        ring = self._running()
        if subject < 0:
            raise ValueError(f"subject must be a user's id, >= 0, got {subject}")
        if any(not scope or scope != "".join(scope.split()) for scope in scopes):
            raise ValueError(f"a scope must be a word, got {sorted(scopes)!r}")
        if (context := current()) is not None:
            context.granted = subject
        now = int(self._clock.now())
        claims = Claims(
            iss=self._issuer,
            aud=self._audience,
            sub=str(subject),
            iat=now,
            exp=now + int(self.lifetime if lifetime is None else _lifetime(lifetime)),
            jti=secrets.token_urlsafe(12),
            scope=" ".join(sorted(scopes)),
        )
        signed = f"{_pack(_Header('EdDSA', ring.kid, 'at+jwt'))}.{_pack(claims)}"
        return f"{signed}.{_base64(ring.sign(signed.encode()))}"

    def verify(self, token: str) -> Claims:
        """The claims of a token that is ours, meant for us and not expired. Raises InvalidToken otherwise."""
        ring = self._running()
        try:
            known = self._passed.get(token)
            claims = known or self._check(ring, token)
            if claims.exp <= self._clock.now():
                self._passed.pop(token, None)
                raise ValueError(f"it expired at {claims.exp}")
            if known is None:
                self._remember(token, claims)
        except (ValueError, InvalidSignature) as error:
            raise InvalidToken("the access token is not valid") from error
        return claims

    def _check(self, ring: KeyRing, token: str) -> Claims:
        if len(token) > MAX_BYTES or not token.isascii():
            raise ValueError(f"it must be ASCII of at most {MAX_BYTES} characters, got {len(token)}")
        parts = token.split(".")
        if len(parts) != 3:
            raise ValueError(f"it must have three parts, got {len(parts)}")
        header = msgspec.json.decode(_bytes(parts[0]), type=_Header)
        if header.alg != "EdDSA":
            raise ValueError(f"alg must be EdDSA, got {header.alg!r}")
        if header.typ != "at+jwt":
            raise ValueError(f"typ must be at+jwt, got {header.typ!r}")
        public = ring.public(header.kid)
        if public is None:
            raise ValueError(f"no key of ours is {header.kid!r}")
        public.verify(_bytes(parts[2]), f"{parts[0]}.{parts[1]}".encode())
        claims = msgspec.json.decode(_bytes(parts[1]), type=Claims)
        if claims.iss != self._issuer:
            raise ValueError(f"iss must be {self._issuer!r}, got {claims.iss!r}")
        if claims.aud != self._audience:
            raise ValueError(f"aud must be {self._audience!r}, got {claims.aud!r}")
        if claims.iat > self._clock.now() + self._leeway:
            raise ValueError(f"it was issued in the future, at {claims.iat}")
        if not (claims.sub.isascii() and claims.sub.isdecimal()):
            raise ValueError(f"sub must be a user's id, got {claims.sub!r}")
        return claims

    def _remember(self, token: str, claims: Claims) -> None:
        if not self._max_cached:
            return
        if len(self._passed) >= self._max_cached:
            del self._passed[next(iter(self._passed))]
        self._passed[token] = claims

    def _running(self) -> KeyRing:
        if self._ring is None:
            raise ConfigurationError("access tokens are not started: start the platform first")
        return self._ring

    async def _open(self) -> None:
        self._ring = await asyncio.to_thread(self._keys)

    async def _close(self) -> None:
        self._ring = None
        self._passed.clear()


def _lifetime(seconds: float) -> float:
    if not 1 <= seconds <= MAX_LIFETIME:
        raise ValueError(f"lifetime must be 1 s to 31 days, got {seconds}")
    return seconds


def _pack(value: Any) -> str:
    return _base64(msgspec.json.encode(value))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(part: str) -> bytes:
    """Strict base64url without padding: exactly one text stands for the same bytes."""
    try:
        data = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("a part is not base64url") from error
    if _base64(data) != part:
        raise ValueError("a part is not canonical base64url")
    return data
