"""Passwords: right or wrong, off the loop, never too many at once, whatever is cancelled."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator

import argon2
import pytest

from springtide.context import Part, RequestContext, activate
from springtide.errors import DeadlineExceeded, Unavailable
from springtide.identity.passwords import Passwords, Verified
from springtide.testing import stress

CHEAP = {"memory_bytes": 8 * 1024, "passes": 1}


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    service = Passwords(**CHEAP, concurrency=2, max_waiting=3)
    await service.start()
    yield service
    await service.stop()


class Gate:
    """Holds the hashing threads until opened; counts how many are inside at once."""

    def __init__(self, service: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.inside = self.most = 0
        self._hash = service._hasher.hash
        monkeypatch.setattr(service, "_hasher", self)

    def hash(self, secret: bytes) -> str:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.entered.release()
        self.open.wait(30)
        with self._lock:
            self.inside -= 1
        return self._hash(secret)

    async def until_entered(self, count: int) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self.entered.acquire, True, 30)


def test_the_defaults_are_the_recommended_ones() -> None:
    """OWASP: 19 MiB, 2 passes, 1 lane; the memory bound is concurrency times that. No thread yet."""
    before = threading.active_count()
    service = Passwords(concurrency=3)
    assert threading.active_count() == before
    assert service._hasher.hash("x").startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert service.memory_bytes == 3 * 19 * 1024 * 1024


async def test_a_password_verifies_and_another_does_not(passwords: Passwords) -> None:
    """And the same password never hashes the same."""
    stored = await passwords.hash("correct horse")
    assert stored != await passwords.hash("correct horse")
    assert await passwords.verify("correct horse", stored) == Verified(True, False)
    assert await passwords.verify("correct hors", stored) == Verified(False, False)
    assert await passwords.verify("", stored) == Verified(False, False)
    assert await passwords.verify_nothing("correct horse") == Verified(False, False)


async def test_an_outdated_hash_is_reported(passwords: Passwords) -> None:
    """Made with other parameters it still verifies, and asks to be replaced."""
    old = argon2.PasswordHasher(time_cost=2, memory_cost=1024).hash("secret")
    assert await passwords.verify("secret", old) == Verified(True, True)
    assert await passwords.verify("wrong", old) == Verified(False, False)


async def test_the_same_characters_are_the_same_password(passwords: Passwords) -> None:
    """One keyboard composes the accent, another does not (NFKC)."""
    stored = await passwords.hash("caf\u00e9 \u2460")
    assert (await passwords.verify("cafe\u0301 1", stored)).ok


@pytest.mark.parametrize("hostile", ["x" * 1025, "\ud800", "a\udfffb"])
async def test_hostile_text_is_refused_and_never_right(passwords: Passwords, hostile: str) -> None:
    """Too long or not text: ValueError without the password in it; verify just says no."""
    with pytest.raises(ValueError, match="at most 1024 characters") as caught:
        await passwords.hash(hostile)
    assert hostile not in str(caught.value)
    assert not (await passwords.verify(hostile, await passwords.hash("x"))).ok
    assert not (await passwords.verify_nothing(hostile)).ok
    assert (await passwords.verify("\x00nul", await passwords.hash("\x00nul"))).ok


async def test_a_stored_value_that_is_no_hash_is_an_error(passwords: Passwords) -> None:
    """Corrupt data must not look like a wrong password."""
    with pytest.raises(ValueError, match="not an Argon2 hash"):
        await passwords.verify("x", "plain")


async def test_unknown_users_cost_what_known_ones_do(passwords: Passwords) -> None:
    """verify_nothing runs the same Argon2 work once: time does not tell who exists."""
    stored = await passwords.hash("secret")
    for call in (passwords.verify("wrong", stored), passwords.verify_nothing("wrong")):
        with activate(RequestContext()) as context:
            await call
        assert context.ledger.labels(Part.HASH)["argon2id"].calls == 1
        assert context.ledger.labels(Part.HASH)["argon2id"].seconds > 0


async def test_never_more_at_once_than_allowed(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiters are bounded too, the next is turned away at once; a cancelled caller's thread still counts."""
    gate = Gate(passwords, monkeypatch)
    calls = [asyncio.ensure_future(passwords.hash("x")) for _ in range(5)]
    await gate.until_entered(2)
    with pytest.raises(Unavailable, match="3 callers wait"):
        await passwords.hash("x")
    calls[0].cancel()
    calls[3].cancel()
    await asyncio.sleep(0)
    assert calls[0].cancelled() or calls[0].cancelling()
    gate.open.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(result, str) for result in results] == [False, True, True, False, True]
    assert gate.most == 2
    await asyncio.gather(*(passwords.hash("x") for _ in range(4)))
    assert gate.most == 2
    while gate.inside:  # the cancelled caller's thread ends for nobody
        await asyncio.sleep(0.005)


async def test_a_cancelled_caller_leaves_its_slot_to_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cancels and tries again does not get more threads or a longer queue than allowed."""
    service = Passwords(**CHEAP, concurrency=1, max_waiting=0)
    await service.start()
    gate = Gate(service, monkeypatch)
    call = asyncio.ensure_future(service.hash("x"))
    await gate.until_entered(1)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    with pytest.raises(Unavailable, match="0 callers wait"):
        await service.hash("x")
    gate.open.set()
    await service.stop()
    assert gate.inside == 0


async def test_a_wait_ends_with_the_request(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request's deadline and the service's own time-out are told apart; no slot is lost."""
    passwords._timeout = 0.05
    gate = Gate(passwords, monkeypatch)
    calls = [asyncio.ensure_future(passwords.hash("x")) for _ in range(2)]
    await gate.until_entered(2)
    with pytest.raises(Unavailable, match=r"more than 0\.05 s"):
        await passwords.hash("x")
    soon = RequestContext(deadline=passwords._clock.monotonic() + 0.01)
    with activate(soon), pytest.raises(DeadlineExceeded, match="hashing a password"):
        await passwords.hash("x")
    with activate(RequestContext(deadline=0.0)), pytest.raises(DeadlineExceeded):
        await passwords.hash("x")
    gate.open.set()
    await asyncio.gather(*calls, return_exceptions=True)
    passwords._timeout = 5.0
    await asyncio.gather(*(passwords.hash("x") for _ in range(3)))
    await passwords._idle.wait()  # a caller may have its hash a moment before its slot is free
    assert len(await asyncio.gather(*(passwords.hash("x") for _ in range(5)))) == 5
    assert gate.most == 2


async def test_stopping_turns_waiters_away_and_waits_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits gets Unavailable, who works is finished; afterwards nothing runs."""
    service = Passwords(**CHEAP, concurrency=1)
    with pytest.raises(Unavailable, match="not running"):
        await service.hash("x")
    await service.start()
    gate = Gate(service, monkeypatch)
    working = asyncio.ensure_future(service.hash("x"))
    await gate.until_entered(1)
    waiting = asyncio.ensure_future(service.hash("x"))
    await asyncio.sleep(0)
    stop = asyncio.ensure_future(service.stop())
    with pytest.raises(Unavailable, match="stopping"):
        await waiting
    assert not stop.done()
    gate.open.set()
    assert (await working).startswith("$argon2id$")
    await stop
    with pytest.raises(Unavailable):
        await service.verify("x", "y")


async def test_the_loop_goes_on_while_a_password_is_hashed() -> None:
    """The work is not on the event loop: it turns many times meanwhile."""
    service = Passwords(concurrency=1)
    await service.start()
    call = asyncio.ensure_future(service.hash("x"))
    turns = 0
    while not call.done():
        turns += 1
        await asyncio.sleep(0)
    await service.stop()
    assert turns > 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"concurrency": 0}, "concurrency must be >= 1, got 0"),
        ({"memory_bytes": 1024}, "memory_bytes must be >= 8 KiB per lane, got 1024"),
        ({"passes": 0}, "passes and lanes must be >= 1, got 0 and 1"),
        ({"timeout": 0}, "got 100, 0 and 1024"),
        ({"max_waiting": -1}, "got -1, 5.0 and 1024"),
    ],
)
def test_options_are_checked_and_shown(options: dict[str, int], says: str) -> None:
    """At construction."""
    with pytest.raises(ValueError, match=says):
        Passwords(**options)  # type: ignore[arg-type]  # the faults under test


async def test_a_machine_without_threads_to_give_loses_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller is asked to come again, and whoever does finds as many slots as before."""
    service = Passwords(**CHEAP, concurrency=1, max_waiting=0)
    await service.start()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Unavailable, match="no thread to hash a password now"):
            await service.hash("x")
    assert (await service.verify("x", await service.hash("x"))).ok
    await service.stop()


async def test_storms_of_start_stop_and_cancel() -> None:
    """Also with hashes under way."""

    class Busy(Passwords):
        async def start(self) -> None:
            await super().start()
            if self.state == "running":
                await asyncio.gather(*(self.hash("x") for _ in range(3)), return_exceptions=True)

    await stress(lambda: Busy(**CHEAP, concurrency=2), storms=20, pause=0.002)
    gc.collect()
