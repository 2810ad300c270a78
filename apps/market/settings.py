"""What an operator may set beside springtide.toml, by environment variables; wrong values stop the start.

MARKET_TOKEN_LIFETIME   how long a token of the /api is good, in seconds; 86400 (a day) by default. RealWorld
                        has no refresh, so people sign in again when it ends, and a stolen token works until
                        then: a shorter time is safer, a longer one more comfortable. At most 31 days.
MARKET_DEVELOPMENT      `1` on a developer's own machine: sessions also work over plain http for browsers that
                        take no secure cookie from there (only for clients on this machine), and the checkout
                        offers the provider's test cards. Off by default: cookies are secure, and whoever
                        pays names a source of the provider's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from springtide.errors import ConfigurationError

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    token_lifetime: float = 86_400.0
    development: bool = False

    def __post_init__(self) -> None:
        if not 60 <= self.token_lifetime <= 31 * 86_400:
            raise ConfigurationError(
                f"MARKET_TOKEN_LIFETIME must be 60 s to 31 days (2678400 s), got {self.token_lifetime}"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        values = os.environ if environment is None else environment
        development = values.get("MARKET_DEVELOPMENT", "")
        if development not in ("", "0", "1"):
            raise ConfigurationError(f"MARKET_DEVELOPMENT must be 0 or 1, got {development!r}")
        text = values.get("MARKET_TOKEN_LIFETIME", "86400")
        try:
            return cls(token_lifetime=float(text), development=development == "1")
        except ValueError:
            raise ConfigurationError(
                f"MARKET_TOKEN_LIFETIME must be a number of seconds, got {text!r}"
            ) from None
