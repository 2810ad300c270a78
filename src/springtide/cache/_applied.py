"""Where the rows of each class are applied, as the database remembers it from one leader to the next.

A leader deletes a row when it was voided in the slots that the leader has. Other processes may have others:
beside an old primary of Redis that lives on, or with the address of before during a deploy. Nobody beats
those meanwhile, so nobody believes what is kept there. But the next leader may be one of them, and would
vouch for values whose invalidations were applied elsewhere and deleted.

So the slots in which a class's rows are applied are written down before the first of them is deleted:

    those of this round are written down   nothing was deleted that was not told to them
    others are                             what these keep is forgotten first, by everybody; then they are
                                           written down, and then rows are applied

Whoever leads next, wherever he is, finds the slots of whoever deleted last. One who dies in between has
deleted nothing, and what he forgot costs loads.

To forget is to walk all keys of a Redis, and happens when a slot has never been applied to: mostly in a Redis
that is new, and empty. A statement now and then says that the leader is alive.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from springtide.cache._rows import Statements
from springtide.clock import Clock

if TYPE_CHECKING:
    from springtide.cache._level2 import Level2

__all__ = ["Applied"]

_log = logging.getLogger(__name__)

ALIVE = 0.25
"""Seconds between two statements while keys are walked."""


class Applied:
    """Of the classes on one server; `schema` has the table. Belongs to one leader, on one connection."""

    def __init__(self, schema: str, clock: Clock) -> None:
        self._table = f"{schema}._applied"
        self._clock = clock
        self._known: dict[str, tuple[str, ...]] | None = None
        """Class -> its slots, as they are written down."""

    async def settle(self, queries: Statements, classes: Mapping[str, Sequence[Level2[Any]]]) -> None:
        """Write down where the rows of `classes` are applied from now on. Raises what the statements and
        Redis do; it is to be called again then."""
        if self._known is None:
            rows = await queries.fetch(f"SELECT class, slots FROM {self._table}")  # noqa: S608
            self._known = {row["class"]: tuple(row["slots"]) for row in rows}
        known = self._known
        moved = self.unsettled(classes)
        if not moved:
            return
        new = [slot for cls in moved for slot in classes[cls] if slot.names.prefix not in known.get(cls, ())]
        await self._forget(queries, new)
        for cls in moved:
            slots = _prefixes(classes[cls])
            await queries.fetch(
                f"INSERT INTO {self._table} (class, slots) VALUES ($1, $2)"  # noqa: S608
                " ON CONFLICT (class) DO UPDATE SET slots = excluded.slots",
                cls, list(slots),
            )  # fmt: skip
            known[cls] = slots

    def unsettled(self, classes: Mapping[str, Sequence[Level2[Any]]]) -> list[str]:
        """Those of `classes` whose slots are not the ones that are written down."""
        known = self._known or {}
        return [cls for cls, slots in classes.items() if known.get(cls) != _prefixes(slots)]

    async def _forget(self, queries: Statements, slots: Sequence[Level2[Any]]) -> None:
        places: dict[tuple[int, str], list[Level2[Any]]] = {}
        for slot in slots:
            await slot.disown()
            places.setdefault(slot.place, []).append(slot)
        for there in places.values():
            said = self._clock.monotonic()
            async for _ in there[0].sweep([slot.names for slot in there]):
                if (now := self._clock.monotonic()) - said >= ALIVE:
                    await queries.fetch("SELECT 1")
                    said = now
        if slots:
            _log.info("%d slots are new to the relays here: what they had is forgotten", len(slots))


def _prefixes(slots: Sequence[Level2[Any]]) -> tuple[str, ...]:
    return tuple(slot.names.prefix for slot in slots)
