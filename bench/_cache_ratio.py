"""What share of requests a first level serves: ours, LRU and theine over the same requests.

Popularity is Zipf's with s = 0.99, as web traffic has it. Ours is bounded in bytes, so it is given what so
many of its entries of 1,000 bytes take; the fingerprints of what it has forgotten come out of that. The
others are bounded in entries and pay for none of their own.
"""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence

import theine

from springtide.cache._memory import OVERHEAD, Memory

__all__ = ["hit_ratios", "requests"]

BYTES = 1000
FOREVER = 1e18


def requests(count: int, keys: int, *, s: float = 0.99, seed: int = 1) -> list[int]:
    weights = list(itertools.accumulate(rank**-s for rank in range(1, keys + 1)))
    return random.Random(seed).choices(range(keys), cum_weights=weights, k=count)


def lru(capacity: int) -> Callable[[int], bool]:
    kept: OrderedDict[int, None] = OrderedDict()

    def ask(key: int) -> bool:
        if key in kept:
            kept.move_to_end(key)
            return True
        if len(kept) >= capacity:
            kept.popitem(last=False)
        kept[key] = None
        return False

    return ask


def ours(capacity: int) -> Callable[[int], bool]:
    view = Memory(capacity * (BYTES + OVERHEAD)).view("requests")

    def ask(key: int) -> bool:
        if view.get(key, 0.0) is not None:
            return True
        view.put(key, key, slot=None, fields=(f"k:{key}",), fresh=FOREVER, stale=FOREVER, bytes=BYTES)
        return False

    return ask


def theines(capacity: int) -> Callable[[int], bool]:
    cache: theine.Cache[int, int] = theine.Cache(capacity)

    def ask(key: int) -> bool:
        _, hit = cache.get(key)
        if not hit:
            cache.set(key, key)
        return hit

    return ask


CONTENDERS = {"springtide": ours, "lru": lru, "theine": theines}


def hit_ratios(asked: Sequence[int], capacity: int) -> dict[str, float]:
    return {name: sum(map(make(capacity), asked)) / len(asked) for name, make in CONTENDERS.items()}
