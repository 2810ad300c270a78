"""Popularity: exactly Zipf's law, spread over the items by a bijection, the same for the same seed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.ops.load.zipf import Popularity, Zipf


@pytest.mark.parametrize("s", [0.5, 0.99, 1.0, 1.2, 2.0])
@pytest.mark.parametrize("n", [2, 10, 50])
def test_ranks_have_the_probabilities_of_zipfs_law(n: int, s: float) -> None:
    draws = 40_000
    rng = random.Random(f"{n}:{s}")
    zipf = Zipf(n, s=s)
    seen = [0] * (n + 1)
    for _ in range(draws):
        seen[zipf.draw(rng)] += 1
    weights = [k**-s for k in range(1, n + 1)]
    total = sum(weights)
    # Pearson's chi-square over the ranks that are expected at least five times.
    cells = [(seen[k], draws * weights[k - 1] / total) for k in range(1, n + 1)]
    cells = [cell for cell in cells if cell[1] >= 5]
    chi = sum((found - wanted) ** 2 / wanted for found, wanted in cells)
    freedom = max(len(cells) - 1, 1)
    assert chi < freedom + 5 * (2 * freedom) ** 0.5 + 5


@given(st.integers(1, 10**9), st.floats(0.01, 10), st.integers(0, 100))
def test_every_draw_is_a_rank(n: int, s: float, seed: int) -> None:
    rng = random.Random(seed)
    zipf = Zipf(n, s=s)
    assert all(1 <= zipf.draw(rng) <= n for _ in range(20))


@given(st.integers(1, 2000), st.integers(0, 5), st.text(max_size=3))
def test_every_item_has_one_rank(n: int, seed: int, label: str) -> None:
    popularity = Popularity(n, seed=seed, label=label)
    assert sorted(popularity.item(rank) for rank in range(1, n + 1)) == list(range(n))


def test_seed_and_label_decide_who_is_popular() -> None:
    def top(seed: int, label: str) -> list[int]:
        popularity = Popularity(100_000, seed=seed, label=label)
        return [popularity.item(rank) for rank in range(1, 6)]

    assert top(1, "a") == top(1, "a")
    assert top(1, "a") != top(2, "a")
    assert top(1, "a") != top(1, "b")


def test_impossible_values_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0"):
        Zipf(0)
    with pytest.raises(ValueError, match="got -1"):
        Zipf(1, s=-1)
    with pytest.raises(ValueError, match="got 6"):
        Popularity(5).item(6)
