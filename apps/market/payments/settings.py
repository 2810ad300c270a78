"""How to reach the payment provider, by environment variables; wrong values stop the start.

MARKET_PAYMENTS_URL      where it is, such as http://127.0.0.1:8010
MARKET_PAYMENTS_KEY      what we prove ourselves with there
MARKET_PAYMENTS_SECRET   what it signs webhooks with; without it every webhook is refused
MARKET_PAYMENTS_PREFIX   begins every idempotency key, `market` by default; two installations that share one
                         account at the provider must differ, or one takes the other's charges for its own

Without URL and key nothing is charged: Unavailable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from springtide.errors import ConfigurationError

__all__ = ["PaymentSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentSettings:
    """`call_timeout`: seconds for one call; `pending_after`: age at which a pending charge is asked about."""

    url: str | None = None
    key: str | None = None
    secret: str | None = None
    prefix: str = "market"
    call_timeout: float = 10.0
    pending_after: float = 30.0

    def __post_init__(self) -> None:
        if self.url is not None and not re.match(r"https?://[^/]", self.url):
            raise ConfigurationError(f"MARKET_PAYMENTS_URL must be an http or https URL, got {self.url!r}")
        if (self.url is None) != (self.key is None):
            raise ConfigurationError(
                "MARKET_PAYMENTS_URL and MARKET_PAYMENTS_KEY go together: set both or none"
            )
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", self.prefix):
            raise ConfigurationError(
                "MARKET_PAYMENTS_PREFIX must be lower-case letters, digits and -, at most 32, a letter first,"
                f" got {self.prefix!r}"
            )
        if not 0 < self.call_timeout <= 60:
            raise ConfigurationError(f"call_timeout must be > 0 and <= 60 seconds, got {self.call_timeout}")
        if not self.pending_after >= 0:
            raise ConfigurationError(f"pending_after must be >= 0 seconds, got {self.pending_after}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> PaymentSettings:
        values = os.environ if environment is None else environment
        names = ("URL", "KEY", "SECRET", "PREFIX")
        given = {name.lower(): values.get(f"MARKET_PAYMENTS_{name}") or None for name in names}
        return cls(
            url=given["url"], key=given["key"], secret=given["secret"], prefix=given["prefix"] or "market"
        )
