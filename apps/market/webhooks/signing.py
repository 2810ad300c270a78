"""Signatures as Standard Webhooks 1.0 has them: HMAC-SHA256 over id, time and body. Pure but for new secrets.

    webhook-id         of the message, the same at each try
    webhook-timestamp  of the try, in seconds since 1970
    webhook-signature  `v1,<base64>` for each secret that is good, with a space between

What is signed is `<id>.<timestamp>.<body>`. A secret is shown as `whsec_` and base64; the key is what that
stands for.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Sequence
from hashlib import sha256

__all__ = ["headers", "new_secret"]

PREFIX = "whsec_"
SECRET_BYTES = 32


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def headers(id: str, at: int, body: bytes, keys: Sequence[str]) -> dict[str, str]:
    """`keys`: the secrets that are good now."""
    return {
        "webhook-id": id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(_signature(f"{id}.{at}.".encode() + body, key) for key in keys),
    }


def _signature(signed: bytes, secret: str) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return "v1," + base64.b64encode(hmac.new(key, signed, sha256).digest()).decode()
