"""What an answer is made of, and who besides its client may therefore keep it.

    ArticlePolicy = HttpPolicy(public=True, max_age=0, edge_max_age=30)

A policy is declared, by a route or by a class of cached values. While the answer is made, every layer writes
into the request's `Provenance` what went into it: the cached values, and the first reason why it is for its
client alone (it depends on who asks). Whoever sends the answer asks `Provenance.granted` what is left of the
policy. Reasons are only added and policies are only narrowed: no order of events makes an answer public that
another order would have kept private.

Pure: nothing here does I/O or reads a clock.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from springtide.errors import ConfigurationError

__all__ = ["AS_USED", "MAX_KEYS", "PRIVATE", "HttpPolicy", "Provenance"]

MAX_KEYS = 64
"""Values of one class that an answer names for a purge one by one; with more it names `class:*`."""

MAX_SECONDS = 10 * 366 * 86_400.0

PERSONAL = frozenset({"*", "authorization", "cookie", "set-cookie"})

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPolicy:
    """How long an answer, or the answers made of a value, may be kept by HTTP caches. All in whole seconds.

    public:       shared caches (an edge, a content network) may keep it and give it to anybody. False: only
                  the client's own cache may.
    max_age:      how long the client's own cache may use it without asking; 0: it asks each time (ETag, 304).
    edge_max_age: the same for shared caches; None: as `max_age`.
    stale_while_revalidate: how much longer they may use it while they ask.
    stale_if_error: how much longer while we fail to answer; as with a class's own, this is staleness beyond
                  the budget, in an emergency.
    vary:         request headers that the answer depends on, such as `Accept-Language`. Not who asks: what
                  depends on that is not public.

    Raises ConfigurationError.
    """

    public: bool = False
    max_age: float = 0.0
    edge_max_age: float | None = None
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    vary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shared = {
            "edge_max_age": self.edge_max_age,
            "stale_while_revalidate": self.stale_while_revalidate,
            "stale_if_error": self.stale_if_error,
        }
        for name, seconds in {"max_age": self.max_age, **shared}.items():
            if seconds is not None and not (0 <= seconds <= MAX_SECONDS and float(seconds).is_integer()):
                raise ConfigurationError(f"http: {name} must be whole seconds >= 0, got {seconds}")
        if not self.public:
            for name, seconds in shared.items():
                if seconds:
                    raise ConfigurationError(f"http: {name} is for shared caches, so it needs public=True")
        for name in self.vary:
            if name.lower() in PERSONAL or _TOKEN.fullmatch(name) is None:
                raise ConfigurationError(
                    f"http: vary lists names of request headers that do not say who asks, got {name!r}"
                )

    @property
    def edge_seconds(self) -> float:
        """How long shared caches may use an answer without asking."""
        if not self.public:
            return 0.0
        return self.max_age if self.edge_max_age is None else self.edge_max_age

    @property
    def staleness(self) -> float:
        """Seconds by which HTTP caches may add to a value's age: the edge's part of a class's budget.

        A client takes over the age that a shared cache tells (`Age`), so the two do not add up.
        """
        return max(self.max_age, self.edge_seconds) + self.stale_while_revalidate

    def narrowed(self, other: HttpPolicy) -> HttpPolicy:
        """What both allow."""
        public = self.public and other.public
        return HttpPolicy(
            public=public,
            max_age=min(self.max_age, other.max_age),
            edge_max_age=min(self.edge_seconds, other.edge_seconds) if public else None,
            stale_while_revalidate=min(self.stale_while_revalidate, other.stale_while_revalidate)
            if public
            else 0.0,
            stale_if_error=min(self.stale_if_error, other.stale_if_error) if public else 0.0,
            vary=tuple(dict.fromkeys((*self.vary, *other.vary))),
        )


PRIVATE = HttpPolicy()
"""For its client alone, who asks each time."""

AS_USED = HttpPolicy(
    public=True,
    max_age=MAX_SECONDS,
    stale_while_revalidate=MAX_SECONDS,
    stale_if_error=MAX_SECONDS,
)
"""Of a route that leaves it to the classes of the values it uses; without any it is private."""


class Provenance:
    """What one answer is made of; written by every layer while the answer is made.

    policy:   what the route declared; None: it declared nothing, and its own headers stand.
    ignored:  reasons that the route has said to be none.
    age:      seconds for which the oldest value in it may have been out of date by now.
    etag:     the answer's entity tag, when the handler knows; None: it is made of the body, if that is small.
    known:    what the client has already: the value of If-None-Match.
    unpoliced: a class of which a value was used and that says nothing about HTTP caches.
    sealed:   the answer has begun and is public: it is too late for a reason.
    """

    __slots__ = (
        "_blind", "_keys", "_limit", "_reasons", "age", "etag", "ignored", "known", "policy", "sealed",
        "unpoliced",
    )  # fmt: skip

    def __init__(self) -> None:
        self.policy: HttpPolicy | None = None
        self.ignored: Collection[str] = ()
        self.age = 0.0
        self.etag: bytes | None = None
        self.known: bytes | None = None
        self.unpoliced: str | None = None
        self.sealed = False
        self._limit: HttpPolicy | None = None
        self._reasons: dict[str, None] = {}
        self._blind = False
        self._keys: dict[str, dict[str, None] | None] = {}

    def restrict(self, reason: str) -> None:
        """The answer depends on who asks.

        Raises ConfigurationError while a public answer is on its way: cut off in the middle, nobody keeps it.
        """
        if self._blind:
            return
        if self.sealed and reason not in self.ignored:
            raise ConfigurationError(
                f"a public answer has begun and now depends on who asks ({reason}):"
                " ask before it begins, or declare it private"
            )
        self._reasons[reason] = None

    def outdated(self) -> None:
        """A value was given out in an emergency that may be older than its budget: nobody else keeps that."""
        if not self.sealed:  # else it is on its way, and that is no fault of whoever makes it
            self._reasons["stale"] = None

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """For a layer that looks who asks: that somebody looked says nothing of the answer yet."""
        before, self._blind = self._blind, True
        try:
            yield
        finally:
            self._blind = before

    @property
    def personal(self) -> str | None:
        """The first reason why the answer is for its client alone; None: none is known."""
        return next((reason for reason in self._reasons if reason not in self.ignored), None)

    def used(
        self,
        name: str,
        key: str,
        *,
        age: float = 0.0,
        tags: Iterable[str] = (),
        policy: HttpPolicy | None = None,
    ) -> None:
        """A cached value went into the answer: class, key, the tags it carries, and the class's policy.

        `age` is how long it may have been out of date, as far as the cache can prove. Raises
        ConfigurationError while a public answer is on its way that says more than this one's policy allows.
        """
        before = self.granted()[0] if self.sealed else None
        self.age = max(self.age, age)
        if policy is None:
            self.unpoliced = self.unpoliced or name
        elif policy is not self._limit:
            self._limit = policy if self._limit is None else self._limit.narrowed(policy)
        keys = self._keys.setdefault(name, {})
        if keys is not None:
            keys[key] = None
            keys.update(dict.fromkeys(tags))
            if len(keys) > MAX_KEYS:
                self._keys[name] = None
        if before is not None and self.granted()[0] != before:
            raise ConfigurationError(
                f"a public answer has begun and now uses a value of {name}, which may be kept for less than"
                " the answer says: use it before the answer begins, or declare less"
            )

    def late(self, seconds: float) -> None:
        """The answer goes out so long after its request came: what is in it is that much older at most."""
        if self._keys:
            self.age += seconds

    @property
    def keys(self) -> list[str]:
        """What a purge finds the answer by: keys and tags of the values used, or `class:*` for too many."""
        found: dict[str, None] = {}
        for name, keys in self._keys.items():
            found.update({f"{name}:*": None} if keys is None else keys)
        return list(found)

    @property
    def classes(self) -> list[str]:
        """The same by classes alone."""
        return [f"{name}:*" for name in self._keys]

    def granted(self) -> tuple[HttpPolicy | None, str | None]:
        """The policy that the answer may have, and why it is less than was declared (None: it is not).

        (None, None) for a route that declared nothing.
        """
        policy = self.policy
        if policy is None:
            return None, None
        reason = None
        if policy is AS_USED and self._limit is None:
            policy, reason = PRIVATE, "no value with an http policy was used"
        elif self.unpoliced is not None and policy.staleness:
            policy, reason = HttpPolicy(vary=policy.vary), f"class {self.unpoliced} has no http policy"
        elif self._limit is not None:
            narrowed = policy.narrowed(self._limit)
            reason = "a value's policy is private" if policy.public and not narrowed.public else None
            policy = narrowed
        personal = self.personal
        if personal is not None and (policy.public or (policy.max_age and "stale" in self._reasons)):
            policy, reason = HttpPolicy(vary=policy.vary), personal
        return policy, reason
