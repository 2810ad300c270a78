"""One module's jobs on one shard, as a worker sees them: what it may claim, and when it looks for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from springtide.jobs._finish import Finisher
from springtide.jobs._limited import limits_of
from springtide.jobs._pausing import paused_kinds
from springtide.jobs._run import Route
from springtide.jobs._store import Store

__all__ = ["Line"]


class Line:
    """State that the dispatcher, the relay, the receiver and upkeep share."""

    def __init__(self, store: Store, routes: Mapping[str, Route]) -> None:
        self.store = store
        self.routes = dict(routes)
        self.names = sorted(routes)
        self.open = list(self.names)
        """Those of `names` that are not paused."""
        self.asked = False
        """Whether it is known what is paused: nothing is claimed before."""
        self.limits = limits_of([route.kind for route in routes.values()])
        self.kinds = sorted({route.kind.kind for route in routes.values()})
        self.ended: dict[tuple[str, str], int] = {}
        self.due_at = 0.0
        self.claiming = 0
        """Claims under way: one, or two where the second is ahead of what the first has brought."""
        self.rung = False
        self.filled = False
        """Whether the last claim brought all that it asked for: there is more."""
        self.failures = 0
        self.finisher: Finisher  # set with each start, which gives the worker its name
        self.reading = False
        self.read_at = 0.0
        self.unread = 0
        self.checking = False
        self.check_at = 0.0

    async def ask(self) -> None:
        """Know what is paused, before the first claim."""
        if not self.asked:
            self.pause(paused_kinds(await self.store.pausing.look(self.store.pool)))

    def pause(self, kinds: Collection[str] | None) -> bool:
        """Claim no jobs of `kinds` (None: of any kind) from now on; whether that changes something."""
        before, self.asked = self.open, True
        paused = set(self.kinds) if kinds is None else kinds
        self.open = [name for name in self.names if self.routes[name].kind.kind not in paused]
        return self.open != before
