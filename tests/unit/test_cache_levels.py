"""Which levels may answer a session that has written."""

from __future__ import annotations

import pytest

from springtide._marks import NEITHER, SECOND, Mark
from springtide.cache._slot import Slot
from springtide.cache._terms import Terms, terms_of
from springtide.cache.classes import Budget

HERE, ELSEWHERE = "0a1b2c3d4e", "ffffffffff"


def terms(mark: Mark | None) -> Terms:
    slot = Slot("users@main", share=1.0, relayed=True, heard=lambda fields, sequence: None)
    slot.begin(HERE, 7, "0-0", 0.0)
    slot.good_until = 10.0
    parts = Budget(2.0, 0.5, 0.5, 0.0)
    return terms_of(parts, slot, context=None, mark=mark, wanted=None, kept=True, now=5.0)


@pytest.mark.parametrize(
    ("mark", "first", "second"),
    [
        (None, True, True),
        (Mark(HERE, 7, 100), True, True),
        (Mark(HERE, 8, 100), False, True),
        (Mark(SECOND, 0, 100), False, True),
        (Mark(ELSEWHERE, 7, 100), False, False),
        (Mark(NEITHER, 0, 100), False, False),
    ],
)
def test_a_write_that_another_scope_was_told_of_is_read_past_both_levels(
    mark: Mark | None, first: bool, second: bool
) -> None:
    """Who wrote may have told a Redis that is not ours any more (it failed over, or he is cut off with the
    old one), or keys of another timeline: what is kept here was never told."""
    found = terms(mark)
    assert (found.first, found.second) == (first, second)
    assert found.why == ("" if second else "mark")
