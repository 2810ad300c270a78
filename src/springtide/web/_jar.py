"""Which cookies carry a browser's token, so that no answer that arrives late takes one away.

A browser asks several things at once and its answers overtake each other. Were there one cookie, the answer
that was made first could arrive last and put an older token over a newer one: a write that had been
acknowledged would not be seen. Whoever makes the answers cannot know how they arrive, so keeping what was
issued last (in a process, or by process) is not enough. Hence:

    1  every answer that has something to say sets a cookie of a NEW name, `springtide-c-<process><number>`
    2  the same answer removes the cookies that its request brought, because the new one says all they said
    3  a request's token is the maximum of all the cookies that it brings
    4  an answer that has read on from the witness that its request brought, and has nothing else to say, says
       that again: another answer may have covered that witness and removed it before this one read. All such
       answers to the same cookies say it under one name (`again`), so however many they are, it is one more

A name is never used twice, so an answer can only remove what it covers: whatever the order of arrival, each
token the browser was ever given is in the jar, or a later one that was made from it, until it has expired
and says nothing any more. A browser that asks one thing at a time has one cookie.

The number of cookies is bounded: an answer that `max_waiting` others of this process are ahead of, without
the browser having come back with any of them, sets the cookie `springtide-c-pin` instead, which says "read
from the primaries for two lifetimes". Everybody who sets it says the same, so its order does not matter.
Names that cannot all be read (`MAX_READ`) pin the request as well. What is remembered of a browser decides
how many cookies it gets and never what it may see, so it may be forgotten: it is bounded by `max_clients`.

Pure, but for the state above and the process's own random name.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection

from springtide.web._seal import Sealed

__all__ = ["MARK", "PIN", "Jar", "again", "read_cookies", "remove_cookie", "set_cookie"]

MARK = b"springtide-c-"
PIN = "springtide-c-pin"
MAX_READ = 32

_PAIR = re.compile(r"(?:^|[;,])[ \t]*(springtide-c-[0-9a-z]{1,24})=([A-Za-z0-9._-]+)")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Jar:
    """The names that this process gives, and what it has given to whom and has not seen again."""

    def __init__(self, *, lifetime: float, max_waiting: int = 12, max_clients: int = 4096) -> None:
        if max_waiting < 1 or max_clients < 1:
            raise ValueError(f"max_waiting and max_clients must be >= 1, got {max_waiting}, {max_clients}")
        self._lifetime = lifetime
        self._max_waiting = max_waiting
        self._max_clients = max_clients
        self._process = "".join(secrets.choice(_DIGITS) for _ in range(8))
        self._count = 0
        self._waiting: dict[str, list[tuple[float, Sealed]]] = {}

    def back(self, sealed: Sealed, now: float) -> None:
        """A browser came with `sealed`: what that covers is not waited for any more."""
        waiting = self._waiting.get(sealed.client)
        if waiting is None:
            return
        left = [one for one in waiting if one[0] > now - self._lifetime and not sealed.covers(one[1], now)]
        if left:
            self._waiting[sealed.client] = left
        else:
            del self._waiting[sealed.client]

    def name(self, sealed: Sealed, now: float) -> str | None:
        """A name for the cookie that will carry `sealed`; None: too many are under way, set `PIN` instead."""
        waiting = self._waiting.pop(sealed.client, [])
        self._waiting[sealed.client] = waiting  # who was served last is forgotten last
        if len(waiting) >= self._max_waiting:
            if waiting[0][0] > now - self._lifetime:
                return None
            waiting[:] = [one for one in waiting if one[0] > now - self._lifetime]
        waiting.append((now, sealed))
        if len(self._waiting) > self._max_clients:
            del self._waiting[next(iter(self._waiting))]
        self._count += 1
        return f"springtide-c-{self._process}{_base36(self._count)}"


def again(names: Collection[str]) -> str:
    """The name of the cookie that says once more what the cookies of these names say together."""
    return MARK.decode() + hashlib.blake2b(" ".join(sorted(names)).encode(), digest_size=10).hexdigest()


def read_cookies(header: bytes) -> tuple[list[tuple[str, str]], bool]:
    """Names and values of our cookies in a Cookie header, and whether there were more than we read."""
    found: list[tuple[str, str]] = []
    for pair in _PAIR.finditer(header.decode("latin-1")):
        if len(found) == MAX_READ:
            return found, True
        found.append((pair[1], pair[2]))
    return found, False


def set_cookie(name: str, value: str, *, max_age: float, secure: bool) -> bytes:
    attributes = f"Max-Age={int(max_age)}; Path=/; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"
    return f"{name}={value}; {attributes}".encode("ascii")


def remove_cookie(name: str, *, secure: bool) -> bytes:
    return set_cookie(name, "", max_age=0, secure=secure)


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits
