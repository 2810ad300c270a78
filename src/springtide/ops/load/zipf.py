"""Popularity: a few are read by everybody, most by hardly anyone.

`Zipf` draws a rank in 1..n with P(k) proportional to k**-s, exactly and in O(1) time and memory, by
rejection-inversion: W. Hoermann and G. Derflinger, "Rejection-inversion to generate variates from monotone
discrete distributions", ACM TOMACS 6(3), 1996. With h(x) = x**-s and its integral

    H(x) = (x**(1-s) - 1) / (1-s)        (ln x for s = 1)

u is uniform over (H(1.5) - 1, H(n + 0.5)]; x = H^-1(u); k = round(x) is accepted when k - x <= c or
u >= H(k + 0.5) - h(k), where c = 2 - H^-1(H(2.5) - h(2)). On average fewer than 1.1 tries are needed.

`Popularity` maps ranks to items by a pseudo-random permutation without a table (a Feistel network over the
next even power of two, walked until it lands below n), so that the most popular user is not user 1.
Both are pure: same seed, same answers, in any process.
"""

from __future__ import annotations

import hashlib
import math
import random

__all__ = ["Popularity", "Zipf"]

_ROUNDS = 4


class Zipf:
    """Ranks 1..n, rank k with probability k**-s / sum(i**-s). `s` is 0.8 to 1.2 for most web traffic."""

    __slots__ = ("_c", "_high", "_low", "n", "s")

    def __init__(self, n: int, *, s: float = 1.0) -> None:
        if n < 1:
            raise ValueError(f"n must be >= 1, got {n}")
        if not 0.0 < s <= 10.0:
            raise ValueError(f"s must be in (0, 10], got {s}")
        self.n = n
        self.s = s
        self._low = self._integral(1.5) - 1.0
        self._high = self._integral(n + 0.5)
        self._c = 2.0 - self._inverse(self._integral(2.5) - 2.0**-s)

    def draw(self, rng: random.Random) -> int:
        """A rank, 1 being the most popular."""
        while True:
            u = self._high + rng.random() * (self._low - self._high)
            x = self._inverse(u)
            k = min(max(int(x + 0.5), 1), self.n)
            if k - x <= self._c or u >= self._integral(k + 0.5) - math.exp(-self.s * math.log(k)):
                return k

    def _integral(self, x: float) -> float:
        log = math.log(x)
        return _expm1_over((1.0 - self.s) * log) * log

    def _inverse(self, u: float) -> float:
        t = max(u * (1.0 - self.s), -1.0 + 1e-15)  # rounding may step over the pole
        return math.exp(_log1p_over(t) * u)


def _expm1_over(x: float) -> float:
    """(e**x - 1) / x, by its series near 0."""
    return math.expm1(x) / x if abs(x) > 1e-8 else 1.0 + x * 0.5 * (1.0 + x / 3.0)


def _log1p_over(x: float) -> float:
    """ln(1 + x) / x, by its series near 0."""
    return math.log1p(x) / x if abs(x) > 1e-8 else 1.0 - x * (0.5 - x / 3.0)


class Popularity:
    """Items 0..n-1 of which some are popular: Zipf ranks behind a fixed pseudo-random permutation."""

    __slots__ = ("_half", "_keys", "_mask", "_zipf", "n")

    def __init__(self, n: int, *, s: float = 1.0, seed: int = 0, label: str = "") -> None:
        self._zipf = Zipf(n, s=s)
        self.n = n
        self._half = max((max(n - 1, 1).bit_length() + 1) // 2, 1)
        self._mask = (1 << self._half) - 1
        digest = hashlib.blake2b(f"{seed}:{label}".encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = tuple(int.from_bytes(digest[i * 8 : i * 8 + 8], "big") for i in range(_ROUNDS))

    def draw(self, rng: random.Random) -> int:
        return self.item(self._zipf.draw(rng))

    def item(self, rank: int) -> int:
        """The item that has `rank` (1-based). A bijection from 1..n to 0..n-1."""
        if not 1 <= rank <= self.n:
            raise ValueError(f"rank must be in 1..{self.n}, got {rank}")
        value = rank - 1
        while True:
            left, right = value >> self._half, value & self._mask
            for key in self._keys:
                mixed = (right ^ key) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
                mixed ^= mixed >> 29
                mixed = mixed * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
                left, right = right, left ^ (mixed >> 32 & self._mask)
            value = left << self._half | right
            if value < self.n:
                return value
