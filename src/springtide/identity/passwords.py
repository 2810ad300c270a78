"""Hash and verify passwords by Argon2id, off the event loop and never too many at once.

Cost: OWASP's recommendation for Argon2id (Password Storage Cheat Sheet): 19 MiB, 2 passes, 1 lane; about
20 ms of one core. A hash made with other parameters still verifies and is reported as `needs_rehash`.
Bound: `concurrency` threads, so concurrency * memory_bytes of memory; beyond that callers wait in order, at
most `max_waiting` of them and at most `timeout` seconds, then they get Unavailable.
A cancelled caller leaves at once; its thread finishes and only then is its slot free again, so the bound
holds whatever is cancelled.

Passwords are normalised by Unicode NFKC (NIST SP 800-63B, 5.1.1.2), so that the same characters typed on two
keyboards are the same password. Nothing here logs or keeps one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import unicodedata
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import argon2
from argon2.exceptions import InvalidHashError, VerifyMismatchError

from springtide.clock import Clock, SystemClock
from springtide.context import Part, current
from springtide.errors import DeadlineExceeded, Unavailable
from springtide.lifecycle import StartStop
from springtide.signals import Sink

__all__ = ["Passwords", "Verified"]

T = TypeVar("T")


class Verified(NamedTuple):
    """`ok`: the password is right. `needs_rehash`: right, and its hash should be replaced by a new one."""

    ok: bool
    needs_rehash: bool


class Passwords:
    """A lifecycle service; `hash` and `verify` work between `start` and `stop`.

    concurrency:    hashes at once; None means the number of cores this process may use.
    max_characters: a longer password is refused (ValueError by `hash`, not ok by `verify`).

    Raises Unavailable when the queue is full, the wait too long or the service not running, and
    DeadlineExceeded when the request's own time is up.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = 19 * 1024 * 1024,
        passes: int = 2,
        lanes: int = 1,
        concurrency: int | None = None,
        max_waiting: int = 100,
        timeout: float = 5.0,
        max_characters: int = 1024,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        if lanes < 1 or passes < 1:
            raise ValueError(f"passes and lanes must be >= 1, got {passes} and {lanes}")
        if memory_bytes < 8 * 1024 * lanes:
            raise ValueError(f"memory_bytes must be >= 8 KiB per lane, got {memory_bytes}")
        if concurrency is not None and concurrency < 1:
            raise ValueError(f"concurrency must be >= 1, got {concurrency}")
        if max_waiting < 0 or timeout <= 0 or max_characters < 1:
            raise ValueError(
                "max_waiting must be >= 0, timeout > 0 and max_characters >= 1,"
                f" got {max_waiting}, {timeout} and {max_characters}"
            )
        self.name = "passwords"
        self.concurrency = concurrency or _cores()
        self.memory_bytes = self.concurrency * memory_bytes
        self._hasher = argon2.PasswordHasher(
            time_cost=passes, memory_cost=memory_bytes // 1024, parallelism=lanes, type=argon2.Type.ID
        )
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._max_characters = max_characters
        self._clock = clock or SystemClock()
        self._executor: ThreadPoolExecutor | None = None
        self._free = self.concurrency
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._idle = asyncio.Event()
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def hash(self, password: str) -> str:
        """The hash to store: Argon2's own text form, which carries salt and parameters."""
        secret = self._secret(password)
        if secret is None:
            raise ValueError(
                f"a password must be text of at most {self._max_characters} characters, got {len(password)}"
            )
        return await self._run(lambda: self._hasher.hash(secret))

    async def verify(self, password: str, stored: str) -> Verified:
        """Whether `password` is the one that `stored` was made of. ValueError if that is no Argon2 hash."""
        secret = self._secret(password)
        if secret is None:
            return Verified(False, False)
        return await self._run(lambda: self._check(secret, stored))

    async def verify_nothing(self, password: str) -> Verified:
        """The work of a `verify` for a user that does not exist, so that time does not tell which do."""
        secret = self._secret(password)
        if secret is not None:
            await self._run(lambda: self._hasher.hash(secret))
        return Verified(False, False)

    def _secret(self, password: str) -> bytes | None:
        """The bytes that are hashed; None when no stored password can be this one."""
        if len(password) > self._max_characters:
            return None
        try:
            return unicodedata.normalize("NFKC", password).encode()
        except UnicodeEncodeError:  # half of a surrogate pair: no keyboard makes it, UTF-8 cannot carry it
            return None

    def _check(self, secret: bytes, stored: str) -> Verified:
        try:
            self._hasher.verify(stored, secret)
        except VerifyMismatchError:
            return Verified(False, False)
        except InvalidHashError as error:
            raise ValueError("what is stored for this user is not an Argon2 hash") from error
        return Verified(True, self._hasher.check_needs_rehash(stored))

    async def _run(self, work: Callable[[], T]) -> T:
        """`work` in a thread of its own; the slot stays taken until the thread is done."""
        begun = self._clock.monotonic()
        worked = 0.0

        def timed() -> T:
            nonlocal worked
            start = time.perf_counter()
            try:
                return work()
            finally:
                worked = time.perf_counter() - start

        try:
            async with self._within_time():
                await self._take()
                executor = self._executor
                if executor is None:  # stopped between the hand-over and here
                    self._give()
                    raise Unavailable("password hashing is stopping", retry_after=1.0)
                loop = asyncio.get_running_loop()
                try:
                    job = executor.submit(timed)
                except RuntimeError as error:  # the system's limit of threads or memory is reached
                    self._give()
                    raise Unavailable("no thread to hash a password now", retry_after=1.0) from error
                job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._give))
                return await asyncio.wrap_future(job)
        except argon2.exceptions.HashingError as error:
            raise Unavailable("no memory to hash a password now", retry_after=1.0) from error
        finally:
            if (context := current()) is not None:
                waited = self._clock.monotonic() - begun - worked
                context.ledger.add(Part.HASH, max(waited, 0.0), "wait")
                context.ledger.add(Part.HASH, worked, "argon2id")

    @contextlib.asynccontextmanager
    async def _within_time(self) -> AsyncIterator[None]:
        context = current()
        remaining = None if context is None else context.remaining(self._clock.monotonic())
        if remaining is not None and remaining <= 0:
            raise DeadlineExceeded("hashing a password")
        mine = remaining is None or self._timeout < remaining
        try:
            async with asyncio.timeout(self._timeout if mine else remaining):
                yield
        except TimeoutError as error:
            if not mine:
                raise DeadlineExceeded("hashing a password") from error
            raise Unavailable(
                f"hashing a password took more than {self._timeout} s", retry_after=self._timeout
            ) from error

    async def _take(self) -> None:
        """A slot, in order of arrival. Cancelled after the hand-over, the caller passes the slot on."""
        if self._life.state != "running":
            raise Unavailable("password hashing is not running", retry_after=1.0)
        if self._free:
            self._free -= 1
            self._idle.clear()
            return
        if len(self._waiters) >= self._max_waiting:
            raise Unavailable(f"{self._max_waiting} callers wait to hash a password already", retry_after=1.0)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give()
            else:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(turn)
            raise

    def _give(self) -> None:
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
        if self._free == self.concurrency:
            self._idle.set()

    async def _open(self) -> None:
        self._free = self.concurrency
        self._idle.set()
        self._executor = ThreadPoolExecutor(self.concurrency, thread_name_prefix=self.name)

    async def _close(self) -> None:
        """Turn waiters away, let the threads that work finish (about 20 ms), then end them."""
        executor, self._executor = self._executor, None
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_exception(Unavailable("password hashing is stopping", retry_after=1.0))
        await self._idle.wait()
        if executor is not None:
            executor.shutdown(wait=False)  # every job is done: the threads end at once


def _cores() -> int:
    """How many cores this process may use; all of the machine's where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
