"""The histogram: its stated error, merging, bounded memory, and its way through JSON."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.ops.load.histogram import MAX_BUCKETS, MAX_SECONDS, RELATIVE_ERROR, Histogram

durations = st.lists(st.floats(min_value=0, max_value=MAX_SECONDS), min_size=1, max_size=200)
shares = st.floats(min_value=0, max_value=1)


def recorded(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


def exact(values: list[float], share: float) -> float:
    return sorted(values)[max(math.ceil(share * len(values) - 1e-9), 1) - 1]


@given(durations, shares)
def test_a_quantile_is_never_too_low_and_at_most_the_stated_error_too_high(
    values: list[float], share: float
) -> None:
    true = exact(values, share)
    found = recorded(values).quantile(share)
    rounding = 0.5e-6 + 1e-9
    assert true - rounding <= found <= true * (1 + RELATIVE_ERROR) + rounding


@given(durations, durations)
def test_merging_equals_recording_into_one(one: list[float], other: list[float]) -> None:
    merged = Histogram.merged([recorded(one), recorded(other)])
    whole = recorded(one + other)
    assert merged.total == pytest.approx(whole.total)
    merged.total = whole.total
    assert merged == whole


@given(durations)
def test_counts_add_up_and_extremes_are_exact(values: list[float]) -> None:
    histogram = recorded(values)
    assert sum(histogram.counts.values()) == histogram.count == len(values)
    assert (histogram.minimum, histogram.maximum) == (min(values), max(values))
    assert histogram.quantile(1.0) == pytest.approx(max(values), abs=0.5e-6)


@given(durations, st.lists(shares, min_size=1, max_size=5))
def test_quantiles_never_fall_as_the_share_grows(values: list[float], wanted: list[float]) -> None:
    found = list(recorded(values).quantiles(sorted(wanted)))
    assert found == sorted(found)


@given(durations)
def test_another_process_reads_what_was_recorded(values: list[float]) -> None:
    histogram = recorded(values)
    assert msgspec.json.decode(msgspec.json.encode(histogram), type=Histogram) == histogram
    assert msgspec.json.decode(msgspec.json.encode(Histogram()), type=Histogram) == Histogram()


def test_memory_is_bounded_whatever_is_recorded() -> None:
    histogram = Histogram()
    value = 1e-7
    while value < 1e9:
        histogram.record(value)
        value *= 1.0005
    histogram.record(1e12)
    assert len(histogram.counts) <= MAX_BUCKETS
    assert histogram.quantile(1.0) == histogram.maximum == 1e12


def test_negative_durations_count_as_zero_and_an_empty_one_answers_zero() -> None:
    assert recorded([-0.5]).maximum == 0.0
    assert Histogram().quantile(0.99) == 0.0
    with pytest.raises(ValueError, match=r"got 1\.5"):
        Histogram().quantile(1.5)
