"""Money: whole numbers of the smallest unit, currencies kept apart."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.money import CURRENCIES, MAX_AMOUNT, CurrencyMismatch, Money, total

AMOUNTS = st.integers(-MAX_AMOUNT // 4, MAX_AMOUNT // 4)
SOME = st.builds(Money, AMOUNTS, st.sampled_from(sorted(CURRENCIES)))


@given(SOME)
def test_what_is_written_is_read_again(money: Money) -> None:
    assert Money.parse(money.decimal, money.currency) == money
    assert msgspec.json.decode(msgspec.json.encode(money), type=Money) == money


@given(AMOUNTS, AMOUNTS, st.integers(-3, 3))
def test_arithmetic_is_that_of_whole_numbers(one: int, other: int, factor: int) -> None:
    a, b = Money(one, "EUR"), Money(other, "EUR")
    assert a + b == Money(one + other, "EUR") == b + a
    assert a - b == -(b - a)
    assert (a < b, a <= b, a > b, a >= b) == (one < other, one <= other, one > other, one >= other)
    assert Money(one // 4, "EUR") * factor == Money(one // 4 * factor, "EUR")
    assert total([a, b], "EUR") == a + b


def test_decimals_are_the_currencys() -> None:
    shown = [str(Money(-5, "EUR")), str(Money(1250, "JPY")), str(Money(1, "KWD"))]
    assert shown == ["-0.05 EUR", "1250 JPY", "0.001 KWD"]
    assert Money.parse("12.5", "EUR") == Money(1250, "EUR")


def test_two_currencies_never_meet() -> None:
    euro, yen = Money(1, "EUR"), Money(1, "JPY")
    for attempt in (lambda: euro + yen, lambda: euro - yen, lambda: euro < yen, lambda: euro >= yen):
        with pytest.raises(CurrencyMismatch):
            attempt()
    with pytest.raises(CurrencyMismatch):
        total([euro, yen], "EUR")
    assert euro != yen


@pytest.mark.parametrize("amount", [1.0, True, "1", None])
def test_an_amount_is_a_whole_number(amount: object) -> None:
    with pytest.raises(TypeError):
        Money(amount, "EUR")  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [1.5, True, Money(1, "EUR")])
def test_a_factor_is_a_whole_number(factor: object) -> None:
    with pytest.raises(TypeError):
        Money(1, "EUR") * factor  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "currency"),
    [("1.005", "EUR"), ("1.5", "JPY"), ("1,50", "EUR"), ("", "EUR"), ("1e3", "EUR"), ("1", "eur"),
     ("1", "XXX"), ("٣", "EUR"), ("1.", "EUR"), (".5", "EUR"), ("9" * 40, "EUR"), ("9" * 16, "EUR"),
     ("--1", "EUR")],
)  # fmt: skip
def test_what_is_no_amount_is_refused(text: str, currency: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Money.parse(text, currency)


def test_what_arrives_from_elsewhere_is_held_to_the_same_rules() -> None:
    for wrong in (b'{"amount":1.5,"currency":"EUR"}', b'{"amount":1,"currency":"XXX"}',
                  b'{"amount":9007199254740993,"currency":"EUR"}', b'{"amount":1}'):  # fmt: skip
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(wrong, type=Money)
