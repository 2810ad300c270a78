"""Marks: what a session asks of caches after its own writes never gets weaker, and stays small."""

from __future__ import annotations

import enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide._marks import ALL, MAX_MARKS, NEITHER, SECOND, Mark, mark_in, mark_of, mark_until
from springtide.cache._session import missed, prove, voided
from springtide.cache._slot import Slot
from springtide.context import LOST, CausalityToken, Identity, RequestContext
from springtide.outbox.envelope import Envelope


class Levels(enum.IntEnum):
    """Which of them may answer."""

    NEITHER = 0
    SECOND = 1
    BOTH = 2


def levels(context: RequestContext, slot: Slot, now: float) -> Levels:
    """What a mark means."""
    mark = mark_of(context.causality.marks, slot.name)
    if mark is None or mark.until <= now:
        return Levels.BOTH
    if mark.scope == NEITHER or (mark.scope != SECOND and mark.scope != slot.scope):
        return Levels.NEITHER
    return Levels.BOTH if mark.is_met(slot.scope, slot.position) else Levels.SECOND


slots = st.sampled_from([f"c{number}@main" for number in range(12)])
scopes = st.sampled_from(["0a1b2c3d4e", "ffffffffff", NEITHER, SECOND])
marks = st.builds(Mark, scopes, st.integers(0, 2**53), st.integers(1, 2**33))
said = st.lists(st.tuples(slots, marks), max_size=20)


def token_of(*given: tuple[str, Mark]) -> CausalityToken:
    token = CausalityToken()
    for slot, mark in given:
        token.mark(slot, mark)
    return token


def allowed(token: CausalityToken, slot: str, scope: str, position: int, now: float) -> Levels:
    known = Slot(slot, share=1.0, relayed=False, heard=lambda fields, sequence: None)
    known.scope, known.position = scope, position
    return levels(RequestContext(causality=token), known, now)


@given(said, said, slots, scopes.filter(lambda scope: len(scope) > 1), st.integers(0, 2**53))
def test_a_token_is_as_strict_as_all_that_was_said_to_it(
    one: list[tuple[str, Mark]], other: list[tuple[str, Mark]], slot: str, scope: str, position: int
) -> None:
    """Also when there are too many slots for a mark each, in whatever order, merged, and as text."""
    token = token_of(*one)
    token.merge(token_of(*other))
    assert len(token.marks) <= MAX_MARKS
    again = CausalityToken.decode(token.encode())
    assert again == token
    for now in (0.0, 2.0**32):
        least = min(
            (allowed(token_of((of, mark)), slot, scope, position, now) for of, mark in one + other),
            default=Levels.BOTH,
        )
        assert allowed(again, slot, scope, position, now) <= least


def test_a_mark_is_met_by_whoever_has_heard_that_much_of_the_same_scope() -> None:
    token = token_of(("users@main", Mark("0a1b2c3d4e", 7, 100)))
    assert allowed(token, "users@main", "0a1b2c3d4e", 6, 99.0) == Levels.SECOND
    assert allowed(token, "users@main", "0a1b2c3d4e", 7, 99.0) == Levels.BOTH
    assert allowed(token, "users@main", "ffffffffff", 9, 99.0) == Levels.NEITHER
    assert allowed(token, "users@main", "ffffffffff", 9, 100.0) == Levels.BOTH
    assert allowed(token, "items@main", "ffffffffff", 0, 99.0) == Levels.BOTH
    token.mark("users@main", Mark(NEITHER, 0, 50))
    assert allowed(token, "users@main", "0a1b2c3d4e", 7, 99.0) == Levels.NEITHER


def test_more_slots_than_marks_are_one_for_all() -> None:
    token = token_of(*((f"c{number}", Mark("aa", number, 50 + number)) for number in range(MAX_MARKS + 1)))
    assert token.marks == {ALL: Mark(NEITHER, 0, 58)}
    token.mark("c1", Mark("aa", 900, 60))
    assert token.marks == {ALL: Mark(NEITHER, 0, 60)}
    token.mark("c1", Mark("aa", 901, 70))
    assert token.marks == {ALL: Mark(NEITHER, 0, 70)}
    assert mark_of(token.marks, "c5") == Mark(NEITHER, 0, 70)


def test_a_token_without_marks_is_as_it_was() -> None:
    assert CausalityToken.decode("main:1:2A").encode() == "main:1:2A"
    assert not CausalityToken().marks
    assert token_of(("users", Mark("aa", 1, 2)))
    assert token_of(("users", Mark("aa", 1, 2))) != CausalityToken()


@pytest.mark.parametrize("text", ["~", "~users", "~users:aa:1", "~us ers:aa:1:2", "~u:xx:1:2", "~u:aa:1:2:3"])
def test_a_malformed_mark_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a mark is ~slot:scope:sequence:until, got"):
        mark_in(text)
    with pytest.raises(ValueError, match="a mark is"):
        CausalityToken.decode(f"main:1:2A,{text}")


def test_a_mark_lasts_longer_than_clocks_differ_and_than_the_budget() -> None:
    assert mark_until(1000.2, 2.0) == 1031
    assert mark_until(1000.0, 60.0) == 1600


def test_an_envelope_carries_marks_and_one_that_cannot_be_read_trusts_no_cache() -> None:
    """Work that follows a request sees what it wrote, over the cache too."""
    token = token_of(("users@main", Mark("aa", 7, 2**33)))
    assert Envelope(causality=token.encode()).open().causality == token
    lost = Envelope(causality="???").open().causality
    assert lost == CausalityToken.decode(LOST)
    assert lost.pinned
    assert allowed(lost, "users@main", "aa", 9, 1.8e9) == Levels.NEITHER


def test_a_call_that_follows_takes_the_place_of_what_was_asked_before() -> None:
    token = token_of(("users", Mark("aa", 7, 50)))
    version = token.version
    later = CausalityToken.decode(token.encode())
    later.mark("items", Mark("aa", 9, 60))
    grown = token.grown
    token.succeed(later, version)
    assert token.marks == later.marks
    assert token.grown == grown + 1


def slot_at(position: int) -> Slot:
    slot = Slot("users@main", share=1.5, relayed=True, heard=lambda fields, sequence: None)
    slot.begin("aa", position, "0-0", 0.0)
    return slot


async def test_an_unproven_client_takes_what_the_slot_has_now_for_its_mark_once() -> None:
    """It may have written anywhere; what it wrote was invalidated before it was answered."""
    slot, asked = slot_at(5), []

    async def sequence(slot: Slot) -> int | None:
        asked.append(slot.name)
        return 7

    context = RequestContext(unproven=set())
    await prove(context, slot, sequence, now=100.0, budget=2.0)
    assert not asked  # nobody is promised anything without an identity
    context.known = Identity(7, "token")
    for _ in range(2):
        await prove(context, slot, sequence, now=100.0, budget=2.0)
    assert asked == ["users@main"]
    assert context.causality.grown == 0  # an answer that only reads stays as it was
    assert levels(context, slot, 100.0) == Levels.SECOND
    slot.position = 7
    assert levels(context, slot, 100.0) == Levels.BOTH
    await prove(RequestContext(known=Identity(7, "token")), slot, sequence, now=100.0, budget=2.0)
    assert asked == ["users@main"]  # one that brought a token has said what it asks


async def test_an_unproven_client_is_not_answered_from_this_process_when_nobody_can_say() -> None:
    """Nor from Redis, when what is said there may be of a server that is the primary no more."""
    slot = slot_at(5)

    async def nobody(slot: Slot) -> int | None:
        return None

    async def other(slot: Slot) -> int | None:
        slot.begin("bb", 900, "0-0", 1.0)  # another server meanwhile
        return 5

    for sequence, allowed in ((nobody, Levels.NEITHER), (other, Levels.SECOND)):
        context = RequestContext(unproven=set(), known=Identity(7, "token"))
        await prove(context, slot, sequence, now=100.0, budget=2.0)
        assert levels(context, slot, 100.0) == allowed


async def test_a_sequence_below_what_was_heard_says_nothing() -> None:
    """It was evicted and begun anew by a clock that had been set back: what has been heard here is above it,
    and does not have the write."""
    slot = slot_at(900)

    async def begun_anew(slot: Slot) -> int | None:
        return 7

    asking = RequestContext(unproven=set(), known=Identity(7, "token"))
    await prove(asking, slot, begun_anew, now=100.0, budget=2.0)
    writing = RequestContext()
    voided(writing, slot.name, "aa", 7, heard=slot.position, now=100.0, budget=2.0)
    for context in (asking, writing):
        assert levels(context, slot, 100.0) == Levels.SECOND


def test_own_writes_are_noted_and_those_that_could_not_be_told_hold_the_answer() -> None:
    slot, context = slot_at(5), RequestContext()
    voided(context, slot.name, "aa", 6, heard=5, now=100.0, budget=2.0)
    assert context.causality.written
    assert levels(context, slot, 100.0) == Levels.SECOND
    slot.position = 6
    assert levels(context, slot, 100.0) == Levels.BOTH
    assert context.settled == 0.0
    missed(context, slot.name, now=100.0, budget=2.0, committed=50.0, share=1.5)
    assert levels(context, slot, 100.0) == Levels.NEITHER
    assert context.settled == 51.5
