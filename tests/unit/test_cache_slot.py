"""Proof of freshness: while a slot says that values may be given out, none is older than its share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from springtide.cache._slot import EVERYTHING, MAX_RECENT, Slot, round_text


class Ear:
    def __init__(self) -> None:
        self.heard: list[tuple[tuple[str, ...], int]] = []

    def __call__(self, fields: Sequence[str], sequence: int) -> None:
        self.heard.append((tuple(fields), sequence))


def slot_of(*, relayed: bool = False, share: float = 1.0) -> tuple[Slot, Ear]:
    ear = Ear()
    slot = Slot("users@main", share=share, relayed=relayed, heard=ear)
    return slot, ear


def test_a_new_slot_proves_nothing_and_holds_nothing() -> None:
    slot, _ = slot_of()
    assert slot.good_until < 0
    assert not slot.admits(("k:1",), 10, slot.generation)


def test_without_a_relay_the_sequence_that_was_heard_is_the_proof() -> None:
    """The moment counts at which the read was sent, and only once all up to the sequence has been heard."""
    slot, ear = slot_of()
    slot.begin("s1", 10, "5-0", 100.0)
    assert slot.good_until == 101.0
    slot.complete(100.2)
    assert slot.asked(10, 100.2)
    assert slot.good_until == 101.2
    slot.complete(100.4)
    assert slot.asked(11, 100.4)  # voided after the read: on its way
    assert slot.good_until == 101.2
    assert slot.void("6-0", 11, ("k:1", "t:a"))
    slot.complete(100.6)
    assert slot.asked(11, 100.6)
    assert slot.good_until == 101.6
    assert ear.heard[-1] == (("k:1", "t:a"), 11)


def test_a_sequence_that_a_later_read_does_not_bring_is_a_gap() -> None:
    """An evicted stream looks like a silent one: only the sequence tells that something was lost."""
    slot, ear = slot_of()
    slot.begin("s1", 10, "5-0", 100.0)
    slot.complete(100.2)
    assert slot.asked(11, 100.2)
    slot.complete(100.4)
    assert not slot.asked(11, 100.4)
    assert (slot.gaps, slot.scope, slot.good_until < 0) == (1, "", True)
    assert ear.heard[-1] == ((EVERYTHING,), 0)


@pytest.mark.parametrize("sequence", [None, 9])
def test_a_sequence_that_is_gone_or_went_back_is_a_gap(sequence: int | None) -> None:
    slot, _ = slot_of()
    slot.begin("s1", 10, "5-0", 100.0)
    assert not slot.asked(sequence, 100.2)


@pytest.mark.parametrize("sequence", [10, 12, 9])
def test_a_void_that_does_not_continue_what_was_heard_is_a_gap(sequence: int) -> None:
    slot, ear = slot_of()
    slot.begin("s1", 10, "5-0", 100.0)
    generation = slot.generation
    assert not slot.void("6-0", sequence, ("k:1",))
    assert slot.generation == generation + 1
    assert ear.heard[-1] == ((EVERYTHING,), 0)


def test_with_a_relay_a_round_proves_what_was_committed_before_the_one_before_it_ended() -> None:
    slot, _ = slot_of(relayed=True)
    slot.begin("s1", 10, "5-0", 100.0)
    assert slot.good_until < 0
    slot.complete(100.1)
    slot.beat("6-0", 10, round_text("r1", 1))
    assert slot.good_until < 0
    slot.complete(100.3)
    slot.beat("7-0", 10, round_text("r1", 2))
    assert slot.good_until == 101.1  # round 2 began after round 1 ended, which was after 100.1


def test_rounds_read_from_a_backlog_prove_nothing_of_the_time_when_they_were_read() -> None:
    """A process that was stopped for an hour reads old rounds at once: they began an hour ago."""
    slot, _ = slot_of(relayed=True)
    slot.begin("s1", 10, "5-0", 100.0)
    slot.complete(100.1)
    for number in range(1, 50):
        slot.beat(f"{5 + number}-0", 10, round_text("r1", number))
    assert slot.good_until == 101.1
    slot.complete(3700.0)
    slot.beat("60-0", 10, round_text("r1", 50))
    assert slot.good_until == 101.1  # round 49 ended before 3700
    slot.beat("61-0", 10, round_text("r1", 51))
    assert slot.good_until == 3701.0


def test_two_relays_do_not_prove_for_each_other() -> None:
    slot, _ = slot_of(relayed=True)
    slot.begin("s1", 10, "5-0", 100.0)
    slot.beat("6-0", 10, round_text("r1", 7))
    slot.beat("7-0", 10, round_text("r2", 8))
    assert slot.good_until < 0
    slot.beat("8-0", 10, round_text("r1", 8))
    assert slot.good_until < 0
    slot.beat("9-0", 10, round_text("r1", 8))  # the same round again
    assert slot.good_until < 0
    slot.beat("10-0", 10, round_text("r1", 9))
    assert slot.good_until == 101.0


def test_a_round_of_another_sequence_is_a_gap_and_one_in_another_form_is_none() -> None:
    slot, _ = slot_of(relayed=True)
    slot.begin("s1", 10, "5-0", 100.0)
    assert slot.beat("6-0", 10, "something else")
    assert not slot.beat("7-0", 11, round_text("r1", 1))


def test_another_scope_begins_anew() -> None:
    slot, ear = slot_of()
    slot.begin("s1", 10, "5-0", 100.0)
    slot.void("6-0", 11, ("k:1",))
    generation = slot.generation
    slot.begin("s2", 500, "9-0", 200.0)
    assert slot.generation == generation + 1
    assert (slot.position, slot.last_id, slot.good_until) == (500, "9-0", 201.0)
    assert slot.prefix == "{users@main}:s2:"
    assert ear.heard[-1] == ((EVERYTHING,), 0)


def test_a_value_on_its_way_is_not_admitted_when_its_void_was_heard_first() -> None:
    slot, _ = slot_of()
    slot.begin("s1", 10, "5-0", 100.0)
    now = slot.generation
    slot.void("6-0", 11, ("k:1", "t:a"))
    assert not slot.admits(("k:1",), 10, now)
    assert not slot.admits(("k:2", "t:a"), 10, now)
    assert slot.admits(("k:1", "t:a"), 11, now)
    assert slot.admits(("k:2", "t:b"), 10, now)
    assert slot.admits(("k:1",), 12, now)  # it is ahead of what has been heard
    assert not slot.admits(("k:2",), 9, now)  # from before it began to listen
    assert not slot.admits(("k:2",), 11, now - 1)
    slot.void("7-0", 12, (EVERYTHING,))
    assert not slot.admits(("k:2",), 11, now)
    assert slot.admits(("k:2",), 12, now)


def test_what_is_remembered_of_voids_is_bounded_and_what_is_forgotten_admits_nothing() -> None:
    slot, _ = slot_of()
    slot.begin("s1", 0, "0-0", 100.0)
    for number in range(1, MAX_RECENT + 11):
        slot.void(f"{number}-0", number, (f"k:{number}",))
    assert len(slot._recent) == MAX_RECENT
    assert not slot.admits(("k:other",), 9, slot.generation)
    assert slot.admits(("k:other",), 10, slot.generation)


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a:b", "x" * 129])
def test_names_that_could_not_be_carried_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a slot's name is"):
        Slot(name, share=1.0, relayed=False, heard=Ear())
    with pytest.raises(ValueError, match="share must be > 0 seconds, got 0"):
        Slot("users", share=0, relayed=False, heard=Ear())


# -- a world in which everything is late, lost or done twice ---------------------------------------------


class Relay:
    """Leads at times, is frozen at others; what it does lies in many steps, and anything happens between."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.round = 0
        self.work: list[Any] | None = None


class World:
    """A database, its relays, one Redis, and one process with one slot and a first level."""

    def __init__(self, seed: int, *, relayed: bool, faults: bool = True) -> None:
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.relayed = relayed
        self.faults = faults
        self.busy = self.chance.choice([0.05, 0.3, 2])
        self.commits: dict[str, list[float]] = {key: [0.0] for key in "abc"}
        self.unsent: list[tuple[str, int]] = []
        """Committed, and perhaps never voided by its writer."""
        self.voided: dict[str, int] = dict.fromkeys("abc", 0)
        self.relays = [Relay("r1"), Relay("r2")]
        self.scope, self.sequence, self.clock = 1, 1_000, 0
        self.stream: list[tuple[int, int, Any]] = []
        self.first: dict[str, tuple[int, float]] = {}
        self.slot = Slot("users@main", share=0.4, relayed=relayed, heard=self.hear)
        self.reader: list[Any] = []
        self.sent = 0.0
        self.fills: list[Any] = []
        self.hits = self.checked = 0

    # the database and who voids

    def commit(self) -> None:
        key = self.chance.choice("abc")
        self.commits[key].append(self.now)
        version = len(self.commits[key]) - 1
        if not self.relayed:
            self.void(key, version)
        elif self.chance.random() < 0.7:
            self.unsent.append((key, version))

    def send(self) -> None:
        if self.unsent:
            self.void(*self.unsent.pop(self.chance.randrange(len(self.unsent))))

    def void(self, key: str, version: int) -> None:
        if version <= self.voided[key] and self.relayed:
            return  # its tombstone is there
        self.voided[key] = max(version, self.voided[key])
        self.sequence += 1
        self.append(("void", key))

    def append(self, said: Any) -> None:
        self.clock += 1
        self.stream.append((self.clock, self.sequence, said))

    def relay(self) -> None:
        relay = self.chance.choice(self.relays)
        if relay.work is None:
            relay.round += 1
            relay.work = [(key, len(times) - 1) for key, times in self.commits.items()]
        elif relay.work:
            key, version = relay.work.pop()
            if version > self.voided[key]:
                self.void(key, version)
        else:
            relay.work = None
            self.append(("beat", round_text(relay.name, relay.round)))

    # what Redis loses

    def fault(self) -> None:
        if self.chance.random() < 0.7:  # of what nobody has read yet
            self.commit()
            self.send()
        match self.chance.randrange(6):
            case 0:
                self.stream = self.stream[self.chance.randrange(len(self.stream) + 1) :]
            case 1:
                self.stream = []
                self.clock = self.chance.choice([self.clock + 1000, max(self.clock - 20, 0)])
            case 2:
                self.sequence += self.chance.randrange(1, 10_000)
            case 3:
                self.sequence = max(self.sequence + self.chance.randrange(-10, 10), 0)
                self.stream = []
            case 4:  # another server process: nothing is left, and nothing of before can be asked for
                self.scope += 1
                self.stream = []
                self.sequence = self.chance.randrange(1, 10_000)
            case 5:
                self.reader = []  # the link is lost, with all that was on its way

    # the process

    def hear(self, fields: Sequence[str], sequence: int) -> None:
        for field in fields:
            if field == EVERYTHING:
                self.first.clear()
            else:
                self.first.pop(field, None)

    def read(self) -> None:
        """One step of the reader: send, be executed, be answered; each at any later time."""
        if not self.reader:
            self.sent = self.now
            if self.slot.scope != str(self.scope):
                self.slot.end()
                self.reader = ["follow", ("begin", None)]
            else:
                self.reader = ["first", "ask", "second", ("answers", [])]
            return
        match self.reader[0]:
            case "follow":
                found = (str(self.scope), self.sequence, str(self.clock), self.sent)
                self.reader = [("begin", found)]
            case "first" | "second":
                after = int(self.slot.last_id)
                new = [entry for entry in self.stream if entry[0] > after]
                cut = new[: self.chance.choice([1, 3, 1000])]
                self.reader[-1][1].append((self.reader[0], cut, len(cut) == len(new)))
                del self.reader[0]
            case "ask":
                self.reader[-1][1].append(("ask", self.sequence, True))
                del self.reader[0]
            case ("begin", found):
                self.slot.begin(*found)
                self.reader = []
            case ("answers", answers):
                self.take(answers)
                self.reader = []

    def take(self, answers: list[Any]) -> None:
        for kind, what, whole in answers:
            if kind == "ask":
                if not self.relayed and not self.slot.asked(what, self.sent):
                    return
                continue
            for entry_id, sequence, (said, text) in what:
                if entry_id <= int(self.slot.last_id):
                    continue
                if said == "void":
                    good = self.slot.void(str(entry_id), sequence, (text,))
                else:
                    good = self.slot.beat(str(entry_id), sequence, text)
                if not good:
                    return
            if kind == "first" and whole:
                self.slot.complete(self.sent)

    def fill(self) -> None:
        """Ask the second level, which has what was committed at the last void of the key, or later."""
        if self.fills and self.chance.random() < 0.6:
            fill = self.fills.pop(self.chance.randrange(len(self.fills)))
            key, generation, scope, found = fill
            if found is None and scope == self.scope:
                version = self.chance.randint(self.voided[key], len(self.commits[key]) - 1)
                self.fills.append((key, generation, scope, (version, self.sequence)))
            elif found is not None and self.slot.admits((key,), found[1], generation):
                self.first[key] = (found[0], self.now)
        elif len(self.fills) < 5:
            self.fills.append((self.chance.choice("abc"), self.slot.generation, self.scope, None))

    def step(self) -> None:
        self.now += self.chance.choice([0.0, 0.0, 0.001, 0.003, 0.01])
        acts = [self.read, self.fill, self.commit, self.send, self.relay]
        self.chance.choices(acts, [8, 6, self.busy, self.busy, 6 * self.relayed])[0]()
        if self.faults and self.chance.random() < 0.006:
            self.fault()
        if self.faults and self.chance.random() < 0.001:
            self.now += self.chance.choice([0.5, 1.0, 3600.0])
        self.check()

    def check(self) -> None:
        self.checked += 1
        if self.now >= self.slot.good_until:
            return
        for key, (version, _) in self.first.items():
            self.hits += 1
            newer = self.commits[key][version + 1 :]
            assert not newer or newer[0] > self.now - self.slot.share, (
                f"{key} was changed {self.now - newer[0]:.3f} s ago"
            )


@pytest.mark.parametrize("relayed", [True, False])
def test_nothing_older_than_the_share_is_given_out_whatever_is_late_or_lost(relayed: bool) -> None:
    """Random interleavings of commits, voids, two relays, losses of Redis and a reader that is late."""
    hits = 0
    for seed in range(60):
        world = World(seed, relayed=relayed)
        for _ in range(1500):
            try:
                world.step()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
        hits += world.hits
    assert hits > 2_000, "the model has to give out values, or it shows nothing"
