"""What travels with a request: ledger, causality token, deadline, and who sees it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.context import (
    DOUBT,
    MAX_STATEMENTS,
    OTHER,
    CausalityToken,
    Consistency,
    Ledger,
    Part,
    Position,
    RequestContext,
    Trace,
    activate,
    current,
    detached,
    reading,
    wanted_consistency,
)

clusters = st.text(
    st.characters(codec="ascii", categories=("Ll", "Lu", "Nd"), include_characters="-_"),
    min_size=1,
    max_size=20,
)
positions = st.builds(Position, st.integers(0, 10**9), st.integers(0, 2**64 - 1))
witnesses = st.sampled_from(["0" * 12, "a1b2c3d4e5f6", DOUBT])
tokens = st.builds(
    CausalityToken,
    st.dictionaries(clusters, positions.filter(lambda position: position > (0, 0)), max_size=4),
    st.dictionaries(clusters, witnesses, max_size=2),
)


@given(tokens)
def test_a_token_survives_its_text(token: CausalityToken) -> None:
    """decode is the inverse of encode."""
    assert CausalityToken.decode(token.encode()) == token


@given(tokens, tokens)
def test_merging_tokens_never_loses_a_position(one: CausalityToken, other: CausalityToken) -> None:
    """The merge is the maximum per cluster, in whatever order."""
    forward, backward = CausalityToken.decode(one.encode()), CausalityToken.decode(other.encode())
    forward.merge(other)
    backward.merge(one)
    assert forward == backward
    for token in (one, other):
        for name, position in token.positions.items():
            assert forward.positions[name] >= position
        for name, witness in token.witnesses.items():
            assert forward.witnesses[name] in (witness, DOUBT)


def test_a_position_of_a_later_epoch_is_later() -> None:
    """After a failover the log may be shorter, and is newer all the same."""
    token = CausalityToken({"main": Position(1, 900)})
    token.observe("main", Position(2, 100))
    token.observe("main", Position(1, 999))
    assert token.position("main") == Position(2, 100)


@given(tokens, tokens)
def test_a_merged_token_covers_both(one: CausalityToken, other: CausalityToken) -> None:
    """A token covers another when it has all of its positions or later ones."""
    merged = CausalityToken.decode(one.encode())
    merged.merge(other)
    assert merged.covers(one) and merged.covers(other)
    assert one.covers(other) == (merged == one)


def test_a_token_tells_what_was_written_from_what_was_read() -> None:
    """`grown` changes with every position that was new, `written` with the request's own commits alone."""
    token = CausalityToken()
    token.observe("main", Position(1, 10))
    token.observe("main", Position(1, 9))
    assert (token.grown, token.written) == (1, False)
    token.wrote("main", Position(1, 9))
    assert (token.grown, token.written) == (1, True)


def test_two_witnesses_are_a_doubt_until_a_position_covers_both() -> None:
    """Only one and the same run of a server may go on answering beyond the position."""
    token = CausalityToken()
    token.saw("main", "a" * 12)
    token.saw("main", "a" * 12)
    assert (token.witnesses, token.grown) == ({"main": "a" * 12}, 1)
    assert token and token.position("main") is None and token.encode() == "main:0:0:aaaaaaaaaaaa"
    token.saw("main", "b" * 12)
    assert token.witnesses == {"main": DOUBT} and token.encode() == "main:0:0:?"
    token.observe("main", Position(1, 5))
    token.saw("main", "b" * 12)
    assert token.witnesses == {"main": DOUBT}
    token.cover("main", Position(1, 4))
    assert (token.witnesses, token.position("main")) == ({}, Position(1, 5))


def test_what_was_written_covers_what_was_read_before() -> None:
    """A commit's position is the primary's, which every replica's answer came from."""
    token = CausalityToken()
    token.saw("main", "a" * 12)
    token.wrote("main", Position(1, 9))
    assert token.witnesses == {} and token.written


def test_a_block_says_how_fresh_before_the_request_does() -> None:
    """The innermost block counts, for the tasks in it too; what outlives the request hears of neither."""
    assert wanted_consistency() is None
    with activate(RequestContext(consistency=Consistency.EVENTUAL)):
        assert wanted_consistency() is Consistency.EVENTUAL
        with reading(Consistency.STRONG):
            with reading(Consistency.SESSION):
                assert wanted_consistency() is Consistency.SESSION
            assert wanted_consistency() is Consistency.STRONG
            assert detached().run(wanted_consistency) is None
        assert wanted_consistency() is Consistency.EVENTUAL
    assert wanted_consistency() is None


def test_a_token_that_followed_takes_the_place_of_what_it_followed_from() -> None:
    """A witness that is covered by then is gone; if this one has changed meanwhile, both hold."""
    for meanwhile in (False, True):
        token = CausalityToken({"main": Position(1, 10)}, {"main": "0123456789ab"})
        later, version, grown = CausalityToken.decode(token.encode()), token.version, token.grown
        later.cover("main", Position(1, 20))
        later.written = True
        if meanwhile:
            token.observe("other", Position(1, 1))
        token.succeed(later, version)
        assert token.positions["main"] == Position(1, 20)
        assert token.witnesses == ({"main": "0123456789ab"} if meanwhile else {})
        assert token.written and token.grown != grown


def test_what_was_recalled_beside_a_call_is_not_lost_when_the_call_comes_back() -> None:
    """It is no news for the client, so `grown` is set back; a pin alone counts as well."""
    for found in (CausalityToken({"main": Position(1, 500)}), CausalityToken()):
        found.pinned = True
        token = CausalityToken()
        version, grown = token.version, token.grown
        back = CausalityToken.decode(token.encode())
        token.merge(found)
        token.grown = grown
        token.succeed(back, version)
        assert token == found


def test_a_pinned_token_asks_for_what_no_replica_has() -> None:
    """Also of clusters that it has no position of; what is observed meanwhile is kept, and it travels."""
    token = CausalityToken()
    token.pinned = True
    token.observe("main", Position(3, 10))
    for cluster in ("main", "other"):
        asked = token.position(cluster)
        assert asked is not None and asked > Position(2**31, 2**64 - 1)
    assert token.positions == {"main": Position(3, 10)}
    assert token and CausalityToken.decode(token.encode()) == token
    free = CausalityToken()
    free.merge(token)
    assert free.pinned and free.position("other") is not None


def test_a_pin_ends_per_cluster_when_a_primary_has_said_where_it_stands() -> None:
    """What was seen before is covered then, unless it was seen while the primary was asked; a token that
    comes in later is pinned for what was seen there."""
    token = CausalityToken()
    token.pinned = True
    sights = token.sights("main")
    token.doubt("main")
    token.cover("main", Position(1, 10), sights=sights)
    assert (token.position("main") or (0, 0)) > Position(1, 10)
    token.cover("main", Position(1, 20), sights=token.sights("main"))
    assert token.position("main") == Position(1, 20)
    assert token.pinned and (token.position("other") or (0, 0)) > Position(1, 20)
    other = CausalityToken()
    other.pinned = True
    token.merge(other)
    assert (token.position("main") or (0, 0)) > Position(1, 20)


@pytest.mark.parametrize(
    "text",
    ["main", "main:1", ":1:A", "main:1:A:2", "main:x:A", "main:1:G", "main:-1:A", "main:1:-A", "main:1_0:A",
     "main: 1:A", "main:1:0x1", "main:\u0661:A", "main:1:" + "A" * 17, "a:1:1,b"],
)  # fmt: skip
def test_a_malformed_token_is_refused_by_its_part(text: str) -> None:
    """ValueError shows the part; numbers are plain digits, as encode writes them."""
    with pytest.raises(ValueError, match="cluster:epoch:lsn, got"):
        CausalityToken.decode(text)


def test_an_empty_token_is_false() -> None:
    """A session that has seen nothing waits for nothing."""
    assert not CausalityToken()
    assert not CausalityToken.decode("")
    assert CausalityToken.decode("main:1:A")


def test_a_ledger_adds_up_by_part_and_label() -> None:
    """Seconds, calls and rows, per part and within it."""
    ledger = Ledger()
    ledger.add(Part.SQL, 0.25, "select a", rows=2)
    ledger.add(Part.SQL, 0.5, "select a", rows=1)
    ledger.add(Part.SQL, 1.0, "select b")
    ledger.add(Part.POOL, 2.0)
    assert (ledger.seconds(Part.SQL), ledger.parts[Part.SQL].calls, ledger.parts[Part.SQL].rows) == (
        1.75,
        3,
        3,
    )
    assert ledger.labels(Part.SQL)["select a"].seconds == 0.75
    assert ledger.labels(Part.POOL) == {}
    assert ledger.seconds(Part.CACHE_L1) == 0.0


def test_a_ledger_is_bounded() -> None:
    """Past the limit, labels are added up under one; the part's total stays right."""
    ledger = Ledger()
    for number in range(MAX_STATEMENTS + 36):
        ledger.add(Part.SQL, 1.0, f"select {number}")
    assert len(ledger.labels(Part.SQL)) == MAX_STATEMENTS + 1
    assert ledger.labels(Part.SQL)[OTHER].calls == 36
    assert ledger.seconds(Part.SQL) == MAX_STATEMENTS + 36


async def test_tasks_of_a_request_share_its_context() -> None:
    """Concurrent work adds to one ledger; outside there is no context."""

    async def work() -> None:
        context = current()
        assert context is not None
        context.ledger.add(Part.CPU, 1.0)

    assert current() is None
    with activate(RequestContext(request_id="r")) as context:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(work())
    assert current() is None
    assert context.ledger.seconds(Part.CPU) == 3.0


def test_contexts_nest() -> None:
    """Leaving the inner one brings back the outer one, also after an error."""
    with activate(RequestContext(request_id="outer")) as outer:
        with pytest.raises(RuntimeError), activate(RequestContext(request_id="inner")):
            raise RuntimeError
        assert current() is outer


def test_a_detached_context_has_no_request() -> None:
    """For tasks that outlive the request that starts them."""
    with activate(RequestContext()) as context:
        assert detached().run(current) is None
        assert current() is context


def test_the_remaining_time_is_never_negative() -> None:
    """0 when the deadline has passed, None when there is none."""
    assert RequestContext().remaining(5.0) is None
    assert RequestContext(deadline=7.0).remaining(5.0) == 2.0
    assert RequestContext(deadline=4.0).remaining(5.0) == 0.0


def test_a_child_span_stays_in_its_trace() -> None:
    """Same trace, new span, the parent named."""
    trace = Trace.new()
    child = trace.child()
    assert (child.trace_id, child.parent_id) == (trace.trace_id, trace.span_id)
    assert child.span_id != trace.span_id
    assert trace.traceparent == f"00-{trace.trace_id}-{trace.span_id}-00"
