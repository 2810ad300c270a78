"""The keys that sign access tokens: one signs, all verify, so that keys can be rotated without a gap.

A key file has one Ed25519 key per line, `ed25519 <base64url of the 32-byte seed>`; the first line signs, the
others only verify. To rotate: add the new key as the *second* line everywhere, then make it the first, then
remove the old one after the longest token lifetime. Blank lines and lines with `#` are skipped.

A file is created at most once, whoever starts at the same time, and only its owner may read it.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from springtide._keyfile import key_of, read_or_create
from springtide.errors import ConfigurationError

__all__ = ["KeyRing", "new_key"]

_SCHEME = "ed25519"


def new_key() -> str:
    """A new key, as a line of a key file."""
    return f"{_SCHEME} {base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip('=')}"


class KeyRing:
    """`lines` as in a key file. A key's id is the first 16 hex digits of its public key's SHA-256.

    Raises ConfigurationError that names `source` and the line, never the key.
    """

    __slots__ = ("_public", "_signing", "kid")

    def __init__(self, lines: Sequence[str], *, source: str = "key ring") -> None:
        self._public: dict[str, Ed25519PublicKey] = {}
        signing: tuple[str, Ed25519PrivateKey] | None = None
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            seed = key_of(line, f"{source}: line {number}", scheme=_SCHEME, least=32, most=32)
            key = Ed25519PrivateKey.from_private_bytes(seed)
            public = key.public_key()
            kid = hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]
            if kid in self._public:
                raise ConfigurationError(f"{source}: line {number}: the key is listed twice")
            self._public[kid] = public
            signing = signing or (kid, key)
        if signing is None:
            raise ConfigurationError(f"{source}: must list at least one key")
        self.kid, self._signing = signing

    def sign(self, message: bytes) -> bytes:
        return self._signing.sign(message)

    def public(self, kid: str) -> Ed25519PublicKey | None:
        return self._public.get(kid)

    def __repr__(self) -> str:
        return f"KeyRing(kid={self.kid!r}, keys={len(self._public)})"

    @classmethod
    def load_or_create(cls, path: Path) -> KeyRing:
        """The ring in `path`, created with one new key when there is none. Blocks: call it off the loop."""
        return cls(read_or_create(path, new_key, what="the token keys"), source=str(path))
