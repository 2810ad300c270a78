"""Passwords and tokens: Argon2id in a thread with market's parameters, JWTs signed by HMAC-SHA256.

A token is checked without a look-up, as market's are.
"""

from __future__ import annotations

import os
import time
from typing import Annotated

import argon2
import jwt
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Header, Request

from bench.twin.errors import Refusal

__all__ = ["Anybody", "Passwords", "Somebody", "Tokens"]


class Passwords:
    """At most as many hashes at once as there are cores."""

    def __init__(self) -> None:
        self._hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
        self._limiter = CapacityLimiter(len(os.sched_getaffinity(0)))

    async def hash(self, password: str) -> str:
        return await to_thread.run_sync(self._hasher.hash, password, limiter=self._limiter)


class Tokens:
    """`lifetime` in seconds."""

    def __init__(self, secret: str, *, lifetime: int) -> None:
        self._secret = secret
        self._lifetime = lifetime

    def issue(self, user_id: int) -> str:
        now = int(time.time())
        claims = {"sub": str(user_id), "iat": now, "exp": now + self._lifetime}
        return jwt.encode(claims, self._secret, algorithm="HS256")

    def verify(self, token: str) -> int:
        """The user's id. Raises jwt.InvalidTokenError."""
        claims = jwt.decode(token, self._secret, algorithms=["HS256"], options={"require": ["exp", "sub"]})
        return int(claims["sub"])


async def _anybody(request: Request, authorization: Annotated[str | None, Header()] = None) -> int | None:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() not in ("token", "bearer") or not token:
        return None
    tokens: Tokens = request.app.state.tokens
    try:
        return tokens.verify(token)
    except jwt.InvalidTokenError:
        raise Refusal(401, {"token": ["is invalid"]}) from None


Anybody = Annotated[int | None, Depends(_anybody)]


async def _somebody(viewer: Anybody) -> int:
    if viewer is None:
        raise Refusal(401, {"token": ["is missing"]})
    return viewer


Somebody = Annotated[int, Depends(_somebody)]
