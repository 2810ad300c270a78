"""Judge a recorded history of reads and writes: was anything lost, stale, or read that nobody wrote?

    history = [
        Write(session="ann", key="cart", value="w1", version=1, began=0.0, ended=0.1),
        Read(session="ann", key="cart", value=None, version=0, began=0.2, ended=0.3),
    ]
    check(history)      # -> [Violation(rule="read-your-writes", ...)]

Every key is a register. Its database counts the writes (`set version = version + 1 ... returning version`),
and every attempt to write brings a value that no other attempt has, so a read says exactly which write it
saw. Times are seconds of one clock that all recorders share (`time.monotonic()` on one machine). What is
checked, of each key by itself:

    read-your-writes   a session sees its own writes that were acknowledged before it asked
    monotonic-reads    a session never sees an older version than it saw before
    stale              strong: every write that was acknowledged before; bounded(s): before, less s seconds
    lost-write         an acknowledged write is there afterwards, and later writes count on from it
    phantom            what is read was written, by a write that had begun and did not fail
    two-histories      a version has one value

The first two hold for reads that were asked to be `session` or `strong`; the last two for all of them.
The first four are what Terry et al., "Session guarantees for weakly consistent replicated data" (1994) and
Herlihy and Wing, "Linearizability" (1990) define, cut down to registers whose versions are known, so a
history of n operations takes O(n log n) instead of a search. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from springtide.db.consistency import Consistency

__all__ = ["Operation", "Read", "Rule", "Violation", "Write", "check"]

Rule = Literal["read-your-writes", "monotonic-reads", "stale", "lost-write", "phantom", "two-histories"]

Outcome = Literal["ok", "failed", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One attempt to write. `version` is what the database answered.

    outcome: "ok" was acknowledged; "failed" is known to have done nothing; "unknown" may have happened
             (a lost connection after COMMIT was sent), and is then held to nothing.

    Raises ValueError for an acknowledged write without a version.
    """

    session: str
    key: str
    value: str
    began: float
    ended: float
    version: int | None = None
    outcome: Outcome = "ok"

    def __post_init__(self) -> None:
        if self.outcome == "ok" and (self.version is None or self.version < 1):
            raise ValueError(f"an acknowledged write has a version >= 1, got {self.version} of {self.key!r}")
        _check_times(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One read that was answered. `version` 0 and `value` None: there was nothing."""

    session: str
    key: str
    value: str | None
    version: int
    began: float
    ended: float
    consistency: Consistency = Consistency.SESSION

    def __post_init__(self) -> None:
        if self.version < 0 or (self.version == 0) != (self.value is None):
            raise ValueError(
                f"a read answers a version >= 1 with its value, or 0 with None,"
                f" got {self.version} with {self.value!r} of {self.key!r}"
            )
        _check_times(self)


Operation: TypeAlias = Write | Read


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """`rule` was broken on `key`; `sentence` says how, `operation` is the one that shows it."""

    rule: Rule
    key: str
    session: str
    sentence: str
    operation: Operation


def check(
    history: Iterable[Operation], *, final: Mapping[str, Mapping[int, str]] | None = None
) -> list[Violation]:
    """Every violation, by key and in the order in which the operations ended; none for a good history.

    final: what was found when all was over, key -> version -> value. A key that is left out has lost all
           of its writes. None: nobody looked.

    Raises ValueError when two attempts wrote one value: then nothing can be told from what was read.
    """
    keys: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        keys[operation.key].append(operation)
    found: list[Violation] = []
    for key, operations in keys.items():
        operations.sort(key=lambda operation: (operation.ended, isinstance(operation, Read)))
        found += _Key(operations, None if final is None else final.get(key, {})).violations()
    return found


class _Floor:
    """The highest version among those recorded up to a moment; they come in the order of their moments."""

    __slots__ = ("_moments", "_versions")

    def __init__(self) -> None:
        self._moments: list[float] = []
        self._versions: list[int] = []

    def add(self, moment: float, version: int) -> None:
        self._moments.append(moment)
        self._versions.append(max(version, self._versions[-1]) if self._versions else version)

    def at(self, moment: float) -> int:
        """0 before the first."""
        place = bisect_right(self._moments, moment)
        return self._versions[place - 1] if place else 0


class _Key:
    """One key's operations, in the order in which they ended."""

    def __init__(self, operations: list[Operation], final: Mapping[int, str] | None) -> None:
        self._operations = operations
        self._final = final
        self._found: list[Violation] = []

    def violations(self) -> list[Violation]:
        attempts = self._attempts()
        values: dict[int, str] = dict(self._final or {})
        written, strongly = _Floor(), _Floor()
        own: defaultdict[str, _Floor] = defaultdict(_Floor)
        seen: defaultdict[str, _Floor] = defaultdict(_Floor)
        for operation in self._operations:
            if isinstance(operation, Write):
                if operation.outcome == "ok":
                    self._acknowledged(operation, written)
                    assert operation.version is not None
                    self._one_value(operation, operation.version, operation.value, values)
                    written.add(operation.ended, operation.version)
                    own[operation.session].add(operation.ended, operation.version)
                continue
            self._was_written(operation, attempts)
            if operation.value is not None:
                self._one_value(operation, operation.version, operation.value, values)
            level = operation.consistency.level
            if level in ("session", "strong"):
                self._reaches(operation, "read-your-writes", own[operation.session].at(operation.began))
                self._reaches(operation, "monotonic-reads", seen[operation.session].at(operation.began))
                seen[operation.session].add(operation.ended, operation.version)
            if level == "strong":
                known = max(written.at(operation.began), strongly.at(operation.began))
                self._reaches(operation, "stale", known)
                strongly.add(operation.ended, operation.version)
            if operation.consistency.staleness is not None:
                moment = operation.began - operation.consistency.staleness
                self._reaches(operation, "stale", written.at(moment))
        return self._found

    def _attempts(self) -> dict[str, Write]:
        attempts: dict[str, Write] = {}
        for operation in self._operations:
            if isinstance(operation, Write):
                if operation.value in attempts:
                    raise ValueError(f"two attempts wrote {operation.value!r} to {operation.key!r}")
                attempts[operation.value] = operation
        for version, value in (self._final or {}).items():
            writer = attempts.get(value)
            if writer is not None and writer.outcome == "failed":
                self._add(writer, "phantom", f"it failed, and is there in the end as version {version}")
        return attempts

    def _acknowledged(self, write: Write, written: _Floor) -> None:
        assert write.version is not None
        before = written.at(write.began)
        if write.version <= before:
            self._add(
                write, "lost-write",
                f"it became version {write.version} although version {before} had been acknowledged before",
            )  # fmt: skip
        if self._final is not None and self._final.get(write.version) != write.value:
            there = self._final.get(write.version)
            self._add(
                write, "lost-write",
                f"version {write.version} was acknowledged and is {'gone' if there is None else repr(there)}"
                " in the end",
            )  # fmt: skip

    def _was_written(self, read: Read, attempts: Mapping[str, Write]) -> None:
        if read.value is None:
            return
        write = attempts.get(read.value)
        if write is None:
            self._add(read, "phantom", f"nobody wrote {read.value!r}")
        elif write.outcome == "failed":
            self._add(read, "phantom", f"the write of {read.value!r} failed")
        elif write.began > read.ended:
            self._add(read, "phantom", f"{read.value!r} was read before its write began")

    def _one_value(self, operation: Operation, version: int, value: str, values: dict[int, str]) -> None:
        known = values.setdefault(version, value)
        if known != value:
            self._add(operation, "two-histories", f"version {version} is {value!r} here and {known!r} there")

    def _reaches(self, read: Read, rule: Rule, floor: int) -> None:
        if read.version < floor:
            self._add(read, rule, f"it saw version {read.version}, and {floor} was to be seen")

    def _add(self, operation: Operation, rule: Rule, sentence: str) -> None:
        self._found.append(
            Violation(
                rule=rule,
                key=operation.key,
                session=operation.session,
                sentence=f"session {operation.session}, key {operation.key}: {sentence}",
                operation=operation,
            )
        )


def _check_times(operation: Operation) -> None:
    if operation.ended < operation.began:
        raise ValueError(
            f"an operation ends after it began, got {operation.began} to {operation.ended}"
            f" of {operation.key!r}"
        )
