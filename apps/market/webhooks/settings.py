"""How webhooks leave this installation, by environment variables; wrong values stop the start.

MARKET_WEBHOOK_LOOPBACK  `yes`: endpoints may be on this machine, also over http, on any port; for development
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from springtide.errors import ConfigurationError

__all__ = ["WebhookSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """`timeout`: seconds for one try, from looking up the name until the head of the answer."""

    loopback: bool = False
    timeout: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= 25:
            raise ConfigurationError(f"timeout must be > 0 and <= 25 seconds, got {self.timeout}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> WebhookSettings:
        values = os.environ if environment is None else environment
        loopback = values.get("MARKET_WEBHOOK_LOOPBACK") or "no"
        if loopback not in ("yes", "no"):
            raise ConfigurationError(f"MARKET_WEBHOOK_LOOPBACK must be yes or no, got {loopback!r}")
        return cls(loopback=loopback == "yes")
