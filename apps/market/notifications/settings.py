"""How mail and pushes leave this installation, by environment variables; wrong values stop the start.

MARKET_SMTP_URL       smtp://user:password@host:port, or smtps:// for TLS from the first byte; the parts of
                      user and password are percent-encoded. Without it no mail is sent, and notices say so.
MARKET_SMTP_STARTTLS  for smtp://: `required` (the default), `offered` (when the server has it; the default
                      for this machine), `never`. A password needs TLS, except to this machine.
MARKET_MAIL_FROM      the sender, such as Market <market@example.com>; needed with MARKET_SMTP_URL
MARKET_PUBLIC_URL     begins every link in a mail; http://127.0.0.1:8000 by default
MARKET_PUSH_KEY       the private VAPID key, 32 bytes in base64url; without it one is made and kept in the
                      module's table
MARKET_PUSH_LOOPBACK  `yes`: browsers may be pushed to on this machine, also over http; for development
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.headerregistry import Address
from email.utils import parseaddr
from typing import Literal
from urllib.parse import unquote, urlsplit

from cryptography.hazmat.primitives.asymmetric import ec

from market.notifications.rules import decoded
from springtide.errors import ConfigurationError

__all__ = ["NotificationSettings", "Smtp"]

STARTTLS = ("required", "offered", "never")

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SENDER = re.compile(r"[A-Za-z0-9._+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Smtp:
    """A mail server. `tls`: from the first byte; `starttls` counts only without."""

    host: str
    port: int
    tls: bool
    starttls: Literal["required", "offered", "never"]
    user: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, url: str, starttls: str | None) -> Smtp:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            raise ConfigurationError("MARKET_SMTP_URL must have a port of 1 to 65535") from None
        extra = parts.path not in ("", "/") or parts.query or parts.fragment
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or extra:
            raise ConfigurationError("MARKET_SMTP_URL must be smtp://host:port or smtps://host:port")
        if (parts.username is None) != (parts.password is None):
            raise ConfigurationError("MARKET_SMTP_URL must have user and password, or neither")
        local = parts.hostname in _LOOPBACK
        policy = starttls or ("offered" if local else "required")
        if policy not in STARTTLS:
            raise ConfigurationError(f"MARKET_SMTP_STARTTLS must be one of {STARTTLS}, got {starttls!r}")
        tls = parts.scheme == "smtps"
        if parts.username is not None and not local and not tls and policy != "required":
            raise ConfigurationError(
                "MARKET_SMTP_URL has a password, which needs smtps:// or MARKET_SMTP_STARTTLS=required"
            )
        return cls(
            host=parts.hostname,
            port=port or (465 if tls else 587),
            tls=tls,
            starttls=policy,  # type: ignore[arg-type]  # one of STARTTLS, as checked
            user=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationSettings:
    """`mail_timeout`: seconds for one mail, from connecting on; `push_timeout`: for one push."""

    smtp: Smtp | None = None
    sender: Address | None = None
    public_url: str = "http://127.0.0.1:8000"
    push_key: bytes | None = None
    push_loopback: bool = False
    mail_timeout: float = 30.0
    push_timeout: float = 10.0

    def __post_init__(self) -> None:
        if (self.smtp is None) != (self.sender is None):
            raise ConfigurationError("MARKET_SMTP_URL and MARKET_MAIL_FROM go together: set both or none")
        if not re.fullmatch(r"https?://[^/\s?#@]+(/[^\s?#]*)?", self.public_url):
            raise ConfigurationError(
                f"MARKET_PUBLIC_URL must be an http or https URL, got {self.public_url!r}"
            )
        if not 0 < self.mail_timeout <= 50:
            raise ConfigurationError(f"mail_timeout must be > 0 and <= 50 seconds, got {self.mail_timeout}")
        if not 0 < self.push_timeout <= 25:
            raise ConfigurationError(f"push_timeout must be > 0 and <= 25 seconds, got {self.push_timeout}")

    def link(self, path: str) -> str:
        return self.public_url.rstrip("/") + path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> NotificationSettings:
        values = os.environ if environment is None else environment
        url, sender = values.get("MARKET_SMTP_URL"), values.get("MARKET_MAIL_FROM")
        loopback = values.get("MARKET_PUSH_LOOPBACK") or "no"
        if loopback not in ("yes", "no"):
            raise ConfigurationError(f"MARKET_PUSH_LOOPBACK must be yes or no, got {loopback!r}")
        return cls(
            smtp=Smtp.parse(url, values.get("MARKET_SMTP_STARTTLS") or None) if url else None,
            sender=_sender(sender) if sender else None,
            public_url=values.get("MARKET_PUBLIC_URL") or "http://127.0.0.1:8000",
            push_key=_key(values.get("MARKET_PUSH_KEY") or None),
            push_loopback=loopback == "yes",
        )


def _sender(text: str) -> Address:
    name, address = parseaddr(text)
    if not _SENDER.fullmatch(address) or not text.isprintable() or "=?" in text:
        raise ConfigurationError(f"MARKET_MAIL_FROM must be like Market <market@example.com>, got {text!r}")
    return Address(name, addr_spec=address)


def _key(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        raw = decoded(text, 32)
        ec.derive_private_key(int.from_bytes(raw, "big"), ec.SECP256R1())
        return raw
    except ValueError:
        raise ConfigurationError(
            "MARKET_PUSH_KEY must be a private key of P-256: 32 bytes in base64url"
        ) from None
