"""Values on their way, each once for all who want it.

A `Flight` is the way to one value. Who begins it looks into the shared level by himself; what is not there is
found by a `Load`, a task of its own, for one flight or for many at once:

    reading -> done (it was there) | abandoned (who read was cancelled: whoever waits begins another one)
       `----> loading -> done | failed

Who is cancelled while he waits leaves the others alone; the last one to leave cancels the load, unless it is
`wanted` by somebody who was served something old meanwhile.

Who joins a flight must not be given what was read before something that he may have seen: so a flight knows
when it began (`began`, monotonic seconds) and what had been heard by then (`scope`, `position`), and is taken
out of its table when an invalidation of its key, or of a tag that its value may have, is heard (`_place`).
Invariant: every flight ends. A load that ends in any way has ended its flights; one that is cancelled first
of all takes them out of the table, so that nobody joins what is about to fail.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from springtide.cache._admission import Turn, inside
from springtide.cache._fence import Known
from springtide.context import CausalityToken
from springtide.errors import Unavailable

__all__ = ["ABANDONED", "Flight", "Load", "leave", "wait"]

ABANDONED: Final[Any] = object()
"""What a flight ends with that found nothing out."""


class Flight:
    """The way to the value of `arguments`: `name` for its caller, `key` in its table. Made in a running loop.

    generation: of the slot, when it began. lease: under which it is loaded, "" for none. known: what came
    with it. old: a value that may be served in an emergency, with `error`, why it had to be. token: what its
    load's session has seen. started: its loader has been called. wanted: somebody who has left wants it all
    the same. hurried: another load waits for it, so its own one waits for no place. since: what it brings is
    as the database had it at this monotonic moment, or later.
    """

    __slots__ = (
        "arguments", "began", "error", "future", "generation", "hurried", "key", "known", "lease", "load",
        "name", "old", "position", "scope", "since", "started", "token", "waiting", "wanted",
    )  # fmt: skip

    def __init__(self, name: Any, key: str, arguments: tuple[Any, ...], began: float) -> None:
        self.name = name
        self.key = key
        self.arguments = arguments
        self.began = began
        self.since = began
        self.scope = ""
        self.position = 0
        self.generation = 0
        self.old: Any = ABANDONED
        self.error: Exception | None = None
        self.lease = ""
        self.known: Known | None = None
        self.load: Load | None = None
        self.token: CausalityToken | None = None
        self.started = False
        self.hurried = inside()
        self.waiting = 0
        self.wanted = False
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def done(self) -> bool:
        return self.future.done()

    def hurry(self) -> None:
        """A load waits for it, which has a place of its own: so it must not wait for one."""
        self.hurried = True
        if self.load is not None:
            self.load.turn.hurry()

    def finish(self, value: Any) -> None:
        if not self.future.done():
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # it has been seen: perhaps nobody waits any more


async def wait(flights: Sequence[Flight], seconds: float | None, *, hold: bool = False) -> bool:
    """Whether all ended within `seconds` (None: however long it takes). hold: who waits comes back, unless he
    is cancelled: then what nobody else waits for goes on.
    """
    pending = [flight for flight in flights if not flight.future.done()]
    if not pending:
        return True
    for flight in pending:
        flight.waiting += 1
    late = False
    try:
        late = bool((await asyncio.wait([flight.future for flight in pending], timeout=seconds))[1])
        return not late
    finally:
        for flight in pending:
            flight.waiting -= 1
        if not (hold and late):
            leave(pending)


def leave(flights: Iterable[Flight]) -> None:
    """Who waited for these does no more: a load that nobody else wants is cancelled."""
    for flight in flights:
        if flight.load is not None:
            flight.load.left()


class Load:
    """The task that finds what `flights` are for: `body` ends each of them, or raises for all that are left.

    `ended` is called once, with the load, when nobody may join it any more. `turn` is its place among all.
    `begun`: the flights that it was begun with; `flights` are those that it still has to end.
    """

    __slots__ = ("_body", "_ended", "_task", "begun", "flights", "turn")

    def __init__(
        self,
        flights: Iterable[Flight],
        body: Callable[[Load], Coroutine[Any, Any, None]],
        ended: Callable[[Load], None],
        turn: Turn,
    ) -> None:
        self.begun = self.flights = tuple(flights)
        self.turn = turn
        self._body = body
        self._ended: Callable[[Load], None] | None = ended
        self._task: asyncio.Task[None] | None = None
        for flight in self.flights:
            flight.load = self

    def start(self, name: str, context: contextvars.Context) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name=name, context=context)

    def left(self) -> None:
        """Somebody has left; when nobody wants any of it, it is cancelled."""
        if not any(flight.waiting or flight.wanted for flight in self.flights):
            self.cancel()

    def cancel(self) -> None:
        if self._task is not None and not self._task.done():
            self._close()
            self._task.cancel()
            self._fail(Unavailable("the load of a cached value was cancelled"))

    async def gone(self) -> None:
        """Wait until nothing of it is left."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        task = asyncio.current_task()
        try:
            await self._body(self)
        except asyncio.CancelledError as error:
            if task is not None and task.cancelling():
                raise
            failure = Unavailable("the loader of a cached value was cancelled from inside")
            failure.__cause__ = error
            self._fail(failure)
        except Exception as error:
            self._fail(error)
        finally:
            self._close()
            self._fail(Unavailable("the load of a cached value ended without it"))

    def _fail(self, error: BaseException) -> None:
        for flight in self.flights:
            flight.fail(error)

    def _close(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)
