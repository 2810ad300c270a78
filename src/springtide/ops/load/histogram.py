"""Latencies in bounded memory: a log-linear histogram that can be merged.

A duration is rounded to whole microseconds, v. With b = PRECISION_BITS:

    v < 2**(b+1)        a bucket of its own (exact)
    otherwise           shift = bit_length(v) - (b+1); the bucket is v >> shift, 2**shift microseconds wide

so a bucket is never wider than v / 2**b. A quantile is the upper end of its bucket, never above the exact
maximum: it understates nothing and overstates by at most RELATIVE_ERROR (1/256 for b = 8), plus the half
microsecond of the rounding. The idea is Gil Tene's HdrHistogram (hdrhistogram.org).

Invariant: sum of counts == count. Buckets are kept sparsely, at most MAX_BUCKETS of them whatever is
recorded: values past MAX_SECONDS are counted in the last bucket, while `maximum` stays exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import msgspec

__all__ = ["MAX_BUCKETS", "MAX_SECONDS", "PRECISION_BITS", "RELATIVE_ERROR", "Histogram"]

PRECISION_BITS = 8
RELATIVE_ERROR = 2.0**-PRECISION_BITS
MAX_SECONDS = 3600.0

_LINEAR = 1 << (PRECISION_BITS + 1)
_TOP = int(MAX_SECONDS * 1e6)


def _bucket(value: int) -> int:
    if value < _LINEAR:
        return value
    shift = value.bit_length() - PRECISION_BITS - 1
    return (shift << PRECISION_BITS) + (value >> shift)


def _upper(bucket: int) -> int:
    """The largest value, in microseconds, that falls into `bucket`."""
    if bucket < _LINEAR:
        return bucket
    shift = (bucket >> PRECISION_BITS) - 1
    mantissa = bucket - (shift << PRECISION_BITS)
    return ((mantissa + 1) << shift) - 1


MAX_BUCKETS = _bucket(_TOP) + 1


class Histogram(msgspec.Struct):
    """Durations in seconds. `counts` maps a bucket's number to how many fell into it."""

    counts: dict[int, int] = {}
    count: int = 0
    total: float = 0.0
    minimum: float | None = None
    maximum: float = 0.0

    def record(self, seconds: float) -> None:
        """Add one duration; a negative one (clocks that disagree) counts as 0."""
        if seconds < 0.0:
            seconds = 0.0
        value = int(seconds * 1e6 + 0.5)
        if value < _LINEAR:
            bucket = value
        else:
            if value > _TOP:
                value = _TOP
            shift = value.bit_length() - PRECISION_BITS - 1
            bucket = (shift << PRECISION_BITS) + (value >> shift)
        counts = self.counts
        counts[bucket] = counts.get(bucket, 0) + 1
        self.count += 1
        self.total += seconds
        if seconds > self.maximum:
            self.maximum = seconds
        if self.minimum is None or seconds < self.minimum:
            self.minimum = seconds

    def merge(self, other: Histogram) -> None:
        """Add everything that `other` has recorded; the result equals recording both into one."""
        counts = self.counts
        for bucket, count in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        self.count += other.count
        self.total += other.total
        self.maximum = max(self.maximum, other.maximum)
        if self.minimum is None or (other.minimum is not None and other.minimum < self.minimum):
            self.minimum = other.minimum

    @classmethod
    def merged(cls, parts: Iterable[Histogram]) -> Histogram:
        result = cls()
        for part in parts:
            result.merge(part)
        return result

    def quantile(self, share: float) -> float:
        """The smallest recorded duration that at least `share` of all do not exceed, as a bucket's upper end.

        0.0 when nothing was recorded. Raises ValueError unless 0 <= share <= 1.
        """
        return next(self.quantiles((share,)))

    def quantiles(self, shares: Iterable[float]) -> Iterator[float]:
        """Several quantiles in one pass over the sorted buckets; `shares` may come in any order."""
        wanted = list(shares)
        for share in wanted:
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"a quantile's share must be in [0, 1], got {share}")
        ranks = [max(math.ceil(share * self.count - 1e-9), 1) for share in wanted]
        found: dict[int, float] = {}
        pending = sorted(set(ranks))
        seen = 0
        position = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            while position < len(pending) and pending[position] <= seen:
                found[pending[position]] = self._value(bucket)
                position += 1
        return iter([found.get(rank, 0.0) for rank in ranks])

    def _value(self, bucket: int) -> float:
        if bucket >= MAX_BUCKETS - 1:
            return self.maximum
        return min(max(_upper(bucket) * 1e-6, self.minimum or 0.0), self.maximum)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0
