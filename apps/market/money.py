"""Money: a whole number of a currency's smallest unit, never a float.

Amounts of two currencies are not added, subtracted or compared: CurrencyMismatch. A negative amount is a debt
or a refund. Amounts stay within +-2**53, which every JSON reader takes exactly. Currencies are those of
ISO 4217 that the table has; a code that it lacks is refused, because nobody would know its decimals.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

__all__ = ["CURRENCIES", "MAX_AMOUNT", "CurrencyMismatch", "Money", "total"]

CURRENCIES: Mapping[str, int] = {
    "AUD": 2, "BHD": 3, "BRL": 2, "CAD": 2, "CHF": 2, "CLP": 0, "CNY": 2, "CZK": 2, "DKK": 2, "EUR": 2,
    "GBP": 2, "HKD": 2, "HUF": 2, "IDR": 2, "ILS": 2, "INR": 2, "ISK": 0, "JOD": 3, "JPY": 0, "KRW": 0,
    "KWD": 3, "MXN": 2, "MYR": 2, "NOK": 2, "NZD": 2, "PHP": 2, "PLN": 2, "RON": 2, "SEK": 2, "SGD": 2,
    "THB": 2, "TND": 3, "TRY": 2, "TWD": 2, "UAH": 2, "USD": 2, "VND": 0, "ZAR": 2,
}  # fmt: skip
"""ISO 4217 code -> decimals of its smallest unit."""

MAX_AMOUNT = 1 << 53

_DECIMAL = re.compile(r"(-?)([0-9]{1,16})(?:\.([0-9]{1,4}))?")


class CurrencyMismatch(ValueError):
    """Two amounts of different currencies met in one sum."""


class Money(msgspec.Struct, frozen=True):
    """`amount` in the currency's smallest unit: Money(1250, "EUR") is 12.50 EUR.

    Raises ValueError for an unknown currency and an amount beyond 2**53, TypeError for one that is no int.
    """

    amount: int
    currency: str

    def __post_init__(self) -> None:
        if type(self.amount) is not int:
            raise TypeError(f"an amount is a whole number of the smallest unit, got {self.amount!r}")
        if self.currency not in CURRENCIES:
            raise ValueError(f"unknown currency {self.currency!r}")
        if not -MAX_AMOUNT <= self.amount <= MAX_AMOUNT:
            raise ValueError(f"an amount must be between -2**53 and 2**53, got {self.amount}")

    @classmethod
    def parse(cls, text: str, currency: str) -> Money:
        """Money.parse("12.50", "EUR"). Raises ValueError, also for more decimals than the currency has."""
        found = _DECIMAL.fullmatch(text)
        if found is None:
            raise ValueError(f"not an amount: {text!r}")
        if currency not in CURRENCIES:
            raise ValueError(f"unknown currency {currency!r}")
        sign, whole, part = found[1], found[2], found[3] or ""
        decimals = CURRENCIES[currency]
        if len(part) > decimals:
            raise ValueError(f"{currency} has {decimals} decimals, got {text!r}")
        amount = int(whole) * 10**decimals + int(part.ljust(decimals, "0") or "0")
        return cls(-amount if sign else amount, currency)

    @property
    def decimal(self) -> str:
        """The amount in the currency's main unit, such as `-12.50`."""
        decimals = CURRENCIES[self.currency]
        digits = str(abs(self.amount)).rjust(decimals + 1, "0")
        sign = "-" if self.amount < 0 else ""
        return f"{sign}{digits[:-decimals]}.{digits[-decimals:]}" if decimals else f"{sign}{digits}"

    def __str__(self) -> str:
        return f"{self.decimal} {self.currency}"

    def __add__(self, other: Money) -> Money:
        self._same(other)
        return Money(self.amount + other.amount, self.currency)

    def __sub__(self, other: Money) -> Money:
        self._same(other)
        return Money(self.amount - other.amount, self.currency)

    def __neg__(self) -> Money:
        return Money(-self.amount, self.currency)

    def __mul__(self, quantity: int) -> Money:
        """Raises TypeError for anything but a whole quantity."""
        if type(quantity) is not int:
            raise TypeError(f"money is multiplied by whole numbers, got {quantity!r}")
        return Money(self.amount * quantity, self.currency)

    def __lt__(self, other: Money) -> bool:
        self._same(other)
        return self.amount < other.amount

    def __le__(self, other: Money) -> bool:
        self._same(other)
        return self.amount <= other.amount

    def __gt__(self, other: Money) -> bool:
        return other < self

    def __ge__(self, other: Money) -> bool:
        return other <= self

    def _same(self, other: Money) -> None:
        if not isinstance(other, Money):
            raise TypeError(f"money goes with money, got {other!r}")
        if self.currency != other.currency:
            raise CurrencyMismatch(f"{self} and {other} are two currencies")


def total(amounts: Iterable[Money], currency: str) -> Money:
    """The sum, zero of `currency` for none. Raises CurrencyMismatch."""
    result = Money(0, currency)
    for amount in amounts:
        result += amount
    return result
