"""How much two listings, or a person and an author, belong together. Pure.

Listings: the cosine between the sets of their buyers, w(a, b) / sqrt(w(a) * w(b)), so that what everybody
buys is not near to everything (Linden, Smith, York: Amazon.com Recommendations, IEEE Internet Computing 7(1),
2003; Sarwar et al.: Item-based Collaborative Filtering, WWW 2001), times n / (n + SHRINK) for n buyers of
both, so that two coincidences are no certainty (Bell, Koren, ICDM 2007). Fewer than MIN_SUPPORT are none.

w adds up weights that double every HALF_LIFE from a fixed day on. Relative to today that is exponential
decay, and the order in which purchases are counted does not matter (Cormode et al.: Forward Decay, ICDE
2009); in the cosine the scale cancels out. A buyer counts by the newest of their purchases only, of which the
newest REPEATS are looked at: buying the same two things every day recommends them no more than once.

Authors: Adamic and Adar's sum over the people between, 1 / ln(1 + how many they follow): who follows
thousands says little about each (Liben-Nowell, Kleinberg: The Link-Prediction Problem for Social Networks,
2007).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from math import exp2, log, sqrt
from typing import NamedTuple

__all__ = [
    "MIN_SUPPORT",
    "REPEATS",
    "Change",
    "Counted",
    "Purchase",
    "best",
    "change",
    "merge",
    "near",
    "rank",
    "weigh",
]

HALF_LIFE = timedelta(days=90)
EPOCH = datetime(2025, 1, 1, tzinfo=UTC)

MIN_SUPPORT = 2
REPEATS = 20
SHRINK = 3.0


class Purchase(NamedTuple):
    """One order of a buyer that has the listing, and what else it has."""

    order_id: int
    weight: float
    others: Sequence[int]


class Counted(NamedTuple):
    buyers: int
    weight: float


class Change(NamedTuple):
    """What to add to the counts of a listing and of its pairs (other -> what)."""

    own: Counted
    pairs: dict[int, Counted]


def weigh(at: datetime) -> float:
    return exp2((at - EPOCH) / HALF_LIFE)


def change(before: Iterable[Purchase], after: Iterable[Purchase]) -> Change:
    """What one buyer's purchases of one listing add to its counts when `before` becomes `after`."""
    old, new = _newest(before), _newest(after)
    gone, come = _worth(old), _worth(new)
    pairs: dict[int, Counted] = {}
    for other in gone.keys() | come.keys():
        counted = _difference(gone.get(other), come.get(other))
        if counted != (0, 0.0):
            pairs[other] = counted
    own = _difference(old[0].weight if old else None, new[0].weight if new else None)
    return Change(own, pairs)


def near(both: Counted, one: float, other: float) -> float:
    """The score of a pair: its counts and the weights of the two listings."""
    if both.buyers < MIN_SUPPORT or one <= 0 or other <= 0:
        return 0.0
    # Weights are read at two moments: what is bought meanwhile must not make a cosine above 1.
    return min(both.weight / sqrt(one * other), 1.0) * both.buyers / (both.buyers + SHRINK)


def best(scores: Iterable[tuple[int, float]], limit: int) -> list[tuple[int, float]]:
    """The highest scores, those that are none left out."""
    return sorted((one for one in scores if one[1] > 0), key=lambda one: (-one[1], -one[0]))[:limit]


def merge(
    lists: Iterable[tuple[Sequence[int], Sequence[float]]], *, without: set[int], limit: int
) -> list[int]:
    """The best of several lists of (ids, scores); what is in more than one adds up."""
    scores: dict[int, float] = {}
    for ids, worth in lists:
        for id, score in zip(ids, worth, strict=True):
            if id not in without:
                scores[id] = scores.get(id, 0.0) + score
    return [id for id, _ in best(scores.items(), limit)]


def rank(between: Mapping[int, Sequence[int]], *, without: set[int], limit: int) -> list[int]:
    """Authors by whom the people between follow (person -> their followees)."""
    scores: dict[int, float] = {}
    for followees in between.values():
        if followees:
            worth = 1 / log(1 + len(followees))
            for author in followees:
                if author not in without:
                    scores[author] = scores.get(author, 0.0) + worth
    return [id for id, _ in best(scores.items(), limit)]


def _newest(purchases: Iterable[Purchase]) -> list[Purchase]:
    return sorted(purchases, key=lambda one: (one.weight, one.order_id), reverse=True)[:REPEATS]


def _worth(purchases: Iterable[Purchase]) -> dict[int, float]:
    """Other listing -> the weight of the newest purchase that has it; the newest comes first."""
    worth: dict[int, float] = {}
    for purchase in purchases:
        for other in purchase.others:
            worth.setdefault(other, purchase.weight)
    return worth


def _difference(gone: float | None, come: float | None) -> Counted:
    buyers = (come is not None) - (gone is not None)
    return Counted(buyers, (come or 0.0) - (gone or 0.0))
