"""Who may join a load that is under way: nobody for whom what it reads would be too old."""

from __future__ import annotations

import pytest

from springtide.cache._flight import Flight
from springtide.cache._slot import Slot
from springtide.cache._terms import Terms, may_join
from springtide.cache.classes import Budget
from springtide.context import Consistency

PARTS = Budget(2.0, relay=0.5, bus=0.5, edge=0.0)
TERMS = Terms(True, True, "", None, Consistency.SESSION, PARTS.replica)
BEGAN = 10.0


def slot_of(*, relayed: bool, proven: bool) -> Slot:
    slot = Slot("users@main", share=PARTS.kept, relayed=relayed, heard=lambda fields, sequence: None)
    slot.good_until = 1000.0 if proven else 0.0
    return slot


@pytest.mark.parametrize("proven", [True, False])
async def test_a_load_from_a_replica_is_joined_while_the_budget_has_room_for_its_lag(proven: bool) -> None:
    """Also by those who have proof: the proof may end before the load does, and then nobody judges it."""
    flight, slot = Flight(7, "user:7", (7,), BEGAN), slot_of(relayed=True, proven=proven)
    latest = BEGAN + PARTS.total - PARTS.replica
    assert may_join(flight, PARTS, slot, TERMS, None, latest)
    assert not may_join(flight, PARTS, slot, TERMS, None, latest + 0.01)


async def test_without_a_replica_a_load_is_joined_while_there_is_proof() -> None:
    """What it has not read is heard of, and nobody joins it any more."""
    flight = Flight(7, "user:7", (7,), BEGAN)
    assert may_join(flight, PARTS, slot_of(relayed=False, proven=True), TERMS, None, BEGAN + 100.0)
    assert not may_join(flight, PARTS, slot_of(relayed=False, proven=False), TERMS, None, BEGAN + 100.0)
