"""The history checker: it accepts what a correct system does and names each way to be wrong."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.db.consistency import Consistency
from springtide.testing.history import Operation, Read, Violation, Write, check

STRONG, SESSION, EVENTUAL = Consistency.STRONG, Consistency.SESSION, Consistency.EVENTUAL


def wrote(
    version: int | None,
    at: float,
    by: str = "ann",
    *,
    took: float = 0.0,
    value: str = "",
    outcome: str = "ok",
) -> Write:
    return Write(
        session=by, key="k", value=value or f"v{version}", version=version, began=at, ended=at + took,
        outcome=outcome,  # type: ignore[arg-type]  # one of the three, by the tests below
    )  # fmt: skip


def read(
    version: int, at: float, by: str = "ann", *, took: float = 0.0, level: Consistency = SESSION,
    value: str | None = None,
) -> Read:  # fmt: skip
    seen = value or (f"v{version}" if version else None)
    return Read(
        session=by, key="k", value=seen, version=version, began=at, ended=at + took, consistency=level
    )


def rules(found: list[Violation]) -> list[str]:
    return [violation.rule for violation in found]


GOOD: dict[str, list[Operation]] = {
    "nothing": [],
    "sees its own write": [wrote(1, 0), read(1, 1)],
    "somebody else may see it later": [wrote(1, 0), read(0, 1, "bob"), read(1, 2, "bob")],
    "a read that began before the write ended may miss it": [wrote(1, 0, took=2), read(0, 1)],
    "overlapping reads may differ in any order": [
        wrote(1, 0, "bob"), read(1, 1, took=5), read(0, 2, took=1),
    ],
    "an eventual read may go back": [wrote(1, 0), read(1, 1, level=EVENTUAL), read(0, 2, level=EVENTUAL)],
    "an eventual read sets no floor": [wrote(1, 0, "bob"), read(1, 1, level=EVENTUAL), read(0, 2)],
    "bounded may be as old as its bound": [wrote(1, 10), read(0, 14, "bob", level=Consistency.bounded(5))],
    "bounded promises a session nothing": [wrote(1, 10), read(0, 14, level=Consistency.bounded(5))],
    "a write nobody knows of may be seen": [
        wrote(None, 0, value="x", outcome="unknown"), read(1, 1, value="x"),
    ],
    "or not": [wrote(None, 0, value="x", outcome="unknown"), read(0, 1)],
    "a write may be read before it was answered": [wrote(1, 0, took=9), read(1, 1, "bob")],
}  # fmt: skip

BAD: dict[str, tuple[list[Operation], list[str]]] = {
    "misses its own write": ([wrote(1, 0), read(0, 1)], ["read-your-writes"]),
    "misses the newer of two": ([wrote(1, 0), wrote(2, 1), read(1, 2)], ["read-your-writes"]),
    "goes back": ([wrote(1, 0, "bob"), read(1, 1), read(0, 2)], ["monotonic-reads"]),
    "goes back to an old write": (
        [wrote(1, 0, "bob"), wrote(2, 1, "bob"), read(2, 2), read(1, 3)], ["monotonic-reads"],
    ),
    "strong misses somebody's write": ([wrote(1, 0, "bob"), read(0, 1, level=STRONG)], ["stale"]),
    "strong goes back behind a strong read of a write that is still open": (
        [wrote(1, 0, "bob", took=9), read(1, 1, "eve", level=STRONG), read(0, 2, level=STRONG)], ["stale"],
    ),
    "bounded is older": (
        [wrote(1, 0, "bob"), read(0, 6, level=Consistency.bounded(5))], ["stale"],
    ),
    "a version was given twice": (
        [wrote(1, 0, value="x"), wrote(1, 1, "bob", value="y")], ["lost-write", "two-histories"],
    ),
    "a later write counts from before": (
        [wrote(1, 0), wrote(2, 1), wrote(1, 2, "bob", value="z")], ["lost-write", "two-histories"],
    ),
    "nobody wrote it": ([read(1, 0)], ["phantom"]),
    "it failed": ([wrote(None, 0, value="x", outcome="failed"), read(1, 1, value="x")], ["phantom"]),
    "it was read before": ([read(1, 0), wrote(1, 1)], ["phantom"]),
    "two values of one version": (
        [
            wrote(1, 0), wrote(None, 0, value="x", outcome="unknown"),
            read(1, 1, "bob"), read(1, 2, "eve", value="x"),
        ],
        ["two-histories"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_has_no_violations(name: str) -> None:
    assert check(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_named_by_its_rule(name: str) -> None:
    history, expected = BAD[name]
    assert rules(check(history)) == expected


def test_keys_have_nothing_to_do_with_each_other() -> None:
    other = dataclasses.replace(wrote(5, 0), key="other")
    assert check([other, read(0, 1)]) == []


def test_an_acknowledged_write_is_there_in_the_end() -> None:
    history = [wrote(1, 0), wrote(2, 1), wrote(None, 2, value="x", outcome="unknown")]
    assert check(history, final={"k": {1: "v1", 2: "v2"}}) == []
    assert check(history, final={"k": {1: "v1", 2: "v2", 3: "x"}}) == []
    assert rules(check(history, final={"k": {1: "v1"}})) == ["lost-write"]
    assert rules(check(history, final={})) == ["lost-write", "lost-write"]
    assert rules(check(history, final={"k": {1: "v1", 2: "x"}})) == ["lost-write", "two-histories"]


def test_a_write_that_failed_is_not_there_in_the_end() -> None:
    history = [wrote(None, 0, value="x", outcome="failed")]
    assert rules(check(history, final={"k": {1: "x"}})) == ["phantom"]


def test_what_cannot_be_judged_is_refused_with_its_value() -> None:
    with pytest.raises(ValueError, match="two attempts wrote 'v1'"):
        check([wrote(1, 0), wrote(1, 1)])
    with pytest.raises(ValueError, match="version >= 1, got None"):
        wrote(None, 0, value="x")
    with pytest.raises(ValueError, match="or 0 with None"):
        Read(session="ann", key="k", value=None, version=1, began=0, ended=0)
    with pytest.raises(ValueError, match=r"ends after it began, got 1 to 0"):
        Read(session="ann", key="k", value=None, version=0, began=1, ended=0)


@given(seed=st.integers(0, 10_000), replicas=st.integers(1, 4), steps=st.integers(1, 60))
def test_a_correct_system_passes_whatever_its_replicas_do(seed: int, replicas: int, steps: int) -> None:
    """Sessions on lagging replicas that respect what each session has written and read."""
    assert check(_simulated(seed, replicas, steps, pinned=True)) == []


def test_a_system_without_tokens_is_caught() -> None:
    """The same system whose sessions read anywhere breaks both promises of a session, and no other rule."""
    found = {rule for seed in range(50) for rule in rules(check(_simulated(seed, 3, 60, pinned=False)))}
    assert found == {"read-your-writes", "monotonic-reads"}


@given(st.integers(0, 100_000))
def test_it_agrees_with_the_definitions_read_word_by_word(seed: int) -> None:
    """On histories without any order in them, the fast check finds what comparing all pairs finds."""
    history = _chaos(seed)
    fast = [(violation.rule, history.index(violation.operation)) for violation in check(history)]
    assert sorted(set(fast)) == sorted(set(_by_definition(history)))


def _simulated(seed: int, replicas: int, steps: int, *, pinned: bool) -> list[Operation]:
    rng = random.Random(seed)
    log: list[str] = []
    replayed = [0] * replicas
    floors: dict[str, int] = {}
    history: list[Operation] = []
    for step in range(steps):
        who, now = rng.choice("abc"), float(step)
        replica = rng.randrange(replicas)
        replayed[replica] = rng.randint(replayed[replica], len(log))
        if rng.random() < 0.3:
            log.append(f"w{step}")
            floors[who] = len(log)
            history.append(Write(session=who, key="k", value=log[-1], version=len(log), began=now, ended=now))
            continue
        reached = [seen for seen in replayed if seen >= floors.get(who, 0) or not pinned]
        version = rng.choice(reached) if reached else len(log)
        floors[who] = max(floors.get(who, 0), version)
        value = log[version - 1] if version else None
        history.append(Read(session=who, key="k", value=value, version=version, began=now, ended=now))
    return history


def _chaos(seed: int) -> list[Operation]:
    rng = random.Random(seed)
    levels = [SESSION, STRONG, EVENTUAL, Consistency.bounded(3.0)]
    history: list[Operation] = []
    for number in range(rng.randint(1, 12)):
        at = float(rng.randint(0, 10))
        times = {"began": at, "ended": at + rng.randint(0, 4) + 0.1 * number + 0.05}
        who, version = rng.choice("ab"), rng.randint(1, 4)
        if rng.random() < 0.5:
            outcome = rng.choice(["ok", "ok", "failed", "unknown"])
            history.append(
                Write(
                    session=who, key="k", value=f"w{number}", outcome=outcome,  # type: ignore[arg-type]
                    version=version if outcome == "ok" else None, **times,
                )
            )  # fmt: skip
        else:
            value = rng.choice([None, f"w{rng.randint(0, 12)}"])
            history.append(
                Read(
                    session=who, key="k", value=value, version=version if value else 0,
                    consistency=rng.choice(levels), **times,
                )
            )  # fmt: skip
    return history


def _by_definition(history: list[Operation]) -> list[tuple[str, int]]:
    writes = [op for op in history if isinstance(op, Write)]
    acknowledged = [write for write in writes if write.outcome == "ok"]
    reads = [op for op in history if isinstance(op, Read)]
    session = [one for one in reads if one.consistency.level in ("session", "strong")]
    strong = [one for one in reads if one.consistency.level == "strong"]
    found: list[tuple[str, Operation]] = []

    def older(one: Read, others: list[Write] | list[Read], since: float) -> bool:
        return any(other.ended <= since and (other.version or 0) > one.version for other in others)

    for one in reads:
        same = [write for write in acknowledged if write.session == one.session]
        mine = [other for other in session if other.session == one.session]
        if one in session and older(one, same, one.began):
            found.append(("read-your-writes", one))
        if one in session and older(one, mine, one.began):
            found.append(("monotonic-reads", one))
        if one in strong and (older(one, acknowledged, one.began) or older(one, strong, one.began)):
            found.append(("stale", one))
        staleness = one.consistency.staleness
        if staleness is not None and older(one, acknowledged, one.began - staleness):
            found.append(("stale", one))
        sources = [write for write in writes if write.value == one.value]
        if one.value is not None and not (
            sources and sources[0].outcome != "failed" and sources[0].began <= one.ended
        ):
            found.append(("phantom", one))
    for write in acknowledged:
        if any(
            other.ended <= write.began and (other.version or 0) >= (write.version or 0)
            for other in acknowledged
        ):
            found.append(("lost-write", write))
    known: dict[int, str] = {}
    for op in sorted([*acknowledged, *reads], key=lambda op: (op.ended, isinstance(op, Read))):
        if op.value is not None and known.setdefault(op.version or 0, op.value) != op.value:
            found.append(("two-histories", op))
    return [(rule, history.index(op)) for rule, op in found]
