"""Who is listening in this process, and what they hear: one question per second for all of them.

    joined -> (told)* -> ended: the session ended | the process drains | it left

Bounded: `most` connections in all, `of_one` per person. A connection ends with its session: at once when that
is ended in this process, otherwise within `CHECK_EVERY` seconds. When the process drains, all end with the
next question, and browsers connect to another one.
Looking at a session this way does not count as using it, so an open tab keeps nobody signed in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from market.notifications.api import MAX_UNREAD_ASKED, Notifications, Unread
from springtide.clock import Clock
from springtide.errors import Unavailable
from springtide.identity.sessions import SessionService
from springtide.lifecycle import Periodic
from springtide.signals import Sink

__all__ = ["Hub", "Listener"]

EVERY = 1.0
PATIENCE = 5.0
"""Seconds between two questions, and for one."""

CHECK_EVERY = 30.0
CHECKS_AT_ONCE = 50
"""Seconds between two looks at a session, and how many people are looked at per question."""

RETRY_AFTER = 30.0


class Listener:
    """One connection. `known` is what it was told last; `ended` says that there is nothing more to hear."""

    __slots__ = ("_changed", "checked_at", "ended", "handle", "known", "person", "session_ended")

    def __init__(self, person: int, handle: str, checked_at: float) -> None:
        self.person = person
        self.handle = handle
        self.checked_at = checked_at
        self.known: Unread | None = None
        self.ended = False
        self.session_ended = False
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Return when something has changed since the last call."""
        await self._changed.wait()
        self._changed.clear()

    def tell(self, unread: Unread) -> None:
        if unread != self.known:
            self.known = unread
            self._changed.set()

    def end(self, *, session: bool = False) -> None:
        self.ended = True
        self.session_ended = self.session_ended or session
        self._changed.set()


class Hub:
    """`draining` says whether this process wants no more connections; start and stop with the application."""

    def __init__(
        self,
        notifications: Notifications,
        sessions: SessionService,
        *,
        draining: Callable[[], bool],
        clock: Clock,
        sink: Sink,
        most: int = 2_000,
        of_one: int = 6,
    ) -> None:
        if not 1 <= most <= MAX_UNREAD_ASKED:
            raise ValueError(f"most must be 1 to {MAX_UNREAD_ASKED} connections, got {most}")
        if of_one < 1:
            raise ValueError(f"of_one must be >= 1 connections, got {of_one}")
        self._notifications = notifications
        self._sessions = sessions
        self._draining = draining
        self._clock = clock
        self._most = most
        self._of_one = of_one
        self._listeners: dict[int, set[Listener]] = {}
        self._count = 0
        self._asking = Periodic("market:events", self.ask, every=EVERY, clock=clock, sink=sink)

    async def start(self) -> None:
        await self._asking.start()

    async def stop(self) -> None:
        for listener in self._all():
            listener.end()
        await self._asking.stop()

    def join(self, person: int, handle: str) -> Listener:
        """A place for a connection; give it back with `leave`. Raises Unavailable when there is none."""
        theirs = self._listeners.get(person, ())
        if self._draining() or self._count >= self._most or len(theirs) >= self._of_one:
            raise Unavailable("there is no room for another listener", retry_after=RETRY_AFTER)
        listener = Listener(person, handle, self._clock.monotonic())
        self._listeners.setdefault(person, set()).add(listener)
        self._count += 1
        return listener

    def leave(self, listener: Listener) -> None:
        theirs = self._listeners.get(listener.person)
        if theirs is None or listener not in theirs:
            return
        theirs.remove(listener)
        self._count -= 1
        if not theirs:
            del self._listeners[listener.person]

    def forget(self, handle: str) -> None:
        """The session was ended here: its connections end with it."""
        for listener in self._all():
            if listener.handle == handle:
                listener.end(session=True)

    async def ask(self) -> None:
        """One round: who drains ends; what is unread is told; some sessions are looked at."""
        if self._draining():
            for listener in self._all():
                listener.end()
            return
        people = list(self._listeners)
        if not people:
            return
        async with asyncio.timeout(PATIENCE):
            for unread in await self._notifications.unread(people):
                for listener in self._listeners.get(unread.recipient, ()):
                    listener.tell(unread)
            await self._check_sessions()

    async def _check_sessions(self) -> None:
        now = self._clock.monotonic()
        due = [
            person
            for person, theirs in self._listeners.items()
            if any(now - one.checked_at >= CHECK_EVERY for one in theirs)
        ]
        for person in due[:CHECKS_AT_ONCE]:
            theirs = tuple(self._listeners.get(person, ()))  # who joins meanwhile is in no answer
            alive = {session.handle for session in await self._sessions.list_of(person)}
            for listener in theirs:
                listener.checked_at = now
                if listener.handle not in alive:
                    listener.end(session=True)

    def _all(self) -> list[Listener]:
        return [listener for theirs in self._listeners.values() for listener in theirs]
