"""The first level: values in this process's memory, one bound in bytes for all classes, evicted by S3-FIFO.

Yang, Zhang, Qiu, Yue, Vinayak, "FIFO queues are all you need for cache eviction" (SOSP 2023). `small` (a
tenth of the bytes) takes what is new; who leaves it was either asked for again and moves to `main`, or is
forgotten but for a fingerprint of its key, which `ghost` keeps for a while. A key that comes back while it is
there goes to `main` at once. A hit adds one to a small number and moves nothing.

    new -> small -> main (used meanwhile, or known to the ghost) -> gone (a whole round of main without use)
              `---> gone, fingerprint in the ghost

Each class has a `View`: a dict of its own keyed by the arguments of its calls, so that a hit is one look-up,
and an index from field to entries. Fields are what an invalidation names: the key's own and the tags of its
value. The index costs bytes for each field, charged to the entry, and saves every hit from asking for
versions; an invalidated tag touches exactly the entries that carry it.

Entries leave the queues lazily: one that is dropped is passed over when it is met, and a queue with more such
than others is swept. What has expired counts as gone when it is asked for and when it is met. So everything
here is bounded by `max_bytes`: values, queues, index and ghost.

Not safe for threads, as everything of a loop. Nothing happens at import, so a fork takes over plain objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from sys import getsizeof
from typing import Any

from springtide.clock import Clock, SystemClock

__all__ = ["Entry", "Memory", "View"]

OVERHEAD = 450
"""Bytes that an entry costs beside its value: itself, its key and field, its places in tables and queues."""

USUAL = 64
"""Characters of the texts of a key, and of a field, that are in it; what they have beyond is charged."""

TAG_OVERHEAD = 300
"""Bytes that each further field of an entry costs."""

GHOST_BYTES = 100
"""Bytes of one fingerprint."""

MOST_USES = 3
"""What a hit raises the use counter to: so many rounds of `main` a value survives without being asked for."""

HELD_USES = 15
"""The same of a value that is held because its key is hot."""

SWEEP = 64
"""Entries that were dropped stay in a queue until they are more than the others and this."""

GONE, SMALL, MAIN = 0, 1, 2


class Entry:
    """A value and until when it may be given out: `fresh` and `stale`, seconds of the monotonic clock.

    slot: whose proof of freshness it needs. fields: what invalidates it. A hit must do `uses += 1` while that
    is below MOST_USES, and nothing else.
    """

    __slots__ = ("fields", "fresh", "key", "place", "slot", "stale", "uses", "value", "view", "weight")

    def __init__(
        self, view: View, key: Hashable, value: Any, slot: Any, fields: Sequence[str], weight: int
    ) -> None:
        self.view = view
        self.key = key
        self.value = value
        self.slot = slot
        self.fields = fields
        self.weight = weight
        self.fresh = 0.0
        self.stale = 0.0
        self.uses = 0
        self.place = GONE


class View:
    """The entries of one class. Made by `Memory.view`."""

    __slots__ = ("_index", "_memory", "bytes", "entries", "evicted", "expired", "name", "number", "refused")

    def __init__(self, memory: Memory, name: str, number: int) -> None:
        self._memory = memory
        self.name = name
        self.number = number
        self.entries: dict[Hashable, Entry] = {}
        """For the hot path, which asks it directly; it is one object for ever, changed from here alone."""
        self._index: dict[str, Entry | set[Entry]] = {}
        self.bytes = 0
        self.evicted = 0
        """Entries that made room for others while they were still worth something."""
        self.expired = 0
        """Entries that were found to have expired."""
        self.refused = 0
        """Values that were too heavy to be kept."""

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, key: Hashable, now: float) -> Entry | None:
        """The entry, if it may still be given out in some way (`now` < its `stale`); counts as a use."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        if now >= entry.stale:
            self.expired += 1
            self._memory._drop(entry)
            return None
        if entry.uses < MOST_USES:
            entry.uses += 1
        return entry

    def put(
        self,
        key: Hashable,
        value: Any,
        *,
        slot: Any,
        fields: Sequence[str],
        fresh: float,
        stale: float,
        bytes: int,
        hold: bool = False,
    ) -> bool:
        """Keep the value, evicting as many others as it needs; False when it is too heavy to be kept.

        bytes: what the value takes. hold: its key is hot, so it stays for longer without being asked for.
        """
        weight = bytes + OVERHEAD + TAG_OVERHEAD * (len(fields) - 1) + _spelled(key)
        for field in fields:
            if len(field) > USUAL:
                weight += len(field) - USUAL
        entry = Entry(self, key, value, slot, fields, weight)
        entry.fresh, entry.stale = fresh, max(fresh, stale)
        if hold:
            entry.uses = HELD_USES
        kept = self._memory._put(entry)
        self.refused += not kept
        return kept

    def hold(self, key: Hashable) -> None:
        """Its key is hot: the entry, if there is one, survives more rounds without being asked for."""
        if (entry := self.entries.get(key)) is not None:
            entry.uses = HELD_USES

    def drop(self, key: Hashable) -> bool:
        """Forget the key; whether it was there."""
        entry = self.entries.get(key)
        if entry is not None:
            self._memory._drop(entry)
        return entry is not None

    def void(self, field: str) -> int:
        """Forget every entry that carries the field; how many there were."""
        found = self._index.get(field)
        if found is None:
            return 0
        entries = [found] if isinstance(found, Entry) else list(found)
        for entry in entries:
            self._memory._drop(entry)
        return len(entries)

    def clear(self) -> None:
        """Forget all entries of the class."""
        for entry in list(self.entries.values()):
            self._memory._drop(entry)

    # -- of the memory alone ---------------------------------------------------------------------------

    def _add(self, entry: Entry) -> None:
        self.entries[entry.key] = entry
        self.bytes += entry.weight
        for field in entry.fields:
            found = self._index.get(field)
            if found is None:
                self._index[field] = entry
            elif isinstance(found, Entry):
                self._index[field] = {found, entry}
            else:
                found.add(entry)

    def _remove(self, entry: Entry) -> None:
        del self.entries[entry.key]
        self.bytes -= entry.weight
        for field in entry.fields:
            found = self._index.get(field)
            if found is entry:
                del self._index[field]
            elif isinstance(found, set):
                found.discard(entry)
                if not found:
                    del self._index[field]


class Memory:
    """`max_bytes` for all views together. What is heavier than a tenth of that is not kept."""

    def __init__(self, max_bytes: int, *, clock: Clock | None = None) -> None:
        if max_bytes < 1 << 16:
            raise ValueError(f"max_bytes must be >= 65536, got {max_bytes}")
        self.max_bytes = max_bytes
        self.bytes = 0
        """Of all entries and of the ghost."""
        self.views: list[View] = []
        self._clock = clock or SystemClock()
        self._small = _Queue()
        self._main = _Queue()
        self._ghost: set[int] = set()
        self._paler: set[int] = set()
        """The ghost's older half: it is forgotten as a whole when the younger one has grown as large."""

    def __len__(self) -> int:
        return self._small.count + self._main.count

    def view(self, name: str) -> View:
        """A part for one more class."""
        made = View(self, name, len(self.views))
        self.views.append(made)
        return made

    def clear(self) -> None:
        """Forget everything, what was once known included."""
        for view in self.views:
            view.clear()
        self.bytes -= GHOST_BYTES * (len(self._ghost) + len(self._paler))
        self._ghost, self._paler = set(), set()

    def _put(self, entry: Entry) -> bool:
        before = entry.view.entries.get(entry.key)
        proven = entry.uses > MOST_USES
        if before is not None:
            proven = proven or before.place == MAIN
            entry.uses = max(entry.uses, before.uses)
            self._leave(before)
        if entry.weight > self.max_bytes // 10:
            return False
        proven = self._recall(entry) or proven
        while self.bytes + entry.weight > self.max_bytes:
            self._evict()
        self._enter(entry, MAIN if proven else SMALL)
        entry.view._add(entry)
        self.bytes += entry.weight
        return True

    def _drop(self, entry: Entry) -> None:
        """Let go of an entry that is no longer good, but not of the knowledge that its key is asked for."""
        if entry.place == MAIN:
            self._remember(entry)
        self._leave(entry)

    def _enter(self, entry: Entry, place: int) -> None:
        entry.place = place
        (self._main if place == MAIN else self._small).append(entry)

    def _leave(self, entry: Entry) -> None:
        queue = self._main if entry.place == MAIN else self._small
        entry.place = GONE
        entry.view._remove(entry)
        self.bytes -= entry.weight
        queue.removed(entry)

    def _evict(self) -> None:
        """Let go of one entry, or of half of the ghost; who was used since his last turn moves on instead."""
        now = self._clock.monotonic()
        small, main = self._small, self._main
        while small.count and (small.bytes * 10 >= self.max_bytes or not main.count):
            entry = small.popleft()
            if entry.uses and now < entry.stale:
                if entry.uses <= MOST_USES:
                    entry.uses = 0
                self._enter(entry, MAIN)
                continue
            self._forget(entry, now)
            return
        while main.count:
            entry = main.popleft()
            if entry.uses and now < entry.stale:
                entry.uses -= 1
                main.append(entry)
                continue
            self._forget(entry, now)
            return
        self.bytes -= GHOST_BYTES * (len(self._ghost) + len(self._paler))
        self._ghost, self._paler = set(), set()

    def _forget(self, entry: Entry, now: float) -> None:
        """Of an entry that has been taken off its queue."""
        if now >= entry.stale:
            entry.view.expired += 1
        else:
            entry.view.evicted += 1
        if now < entry.stale if entry.place == SMALL else now >= entry.stale and entry.uses:
            self._remember(entry)  # new and not asked for; or asked for, and only too old
        entry.place = GONE
        entry.view._remove(entry)
        self.bytes -= entry.weight

    def _remember(self, entry: Entry) -> None:
        if len(self._ghost) * 2 >= max(len(self), 16):
            self.bytes -= GHOST_BYTES * len(self._paler)
            self._paler, self._ghost = self._ghost, set()
        mark = hash((entry.view.number, entry.key))
        if mark not in self._ghost and mark not in self._paler:
            self._ghost.add(mark)
            self.bytes += GHOST_BYTES

    def _recall(self, entry: Entry) -> bool:
        """Whether the key was known; it is no ghost any more."""
        mark = hash((entry.view.number, entry.key))
        for ghost in (self._ghost, self._paler):
            if mark in ghost:
                ghost.remove(mark)
                self.bytes -= GHOST_BYTES
                return True
        return False


class _Queue:
    """First in, first out; entries that were dropped meanwhile are passed over."""

    __slots__ = ("_entries", "bytes", "count")

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self.count = 0
        self.bytes = 0

    def append(self, entry: Entry) -> None:
        self._entries.append(entry)
        self.count += 1
        self.bytes += entry.weight

    def popleft(self) -> Entry:
        """The first that is still there; `count` must be > 0."""
        entry = self._entries.popleft()
        while entry.place == GONE:
            entry = self._entries.popleft()
        self.count -= 1
        self.bytes -= entry.weight
        return entry

    def removed(self, entry: Entry) -> None:
        """Of one that was dropped and is still in line."""
        self.count -= 1
        self.bytes -= entry.weight
        if len(self._entries) > 2 * self.count + SWEEP:
            self._entries = deque(one for one in self._entries if one.place != GONE)


def _spelled(key: Hashable) -> int:
    """Bytes of the texts of a key beyond what is usual: a user may type any number of them."""
    parts = key if isinstance(key, tuple) else (key,)
    texts = sum(getsizeof(part) for part in parts if isinstance(part, str) and len(part) > USUAL)
    return max(texts - USUAL, 0)
