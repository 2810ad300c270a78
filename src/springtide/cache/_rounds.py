"""The rounds of one leading relay, on one connection; `_relay` says what their order proves.

A class is *ready* while each of its slots has a Redis that answers. Of one that is not, or that this process
does not know, the rows stay, the slots are not beaten, and nobody believes his cache; it delays no other
class. When it is ready again all its rows are read before its next beat.

A reader takes it that a round of a relay began after the one before had been beaten. Of a beat without an
answer nobody knows when it is carried out: perhaps with that of a later round, one after the other, and the
later round had begun long before. So after one the rounds of its class go on under another name, and nobody
holds them against those of before.

A class that this process does not know may be one of a version that is gone, or is being deployed. Its rows
wait STRANGE seconds for a leader who knows it, and are applied then all the same: to void a value nobody has
to know what it is, so a class that comes back with the next deploy finds nothing old.

Most rows are of writers that have told the cache themselves. They are voided here once more, without effect:
that costs about what it would cost the writer to delete them (bench.cache_relay), and nobody has to keep
accounts of what was told to whom.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from springtide.cache._applied import Applied
from springtide.cache._fence import Rounds
from springtide.cache._rows import Row, Rows, Statements
from springtide.cache._slot import round_text
from springtide.clock import Clock
from springtide.errors import RedisError, RedisUnavailable
from springtide.signals import RelayMeasured, Sink

if TYPE_CHECKING:
    from springtide.cache._level2 import Level2

__all__ = ["MEASURE", "Leadership", "Strangers", "Targets", "tell"]

_log = logging.getLogger(__name__)

Targets = Mapping[str, "Sequence[Level2[Any]] | None"]
"""Class -> its slots on this cluster; None while one of them cannot be reached."""

Strangers = Callable[[str, str], "Sequence[Level2[Any]] | None"]
"""The slots that a class of this name and schema has or may have here; None while one cannot be reached."""

Ready = dict[str, "Sequence[Level2[Any]]"]

TOGETHER = 200
"""Voids that are under way at once."""

MOST_MET = 100
"""Strangers that are told of, each once."""

AGAIN = 0.5
"""Seconds until a class whose slot has failed is tried again."""

MEASURE = 5.0
"""Seconds between two measurements."""

STRANGE = 60.0
"""Seconds that rows of a class wait which this process does not know."""

TOO_OLD = 10.0
"""Age of a row, in seconds, that is worth a warning."""


class Leadership:
    """The rounds of one leader, on one connection. strangers: None: what nobody knows waits."""

    def __init__(
        self,
        cluster: str,
        schemas: Sequence[str],
        delay: float,
        clock: Clock,
        sink: Sink,
        strangers: Strangers | None = None,
    ) -> None:
        self.busy = False
        """Whether the last round had something to apply."""
        self._cluster = cluster
        self._run = secrets.token_hex(4)
        self._number = 0
        self._rows = Rows(schemas)
        self._applied = Applied(min(schemas), clock)
        self._known: dict[str, Rounds] = {}
        self._failed: dict[str, float] = {}
        self._lost: dict[str, int] = defaultdict(int)
        """Class -> how many answers of its slots did not come."""
        self._delay = delay
        self._clock = clock
        self._sink = sink
        self._strangers = strangers
        self._met: set[str] = set()
        """Strangers that were told of in the log."""
        self._began = self._measured = clock.monotonic()
        self._since = Since()

    async def one(self, queries: Statements, targets: Targets) -> bool:
        """One round; whether the next should come at once. Raises what the statements raise."""
        now = self._clock.monotonic()
        self._since.longest, self._began = max(self._since.longest, now - self._began), now
        self._number += 1
        known = {
            slot.names.prefix: self._known.get(slot.names.prefix) or Rounds(self._delay)
            for slots in targets.values()
            for slot in slots or ()
        }
        self._known = known
        ready = {
            cls: slots
            for cls, slots in targets.items()
            if slots is not None and self._failed.get(cls, now) <= now
        }
        await self._settle(queries, ready)
        self.busy = False
        first = True
        async with aclosing(self._rows.new(queries, ready)) as batches:
            async for batch in batches:
                if first:  # its snapshot was asked for after the last answer of every slot
                    first, now = False, self._clock.monotonic()
                    for rounds in known.values():
                        rounds.marked(batch.xmax, batch.running, now)
                if batch.rows:
                    self.busy = True
                    await self._apply(queries, batch.rows, ready)
        hurry = await self._beat(ready)
        self._since.rounds += 1
        if self._clock.monotonic() - self._measured >= MEASURE:
            if self._strangers is not None:
                await self._adopt(queries, targets, self._strangers)
            await self._measure(queries)
        return hurry

    async def _settle(self, queries: Statements, ready: Ready) -> None:
        """See `_applied`. When a Redis fails meanwhile, only what was settled before is ready."""
        try:
            await self._applied.settle(queries, ready)
        except (RedisError, RedisUnavailable) as error:
            for cls in self._applied.unsettled(ready):
                self._judge(cls, error, ready)

    async def _apply(self, queries: Statements, rows: Sequence[Row], ready: Ready) -> None:
        """Void what `rows` name and delete them; a class that fails is not ready any more."""
        merged: dict[tuple[str, int], list[str]] = defaultdict(list)
        for row in rows:
            merged[row.cls, row.xid] += row.fields
        calls = [
            (cls, slot, fields, xid) for (cls, xid), fields in merged.items() for slot in ready.get(cls, ())
        ]
        for at in range(0, len(calls), TOGETHER):
            part = [call for call in calls[at : at + TOGETHER] if call[0] in ready]
            answers = await asyncio.gather(
                *(slot.void(fields, xid=xid) for _, slot, fields, xid in part), return_exceptions=True
            )
            for (cls, *_), answer in zip(part, answers, strict=True):
                self._judge(cls, answer, ready)
        done = [row for row in rows if row.cls in ready]
        for row in rows:
            if row.cls not in ready:
                self._rows.left(row.cls)
        await self._rows.applied(queries, done)
        self._since.rows += len(done)
        self._since.latest = max([self._since.latest, *(row.age for row in done)])

    async def _adopt(self, queries: Statements, known: Targets, strangers: Strangers) -> None:
        """Apply old rows of classes that are not `known`, as far as their slots can be reached."""
        rows = await self._rows.strangers(queries, known, STRANGE)
        named = {(row.cls, row.schema) for row in rows}
        ready = {place: slots for place in sorted(named) if (slots := strangers(*place)) is not None}
        strange: Ready = {}
        for (cls, _), slots in ready.items():
            strange[cls] = [*strange.get(cls, ()), *slots]
        await self._settle(queries, strange)
        ready = {place: slots for place, slots in ready.items() if place[0] in strange}
        voids = [
            (place, slot, row)
            for row in rows
            for place in ((row.cls, row.schema),)
            for slot in ready.get(place, ())
        ]
        for at in range(0, len(voids), TOGETHER):
            part = voids[at : at + TOGETHER]
            answers = await asyncio.gather(
                *(slot.void(row.fields, xid=row.xid) for _, slot, row in part), return_exceptions=True
            )
            for (place, *_), answer in zip(part, answers, strict=True):
                if isinstance(answer, BaseException):
                    if not isinstance(answer, RedisError | RedisUnavailable):
                        raise answer
                    ready.pop(place, None)
        done = [row for row in rows if (row.cls, row.schema) in ready]
        await self._rows.applied(queries, done)
        self._since.strangers += len(done)
        for cls in sorted({row.cls for row in done} - self._met)[: MOST_MET - len(self._met)]:
            self._met.add(cls)
            _log.warning(
                "%s: nobody here knows class %s: what writes have made stale of it was told all the same,"
                " %g s late; is a version running that writes it and has no cache?",
                self._cluster, cls, STRANGE,
            )  # fmt: skip

    async def _beat(self, ready: Ready) -> bool:
        """Whether a slot has lost its tombstones, or is new to this leader."""
        now = self._clock.monotonic()
        beaten = [
            (cls, slot, self._known[slot.names.prefix]) for cls, slots in ready.items() for slot in slots
        ]
        lives = [rounds.life for _, _, rounds in beaten]
        answers = await asyncio.gather(
            *(slot.beat(rounds, self._says(cls), now=now) for cls, slot, rounds in beaten),
            return_exceptions=True,
        )
        for (cls, *_), answer in zip(beaten, answers, strict=True):
            self._judge(cls, answer, ready)
        return any(rounds.life != life for (_, _, rounds), life in zip(beaten, lives, strict=True))

    def _says(self, cls: str) -> str:
        return round_text(f"{self._run}.{self._lost[cls]}", self._number)

    def _judge(self, cls: str, answer: object, ready: Ready) -> None:
        """A class whose Redis has failed is not ready for a while; every other failure is a fault of ours."""
        if not isinstance(answer, BaseException):
            return
        if not isinstance(answer, RedisError | RedisUnavailable):
            raise answer
        if ready.pop(cls, None) is not None:
            _log.info("%s: class %s waits: %s", self._cluster, cls, answer)
        self._failed[cls] = self._clock.monotonic() + AGAIN
        self._lost[cls] += 1

    async def _measure(self, queries: Statements) -> None:
        since, self._since, self._measured = self._since, Since(), self._clock.monotonic()
        oldest = await self._rows.oldest(queries)
        measured = RelayMeasured(
            self._cluster,
            since.rounds,
            since.rows,
            oldest,
            since.latest,
            since.longest,
            since.strangers,
        )
        tell(self._sink, measured)


class Since:
    """What has happened since the last measurement; `latest` and `longest` in seconds."""

    __slots__ = ("latest", "longest", "rounds", "rows", "strangers")

    def __init__(self) -> None:
        self.rounds = 0
        self.rows = 0
        self.strangers = 0
        self.latest = 0.0
        self.longest = 0.0


def tell(sink: Sink, measured: RelayMeasured) -> None:
    sink.emit(measured)
    if measured.oldest > TOO_OLD:
        _log.warning(
            "%s: an invalidation waits for %.0f s: a Redis is away, or nobody here knows its class yet",
            measured.cluster,
            measured.oldest,
        )
