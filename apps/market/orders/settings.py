"""How long things may take, by environment variables; wrong values stop the start.

MARKET_PAY_WITHIN   seconds from the order until its payment must be known, 900 by default; an order that is
                    not paid by then is given up. At most 6 hours.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from springtide.errors import ConfigurationError

__all__ = ["OrderSettings"]

MOST = 21_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSettings:
    pay_within: float = 900.0

    def __post_init__(self) -> None:
        if not 1 <= self.pay_within <= MOST:
            raise ConfigurationError(
                f"MARKET_PAY_WITHIN must be 1 to {MOST:.0f} seconds, got {self.pay_within}"
            )

    @property
    def hold_seconds(self) -> float:
        """Stock is held from its reservation on for longer than the order may take: it is reserved before
        `pay_by`, and a charge that began before `pay_by` has as long again to be told of and sold."""
        return 2 * self.pay_within + 600.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> OrderSettings:
        values = os.environ if environment is None else environment
        text = values.get("MARKET_PAY_WITHIN")
        if text is None:
            return cls()
        try:
            return cls(pay_within=float(text))
        except ValueError:
            raise ConfigurationError(f"MARKET_PAY_WITHIN must be a number of seconds, got {text!r}") from None
