"""Who asks: `Authorization: Token <jwt>`, or `Bearer <jwt>`, checked without a look-up.

Only tokens issued for this API pass (scope `api`): they live longer than a browser session's, because
RealWorld has no refresh. Another scheme is nobody's business here and counts as no token, and so do `null`
and `undefined`, which is what front ends send that have no token to send. A token that does not pass is
refused (401) also where none is needed, so that a client learns that it is signed out; except where the
specification knows no 401, there it counts as none.
"""

from __future__ import annotations

from starlette.requests import Request

from market.realworld.answers import Unauthorized
from springtide.context import current
from springtide.errors import InvalidToken
from springtide.identity.tokens import AccessTokens

__all__ = ["SCOPE", "Viewers"]

SCOPE = "api"

SCHEMES = frozenset({"token", "bearer"})

NOBODY = frozenset({"", "null", "undefined"})


class Viewers:
    """Tokens in and out; `lifetime` in seconds."""

    def __init__(self, tokens: AccessTokens, *, lifetime: float) -> None:
        self._tokens = tokens
        self._lifetime = lifetime

    def token(self, user: int) -> str:
        return self._tokens.issue(user, scopes=[SCOPE], lifetime=self._lifetime)

    def optional(self, request: Request) -> int | None:
        """The id of who asks, None for nobody. Raises Unauthorized for a token that does not pass."""
        scheme, _, token = request.headers.get("authorization", "").strip().partition(" ")
        token = token.strip()
        if scheme.lower() not in SCHEMES or token.lower() in NOBODY:
            return None
        try:
            identity = self._tokens.verify(token).identity
        except InvalidToken as error:
            raise Unauthorized("token", "is invalid") from error
        if SCOPE not in identity.scopes:
            raise Unauthorized("token", "is invalid")
        if (context := current()) is not None:
            context.identity = identity
        return identity.subject

    def lenient(self, request: Request) -> int | None:
        """The id of who asks, None for nobody and for a token that does not pass."""
        try:
            return self.optional(request)
        except Unauthorized:
            return None

    def required(self, request: Request) -> int:
        """The id of who asks. Raises Unauthorized for nobody."""
        viewer = self.optional(request)
        if viewer is None:
            raise Unauthorized("token", "is missing")
        return viewer
